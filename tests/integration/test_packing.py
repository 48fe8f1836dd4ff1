"""Packing: what goes in can be loaded, and is checked on the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import forwardpass
from forwardpass.bundle import open_bundle
from forwardpass.core.latency import LatencyPoint, LatencyTable
from forwardpass.core.variants import BatchInvariance, Format, Precision, Recipe, Step, Variant
from forwardpass.optimize.writers import write_dynamic
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.runtimes import RuntimeOptions, open_runtime
from tests.models import MACHINE, mlp_calls, write_mlp


def test_a_packed_bundle_keeps_recipe_latency_and_documents(tmp_path: Path) -> None:
    variant = Variant(
        name="graph",
        format=Format.ONNX,
        precision=Precision.FP32,
        location=str(write_mlp(tmp_path / "mlp.onnx")),
        recipe=Recipe().then(Step(operation="graph-optimisation", parameters=(("level", "extended"),))),
    )
    table = LatencyTable(num_threads=1, points=(LatencyPoint(batch_size=1, p50_s=0.001, p95_s=0.002),))
    packing = PackingList(
        name="mlp",
        variants=[VariantToPack(variant=variant, invariance=BatchInvariance.BITWISE, latency=(table,))],
        golden_inputs=mlp_calls(),
        machine=MACHINE,
        documents={"evidence/note.json": b"{}"},
    )
    packed = pack_bundle(tmp_path / "bundle", packing)
    reopened = open_bundle(tmp_path / "bundle").variant("graph")
    assert (reopened.recipe, reopened.latency) == (variant.recipe, (table,))
    assert packed.read("evidence/note.json") == b"{}"
    assert forwardpass.load(tmp_path / "bundle").predict(np.zeros((2, 64), np.float32))["scores"].shape == (2, 10)


def test_rows_of_one_request_do_not_change_each_other_where_a_variant_interferes(tmp_path: Path) -> None:
    write_dynamic(write_mlp(tmp_path / "mlp.onnx"), tmp_path / "int8.onnx", reduce_range=False)
    variant = Variant(
        name="int8-dynamic",
        format=Format.ONNX,
        precision=Precision.INT8_DYNAMIC,
        location=str(tmp_path / "int8.onnx"),
    )
    packing = PackingList(
        name="mlp",
        variants=[VariantToPack(variant=variant, invariance=BatchInvariance.INTERFERENCE)],
        golden_inputs=mlp_calls(),
        machine=MACHINE,
    )
    pack_bundle(tmp_path / "bundle", packing)
    rows = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32) * np.array(
        [[1], [20], [0.1]], np.float32
    )
    model = forwardpass.load(tmp_path / "bundle")
    together = model.predict(rows)["scores"]
    for row, answer in zip(rows, together, strict=True):
        np.testing.assert_array_equal(model.predict(row[None])["scores"][0], answer)
    bare = open_runtime(Format.ONNX, variant.location, options=RuntimeOptions()).run({"pixels": rows})["scores"]
    assert not np.array_equal(bare, together)
