"""Programs that PyTorch's Inductor compiled ahead of time (`.pt2`): machine code for one kind of processor.

Load only those whose origin you trust: they are executed, not interpreted.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.core.tensors import Array, Signature, Tensors
from forwardpass.errors import InvalidModel, SourceNotFound
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.signatures import SIGNATURE_ENTRY, decode_signature
from forwardpass.runtimes.torch import TorchRuntime, named_outputs

import torch  # isort: skip  (after the module that turns its absence into a sentence)

__all__ = ["PROCESSOR_ENTRY", "CompiledRuntime", "processor_flags"]

PROCESSOR_ENTRY = "forwardpass.processor"
"""What the entry of the archive's metadata is called that says which instructions the code may use."""

_METADATA_SUFFIX, _LIBRARY_SUFFIX = ".wrapper_metadata.json", ".wrapper.so"
_INSTRUCTION_SETS = ("sse", "ssse", "avx", "amx", "fma", "bmi", "f16c", "popcnt", "asimd", "sve", "i8mm", "bf16")


class CompiledRuntime:
    """A compiled program. It needs the torch library to run, and neither a compiler nor the code of the module."""

    name = "aotinductor"
    version = TorchRuntime.version

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.num_threads)
        if not Path(path).is_file():
            raise SourceNotFound(path=path, expected="a program compiled by Inductor (.pt2)")
        try:
            with zipfile.ZipFile(path) as archive:
                library = _member(archive, _LIBRARY_SUFFIX)
                metadata = json.loads(archive.read(_member(archive, _METADATA_SUFFIX)))
                self._signature = _signature(metadata, path)
                _check_processor(metadata, path)
                self._runner = _load(archive.read(library))
            given, self._out_spec = map(torch.utils._pytree.treespec_loads, self._runner.get_call_spec())
            self._order = list(given.child(1).context)
        except (zipfile.BadZipFile, KeyError, ValueError, OSError, RuntimeError) as error:
            if isinstance(error, InvalidModel):
                raise
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            reason = f"this torch cannot load the compiled program ({line[:200]})"
            raise InvalidModel(path=path, reason=reason) from error

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as they were when it was compiled."""
        return self._signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call. The code trusts what it is given: names, types and fixed sizes are those of the signature."""
        given = [torch.from_numpy(np.ascontiguousarray(tensors[name])) for name in self._order]
        with torch.inference_mode():
            returned = torch.utils._pytree.tree_unflatten(self._runner.run(given), self._out_spec)
        return {name: value.numpy() for name, value in named_outputs(returned).items()}


def processor_flags() -> frozenset[str]:
    """Return the instruction sets of this processor by their names in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return frozenset(flag for flag in flags if flag.startswith(_INSTRUCTION_SETS))


def _member(archive: zipfile.ZipFile, suffix: str) -> str:
    found = [name for name in archive.namelist() if name.endswith(suffix)]
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} files that end with {suffix}")
    return found[0]


def _signature(metadata: dict[str, Any], path: str) -> Signature:
    signature = decode_signature(str(metadata.get(SIGNATURE_ENTRY, "")))
    if signature is None:
        hint = "make it with 'forwardpass convert --to aotinductor'"
        raise InvalidModel(path=path, reason=f"the compiled program does not say what it takes; {hint}")
    return signature


def _check_processor(metadata: dict[str, Any], path: str) -> None:
    """Refuse code that this processor would end with an illegal instruction."""
    needed: Iterable[str] = str(metadata.get(PROCESSOR_ENTRY, "")).split()
    lacking = sorted(set(needed) - processor_flags())
    if lacking:
        names = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        reason = f"it was compiled for a processor with {names}, which this one lacks; compile it on this kind"
        raise InvalidModel(path=path, reason=reason)


def _load(library: bytes) -> Any:
    """Load a shared library from memory; its file is needed only until it is mapped."""
    with tempfile.NamedTemporaryFile(prefix="forwardpass-", suffix=".so") as file:
        file.write(library)
        file.flush()
        return torch._C._aoti.AOTIModelContainerRunnerCpu(file.name, 1)
