"""The protocol's names of datatypes, and numpy's."""

from __future__ import annotations

import numpy as np

__all__ = ["DATATYPES", "NAMES", "NAMES_BY_DTYPE"]

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
NAMES_BY_DTYPE = {np.dtype(dtype): name for name, dtype in DATATYPES.items()}
"""Looking up a dtype is fast; making its name, to look that up, is slow."""
