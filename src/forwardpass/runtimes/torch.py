"""PyTorch in eager mode: how a source is measured, and what every conversion is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.core.import_noise import quiet_imports
from forwardpass.core.references import resolve_reference
from forwardpass.core.tensors import BATCH_AXIS, Array, Signature, Tensors, TensorSpec
from forwardpass.core.variants import Format
from forwardpass.errors import (
    InvalidModel,
    InvalidOption,
    InvalidReference,
    MissingExtra,
    SourceNotFound,
    UntrustedPickle,
)
from forwardpass.runtimes.files import format_of
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.weights import is_pickle

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtra(package="torch", extra="torch", purpose="running a PyTorch model") from error

__all__ = ["TorchRuntime", "input_names", "left_as_found", "load_module", "named_outputs"]


class TorchRuntime:
    """A PyTorch module in inference mode.

    The names of its inputs are those of `forward`'s arguments. Its outputs are named by the keys of a mapping, or
    `output` for a single tensor, or `output_0`, `output_1`, … for a sequence.
    """

    name = "torch"
    version = str(torch.__version__)

    def __init__(self, module: nn.Module, *, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.num_threads)
        # What torch.export made is fixed in its mode already, and refuses to be asked.
        self.module = module if isinstance(module, torch.fx.GraphModule) else module.eval()
        self._signature: Signature | None = None

    @classmethod
    def from_reference(cls, reference: str, *, weights: str = "", options: RuntimeOptions) -> TorchRuntime:
        """Call the factory `package.module:factory` and load its weights.

        Raises:
            InvalidReference: the factory is not there, fails, or returns no module.
            UntrustedPickle: the weights are a pickle.
            InvalidModel: the weights do not fit the module.
        """
        return cls(load_module(reference, weights=weights), options=options)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the calls showed them: a module declares none.

        An output that once had another number of rows than the inputs has no batch axis.

        Raises:
            InvalidModel: nothing was run yet.
        """
        if self._signature is None:
            raise InvalidModel(
                path=type(self.module).__name__, reason="a PyTorch module has no signature before it ran"
            )
        return self._signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call. The module gets copies, which it may change in place: the arrays are the caller's."""
        with torch.inference_mode():
            given = {name: torch.from_numpy(np.array(array, order="C")) for name, array in tensors.items()}
            answers = {name: value.numpy() for name, value in named_outputs(self.module(**given)).items()}
        num_rows = _num_rows(tensors)
        has_rows = all(array.shape[:1] == (num_rows,) for array in answers.values())
        if self._signature is None or (not has_rows and self._signature.is_batchable):
            self._signature = Signature(inputs=_specs(tensors), outputs=_specs(answers, num_rows=num_rows))
        return answers


@contextmanager
def left_as_found(module: nn.Module | None = None) -> Iterator[None]:
    """Afterwards, give torch its number of threads back, and every part of `module` its mode.

    Both belong to the user's process; a runtime changes them for its own work.
    """
    num_threads = torch.get_num_threads()
    modes = {} if module is None else {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        for part, is_training in modes.items():
            part.training = is_training


def load_module(reference: str, *, weights: str = "") -> nn.Module:
    """Call a factory, load the weights strictly, and return the module in evaluation mode.

    Raises:
        InvalidReference: the factory is not there, fails, or returns no module.
        SourceNotFound: there is no weights file.
        UntrustedPickle: the weights are a pickle.
        InvalidModel: the weights do not fit the module.
    """
    if Path(reference).exists():
        return _load_path(Path(reference), weights)
    factory = resolve_reference(reference)
    if not callable(factory):
        raise InvalidReference(reference=reference, reason="it is not a function or class")
    try:
        with quiet_imports():  # a factory may be what first imports transformers
            module = factory()
    except Exception as error:  # whatever the user's factory raises
        raise InvalidReference(
            reference=reference, reason=f"calling it raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise InvalidReference(
            reference=reference, reason=f"it returned {type(module).__name__}, not a torch.nn.Module"
        )
    if weights:
        _load_weights(module, weights)
    return module.eval()


def _load_path(path: Path, weights: str) -> nn.Module:
    """Load a folder of transformers', a `torch.export` program or a TorchScript file."""
    if weights:
        raise InvalidOption(option="--weights", value=weights, expected=f"none: '{path}' has its own")
    if path.is_dir():
        from forwardpass.runtimes.pretrained import load_pretrained

        return load_pretrained(path)
    from forwardpass.runtimes.torch_files import load_program, load_script

    if format_of(path) is Format.PT2:
        return load_program(str(path))[0].module()
    script: nn.Module = load_script(str(path))[0]
    return script


def input_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of `forward`'s arguments."""
    if isinstance(module, torch.jit.ScriptModule):
        script: Any = module.forward
        return tuple(argument.name for argument in script.schema.arguments[1:])
    return tuple(inspect.signature(module.forward).parameters)


def named_outputs(returned: object) -> dict[str, torch.Tensor]:
    """Name what a module returned: a tensor, a sequence, a mapping, or a mapping-like output of transformers.

    Raises:
        InvalidModel: it returned something else.
    """
    if isinstance(returned, torch.Tensor):
        return {"output": returned}
    if isinstance(returned, Mapping):
        pairs = [(str(name), value) for name, value in returned.items()]
    elif isinstance(returned, tuple | list):
        pairs = [(f"output_{index}", value) for index, value in enumerate(returned)]
    else:
        pairs = []
    named = {name: value for name, value in pairs if isinstance(value, torch.Tensor)}
    if not named or len(named) != len(pairs):
        raise InvalidModel(
            path="the module", reason=f"it returned {type(returned).__name__}, not tensors in a tuple or a mapping"
        )
    return named


def _load_weights(module: nn.Module, weights: str) -> None:
    path = Path(weights)
    if not path.is_file():
        raise SourceNotFound(path=weights, expected="a .safetensors file")
    if is_pickle(path):
        raise UntrustedPickle(path=weights)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra(package="safetensors", extra="torch", purpose="reading weights") from error
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidModel(path=weights, reason=f"it is not a readable safetensors file ({error})") from error
    _check_weights(module, state, weights)
    module.load_state_dict(state, strict=False)  # shared tensors are saved once; the rest was checked


def _check_weights(module: nn.Module, state: Mapping[str, torch.Tensor], weights: str) -> None:
    """Compare names and shapes before loading, for a sentence instead of a page."""
    expected = module.state_dict()
    given = {expected[name].data_ptr() for name in set(expected) & set(state)}
    problems = {
        "it lacks": sorted(
            name
            for name in set(expected) - set(state)
            if expected[name].data_ptr() not in given  # else it is shared
        ),
        "the module does not have": sorted(set(state) - set(expected)),
        "the shape differs for": sorted(
            name for name in set(expected) & set(state) if expected[name].shape != state[name].shape
        ),
    }
    for words, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            reason = f"{words} {', '.join(names[:3])}{more}"
            raise InvalidModel(path=weights, reason=f"it does not fit the module: {reason}")


def _num_rows(tensors: Tensors) -> int:
    return next((len(array) for array in tensors.values() if array.ndim), 0)


def _specs(tensors: Tensors, *, num_rows: int | None = None) -> tuple[TensorSpec, ...]:
    """Describe the tensors of one call; only the first axis is known to be dynamic, and to be the batch if it fits."""
    return tuple(
        TensorSpec(
            name=name,
            dtype=array.dtype.name,
            shape=(BATCH_AXIS if num_rows in (None, len(array)) else f"{name}_axis0", *array.shape[1:])
            if array.ndim
            else (),
        )
        for name, array in tensors.items()
    )
