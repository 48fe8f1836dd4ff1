"""ExecuTorch in an environment of its own: files are written, run by its own interface, and used like any other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance.environments import HERE, python_with
from tests.integration import conversion_sources as sources

ROOT = HERE.parents[1]
TOLERANCE = 1e-5
"""Relative; both compute in float32 and sum in another order."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def drive(command: str, folder: Path) -> Any:
    python = python_with("executorch", beside_ours=True)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    driver = [str(python), str(HERE / "executorch_driver.py"), command, str(folder)]
    finished = subprocess.run(driver, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("executorch")
    return folder, drive("make-tokens", folder)


def test_a_file_carries_names_and_axes_and_answers_like_its_source(tokens: tuple[Path, Any]) -> None:
    _, told = tokens
    assert told["worst_difference"] < TOLERANCE
    assert told["num_shapes"] == 10
    assert told["exporter"] == "torch.export + executorch (xnnpack)"
    assert told["inputs"] == [["ids", ["batch", "sequence"]]]
    assert told["outputs"] == [["output_0", ["batch", 4]], ["output_1", ["batch", "sequence", 4]]]
    assert told["is_as_told"]
    assert told["notes"] == ["Memory is planned for at most: batch 8, sequence 9. --max-size NAME=SIZE plans for more."]


def test_its_own_interface_answers_like_the_source_at_sizes_never_seen(tokens: tuple[Path, Any]) -> None:
    folder, _ = tokens
    ids = np.random.default_rng(9).integers(0, 20, (4, 8))
    np.save(folder / "ids.npy", ids)
    with torch.inference_mode():
        expected = [value.numpy() for value in sources.tokens().eval()(torch.from_numpy(ids))]
    for answer, reference in zip(drive("run-natively", folder)["answers"], expected, strict=True):
        np.testing.assert_allclose(answer, reference, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_runtime_splits_long_batches_refuses_long_rows_and_serves_bundles(tokens: tuple[Path, Any]) -> None:
    used = drive("use-tokens", tokens[0])
    assert used["is_same_in_parts"]
    assert used["is_kept"]
    assert used["is_same_from_bundle"]
    assert used["runtime"] == "executorch"
    expected = "expected at most 9, for which the memory of this ExecuTorch file is planned"
    assert used["refusals"] == [f"Input 'ids' has 10 along axis 1 (sequence); {expected}."]


def test_the_operator_that_is_computed_otherwise_is_named_with_its_line(tmp_path: Path) -> None:
    told = drive("break-program", tmp_path)["told"]
    source = Path(sources.__file__)
    line = 1 + source.read_text().splitlines().index("        return torch.relu(self.second(hidden))")
    assert f"The first node that differs is 'linear_1' (aten.linear, {source.name}:{line})." in told
    assert not (tmp_path / "m.pte").exists()


def test_eight_bits_are_smaller_and_near(tmp_path: Path) -> None:
    made = drive("make-eight-bits", tmp_path)
    exact = np.array(made["answers"]["fp32"])
    for precision in ("int8-static", "int8-dynamic"):
        assert made["sizes"][precision] < made["sizes"]["fp32"]
        error = np.linalg.norm(np.array(made["answers"][precision]) - exact) / np.linalg.norm(exact)
        assert 0 < error < 0.1
    assert 0 < made["picked"] < 0.1
    assert made["sizes"]["int8-static"] < 0.5 * made["sizes"]["fp32"]


def test_a_program_is_a_source_and_an_operator_that_does_not_exist_is_named(tmp_path: Path) -> None:
    made = drive("make-program", tmp_path)
    assert made["worst_difference"] < TOLERANCE
    assert made["outputs"] == ["a", "b"]
    assert made["refused"] == (
        "Cannot convert 'Unsupported': ExecuTorch does not take it (it has no kernel for the operator "
        "'aten.linalg_eig')."
    )
    assert made["left"] == ["two.pt2", "two.pte"]
