"""What do half the multiply-adds and a third of the layers buy, and what do they cost?

Two networks learn scikit-learn's digits: a residual CNN on images of 32x32 pixels, whose channels are then pruned to
half of its multiply-adds, and a transformer of six layers over the rows of the 8x8 images, whose student has two. All
become ONNX and are measured in processes of their own, in interleaved rounds, at one row and one thread. One JSON line:

    python benchmarks/bench_lean.py [--rounds 15] [--epochs 6]

Targets: 1.8 times the speed at an accuracy within one percent of the source's; 97 % of the teacher's accuracy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from forwardpass.convert import convert_to_onnx
from forwardpass.core.calls import calls_from_samples
from forwardpass.core.measurement import Measurement
from forwardpass.core.metrics import METRICS, Prediction, Scores, score
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.statistics import measure_ratio
from forwardpass.core.variants import Variant
from forwardpass.lean import (
    PruneSettings,
    StudentSettings,
    TrainSettings,
    distil_module,
    open_student,
    prune_module,
    train_module,
)
from forwardpass.lean.counting import count_multiply_adds, example_of
from forwardpass.profile import ProfileSettings, describe_machine, profile_variants
from forwardpass.runtimes import RuntimeOptions, open_runtime, runtime_versions

NUM_LESSONS, NUM_CALIBRATION = 1000, 160
SIDE = 32
SEED = 7


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(num_outputs)
        self.second = nn.Conv2d(num_outputs, num_outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(num_outputs)
        self.shortcut = nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:  # noqa: D102
        inner = torch.relu(self.first_norm(self.first(hidden)))
        return torch.relu(self.second_norm(self.second(inner)) + self.shortcut(hidden))


class ResidualCnn(nn.Module):
    """`pixels [batch, 1, 32, 32]` -> `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2))
        self.head = nn.Linear(128, 10)

    def forward(self, pixels: Tensor) -> Tensor:  # noqa: D102
        hidden = self.blocks(torch.relu(self.norm(self.stem(pixels))))
        return self.head(hidden.mean((2, 3)))


class RowReader(nn.Module):
    """`pixels [batch, 8, 8]` -> `[batch, 10]`: every row of the image is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 64)
        self.places = nn.Parameter(torch.randn(8, 64) * 0.1)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.encoder(self.rows(pixels) + self.places).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=6, help="of the CNN and of its recovery")
    parser.add_argument("--round-to", type=int, default=16, help="channel counts are multiples of it")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as name:
        pruning = bench_pruning(Path(name), arguments.epochs, arguments.rounds, arguments.round_to)
        distillation = bench_distillation(Path(name), arguments.rounds)
    result = {
        "benchmark": "lean",
        "machine": describe_machine(),
        "versions": dict(runtime_versions()) | {"torch": str(torch.__version__)},
        "pruning": pruning,
        "distillation": distillation,
    }
    print(msgspec.json.encode(result).decode())


def bench_pruning(folder: Path, num_epochs: int, num_rounds: int, round_to: int) -> dict[str, object]:
    """Halve the multiply-adds of the CNN."""
    lessons, test = digits(large=True)
    settings = TrainSettings(num_epochs=num_epochs, learning_rate=3e-3, seed=SEED)
    network = ResidualCnn()
    tell(f"CNN: {train_module(network, lessons, settings=settings, progress=progress)}")
    pruning = prune_module(
        network, lessons.head(NUM_CALIBRATION), settings=PruneSettings(share=0.5, round_to=round_to), progress=progress
    )
    tell(f"pruned: {pruning.groups}")
    unrefined = convert(pruning.module, test, folder / "unrefined.onnx")
    training = TrainSettings(num_epochs=num_epochs, learning_rate=1e-3, seed=SEED)
    tell(f"recovery: {train_module(pruning.module, lessons, teacher=network, settings=training, progress=progress)}")
    before, after = convert(network, test, folder / "cnn.onnx"), convert(pruning.module, test, folder / "pruned.onnx")
    return {
        "multiply_adds_before": pruning.num_multiply_adds_before,
        "multiply_adds_after": pruning.num_multiply_adds,
        "round_to": round_to,
        "share_left": pruning.num_multiply_adds / pruning.num_multiply_adds_before,
        "speed_ratio": speed_ratio(before, after, test, num_rounds),
        "accuracy_before": accuracy(before, test).measure(),
        "accuracy_pruned_only": accuracy(unrefined, test).measure(),
        "accuracy_after": accuracy(after, test).measure(),
        "accuracy_difference": accuracy(after, test).measure_difference(accuracy(before, test)),
        "target_speed_ratio": 1.8,
        "target_accuracy": 0.99 * accuracy(before, test).value,
    }


def bench_distillation(folder: Path, num_rounds: int) -> dict[str, object]:
    """Teach two layers what six know, without labels."""
    lessons, test = digits(large=False)
    teacher = RowReader()
    settings = TrainSettings(num_epochs=25, learning_rate=2e-3, seed=SEED)
    tell(f"teacher: {train_module(teacher, lessons, settings=settings, progress=progress)}")
    unlabelled = Samples(groups=tuple(SampleGroup(inputs=group.inputs) for group in lessons.groups))
    student = open_student(teacher, unlabelled, StudentSettings(num_layers=2), progress=progress)
    untaught = convert(student.module, test, folder / "untaught.onnx")
    made = distil_module(teacher, student, unlabelled, settings=settings, progress=progress)
    tell(f"student: {made.training}")
    before, after = convert(teacher, test, folder / "teacher.onnx"), convert(made.module, test, folder / "student.onnx")
    example = example_of(test)
    kept = accuracy(after, test).value / accuracy(before, test).value
    return {
        "layers": [6, 2],
        "multiply_adds_before": count_multiply_adds(teacher, example),
        "multiply_adds_after": made.num_multiply_adds,
        "speed_ratio": speed_ratio(before, after, test, num_rounds),
        "accuracy_teacher": accuracy(before, test).measure(),
        "accuracy_untaught": accuracy(untaught, test).measure(),
        "accuracy_student": accuracy(after, test).measure(),
        "accuracy_difference": accuracy(after, test).measure_difference(accuracy(before, test)),
        "share_of_accuracy_kept": kept,
        "target_share_of_accuracy_kept": 0.97,
    }


def digits(*, large: bool) -> tuple[Samples, Samples]:
    """Return images to learn from and images to judge by, as they are or enlarged to 32x32."""
    loaded = load_digits()
    pixels = (loaded.images / 16).astype(np.float32)
    if large:
        enlarged = functional.interpolate(torch.tensor(pixels)[:, None], size=(SIDE, SIDE), mode="bilinear")
        pixels = enlarged.numpy()
    order = np.random.default_rng(SEED).permutation(len(pixels))
    parts = order[:NUM_LESSONS], order[NUM_LESSONS:]
    lessons, test = (
        Samples(groups=(SampleGroup(inputs={"pixels": pixels[rows]}, labels=loaded.target[rows]),)) for rows in parts
    )
    return lessons, test


def convert(module: nn.Module, samples: Samples, out: Path) -> Variant:
    """Convert a network, named after its file."""
    return replace(convert_to_onnx(module, samples, out=out, progress=progress).variant, name=out.stem)


def accuracy(variant: Variant, test: Samples) -> Scores:
    """Score an ONNX file on the test images."""
    runtime = open_runtime(variant.format, variant.location, options=RuntimeOptions(num_threads=1))
    outputs = [runtime.run(dict(group.inputs)) for group in test.groups]
    pairs = zip(outputs, test.groups, strict=True)
    return score(
        METRICS["accuracy"], [Prediction(outputs=it, reference=it, labels=group.labels) for it, group in pairs]
    )


def speed_ratio(before: Variant, after: Variant, test: Samples, num_rounds: int) -> Measurement:
    """Return how many times as fast the leaner file answers one row, round against round."""
    settings = ProfileSettings(
        batch_sizes=(1,), thread_counts=(1,), num_rounds=num_rounds, round_s=0.3, num_cold_starts=1, audit_budget_s=0.1
    )
    calls = calls_from_samples(test, settings.batch_sizes)
    profiles = profile_variants([before, after], calls, settings=settings, progress=progress)
    slow, fast = (np.array(profile.best_latency.round_p50_s) for profile in profiles)
    num_pairs = min(len(slow), len(fast))
    return measure_ratio(slow[:num_pairs], fast[:num_pairs])


def progress(text: str, *, done: float) -> None:
    """Say how far it is, now and then."""
    if sys.stderr.isatty():
        print(f"\r{done:4.0%} {text:70.70}", end="", file=sys.stderr)


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
