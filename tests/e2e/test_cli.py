"""The command line as a user meets it: results, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.e2e.serving import eventually
from tests.models import mlp_calls, write_bundle, write_mlp

pytestmark = pytest.mark.timeout(400)
"""Whole searches in processes of their own take three times as long on a machine that is busy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a model, samples with labels, and a bundle."""
    folder = tmp_path_factory.mktemp("user")
    model = write_mlp(folder / "mlp.onnx")
    generator = np.random.default_rng(3)
    pixels = generator.standard_normal((200, 64)).astype(np.float32)
    np.savez(folder / "samples.npz", pixels=pixels)
    np.savez(folder / "labelled.npz", pixels=pixels, labels=generator.integers(0, 10, 200))
    np.savez(folder / "nan.npz", pixels=np.where(pixels > 3, np.nan, pixels))
    np.savez(folder / "short.npz", pixels=pixels, labels=np.zeros(3, dtype=np.int64))
    np.savez(folder / "wrong-shape.npz", pixels=pixels[:, :9])
    write_bundle(folder / "bundle", model, mlp_calls())
    write_mlp(folder / "narrow.onnx", num_inputs=9)
    (folder / "broken.onnx").write_bytes(b"this is no model")
    return folder


def forwardpass(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forwardpass", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)


def test_only_a_command_that_keeps_its_steps_promises_to_go_on(folder: Path) -> None:
    """An interrupted profile begins anew."""
    command = [sys.executable, "-m", "forwardpass", "profile", "mlp.onnx"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: bool(psutil.Process(process.pid).children()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "\nInterrupted.\n")


def test_ship_makes_a_bundle_that_can_be_inspected_and_is_not_made_twice(folder: Path) -> None:
    words = ("ship", "mlp.onnx", "--data", "samples.npz", "--out", "out", "--name", "mlp", "--quick", "--slo", "p95=1s")
    first = forwardpass(folder, *words)
    assert first.returncode == 0, first.stderr
    assert "ready to serve: out" in first.stdout
    assert first.stderr == ""
    again = forwardpass(folder, *words, "--json")
    document = json.loads(again.stdout)
    assert (again.returncode, document["schema_version"], document["ready"]) == (0, 1, True)
    assert all(line["verdict"] != "MISSED" for line in document["checklist"])
    text = forwardpass(folder, *words).stdout
    assert "convert: done before for the same inputs, not run again" in text
    assert "optimize: done before for the same inputs, not run again" in text
    inspected = forwardpass(folder, "inspect", "out")
    assert inspected.returncode == 0
    assert "every SHA-256 as declared" in inspected.stdout
    assert "<script src" not in (folder / "out" / "report.html").read_text()


def test_a_target_that_is_missed_is_exit_code_1_and_says_so(folder: Path) -> None:
    finished = forwardpass(
        folder, "ship", "mlp.onnx", "--data", "samples.npz", "--out", "slow", "--quick", "--slo", "p99=1us"
    )
    assert finished.returncode == 1
    assert "NOT READY: a limit is missed: slow" in finished.stdout


def test_profile_and_optimize_print_tables_and_json(folder: Path) -> None:
    profiled = forwardpass(folder, "profile", "mlp.onnx", "--quick", "--threads", "1", "--json")
    document = json.loads(profiled.stdout)
    assert document["profiles"][0]["cells"][0]["p50_s"]["value"] > 0
    table = forwardpass(folder, "profile", "bundle", "--quick", "--threads", "1", "--report", "profile.html")
    assert table.returncode == 0, table.stderr
    assert re.search(r"cold start .* \(start .*, import .*, load .*, first run .*\)", table.stdout)
    assert (folder / "profile.html").read_text().startswith("<!")
    optimised = forwardpass(folder, "optimize", "mlp.onnx", "--data", "labelled.npz", "--out", "variants", "--quick")
    assert optimised.returncode == 0, optimised.stderr
    assert "chosen: " in optimised.stdout


SHIP = ("ship", "mlp.onnx", "--data", "samples.npz", "--out", "o")
OPTIMIZE = ("optimize", "mlp.onnx", "--data", "samples.npz", "--out", "o")
MISTAKES = [
    (
        ("ship", "nowhere.onnx", "--data", "samples.npz", "--out", "o"),
        2,
        "Cannot find 'nowhere.onnx': expected a model file",
    ),
    (("ship", "mlp.onnx", "--data", "nowhere.npz", "--out", "o"), 2, "Cannot find 'nowhere.npz'"),
    (("ship", "mlp.onnx", "--data", "nan.npz", "--out", "o"), 2, "has NaN or infinity, first in sample"),
    (("ship", "mlp.onnx", "--data", "short.npz", "--out", "o"), 2, "it has 200 samples but 3 labels"),
    ((*SHIP, "--slo", "fast"), 2, "such as p95=50ms"),
    ((*SHIP, "--max-drop", "-1"), 2, "such as 1% or an amount"),
    ((*SHIP, "--name", "../x"), 2, "1 to 64 letters"),
    (
        (*SHIP, "--metric", "accuracy"),
        2,
        "the samples have no labels",
    ),
    ((*SHIP, "--metric", "mine"), 2, "there is none of this name"),
    (
        (*SHIP, "--processor", "magic"),
        2,
        "provides the processor 'magic'",
    ),
    (("ship", "mlp.onnx", "--data", "samples.npz", "--out", "."), 2, "expected a new folder, or a bundle to replace"),
    (("ship", "no.module:build", "--data", "samples.npz", "--out", "o"), 2, "there is no module named 'no'"),
    (("convert", "broken.onnx", "--out", "c.onnx"), 2, "it is not an ONNX file"),
    (("convert", "mlp.onnx", "--out", "missing/deep/c.onnx", "--opset", "1"), 2, "Invalid value for '--opset'"),
    (("profile", "broken.onnx", "--quick"), 2, "Cannot load the model 'broken.onnx': it is not an ONNX file."),
    (("profile", "mlp.onnx", "--threads", "none"), 2, "expected positive numbers such as 1,2,4"),
    (("profile", "mlp.onnx", "--axis", "x"), 2, "such as sequence=32"),
    (("serve", "serve.toml"), 2, "a configuration is given with --config"),
    (("inspect", "nowhere"), 2, "No bundle at 'nowhere'"),
    (("serve", "nowhere"), 2, "No bundle at 'nowhere'"),
    (("serve", "broken.onnx", "--port", "0"), 2, "Cannot load the model 'broken.onnx'"),
    (("serve", "bundle", "--variant", "int9"), 2, "expected one of onnx-fp32"),
    (("serve", "bundle", "--prot", "1"), 2, "No such option '--prot'"),
    (("shop",), 2, "No such command 'shop'. Did you mean 'ship'?"),
    (
        ("profile", "mlp.onnx", "--quick", "--threads", "1", "--data", "samples.npz", "--against", "narrow.onnx"),
        2,
        "Cannot load the model 'narrow.onnx': it does not take the inputs that are measured with: Input 'pixels'",
    ),
    *(
        (
            words,
            2,
            "the samples of 'wrong-shape.npz': the input 'pixels' has shape [1, 9]; expected float32[batch, 64].",
        )
        for words in (
            ("profile", "mlp.onnx", "--quick", "--threads", "1", "--data", "wrong-shape.npz"),
            ("convert", "mlp.onnx", "--data", "wrong-shape.npz", "--out", "c.onnx"),
            ("optimize", "mlp.onnx", "--data", "wrong-shape.npz", "--out", "o"),
            ("ship", "mlp.onnx", "--data", "wrong-shape.npz", "--out", "o"),
        )
    ),
    ((*SHIP, "--max-drop", "200%"), 2, "'200%' for --max-drop: expected a share below 100%"),
    ((*OPTIMIZE, "--max-drop", "100%"), 2, "'100%' for --max-drop: expected a share below 100%"),
    ((*OPTIMIZE, "--opset", "99"), 2, "'99' for --opset: expected 7 to "),
    (("convert", "mlp.onnx", "--out", "c.ort", "--to", "ort", "--opset", "99"), 2, "'99' for --opset: expected 7 to "),
    (("convert", "mlp.onnx", "--out", "c.npz"), 2, "'c.npz' for --out: expected a name that ends with .onnx, for onnx"),
    (("convert", "mlp.onnx", "--out", "c.safetensors"), 2, "expected a name that ends with .onnx"),
    (("profile", "mlp.onnx", "--report", "no/such/page.html"), 2, "for --report: expected a file in a folder that"),
    (("profile", "mlp.onnx", "--axis", "length=3"), 2, "'length' for --axis: expected none: besides the batch"),
    (("profile", "mlp.onnx", "--data", "samples.npz", "--axis", "n=3"), 2, "'n' for --axis: expected no --data"),
    (("convert", "mlp.onnx", "--out", "mlp.onnx"), 2, "'mlp.onnx' for --out: expected another file than those"),
    (("convert", "mlp.onnx", "--data", "samples.npz", "--out", "samples.npz"), 2, "expected another file than those"),
    ((*OPTIMIZE, "--dynamic", "pixels:1=width"), 2, "'pixels' for --dynamic: expected a PyTorch source"),
    ((*OPTIMIZE, "--prune", "50%"), 2, "'mlp.onnx' for MODEL: expected a PyTorch source (package.module:factory"),
    (("serve", "bundle", "--host", "no-such-host.invalid"), 3, "Cannot listen on no-such-host.invalid:8000: "),
    (("keys", "add", "no/such/keys.json", "--name", "shop"), 2, "for FILE: expected a file in a folder that exists"),
    (
        ("optimize", "mlp.onnx", "--data", "samples.npz", "--out", "mlp.onnx"),
        2,
        "'mlp.onnx' for --out: expected a folder",
    ),
    ((*OPTIMIZE, "--pin-processor"), 2, "'latency' for --target: expected cold-start, the only target that"),
    (
        (*OPTIMIZE, "--target", "cost", "--prices", "free"),
        2,
        "'free' for --prices: expected one of aws-fargate, aws-lambda",
    ),
]


@pytest.mark.parametrize(("words", "code", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_and_the_right_exit_code(
    folder: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    finished = forwardpass(folder, *words)
    assert finished.returncode == code, finished.stderr
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (folder / "o").exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("ship", "--help"), 0, ""),
        (("optimize", "--help"), 0, ""),
        (SHIP, 3, "needs the package 'onnx'. Install it with: pip install 'forwardpass[onnx]'"),
        (("convert", "a.b:c", "--data", "samples.npz", "--out", "o"), 3, "pip install 'forwardpass[torch]'"),
        (("inspect", "bundle"), 0, ""),
    ],
)
def test_without_the_heavy_packages_what_needs_them_says_so_and_the_rest_works(
    folder: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    missing = "import sys; sys.modules.update({'onnx': None, 'torch': None}); "
    run = "from forwardpass.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", missing + run, *words]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (finished.returncode, "Traceback" in finished.stderr) == (code, False), finished.stderr
    assert sentence in finished.stderr


def test_errors_are_documents_too(folder: Path) -> None:
    finished = forwardpass(folder, "inspect", "nowhere", "--json")
    assert json.loads(finished.stdout)["error"]["slug"] == "bundle-not-found"


def test_ctrl_c_in_the_middle_leaves_no_bundle_and_the_next_run_goes_on(folder: Path) -> None:
    words = [sys.executable, "-m", "forwardpass", "ship", "mlp.onnx", "--data", "samples.npz", "--out", "stopped"]
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
    converted = folder / ".forwardpass" / "stopped" / "convert" / "done.json"
    while not converted.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert not (folder / "stopped").exists()
    resumed = forwardpass(folder, *words[3:], "--quick")
    assert "convert: done before" in resumed.stdout


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_machine(folder: Path) -> None:
    finished = forwardpass(folder, "convert", "mlp.onnx", "--out", "/proc/forwardpass/model.onnx")
    assert finished.returncode == 3
    assert "Cannot write '/proc/forwardpass/model.onnx'" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_reader_that_hangs_up_is_no_error(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "forwardpass", "inspect", "bundle"]
    finished = subprocess.run(command, cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "Traceback" not in finished.stderr
