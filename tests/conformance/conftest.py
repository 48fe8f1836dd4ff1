"""Programs that other environments run are not searched for doctests: what they import is not here."""

collect_ignore = ["kserve_driver.py", "kserve_server.py", "pytriton_server.py"]
