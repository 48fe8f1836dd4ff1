"""Resolving `package.module:name`: how users name their own functions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from forwardpass.core.import_noise import quiet_imports
from forwardpass.errors import InvalidReference

__all__ = ["is_reference", "resolve_reference"]


def is_reference(text: str) -> bool:
    """Tell whether `text` is written like `package.module:name`.

    >>> is_reference("shop.models:build"), is_reference("model.onnx"), is_reference("./a:b")
    (True, False, False)
    """
    module, separator, name = text.partition(":")
    return bool(separator) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def resolve_reference(reference: str) -> Any:
    """Import the module and return the named object; the working directory is searched as by `python -m`.

    Raises:
        InvalidReference: the text has another form, or leads to nothing, or the module fails while it is imported.
    """
    if not is_reference(reference):
        raise InvalidReference(reference=reference, reason="it has another form")
    module_name, _, name = reference.partition(":")
    _search_working_directory()
    try:
        with quiet_imports():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidReference(reference=reference, reason=f"there is no module named '{error.name}'") from error
    except Exception as error:  # whatever the user's module raises while it is imported
        reason = f"importing '{module_name}' raised {type(error).__name__}: {error}"
        raise InvalidReference(reference=reference, reason=reason) from error
    if not hasattr(module, name):
        raise InvalidReference(reference=reference, reason=f"the module '{module_name}' has no '{name}'")
    return getattr(module, name)


def _search_working_directory() -> None:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
