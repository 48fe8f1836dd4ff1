"""The fingerprint of this machine: what a measurement is worth nothing without."""

from __future__ import annotations

import platform
from pathlib import Path

from forwardpass.core.measurement import Machine
from forwardpass.runtimes import runtime_versions
from forwardpass.runtimes.options import num_available_cores

__all__ = ["describe_machine"]

_RELEVANT_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512-bf16",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
"""What decides which kernels run, by its name in /proc/cpuinfo. Without a VNNI or dotprod, 8-bit products saturate."""


def describe_machine() -> Machine:
    """Describe the processor, the memory and the software of this machine."""
    fields = _cpu_fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(name for flag, name in _RELEVANT_FLAGS.items() if flag in flags),
        num_cores=num_available_cores(),
        memory_bytes=_memory_bytes(),
        os=platform.platform(),
        python=platform.python_version(),
        runtimes=runtime_versions(),
    )


def _cpu_fields() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_bytes() -> int:
    """Return the memory that this process may use, which in a container can be less than the machine has."""
    import psutil

    total: int = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
