"""What a search leaves in its folder: a page, the same as JSON, and hashes by which its files are known again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from forwardpass.core.variants import Format
from forwardpass.optimize import Optimization, OptimizeSettings
from forwardpass.profile import ProfileSettings
from forwardpass.wiring import optimize_model
from tests.models import write_mlp

TINY = ProfileSettings(
    batch_sizes=(1,), thread_counts=(1,), num_rounds=2, round_s=0.01, num_cold_starts=1, audit_budget_s=0.05
)


class Document(msgspec.Struct):
    """`optimization.json`, as another program reads it."""

    schema_version: int
    conversion: object
    optimization: Optimization


def search(folder: Path, out: str) -> Optimization:
    return optimize_model(
        folder / "mlp.onnx",
        data=str(folder / "samples.npz"),
        out=folder / out,
        settings=OptimizeSettings(profile=TINY),
        command="forwardpass optimize mlp.onnx",
    )


def test_the_report_and_the_json_say_the_same_and_the_same_recipe_makes_the_same_bytes(tmp_path: Path) -> None:
    write_mlp(tmp_path / "mlp.onnx")
    pixels = np.random.default_rng(3).standard_normal((60, 64)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", pixels=pixels)
    first = search(tmp_path, "one")
    document = msgspec.json.decode((tmp_path / "one" / "optimization.json").read_bytes(), type=Document)
    assert document.optimization == first
    page = (tmp_path / "one" / "report.html").read_text()
    for candidate in first.candidates:
        assert candidate.variant.name in page
        for file in candidate.files:
            content = (tmp_path / "one" / file.name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256
            assert file.sha256 in page
    assert "forwardpass optimize mlp.onnx" in page
    assert first.provenance is not None
    assert first.provenance.source_sha256 in page

    second = search(tmp_path, "two")
    again = {it.variant.name: it for it in second.candidates}
    same = [it for it in first.candidates if it.files and it.variant.recipe == again[it.variant.name].variant.recipe]
    assert {"onnx-fp32", "onnx-graph", "fp16-storage"} <= {it.variant.name for it in same}
    for candidate in same:  # which nodes stay in float can rest on timings, and then the recipe says so
        assert again[candidate.variant.name].files == candidate.files
    assert {it.variant.format for it in first.candidates if it.files} == {Format.ONNX}
    assert second.provenance == first.provenance
