"""The public functions on sources as users have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forwardpass.convert import TorchSource
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits
from forwardpass.errors import (
    CannotPrune,
    ForwardpassError,
    InvalidReference,
    InvalidSamples,
    InvalidStudent,
    UntrustedPickle,
)
from forwardpass.lean import LeanSettings, PruneSettings, SparsitySettings, StudentSettings, TrainSettings
from forwardpass.lean.making import check_lean
from forwardpass.optimize import OptimizeSettings
from forwardpass.profile import ProfileSettings
from forwardpass.ship import Shipment
from forwardpass.wiring import convert_model, optimize_model, profile_model, ship_model
from tests.integration.torch_modules import build

MODEL = "tests.integration.torch_modules:build"
LEAN = "tests.integration.lean_modules"
TINY = ProfileSettings(
    batch_sizes=(1,),
    thread_counts=(1,),
    num_rounds=2,
    round_s=0.01,
    num_cold_starts=1,
    audit_budget_s=0.05,
    ship_audit_s=0.0,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Pickled weights that the factory does not have by itself, with samples beside them."""
    torch.manual_seed(4)
    module = build()
    torch.nn.init.normal_(next(module.parameters()))
    torch.save(module.state_dict(), tmp_path / "w.pt")
    np.savez(tmp_path / "data.npz", pixels=np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32))
    return tmp_path / "w.pt"


