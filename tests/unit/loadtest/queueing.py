"""A server whose capacity is known: Poisson arrivals, one worker, a fixed service time (M/D/1).

The share of requests that stay no longer than a limit has a closed form (Erlang 1909); a trial is simulated by
Lindley's recursion. Neither knows anything of the code under test.
"""

from __future__ import annotations

import math

import numpy as np

from forwardpass.core.tensors import Array


def share_within(rate_per_s: float, service_s: float, limit_s: float) -> float:
    """Return the probability that waiting and service together take no longer than the limit."""
    load = rate_per_s * service_s
    if load >= 1 or limit_s < service_s:
        return 0.0
    wait_s = limit_s - service_s
    terms = []
    for number in range(int(wait_s / service_s) + 1):
        x = rate_per_s * (number * service_s - wait_s)
        terms.append(x**number / math.factorial(number) * math.exp(-x))
    return (1 - load) * math.fsum(terms)


def capacity(service_s: float, limit_s: float, required_share: float) -> float:
    """Return the largest rate at which the share is reached, by bisection."""
    low, high = 0.0, 1 / service_s
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_within(middle, service_s, limit_s) >= required_share else (low, middle)
    return low


def sojourn_s(arrivals_s: Array, service_s: float) -> Array:
    """Return how long each request stays, first come, first served."""
    free_s, sojourns = 0.0, np.empty(len(arrivals_s))
    for at, arrival_s in enumerate(arrivals_s):
        free_s = max(free_s, arrival_s) + service_s
        sojourns[at] = free_s - arrival_s
    return sojourns
