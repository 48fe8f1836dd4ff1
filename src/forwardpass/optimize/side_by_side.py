"""Calls side by side: one thread each, as many at a time as there are cores, with results in the order of the calls.

A call that shares its work among cores waits at every node for the slowest; calls that share nothing do not, and the
last bits of an answer do not depend on how many cores there are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from forwardpass.runtimes.options import num_available_cores

__all__ = ["map_calls"]

SHORT_S = 5e-4
"""A call that takes less is over before another thread has woken up."""

T = TypeVar("T")
R = TypeVar("R")


def map_calls(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield `call(item)` for each item, in order; `call` has to be safe in several threads, as ONNX Runtime's is.

    A few results at most wait to be taken, so that memory stays bounded however many items there are. The first error
    is raised in its turn.
    """
    left = iter(items)
    for item in left:
        start_s = time.perf_counter()
        result = call(item)
        is_short = time.perf_counter() - start_s < SHORT_S
        yield result
        yield from map(call, left) if is_short else _map_in_threads(call, left)


def _map_in_threads(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    num_ahead = num_available_cores()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_ahead, thread_name_prefix="call") as pool:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
