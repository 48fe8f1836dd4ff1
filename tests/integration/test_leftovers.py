"""A Triton that is killed leaves copies of its models; those that it was started with are removed, and no others."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.leftovers import family_of, removing_model_folders

STUB = "import sys; print('up', flush=True); sys.stdin.read()"


def test_the_folders_named_by_a_family_of_processes_go_when_it_has_ended() -> None:
    with tempfile.TemporaryDirectory(prefix="other", dir="/tmp") as other:
        theirs = Path(f"/tmp/folder{secrets.token_hex(3)}")
        (theirs / "1").mkdir(parents=True)
        arguments = [str(theirs / "1" / "model.py"), f"{other}/1/model.py", "/tmp/folder/model.py"]
        with subprocess.Popen(
            [sys.executable, "-c", STUB, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            with removing_model_folders(family_of(child.pid)):
                child.kill()
                child.wait()
                assert theirs.exists()
        assert not theirs.exists()
        assert Path(other).exists()
    assert family_of(child.pid) == []
