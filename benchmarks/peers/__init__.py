"""The parts of `bench_serving_peers.py`: models, rivals, the load, the questions and the report."""
