"""What is converted, and what a conversion has shown."""

from __future__ import annotations

from dataclasses import dataclass

from forwardpass.core.tensors import Signature
from forwardpass.core.variants import Variant

__all__ = ["Conversion", "OutputCheck", "ParityCheck", "TorchSource"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSource:
    """A PyTorch module: `package.module:factory`, and the file of its weights if the factory does not load them."""

    reference: str
    weights: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """How far one output is from the source's: relative error, cosine, and rows whose greatest value moved."""

    output: str
    difference: float
    cosine: float
    num_flips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCheck:
    """How far the converted model is from its source for inputs of one shape.

    `difference` is the greatest relative error over all outputs; `num_flips` counts rows whose greatest value is at
    another place.
    """

    shapes: str
    difference: float
    num_rows: int
    num_flips: int
    outputs: tuple[OutputCheck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A converted model with the comparisons that it passed."""

    variant: Variant
    signature: Signature
    exporter: str
    """`dynamo`, `legacy`, or `as-is` for a source that was ONNX already; for other forms what wrote them."""
    opset: int | None
    """None for a form that does not come from ONNX."""
    parity: tuple[ParityCheck, ...]
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def worst_difference(self) -> float:
        """The greatest relative difference over all shapes."""
        return max((check.difference for check in self.parity), default=0.0)

    @property
    def worst_outputs(self) -> tuple[OutputCheck, ...]:
        """Each output where it is furthest from the source, over all shapes."""
        by_output: dict[str, OutputCheck] = {}
        for output in (output for check in self.parity for output in check.outputs):
            before = by_output.get(output.output, output)
            by_output[output.output] = OutputCheck(
                output=output.output,
                difference=max(before.difference, output.difference),
                cosine=min(before.cosine, output.cosine),
                num_flips=output.num_flips + (before.num_flips if before is not output else 0),
            )
        return tuple(by_output.values())

    @property
    def num_flips(self) -> int:
        """How many rows decide differently, over all shapes."""
        return sum(check.num_flips for check in self.parity)
