"""Turning a pickled checkpoint into safetensors, in a process that can be lost.

`torch.load(weights_only=True)` builds tensors and nothing else, and had holes before. So even a trusted pickle never
meets the process that the user works in: a child reads it, writes plain tensors, and ends.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forwardpass.errors import InvalidModel
from forwardpass.runtimes.weights import is_pickle

__all__ = ["pickle_to_safetensors", "plain_weights"]

TIME_LIMIT_S = 600.0


@contextmanager
def plain_weights(weights: str, *, trust_pickle: bool) -> Iterator[str]:
    """Give the path of the weights, a trusted pickle rewritten as safetensors for as long as the block runs.

    Everything behind it (conversion, scoring, measuring in processes of their own) then reads plain tensors. A pickle
    that is not trusted stays, and is refused by whoever would load it.

    Raises:
        InvalidModel: the file holds anything but named tensors.
    """
    given = Path(weights)
    if not (trust_pickle and weights and given.is_file() and is_pickle(given)):
        yield weights
        return
    with tempfile.TemporaryDirectory(prefix="forwardpass-weights-") as folder:
        plain = Path(folder) / f"{given.stem}.safetensors"
        pickle_to_safetensors(given, plain)
        yield str(plain)


def pickle_to_safetensors(source: Path, target: Path) -> None:
    """Read the tensors of a pickled state dict in a child process and write them to `target`.

    Raises:
        InvalidModel: the file holds anything but named tensors.
    """
    command = [sys.executable, "-m", "forwardpass.convert.pickles", str(source), str(target)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines()
        raise InvalidModel(
            path=str(source), reason=lines[-1] if lines else f"reading it ended with {finished.returncode}"
        )


def _convert(source: str, target: str) -> None:
    import torch
    from safetensors.torch import save_file

    loaded = torch.load(source, map_location="cpu", weights_only=True)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        sys.exit("it does not hold a state dict: names and tensors, or those under 'state_dict'")
    save_file({name: value.contiguous().clone() for name, value in state.items()}, target)


if __name__ == "__main__":
    try:
        _convert(*sys.argv[1:])
    except Exception as error:  # the parent reads one line
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        sys.exit(f"{type(error).__name__}: {first}")
