"""Quantisation-aware training: it rounds like the written file, and recovers what rounding afterwards loses."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from forwardpass.convert import convert_to_onnx
from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Variant
from forwardpass.errors import NothingToQuantise
from forwardpass.lean import LeanSettings, TrainSettings, round_copy, train_module
from forwardpass.lean.planning import num_weight_bits
from forwardpass.lean.variants import LeanWork, make_lean_variants
from forwardpass.optimize.candidates import Workshop, blueprints, build
from forwardpass.optimize.evaluation import answer
from forwardpass.optimize.probe import int8_saturates
from forwardpass.profile import describe_machine
from tests.integration import lean_modules
from tests.integration.test_search import silent

NUM_BITS = num_weight_bits(describe_machine().instruction_sets)


class Digits(nn.Module):
    """`pixels [batch, 1, 8, 8]` -> `scores [batch, 10]`: four narrow convolutions."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1 if first else 8, 8, 3, padding=1) for first in (True, False, False, False)]
        self.body = nn.Sequential(*itertools.chain.from_iterable((it, nn.ReLU()) for it in convolutions))
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.head(self.body(pixels))}


def digits() -> SampleSplits:
    images, classes = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)

    def part(rows: slice) -> Samples:
        return Samples(groups=(SampleGroup(inputs={"pixels": pixels[rows]}, labels=classes[rows].astype(np.int64)),))

    return SampleSplits(
        calibration=part(slice(0, 900)), validation=part(slice(900, 1350)), test=part(slice(1350, None))
    )


def unlabelled(samples: Samples) -> Samples:
    return Samples(groups=tuple(SampleGroup(inputs=group.inputs) for group in samples.groups))


def make_uneven(network: Digits, *, spread: float) -> None:
    """Scale channels and undo it in the layer behind: the same function, with channels of very different sizes.

    Folded normalisation does this to MobileNets (Nagel et al., 2019, "Data-Free Quantization", figure 2): one range for
    a tensor then leaves its small channels a few levels.
    """
    generator = np.random.default_rng(1)
    convolutions = [part for part in network.body if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for before, behind in itertools.pairwise(convolutions):
            exponents = generator.uniform(-1, 1, before.out_channels)
            factors = torch.tensor(spread**exponents, dtype=torch.float32)
            before.weight.mul_(factors[:, None, None, None])
            assert before.bias is not None
            before.bias.mul_(factors)
            behind.weight.div_(factors[None, :, None, None])


def accuracy(answers: Array, samples: Samples) -> float:
    return float((answers.argmax(1) == samples.groups[0].labels).mean())


def quantised(variant: Variant, calibration: Samples, folder: Path) -> Variant:
    """Write INT8 static as every search does."""
    folder.mkdir()
    workshop = Workshop(baseline=variant, calibration=calibration, folder=folder, reduce_range=int8_saturates())
    return build(next(plan for plan in blueprints() if plan.name == "int8-static"), workshop)


@pytest.mark.timeout(300)
def test_where_rounding_afterwards_misses_the_floor_rounding_in_training_keeps_it(tmp_path: Path) -> None:
    """The teacher is the network in float, the samples have no labels, the file is the one that every search writes."""
    splits = digits()
    torch.manual_seed(0)
    network = Digits()
    training = TrainSettings(num_epochs=12, learning_rate=3e-3)
    train_module(network, splits.calibration, settings=training, progress=silent)
    make_uneven(network, spread=30)
    few, floor = splits.calibration.head(128), QualityFloor.parse("4%")
    conversion = convert_to_onnx(network, few, out=tmp_path / "float.onnx", progress=silent)

    def score(variant: Variant) -> float:
        return accuracy(answer(variant, splits.test).groups[0]["scores"], splits.test)

    limit = floor.limit(score(conversion.variant), higher_is_better=True)
    afterwards = score(quantised(conversion.variant, few, tmp_path / "afterwards"))
    assert afterwards < limit - 0.02
    rounded = round_copy(network, few, num_weight_bits=NUM_BITS).module.eval()
    with torch.no_grad():
        simulated = rounded(torch.tensor(splits.test.groups[0].inputs["pixels"]))["scores"].numpy()
    assert accuracy(simulated, splits.test) == pytest.approx(afterwards, abs=0.03), "the file rounds like the training"

    work = LeanWork(
        teacher=network,
        splits=SampleSplits(calibration=few, validation=splits.validation, test=splits.test),
        lessons=unlabelled(splits.calibration),
        metric=METRICS["accuracy"],
        floor=floor,
        settings=LeanSettings(quantise_aware=True, training=TrainSettings(num_epochs=12)),
        folder=tmp_path,
        checkpoints=tmp_path / "training",
    )
    (aware,) = make_lean_variants(work, progress=silent)
    assert [step.operation for step in aware.recipe.steps] == ["round-in-training", "train", "convert"]
    assert score(quantised(aware, few, tmp_path / "aware")) >= limit


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    samples = unlabelled(digits().calibration.head(64))
    network = lean_modules.build().eval()
    settings = TrainSettings(num_epochs=4, batch_size=16, checkpoint_s=0.0)

    def train(checkpoint: Path | None, *, num_steps: int = 1000) -> nn.Module:
        seen = itertools.count(1)

        def stop_after(text: str, *, done: float) -> None:
            if next(seen) > num_steps:
                raise KeyboardInterrupt

        rounded = round_copy(network, samples, num_weight_bits=8)
        train_module(
            rounded.module, samples, teacher=network, settings=settings, checkpoint=checkpoint, progress=stop_after
        )
        return rounded.as_trained()

    whole = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "c.safetensors", num_steps=7)
    torn = train(tmp_path / "c.safetensors")
    for one, other in zip(whole.state_dict().values(), torn.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_source_stays_as_it_is_and_the_trained_copy_rounds_no_more() -> None:
    network = lean_modules.build().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    samples = unlabelled(digits().calibration.head(32))
    pixels = torch.tensor(samples.groups[0].inputs["pixels"])
    rounded = round_copy(network, samples, num_weight_bits=8)
    assert "depthwise" not in rounded.names, "the writer leaves depthwise kernels in float"
    assert not [part for part in rounded.module.modules() if isinstance(part, nn.BatchNorm2d)], "they are folded"
    with torch.no_grad():
        coarse = rounded.module(pixels)["scores"]
        plain = rounded.as_trained()(pixels)["scores"]
        expected = network(pixels)["scores"]
    assert 1e-4 < float((coarse - expected).norm() / expected.norm()) < 0.1
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_with_nothing_to_round_is_told() -> None:
    samples = unlabelled(digits().calibration.head(8))
    with pytest.raises(NothingToQuantise, match=r"There is nothing to quantise: no nn\.Linear or nn\.Conv"):
        round_copy(nn.Identity(), samples, num_weight_bits=8)
