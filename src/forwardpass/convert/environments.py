"""Converters whose packages fit no other: each lives in a virtual environment of its own, made when it is first used.

What is asked of one goes through files: a program of ours is run by the environment's Python with the path of a folder,
reads `job.json` there, and leaves its results beside it. It shares no package with this process.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forwardpass.core.protocols import Progress
from forwardpass.errors import EnvironmentUnavailable, ExportFailed, InvalidSamples

__all__ = ["IsolatedEnvironment", "run_program"]

INSTALL_LIMIT_S = 1800.0
RUN_LIMIT_S = 1800.0
COMPLETE = "complete"
"""The file whose presence says that everything was installed."""


def run_program(
    program: Path, folder: Path, job: Mapping[str, object], *, name: str, source: str, python: Path | None = None
) -> None:
    """Let `program`, which is called `name`, do `job` in `folder`.

    It is run by this process's interpreter, which finds the same packages, or by another one that is told nothing.

    Raises:
        ExportFailed: the program said that it cannot do it, or ended.
        InvalidSamples: the program said that the samples are not the model's.
    """
    (folder / "job.json").write_text(json.dumps(job))
    command = [str(python or sys.executable), "-P" if python is None else "-I", str(program), str(folder)]
    environment = {key: value for key, value in os.environ.items() if python is None or not key.startswith("PYTHON")}
    try:
        finished = subprocess.run(
            command, capture_output=True, timeout=RUN_LIMIT_S, check=False, cwd=folder, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise ExportFailed(source=source, reason=f"{name} took longer than {RUN_LIMIT_S:.0f} s") from error
    if finished.returncode != 0:
        unfit, told = folder / "unfit.txt", folder / "failure.txt"
        if unfit.is_file():
            raise InvalidSamples(origin=source, reason=unfit.read_text().strip()[:300])
        reason = told.read_text().strip() if told.is_file() else f"it ended with {finished.returncode}"
        raise ExportFailed(source=source, reason=f"{name} does not take it ({reason[:300]})")


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedEnvironment:
    """A virtual environment with pinned packages in the user's cache folder."""

    name: str
    packages: tuple[str, ...]
    size_mb: int
    """What it takes on disk, for the line that says that it is being made."""

    def run(self, program: Path, folder: Path, job: Mapping[str, object], *, source: str, progress: Progress) -> None:
        """Let `program` do `job` in `folder`.

        Raises:
            EnvironmentUnavailable: the environment cannot be made.
            ExportFailed: the program said that it cannot do it, or ended.
        """
        run_program(program, folder, job, name=self.name, source=source, python=self._ensure(progress))

    def _ensure(self, progress: Progress) -> Path:
        """Return the Python of the environment, made by whoever comes first."""
        folder = _cache_folder() / "environments" / f"{self.name}-py{sys.version_info.major}.{sys.version_info.minor}"
        python = folder / "bin" / "python"
        wanted = "\n".join(self.packages)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_complete(folder, wanted):
                    progress(f"installing {self.name} once, {self.size_mb} MB, in {folder}", done=0.0)
                    self._install(folder, python)
                    (folder / COMPLETE).write_text(wanted)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EnvironmentUnavailable(name=self.name, folder=str(folder), reason=reason) from error
        return python

    def _install(self, folder: Path, python: Path) -> None:
        venv.create(folder, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
        except subprocess.TimeoutExpired as error:
            reason = f"pip took longer than {INSTALL_LIMIT_S:.0f} s"
            raise EnvironmentUnavailable(name=self.name, folder=str(folder), reason=reason) from error
        if finished.returncode != 0:
            errors = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else f"pip ended with {finished.returncode}"
            raise EnvironmentUnavailable(name=self.name, folder=str(folder), reason=reason[:300])


def _is_complete(folder: Path, wanted: str) -> bool:
    with suppress(FileNotFoundError):
        return (folder / COMPLETE).read_text() == wanted
    return False


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forwardpass"
