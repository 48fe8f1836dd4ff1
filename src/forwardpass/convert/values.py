"""What is converted, and what a conversion has shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forwardpass.core.tensors import Signature
from forwardpass.core.variants import Recipe, Variant

AS_IS = "as-is"
"""What is called the exporter of a source that was ONNX already."""

__all__ = ["AS_IS", "Conversion", "OutputCheck", "ParityCheck", "PlainModel", "TorchSource"]


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
class PlainModel:
    """A source that everything behind can read, with what it was made from and how it compared with that.

    `exporter` and `parity` are empty where the source is as the user gave it, and `path` where it is no file.
    """

    path: str = ""
    exporter: str = ""
    parity: tuple[ParityCheck, ...] = ()


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

    def after(self, plain: PlainModel) -> Conversion:
        """Return what the user is told, who gave what `plain` was made from.

        An ONNX file answers to the bit like the one that it is a copy of: then what counts is how that one compared.
        """
        if not plain.parity:
            return self
        exporter = self.exporter.replace(AS_IS, plain.exporter)
        named = replace(self, exporter=exporter, variant=_exported_by(exporter, self.variant))
        if self.exporter == AS_IS:
            return replace(named, parity=plain.parity)
        worst = max(check.difference for check in plain.parity)
        note = f"{plain.exporter} wrote ONNX first: {len(plain.parity)} shapes, worst relative difference {worst:.2g}."
        return replace(named, notes=(*self.notes, note))

    @property
    def is_as_given(self) -> bool:
        """Whether it is a checked copy of what the user gave: an ONNX file."""
        return self.exporter == AS_IS

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


def _exported_by(exporter: str, variant: Variant) -> Variant:
    """Return the variant with this exporter in the step that made it."""
    steps = tuple(
        replace(
            step, parameters=tuple((name, exporter if name == "exporter" else value) for name, value in step.parameters)
        )
        for step in variant.recipe.steps
    )
    return replace(variant, recipe=Recipe(steps=steps))
