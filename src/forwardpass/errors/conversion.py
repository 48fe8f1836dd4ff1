"""Models that cannot take the other form."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.errors.base import ForwardpassError, with_hint

__all__ = [
    "CannotPrune",
    "ConversionError",
    "DataDependentControlFlow",
    "ExportFailed",
    "NothingGained",
    "NothingToQuantise",
    "OpsetUnavailable",
    "ParityFailed",
    "UnsteadySource",
    "UnsupportedOperator",
]


class ConversionError(ForwardpassError):
    """A model that cannot take the other form."""

    slug = "conversion"


class UnsupportedOperator(ConversionError):
    """The exporter has no translation for an operator of the model."""

    slug = "unsupported-operator"

    def __init__(self, *, operator: str, location: str = "", opset: int | None = None) -> None:
        self.operator = operator
        self.location = location
        self.opset = opset
        where = f" ({location})" if location else ""
        target = f" in opset {opset}" if opset is not None else ""
        super().__init__(
            f"Cannot convert the operator '{operator}'{where}: ONNX has no translation for it{target}. "
            "Replace it in the model by supported operators, or re-run with a newer --opset."
        )


class OpsetUnavailable(ConversionError):
    """The model cannot be written in the version of the operators that was asked for."""

    slug = "opset-unavailable"

    def __init__(self, *, source: str, opset: int, found: int, reason: str, hint: str = "") -> None:
        self.source = source
        self.opset = opset
        self.found = found
        self.reason = reason
        self.hint = hint
        super().__init__(
            with_hint(
                f"Cannot write '{source}' in opset {opset} (it is in opset {found}): {reason}.",
                hint or f"Re-run without --opset, or with --opset {found}.",
            )
        )


class ExportFailed(ConversionError):
    """The model could not be traced or written."""

    slug = "export-failed"

    def __init__(self, *, source: str, reason: str, hint: str = "") -> None:
        self.source = source
        self.reason = reason
        self.hint = hint
        super().__init__(with_hint(f"Cannot convert '{source}': {reason}.", hint))


class DataDependentControlFlow(ExportFailed):
    """The model takes another path for other values, which a traced graph cannot."""

    slug = "data-dependent-control-flow"

    def __init__(self, *, source: str, location: str) -> None:
        self.location = location
        super().__init__(
            source=source,
            reason="its control flow depends on the values of a tensor" + (f" at {location}" if location else ""),
            hint="Use torch.where or torch.cond instead of Python's if, or move the decision out of the model.",
        )


class UnsteadySource(ExportFailed):
    """The model answers the same inputs differently from one call to the next."""

    slug = "unsteady-source"

    def __init__(self, *, source: str, output: str, difference: float, changed: Sequence[str] = ()) -> None:
        self.output = output
        self.difference = difference
        self.changed = tuple(changed)
        again = f"asked the same twice, its output '{output}' differs by {difference:.3g} (relative)"
        named = ", ".join(f"'{name}'" for name in self.changed[:3])
        super().__init__(
            source=source,
            reason=f"{again}, since forward() changes {named} in place" if named else again,
            hint="Make it an input and an output of forward(), or leave it unchanged in eval()."
            if named
            else "Take what forward() keeps from call to call, and random numbers, out of the model.",
        )


class CannotPrune(ConversionError):
    """A model whose channels cannot be followed, or none of which can go."""

    slug = "cannot-prune"

    def __init__(self, *, model: str, reason: str, hint: str = "") -> None:
        self.model = model
        self.reason = reason
        self.hint = hint
        advice = hint or "Try --distill with a smaller student of your own, which needs no tracing."
        super().__init__(f"Cannot prune '{model}': {reason}. {advice}")


class NothingToQuantise(ConversionError):
    """A model none of whose nodes gains from 8 bits."""

    slug = "nothing-to-quantise"

    def __init__(self, *, operators: Sequence[str]) -> None:
        self.operators = tuple(operators)
        super().__init__(f"There is nothing to quantise: no {' or '.join(operators)} with constant weights.")


class NothingGained(ConversionError):
    """A variant that would be no better than one that is made anyway."""

    slug = "nothing-gained"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Nothing would be gained: {reason}.")


class ParityFailed(ConversionError):
    """The converted model answers differently from its source."""

    slug = "parity-failed"

    def __init__(self, *, output: str, shape: str, difference: float, tolerance: float, node: str = "") -> None:
        self.output = output
        self.shape = shape
        self.difference = difference
        self.tolerance = tolerance
        self.node = node
        first = f" The first node that differs is {node}." if node else ""
        super().__init__(
            f"The converted model answers differently from its source: output '{output}' is off by {difference:.3g} "
            f"(relative, tolerance {tolerance:.3g}) for inputs {shape}.{first} The file was not kept."
        )

    def at(self, node: str) -> ParityFailed:
        """Return this failure with the first node that differs."""
        return ParityFailed(
            output=self.output, shape=self.shape, difference=self.difference, tolerance=self.tolerance, node=node
        )
