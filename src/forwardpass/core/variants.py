"""Sources, recipes and variants: what a user trained, and the runnable forms made from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["SUFFIXES", "BatchInvariance", "Format", "Precision", "Recipe", "Step", "Variant"]


class Format(StrEnum):
    """The form of a model file, which decides the runtime."""

    ONNX = "onnx"
    TORCH = "torch"
    """A PyTorch module: code of the user's, not a file."""
    ORT = "ort"
    """ONNX Runtime's own flat format, whose graph is already optimised."""
    TORCHSCRIPT = "torchscript"
    """Legacy: PyTorch itself advises `torch.export` instead."""
    PT2 = "pt2"
    """A program of `torch.export`."""
    AOTINDUCTOR = "aotinductor"
    """A program of `torch.export`, compiled by Inductor for one kind of processor."""
    OPENVINO = "openvino"
    LITERT = "litert"
    """LiteRT, the former TensorFlow Lite."""
    EXECUTORCH = "executorch"
    """A program of ExecuTorch, PyTorch's runtime for devices."""


SUFFIXES = {
    Format.ONNX: ".onnx",
    Format.ORT: ".ort",
    Format.TORCHSCRIPT: ".pt",
    Format.PT2: ".pt2",
    Format.AOTINDUCTOR: ".pt2",
    Format.OPENVINO: ".xml",
    Format.LITERT: ".tflite",
    Format.EXECUTORCH: ".pte",
}
"""How the files of a format are called."""


class Precision(StrEnum):
    """How weights and activations are kept."""

    FP32 = "fp32"
    FP16_STORAGE = "fp16-storage"
    """Weights kept in 16 bits on disk and computed with in 32."""
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    INT8_WEIGHTS = "int8-weights"
    """Weights in blocks of 8 bits; activations are floats at both ends of every product."""
    INT4_WEIGHTS = "int4-weights"


class BatchInvariance(StrEnum):
    """Whether a row's answer depends on the rows that share its batch; see the explanation 'same answer'."""

    BITWISE = "bitwise"
    FIXED_SHAPES = "bitwise-fixed-shapes"
    """Bitwise among batches of certain sizes: whoever pads every batch up to one of them answers the same."""
    TOLERANCE = "within-tolerance"
    INTERFERENCE = "interference"
    NOT_BATCHABLE = "not-batchable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation of a recipe with the parameters that it ran with."""

    operation: str
    parameters: tuple[tuple[str, str | int | float | bool], ...] = ()

    def __str__(self) -> str:
        inner = ", ".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.operation}({inner})" if inner else self.operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The steps that made a variant from its source; running them again gives the same file."""

    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Recipe:
        """Return this recipe with one more step."""
        return Recipe(steps=(*self.steps, step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One runnable form of a model.

    `location` is a path for a file, or `package.module:factory` for a PyTorch source; `weights` is the path of the
    weights that a PyTorch source loads, or empty.
    """

    name: str
    format: Format
    precision: Precision
    location: str
    weights: str = ""
    recipe: Recipe = Recipe()
