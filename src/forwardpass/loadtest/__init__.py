"""Load tests: an open-loop generator, the scenarios of MLPerf, and the search for a server's capacity.

`schedules`, `search` and `summary` are pure: when requests are due, which rate to try next, what a run says. `sending`
is the hot path, in a process of its own (`child`, seen from its parent as `generator`); `target` and `tensors` and
`template` make the requests; `running` puts them together.
"""

from forwardpass.loadtest.results import CapacityReport, GoodputPoint, LoadResult, Recovery
from forwardpass.loadtest.running import find_capacity, run_load
from forwardpass.loadtest.schedules import Arrivals
from forwardpass.loadtest.settings import LoadSettings, Scenario, TargetSettings
from forwardpass.loadtest.summary import LoadSummary

__all__ = [
    "Arrivals",
    "CapacityReport",
    "GoodputPoint",
    "LoadResult",
    "LoadSettings",
    "LoadSummary",
    "Recovery",
    "Scenario",
    "TargetSettings",
    "find_capacity",
    "run_load",
]
