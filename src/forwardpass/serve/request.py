"""A request that waits or runs: its tensors, whom to tell, and how the answers to its parts become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from forwardpass.core.batching import Ticket
from forwardpass.core.tensors import Array
from forwardpass.errors import RequestError

__all__ = ["Answer", "Gathering", "Request", "Result"]

Result: TypeAlias = dict[str, Array] | RequestError
Answer: TypeAlias = Callable[[Result], None]


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Ticket):
    """A ticket with its tensors, and whom to tell.

    `answer` is called once, on the event loop, with the outputs or an error. The outputs are views that are valid
    during the call only.
    """

    tensors: dict[str, Array]
    answer: Answer
    timeout_s: float
    arrived_s: float = 0.0
    is_answered: bool = False
    is_accused: bool = False
    """It was in a batch that ended its worker."""
    whole: Request | None = None
    """The request that this is a part of."""

    def abandon(self) -> None:
        """Note that nobody waits for the answer any more."""
        self.is_abandoned = True


class Gathering:
    """Puts the answers to the parts of one request together; the first error is the error of all."""

    def __init__(self, request: Request, num_parts: int, finish: Callable[[Request, Result], None]) -> None:
        self._request = request
        self._finish = finish
        self._answers: list[dict[str, Array] | None] = [None] * num_parts
        self._parts: list[Request] = []
        self._num_missing = num_parts

    def part(self, number: int, start: int, end: int) -> Request:
        """Return the part with the rows from `start` to `end`."""
        whole = self._request
        part = Request(
            num_rows=min(end, whole.num_rows) - start,
            shape_key=whole.shape_key,
            row_size=whole.row_size,
            family=whole.family,
            deadline_s=whole.deadline_s,
            tensors={name: array[start:end] for name, array in whole.tensors.items()},
            answer=partial(self._on_part, number),
            timeout_s=whole.timeout_s,
            priority=whole.priority,
            arrived_s=whole.arrived_s,
            whole=whole,
        )
        self._parts.append(part)
        return part

    def _on_part(self, number: int, result: Result) -> None:
        if isinstance(result, RequestError):
            self._abandon_parts()
            self._finish(self._request, result)
            return
        if self._request.is_abandoned:
            self._abandon_parts()
            return
        self._answers[number] = {name: array.copy() for name, array in result.items()}
        self._num_missing -= 1
        if self._num_missing == 0:
            self._parts.clear()
            answers = [answer for answer in self._answers if answer is not None]
            whole = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
            self._finish(self._request, whole)

    def _abandon_parts(self) -> None:
        """Let no other part run. They lead back here: the circle would keep all tensors until the collector runs."""
        for part in self._parts:
            part.is_abandoned = True
        self._parts.clear()
