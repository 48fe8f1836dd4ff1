"""What kind of processor this is, and what a file that was laid out for one kind needs to find on another."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LAYOUT", "Processor", "find_processor", "vector_layout"]

LAYOUT = "forwardpass.layout"
"""Under this name a file says which layout it has; one without it runs anywhere."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """A kind of processor: what its maker calls it, and what decides which kernels run."""

    name: str
    instruction_sets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.instruction_sets)})" if self.instruction_sets else self.name


def find_processor() -> Processor:
    """Return the processor of this machine."""
    fields = _cpu_fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Processor(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(name for flag, name in _RELEVANT_FLAGS.items() if flag in flags),
    )


def vector_layout() -> str:
    """Return the layout that ONNX Runtime gives convolutions here: the architecture and the floats of a block.

    On x86 blocks have 16 floats with AVX-512 and 8 without; elsewhere the architecture decides.
    """
    architecture = platform.machine()
    if architecture not in ("x86_64", "AMD64"):
        return architecture
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return f"{architecture} with {16 if 'avx512f' in flags else 8} floats a vector"


def _cpu_fields() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
