"""PyTorch in eager mode: how a source is measured, and what every conversion is compared with."""

from __future__ import annotations

from forwardpass.core.tensors import Array, Signature, Tensors
from forwardpass.runtimes.options import RuntimeOptions

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """A PyTorch module in inference mode."""

    name = "torch"
    version = ""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    @classmethod
    def from_reference(cls, reference: str, *, weights: str, options: RuntimeOptions) -> TorchRuntime:
        """Load `package.module:factory`."""
        raise NotImplementedError

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call."""
        raise NotImplementedError
