"""What this machine lacks."""

from __future__ import annotations

from forwardpass.errors.base import ForwardpassError

__all__ = [
    "AddressInUse",
    "ChildFailed",
    "EnvironmentProblem",
    "EnvironmentUnavailable",
    "MissingCompiler",
    "MissingExtra",
    "StorageFailed",
    "WorkInProgress",
]


class EnvironmentProblem(ForwardpassError):
    """This machine lacks something that the work needs."""

    slug = "environment"


class MissingExtra(EnvironmentProblem, ImportError):
    """An optional dependency is not installed."""

    slug = "missing-extra"

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        self.purpose = purpose
        super().__init__(
            f"{purpose[:1].upper()}{purpose[1:]} needs the package '{package}'. "
            f"Install it with: pip install 'forwardpass[{extra}]'"
        )


class MissingCompiler(EnvironmentProblem, FileNotFoundError):
    """Something has to be compiled, and there is no compiler."""

    slug = "missing-compiler"

    def __init__(self) -> None:
        super().__init__(
            "Compiling a program with PyTorch's Inductor needs a C++ compiler, and none was found. "
            "Install g++ (on Debian: apt-get install g++), or name one in the variable CXX."
        )


class EnvironmentUnavailable(EnvironmentProblem):
    """A converter lives in an environment of its own, which cannot be made here."""

    slug = "environment-unavailable"

    def __init__(self, *, name: str, folder: str, reason: str) -> None:
        self.name = name
        self.folder = folder
        self.reason = reason
        super().__init__(
            f"Cannot make the environment of '{name}' in '{folder}': {reason}. It needs the package registry once, and "
            "room on the disk; XDG_CACHE_HOME moves it."
        )


class StorageFailed(EnvironmentProblem, OSError):
    """A file could not be written, for example because the disk is full."""

    slug = "storage-failed"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Cannot write '{path}': {reason}. Nothing incomplete was left behind.")


class AddressInUse(EnvironmentProblem, OSError):
    """The server cannot listen where it was told to."""

    slug = "address-in-use"

    def __init__(self, *, address: str, reason: str, options: str = "--host or --port") -> None:
        self.address = address
        self.reason = reason
        self.options = options
        super().__init__(f"Cannot listen on {address}: {reason}. Choose another with {options}.")


class WorkInProgress(EnvironmentProblem, BlockingIOError):
    """Another process works in the same folder."""

    slug = "work-in-progress"

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(f"Another forwardpass is at work in '{path}'. Wait for it, or choose another --out.")


class ChildFailed(EnvironmentProblem):
    """A process that forwardpass started ended before it answered."""

    slug = "child-failed"

    def __init__(self, *, purpose: str, reason: str) -> None:
        self.purpose = purpose
        self.reason = reason
        super().__init__(f"The process for {purpose} failed: {reason.rstrip('.')}.")
