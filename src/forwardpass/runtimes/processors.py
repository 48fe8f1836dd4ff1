"""What a file that was laid out for one kind of processor needs to find on another."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["LAYOUT", "vector_layout"]

LAYOUT = "forwardpass.layout"
"""Under this name a file says which layout it has; one without it runs anywhere."""


def vector_layout() -> str:
    """Return the layout that ONNX Runtime gives convolutions here: the architecture and the floats of a block.

    On x86 blocks have 16 floats with AVX-512 and 8 without; elsewhere the architecture decides.
    """
    architecture = platform.machine()
    if architecture not in ("x86_64", "AMD64"):
        return architecture
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return f"{architecture} with {16 if 'avx512f' in flags else 8} floats a vector"
