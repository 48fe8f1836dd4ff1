"""The measuring child: what its parent sees when a library is noisy, or the child is killed or hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from forwardpass.core.variants import Format
from forwardpass.errors import ChildFailed, ForwardpassError, InvalidModel
from forwardpass.profile.process import ChildProcess
from forwardpass.profile.protocol import Open, Opened, Round, Rounds
from tests.models import write_mlp

NOISY_SITE = """
import builtins, os, sys
import forwardpass.runtimes.onnx as onnx
_init = onnx.OnnxRuntime.__init__
def noisy(self, path, *, options):
    print("a library says hello")
    os.write(1, b"{\\"type\\": \\"opened\\"}\\n")
    os.system("echo and so does a program")
    print("the last words of a library", file=sys.stderr, flush=True)
    _init(self, path, options=options)
onnx.OnnxRuntime.__init__ = noisy
"""


@pytest.fixture
def opening(tmp_path: Path) -> Open:
    calls = tmp_path / "1.npz"
    np.savez(calls, allow_pickle=False, **{"0:pixels": np.zeros((1, 64), np.float32)})
    model = write_mlp(tmp_path / "mlp.onnx")
    return Open(format=Format.ONNX, location=str(model), weights="", num_threads=1, calls={1: str(calls)}, first_call=0)


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    with ChildProcess(purpose="a test", max_wait_s=60.0) as process:
        yield process


@pytest.fixture
def noisy_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every child import a module at its start that prints while a model loads."""
    (tmp_path / "sitecustomize.py").write_text(NOISY_SITE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("noisy_library")
def test_what_a_library_prints_does_not_reach_the_protocol(opening: Open) -> None:
    with ChildProcess(purpose="a test", max_wait_s=60.0) as child:
        assert child.ask(opening, Opened).runtime == "onnxruntime"
        assert len(child.ask(Round(batch_size=1, num_calls=1, num_passes=3), Rounds).wall_s) == 3


@pytest.mark.usefixtures("noisy_library")
def test_the_last_words_of_a_child_stand_in_the_error(opening: Open) -> None:
    with ChildProcess(purpose="a test", max_wait_s=60.0) as child:
        child.ask(opening, Opened)
        os.kill(child.pid, signal.SIGTERM)
        sentence = "it was ended by SIGTERM; its last words were: the last words of a library"
        with pytest.raises(ChildFailed, match=sentence):
            child.ask(opening, Opened)


def test_a_killed_child_is_said_to_have_run_out_of_memory(child: ChildProcess, opening: Open) -> None:
    child.ask(opening, Opened)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildFailed) as failure:
        child.ask(opening, Opened)
    assert str(failure.value) == (
        "The process for a test failed: it was killed (SIGKILL), which is what the system does when memory runs out."
    )


def test_a_child_that_hangs_is_given_up(opening: Open) -> None:
    with ChildProcess(purpose="a test", max_wait_s=0.2) as child:
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(ChildFailed, match=r"it gave no answer within 0\.2 s"):
            child.ask(opening, Opened)
        os.kill(child.pid, signal.SIGCONT)


def test_an_error_of_the_child_is_raised_with_its_facts_and_the_child_lives_on(
    child: ChildProcess, opening: Open, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    wrong = msgspec.structs.replace(opening, location=str(broken))
    with pytest.raises(InvalidModel) as failure:
        child.ask(wrong, Opened)
    assert failure.value.path == str(broken)
    assert child.ask(opening, Opened).is_batchable


def test_a_foreign_error_of_the_child_is_told_in_its_own_words(child: ChildProcess, opening: Open) -> None:
    child.ask(opening, Opened)
    with pytest.raises(ForwardpassError, match="The process for a test failed: KeyError: 7"):
        child.ask(Round(batch_size=7, num_calls=1, num_passes=1), Rounds)


def test_no_process_is_left_behind(opening: Open) -> None:
    with ChildProcess(purpose="a test", max_wait_s=60.0) as child:
        child.ask(opening, Opened)
        pid = child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