def test_a_trusted_pickle_is_trusted_by_every_command(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint.parent
    monkeypatch.chdir(folder)
    settings = OptimizeSettings(profile=TINY)
    trust = True
    convert_model(MODEL, out="m.onnx", data="data.npz", weights="w.pt", trust_pickle=trust)
    assert profile_model(MODEL, data="data.npz", weights="w.pt", settings=TINY, trust_pickle=trust).profiles
    optimised = optimize_model(
        MODEL, data="data.npz", out="variants", weights="w.pt", settings=settings, trust_pickle=trust
    )
    assert optimised.candidates[0].validation is not None
    assert optimised.candidates[0].validation.value == pytest.approx(1.0)
    shipped = ship_model(MODEL, data="data.npz", out="out", weights="w.pt", settings=settings, trust_pickle=trust)
    assert shipped.resumed == ()
    again = ship_model(MODEL, data="data.npz", out="out", weights="w.pt", settings=settings, trust_pickle=trust)
    assert again.resumed == ("convert", "optimize")
    assert not list(folder.rglob("*.safetensors"))


def test_a_pickle_that_is_not_trusted_is_refused_by_every_command(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(UntrustedPickle):
        convert_model(MODEL, out="m.onnx", data="data.npz", weights="w.pt")
    with pytest.raises(UntrustedPickle):
        profile_model(MODEL, data="data.npz", weights="w.pt", settings=TINY)
    with pytest.raises(UntrustedPickle):
        optimize_model(MODEL, data="data.npz", out="variants", weights="w.pt")
    with pytest.raises(UntrustedPickle):
        ship_model(MODEL, data="data.npz", out="out", weights="w.pt")


def test_a_named_axis_reaches_the_bundle_and_another_name_is_another_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = np.random.default_rng(1).standard_normal((40, 5, 4)).astype(np.float32)
    np.savez("data.npz", x=steps)

    def ship(name: str) -> Shipment:
        model = "tests.integration.conversion_sources:recurrent"
        return ship_model(
            model, data="data.npz", out="out", settings=OptimizeSettings(profile=TINY), axes={"x": {1: name}}
        )

    first = ship("length")
    assert first.bundle.manifest.signature.inputs[0].shape == ("batch", "length", 4)
    assert first.bundle.manifest.signature.outputs[0].shape == ("batch", "length", 3)
    assert ship("length").resumed == ("convert", "optimize")
    assert "convert" not in ship("steps").resumed


def test_ship_makes_a_network_leaner_once_and_its_recipe_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", pixels=np.random.default_rng(1).standard_normal((40, 1, 8, 8)).astype(np.float32))
    lean = LeanSettings(prune=PruneSettings(share=0.3), training=TrainSettings(num_epochs=1))

    def ship(wishes: LeanSettings) -> Shipment:
        model = "tests.integration.lean_modules:build"
        return ship_model(model, data="data.npz", out="out", settings=OptimizeSettings(profile=TINY), lean=wishes)

    first = ship(lean)
    pruned = first.optimization.find("pruned-30")
    assert [step.operation for step in pruned.variant.recipe.steps] == ["prune-channels", "train", "convert"]
    assert pruned.profile is not None
    assert ship(lean).resumed == ("convert", "lean", "optimize")
    assert ship(replace(lean, training=TrainSettings(num_epochs=2))).resumed == ("convert",)
    assert not (tmp_path / ".forwardpass" / "out" / "training").exists()


@pytest.mark.parametrize(
    ("lean", "error", "sentence"),
    [
        (LeanSettings(student=StudentSettings(num_layers=2)), InvalidStudent, "no ModuleList or Sequential"),
        (LeanSettings(student=StudentSettings(reference=f"{LEAN}:build_wrong")), InvalidStudent, r"shape \[2, 9\]"),
        (LeanSettings(student=StudentSettings(reference=f"{LEAN}:gone")), InvalidReference, "'gone'"),
        (LeanSettings(student=StudentSettings(width=0.5)), CannotPrune, "channels are those of the output"),
        (LeanSettings(prune=PruneSettings(round_to=64)), CannotPrune, "10 channels, and they go 64 at a time"),
        (LeanSettings(sparsity=SparsitySettings(share=0.5), train_data="others.npz"), InvalidSamples, "'others.npz'"),
        (LeanSettings(quantise_aware=True, train_data="classes.npz"), InvalidSamples, "the label 12, .* 10 classes"),
    ],
)
def test_what_cannot_be_made_leaner_is_told_before_anything_is_made(
    lean: LeanSettings,
    error: type[ForwardpassError],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    images = generator.standard_normal((60, 1, 8, 8)).astype(np.float32)
    np.savez("data.npz", pixels=images[:40])
    np.savez("others.npz", pictures=images[40:])
    np.savez("classes.npz", pixels=images[40:], labels=np.full(20, 12))
    done: list[str] = []

    def note(text: str, *, done: float, into: list[str] = done) -> None:
        del done
        into.append(text)

    for make in (optimize_model, ship_model):
        with pytest.raises(error, match=sentence):
            make(f"{LEAN}:build_small", data="data.npz", out="out", lean=lean, progress=note)
    assert done == []
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".npz"} <= {".forwardpass"}


def test_labels_of_no_class_are_passed_over() -> None:
    images = np.random.default_rng(1).standard_normal((40, 1, 8, 8)).astype(np.float32)
    labels = np.r_[np.full(20, -100), np.arange(20) % 10]
    lessons = Samples(groups=(SampleGroup(inputs={"pixels": images}, labels=labels),))
    splits = SampleSplits(calibration=lessons, validation=lessons, test=lessons)
    source = TorchSource(reference=f"{LEAN}:build_small")
    check_lean(source, splits, lessons, LeanSettings(quantise_aware=True))


def test_a_network_that_learned_to_round_is_judged_in_float_and_in_eight_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", pixels=np.random.default_rng(1).standard_normal((40, 1, 8, 8)).astype(np.float32))
    lean = LeanSettings(quantise_aware=True, training=TrainSettings(num_epochs=1))
    result = optimize_model(
        "tests.integration.lean_modules:build",
        data="data.npz",
        out="out",
        settings=OptimizeSettings(profile=TINY),
        lean=lean,
    )
    operations = [step.operation for step in result.find("quantise-aware-int8-static").variant.recipe.steps]
    assert operations == ["round-in-training", "train", "convert", "quantise-static"]
    assert result.find("quantise-aware").profile is not None
