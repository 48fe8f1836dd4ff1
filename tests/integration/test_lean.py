"""Pruned networks answer like ones whose channels are cut by hand; a lost training ends as if it had not been."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forwardpass.convert import TorchSource
from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.errors import CannotPrune, InvalidOption, InvalidSamples, InvalidStudent, NothingGained
from forwardpass.lean import (
    LeanSettings,
    PruneSettings,
    SparsitySettings,
    StudentSettings,
    TrainSettings,
    distil_module,
    open_student,
    prune_module,
    train_module,
    zero_weights,
)
from forwardpass.lean.counting import count_multiply_adds, example_of
from forwardpass.lean.dependencies import channel_groups, without_channels
from forwardpass.lean.making import lean_variants
from forwardpass.lean.sparsity import mask_zeros
from forwardpass.samples import load_splits
from tests.integration import lean_modules

ROOT = Path(__file__).parents[2]


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1 + 1e-9


def pixels(num_rows: int = 24, *, labels: bool = False) -> Samples:
    generator = np.random.default_rng(3)
    inputs = {"pixels": generator.standard_normal((num_rows, 1, 8, 8)).astype(np.float32)}
    return Samples(groups=(SampleGroup(inputs=inputs, labels=generator.integers(0, 10, num_rows) if labels else None),))


def words() -> Samples:
    generator = np.random.default_rng(4)
    lengths = (5, 7)
    groups = [SampleGroup(inputs={"ids": generator.integers(0, 20, (12, length))}) for length in lengths]
    return Samples(groups=tuple(groups))


def scores(module: nn.Module, samples: Samples) -> torch.Tensor:
    with torch.no_grad():
        returned = module.eval()(**{name: torch.tensor(it) for name, it in samples.groups[0].inputs.items()})
    return returned["scores"] if isinstance(returned, dict) else returned


def weights(module: nn.Module, name: str) -> torch.Tensor:
    weight = module.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def test_a_pruned_network_answers_like_the_original_with_the_lost_channels_silenced() -> None:
    """The oracle zeroes what reads the channels, in the full network, and knows nothing of dependency graphs."""
    original = lean_modules.build().eval()
    pruned, reason = without_channels(original, "inner.0", 16, example_of(pixels()))
    assert reason == ""
    kept, full = weights(pruned, "inner.0"), weights(original, "inner.0")
    lost = [row for row in range(32) if not any(torch.equal(full[row], it) for it in kept)]
    assert len(lost) == 16
    silenced = copy.deepcopy(original)
    with torch.no_grad():
        weights(silenced, "inner.2")[:, lost] = 0
    torch.testing.assert_close(scores(pruned, pixels()), scores(silenced, pixels()), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(scores(pruned, pixels()), scores(original, pixels()), atol=1e-4)


def test_the_channels_of_a_skip_connection_go_together_and_those_of_the_output_stay() -> None:
    module = lean_modules.build().eval()
    before = scores(module, pixels()).clone()
    pruning = prune_module(module, pixels(), settings=PruneSettings(share=0.7, round_to=8), progress=silent)
    small = pruning.module
    width = small.get_submodule("head").in_features
    assert small.get_submodule("stem.0").out_channels == width
    assert small.get_submodule("inner.2").out_channels == width
    assert small.get_submodule("depthwise").groups == width
    assert pruning.num_multiply_adds <= 0.3 * pruning.num_multiply_adds_before
    assert all(group.num_channels % 8 == 0 < group.num_channels for group in pruning.groups)
    assert [(it.name, it.reason) for it in pruning.skipped] == [
        ("head", "its channels are those of the output 'scores'")
    ]
    assert torch.equal(scores(module, pixels()), before)
    assert scores(small, pixels()).shape == before.shape


def test_without_a_multiple_narrow_layers_are_pruned_on_every_processor() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(pixels)))

    samples = Samples(groups=(SampleGroup(inputs={"pixels": np.ones((4, 8), np.float32)}),))
    pruning = prune_module(Narrow().eval(), samples, settings=PruneSettings(share=0.5), progress=silent)
    assert pruning.round_to == 8
    assert [it.num_channels for it in pruning.groups] == [8]


def test_multiply_adds_are_those_of_the_arithmetic() -> None:
    module = lean_modules.build()
    by_hand = 64 * 9 * 32 + 2 * 64 * 9 * 32 * 32 + 64 * 9 * 32 + 32 * 10
    assert count_multiply_adds(module.eval(), example_of(pixels())) == by_hand


def test_channels_that_reshape_counts_are_rolled_back() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.first(pixels)).reshape(-1, 4, 8).transpose(1, 2).reshape(-1, 32)
            return self.third(torch.relu(self.second(hidden)))

    samples = Samples(groups=(SampleGroup(inputs={"pixels": np.ones((4, 8), np.float32)}),))
    module = Fixed().eval()
    pruning = prune_module(module, samples, settings=PruneSettings(share=0.3), progress=silent)
    assert "first" in {it.name for it in pruning.skipped}
    assert [it.name for it in pruning.groups] == ["second"]
    assert scores(pruning.module, samples).shape == (4, 4)
    with pytest.raises(InvalidOption, match=r"as they are: first: with fewer channels there it raises RuntimeError"):
        prune_module(module, samples, settings=PruneSettings(share=0.95), progress=silent)


def test_feed_forward_layers_of_a_transformer_can_be_pruned() -> None:
    module = lean_modules.build_encoder().eval()
    pruning = prune_module(module, words(), settings=PruneSettings(share=0.2), progress=silent)
    assert pruning.num_multiply_adds <= 0.8 * pruning.num_multiply_adds_before
    assert scores(pruning.module, words()).shape == (12, 3)


def test_more_than_can_go_is_refused_with_what_could() -> None:
    with pytest.raises(InvalidOption, match=r"'99%' for --prune: expected at most 9\d%, which is what all groups"):
        prune_module(lean_modules.build(), pixels(), settings=PruneSettings(share=0.99), progress=silent)


def test_as_much_goes_as_the_floor_allows() -> None:
    module = lean_modules.build().eval()
    asked: list[int] = []

    def holds(pruned: nn.Module) -> bool:
        asked.append(count_multiply_adds(pruned, example_of(pixels())))
        return asked[-1] > 600_000

    settings = PruneSettings(share=None)
    pruning = prune_module(module, pixels(), settings=settings, holds=holds, progress=silent)
    assert pruning.num_multiply_adds == min(count for count in asked if count > 600_000)
    with pytest.raises(NothingGained, match="not even by one step; allow a larger --max-drop"):
        prune_module(module, pixels(), settings=settings, holds=lambda _: False, progress=silent)


def test_a_network_that_cannot_be_followed_is_one_sentence() -> None:
    class Constant(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.detach().sum((2, 3))

    with pytest.raises(CannotPrune, match=r"^Cannot prune 'Constant': .*Try --distill with a smaller student"):
        prune_module(Constant(), pixels(), settings=PruneSettings(), progress=silent)


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_smallest_weights_become_zero_and_stay_zero_in_training(per_layer: bool) -> None:
    module = lean_modules.build()
    zeroing = zero_weights(module, SparsitySettings(share=0.8, per_layer=per_layer))
    assert zeroing.share == pytest.approx(0.8, abs=0.01)
    assert zeroing.compressed_bytes < 0.5 * zeroing.compressed_bytes_before
    kept = [it for it in zeroing.module.parameters() if it.ndim >= 2]
    zeros = [it == 0 for it in kept]
    if per_layer:
        assert all(float(it.float().mean()) == pytest.approx(0.8, abs=0.05) for it in zeros)
    else:
        all_sizes = torch.cat([it.detach().abs().reshape(-1) for it in module.parameters() if it.ndim >= 2])
        least_kept = min(float(it.detach()[it != 0].abs().min()) for it in kept)
        assert least_kept >= float(all_sizes.quantile(0.79))
    mask_zeros(zeroing.module)
    settings = TrainSettings(num_epochs=2)
    train_module(zeroing.module, pixels(), teacher=module, settings=settings, progress=silent)
    assert all(torch.equal(it == 0, before) for it, before in zip(kept, zeros, strict=True))


def test_training_needs_labels_or_a_teacher() -> None:
    with pytest.raises(InvalidSamples, match="no labels, and there is no teacher to learn from"):
        train_module(lean_modules.build(), pixels(), settings=TrainSettings(), progress=silent)


def test_a_student_that_answers_otherwise_is_refused() -> None:
    teacher = lean_modules.build().eval()
    wrong = StudentSettings(reference="tests.integration.lean_modules:build_wrong")
    with pytest.raises(InvalidStudent, match=r"output 'output' has shape \[2, 9\], the source's 'scores' \[2, 10\]"):
        open_student(teacher, pixels(), wrong, progress=silent)
    other = StudentSettings(reference="tests.integration.lean_modules:build_encoder")
    with pytest.raises(InvalidStudent, match=r"forward\(\) raised TypeError .* Give it the arguments"):
        open_student(teacher, pixels(), other, progress=silent)
    with pytest.raises(InvalidStudent, match="no ModuleList or Sequential of layers that are all alike"):
        open_student(teacher, pixels(), StudentSettings(num_layers=1), progress=silent)
    with pytest.raises(InvalidOption, match=r"fewer than the 6 layers of 'encoder\.layers'"):
        open_student(lean_modules.build_encoder(), words(), StudentSettings(num_layers=6), progress=silent)


def test_a_student_starts_from_every_third_layer_and_comes_nearer_to_its_teacher() -> None:
    teacher = lean_modules.build_encoder().eval()
    student = open_student(teacher, words(), StudentSettings(num_layers=2), progress=silent)
    assert student.pairs == (("encoder.layers.2", "encoder.layers.0"), ("encoder.layers.5", "encoder.layers.1"))
    ours, theirs = student.module.state_dict(), teacher.state_dict()
    assert torch.equal(ours["encoder.layers.0.linear1.weight"], theirs["encoder.layers.2.linear1.weight"])
    before = (scores(student.module, words()) - scores(teacher, words())).norm()
    settings = TrainSettings(num_epochs=30, batch_size=6)
    made = distil_module(teacher, student, words(), settings=settings, progress=silent)
    after = (scores(made.module, words()) - scores(teacher, words())).norm()
    assert after < 0.5 * before
    assert made.num_multiply_adds < 0.4 * made.num_multiply_adds_teacher


def test_a_student_of_another_kind_learns_from_labels_too() -> None:
    teacher = lean_modules.build().eval()
    small = StudentSettings(reference="tests.integration.lean_modules:build_small")
    student = open_student(teacher, pixels(), small, progress=silent)
    losses = [
        distil_module(
            teacher, student, pixels(labels=True), settings=TrainSettings(num_epochs=number), progress=silent
        ).training.loss
        for number in (1, 40)
    ]
    assert losses[1] < losses[0]


class _Lost(Exception):
    """A process that ends in the middle."""


@pytest.mark.parametrize("lost_at", [1, 7, 8, 19, 23])
def test_a_lost_training_ends_with_the_same_weights(lost_at: int, tmp_path: Path) -> None:
    """Dropout, the order of the rows, the optimiser and the rate are all taken up where they were."""
    settings = TrainSettings(num_epochs=6, batch_size=6, checkpoint_s=0)
    teacher = lean_modules.build_encoder()
    whole, torn = lean_modules.Encoder(2), lean_modules.Encoder(2)
    torn.load_state_dict(whole.state_dict())
    start = copy.deepcopy(whole.state_dict())
    train_module(whole, words(), teacher=teacher, settings=settings, progress=silent)
    num_calls = 0

    def lose(text: str, *, done: float) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > lost_at:
            raise _Lost

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(_Lost):
        train_module(torn, words(), teacher=teacher, settings=settings, checkpoint=path, progress=lose)
    torn.load_state_dict(start)
    torch.manual_seed(lost_at)
    training = train_module(torn, words(), teacher=teacher, settings=settings, checkpoint=path, progress=silent)
    assert training.num_resumed == lost_at
    assert training.num_steps == 24
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), torn.parameters(), strict=True))


def test_a_checkpoint_of_another_training_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for seed in (0, 1):
        settings = TrainSettings(num_epochs=1, seed=seed)
        module = lean_modules.build()
        train_module(module, pixels(labels=True), settings=settings, checkpoint=path, progress=silent)
    again = train_module(lean_modules.build(), pixels(labels=True), settings=settings, checkpoint=path, progress=silent)
    assert again.num_resumed == again.num_steps
    path.write_bytes(path.read_bytes()[:50])
    torn = train_module(lean_modules.build(), pixels(labels=True), settings=settings, checkpoint=path, progress=silent)
    assert torn.num_resumed == 0


KILLED = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from forwardpass.lean import TrainSettings, train_module
from tests.integration import lean_modules
from tests.integration.test_lean import pixels
def progress(text, *, done):
    pass
module = lean_modules.build()
settings = TrainSettings(num_epochs=200, checkpoint_s=0)
done = train_module(module, pixels(labels=True), settings=settings, checkpoint=Path(sys.argv[1]), progress=progress)
save_file(module.state_dict(), sys.argv[2])
print(done.num_resumed)
"""


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        checkpoint = tmp_path / f"{name}-checkpoint.safetensors"
        return [sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path / f"{name}.safetensors")]

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    whole = subprocess.run(command("whole"), capture_output=True, text=True, check=True, env=environment)
    killed = subprocess.Popen(command("torn"), env=environment)
    while not (tmp_path / "torn-checkpoint.safetensors").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    torn = subprocess.run(command("torn"), capture_output=True, text=True, check=True, env=environment)
    assert whole.stdout == "0\n"
    assert int(torn.stdout) > 0
    assert (tmp_path / "torn.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_groups_are_found_in_the_order_of_the_layers() -> None:
    found = [(group.name, group.num_channels) for group in channel_groups(lean_modules.build(), example_of(pixels()))]
    assert [name for name, _ in found][-1] == "head"
    assert ("inner.0", 32) in found


def test_the_same_wishes_make_the_same_files_again(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    images = generator.standard_normal((60, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", pixels=images)
    recipes = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        splits = load_splits(str(tmp_path / "samples.npz"))
        source = TorchSource(reference="tests.integration.lean_modules:build")
        asked = LeanSettings(
            prune=PruneSettings(share=0.5),
            sparsity=SparsitySettings(share=0.5),
            student=StudentSettings(reference="tests.integration.lean_modules:build_small"),
            training=TrainSettings(num_epochs=2),
        )
        with lean_variants(
            source,
            splits,
            METRICS["cosine"],
            lessons=splits.calibration,
            folder=tmp_path / folder,
            checkpoints=tmp_path / folder / "training",
            floor=QualityFloor.parse("1%"),
            settings=asked,
            opset=None,
            axes=None,
            progress=silent,
        ) as made:
            assert [variant.name for variant in made] == ["pruned-50", "sparse-50", "distilled"]
            recipes.append([variant.recipe for variant in made])
        assert sorted(it.name for it in (tmp_path / folder).iterdir()) == [
            "distilled.onnx",
            "pruned-50.onnx",
            "sparse-50.onnx",
        ]
    assert recipes[0] == recipes[1]
    assert [step.operation for step in recipes[0][0].steps] == ["prune-channels", "train", "convert"]
    zeroed = dict(recipes[0][1].steps[0].parameters)
    assert int(zeroed["compressed_bytes"]) < 0.8 * int(zeroed["compressed_bytes_of_source"])
    for file in ("distilled.onnx", "pruned-50.onnx", "sparse-50.onnx"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_onnx_file_is_not_a_network(tmp_path: Path) -> None:
    splits = SampleSplits(calibration=pixels(), validation=pixels(), test=pixels())
    with (
        pytest.raises(InvalidOption, match=r"expected a PyTorch source \(package\.module:factory .* finished graph\.$"),
        lean_variants(
            tmp_path / "model.onnx",
            splits,
            METRICS["cosine"],
            lessons=splits.calibration,
            folder=tmp_path,
            checkpoints=tmp_path / "training",
            floor=QualityFloor.parse("1%"),
            settings=LeanSettings(prune=PruneSettings()),
            opset=None,
            axes=None,
            progress=silent,
        ),
    ):
        pass
