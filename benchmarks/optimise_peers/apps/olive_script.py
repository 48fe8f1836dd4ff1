"""What Olive calls from its workflow: the samples, and the score as everybody here defines it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from common import Task
from olive.data.registry import Registry
from olive.evaluator.accuracy import AccuracyScore

_tasks: list[Task] = []


class Samples:
    """Rows without their batch axis, which the data loader adds, and their labels or numbers."""

    def __init__(self, task: Task, split: str) -> None:
        self._rows = [({name: array[0] for name, array in inputs.items()}, label) for inputs, label in task.rows(split)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> Any:
        return self._rows[at]


@Registry.register_dataset(name="peers_samples")
def samples(task_file: str, part: str, **_: Any) -> Samples:
    """Return a split. The first argument of the command line is the file of the task in every program here."""
    sys.argv[1:] = [task_file]
    _tasks.append(Task())
    return Samples(_tasks[-1], part)


def measure(self: AccuracyScore, model_output: Any, target: Any) -> float:
    """Score with the task's metric: a custom metric of Olive 0.13 loses its function when Olive copies its settings."""
    task = _tasks[-1]
    answers, labels = model_output.preds.numpy(), target.numpy().ravel()
    rows = [({"at": np.array(at)}, int(label)) for at, label in enumerate(labels)]
    scores = task.item_scores(lambda inputs: answers[int(inputs["at"])][None], rows)
    return float(np.mean(scores))


AccuracyScore.measure = measure
