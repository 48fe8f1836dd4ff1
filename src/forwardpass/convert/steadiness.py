"""Does a source give the same inputs the same answer again? Nothing can be held against one that does not."""

from __future__ import annotations

from typing import Any

from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Tensors
from forwardpass.errors import UnsteadySource
from forwardpass.predict import relative_error

__all__ = ["check_steady"]


def check_steady(source: Runtime, call: Tensors, *, name: str, tolerance: float) -> None:
    """Ask the source the same twice.

    Raises:
        UnsteadySource: it answers differently by more than `tolerance`: it keeps something from call to call, or draws
            random numbers.
    """
    first = source.run(call)
    before = _state(source)
    second = source.run(call)
    for output, answer in first.items():
        difference = relative_error(second[output], answer)
        if not difference <= tolerance:
            changed = tuple(key for key, value in _state(source).items() if not value.equal(before[key]))
            raise UnsteadySource(source=name, output=output, difference=difference, changed=changed)


def _state(source: Runtime) -> dict[str, Any]:
    """Return a copy of what a PyTorch module keeps; nothing for a source of another kind."""
    module = getattr(source, "module", None)
    return {} if module is None else {key: value.clone() for key, value in module.state_dict().items()}
