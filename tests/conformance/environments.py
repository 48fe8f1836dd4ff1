"""Environments of their own for foreign servers and clients whose dependencies do not fit beside ours.

They are made once, below `.cache/` of the checkout (or `FORWARDPASS_TEST_CACHE`), from pinned requirements, and made
anew when those change. What runs in them is a process that is spoken to over sockets or pipes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from benchmarks.peers.leftovers import family_of, removing_model_folders

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("FORWARDPASS_TEST_CACHE", HERE.parents[1] / ".cache"))
PATIENCE_S = 120.0
NUM_STARTS = 3
NO_WHEEL = "No matching distribution found"


def python_with(name: str, *, beside_ours: bool = False) -> Path:
    """Return the interpreter of the environment with the requirements in `name`.txt; skip where there is no wheel.

    One that is `beside_ours` finds the packages of this environment, too.
    """
    requirements = HERE / f"{name}.txt"
    ours = sysconfig.get_path("purelib") if beside_ours else ""
    text = f"{sys.version}\n{ours}\n{requirements.read_text()}"
    folder = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _make(folder, requirements, ours)
    return folder / "bin" / "python"


def _make(folder: Path, requirements: Path, ours: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    # The requirements are complete, so nothing has to be resolved; and few of the modules are ever imported.
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    quick = ["install", "-q", "--no-deps", "--no-compile", "--only-binary=:all:"]
    made = subprocess.run([*pip, *quick, "-r", str(requirements)], capture_output=True, text=True)
    if made.returncode and NO_WHEEL in made.stderr:
        pytest.skip(f"no wheel for this machine: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    if ours:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    (folder / "complete").touch()


@contextlib.contextmanager
def running(python: Path, script: str, *arguments: str, ready_url: str) -> Iterator[None]:
    """Run a server of this folder until the end of the block; it ends when its standard input does.

    A foreign server that ends while it starts is started again: that is not what is tested here.
    """
    log = CACHE / f"{script}.log"
    with log.open("wb") as written:
        for _ in range(NUM_STARTS):
            process = _start([str(python), str(HERE / script), *arguments], written)
            if _is_ready(process, ready_url):
                break
            _end(process)
        else:
            raise AssertionError(f"it does not start: {log.read_text(errors='replace')[-2000:]}")
        try:
            yield
        finally:
            _end(process)


def _start(command: list[str], written: IO[bytes]) -> subprocess.Popen[bytes]:
    library = sysconfig.get_config_var("LIBDIR")  # programs that embed Python find this one's, not the system's
    environment = os.environ | {"LD_LIBRARY_PATH": f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=written, stderr=written, env=environment)


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until it answers; return False if it ends or takes too long."""
    give_up_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < give_up_s:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return True
        time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None, "it is a pipe"
    family = family_of(process.pid)
    with removing_model_folders(family):
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
