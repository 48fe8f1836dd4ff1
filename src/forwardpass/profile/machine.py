"""The fingerprint of this machine: what a measurement is worth nothing without."""

from __future__ import annotations

import platform
from pathlib import Path

from forwardpass.core.measurement import Machine
from forwardpass.runtimes import runtime_versions
from forwardpass.runtimes.options import num_available_cores
from forwardpass.runtimes.processors import find_processor

__all__ = ["describe_machine"]


def describe_machine() -> Machine:
    """Describe the processor, the memory and the software of this machine."""
    processor = find_processor()
    return Machine(
        cpu=processor.name,
        instruction_sets=processor.instruction_sets,
        num_cores=num_available_cores(),
        memory_bytes=_memory_bytes(),
        os=platform.platform(),
        python=platform.python_version(),
        runtimes=runtime_versions(),
    )


def _memory_bytes() -> int:
    """Return the memory that this process may use, which in a container can be less than the machine has."""
    import psutil

    total: int = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
