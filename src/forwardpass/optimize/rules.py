"""What is never done, as a table: the rule, the reason, what it rests on, and when a reader should hear of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forwardpass.core.measurement import Machine
from forwardpass.optimize.values import LayerEvidence, NotTried, Target

__all__ = ["RULES", "Rule", "Situation", "rules_that_apply"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the rules look at."""

    machine: Machine
    saturates: bool
    """Whether this processor's 8-bit multiplications saturate."""
    layers: Sequence[LayerEvidence] = ()
    target: Target = Target.LATENCY

    @property
    def is_x86(self) -> bool:
        """Whether the processor is of the x86 family, whose kernels the QOperator rule is about."""
        return any(name.startswith(("sse", "avx")) for name in map(str.lower, self.machine.instruction_sets))

    @property
    def bf16_sets(self) -> frozenset[str]:
        """The instruction sets of this processor that compute in BF16."""
        return frozenset(self.machine.instruction_sets) & {"avx512-bf16", "amx-bf16", "bf16"}

    def has(self, operator: str) -> bool:
        """Tell whether the model has nodes of an operator; before anything is known of it, it may."""
        return not self.layers or any(operator in layer.what.split()[:-1] for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. `applies` tells whether it took something away from this search."""

    what: str
    reason: str
    evidence: str
    applies: Callable[[Situation], bool]
    measured: Callable[[Situation], str] = lambda _: ""
    """Evidence from this very search, which is said instead."""


def rules_that_apply(situation: Situation) -> tuple[NotTried, ...]:
    """Return the rules that took something away, each with the nearest evidence."""
    return tuple(
        NotTried(what=rule.what, reason=rule.reason, evidence=rule.measured(situation) or rule.evidence)
        for rule in RULES
        if rule.applies(situation)
    )


def _slower(situation: Situation) -> list[LayerEvidence]:
    return [
        layer
        for layer in situation.layers
        if layer.gain is not None and layer.gain.value <= 1 and not layer.is_in_8_bits
    ]


def _depthwise(situation: Situation) -> list[LayerEvidence]:
    return [layer for layer in _slower(situation) if layer.what.startswith("depthwise")]


def _range_of(layers: Sequence[LayerEvidence]) -> str:
    gains = sorted(layer.gain.value for layer in layers if layer.gain is not None)
    if not gains:
        return ""
    span = f"{gains[0]:.2f}" if len(gains) == 1 else f"{gains[0]:.2f} to {gains[-1]:.2f}"
    return f"measured here: {span} times as fast as in float, {len(gains)} node{'s' if len(gains) > 1 else ''}"


RULES = (
    Rule(
        what="FP16 arithmetic",
        reason="processors without FP16 units convert each value to FP32 and back: slower. FP16 is for storage",
        evidence="7.38 ms against 7.20 ms in FP32 on AVX2; 2 to 4 times slower in onnxruntime#16778 and #25824",
        applies=lambda _: True,
    ),
    Rule(
        what="BF16 arithmetic",
        reason="ONNX Runtime has no BF16 kernels on this processor, which has no BF16 instructions either",
        evidence="MatMul, Gemm and Conv in bfloat16 are not implemented in ONNX Runtime 1.32",
        applies=lambda situation: not situation.bf16_sets,
    ),
    Rule(
        what="BF16 arithmetic",
        reason="ONNX Runtime has no BF16 kernels on x86; OpenVINO has, and without AMX they lose to FP32 and to INT8",
        evidence="OpenVINO 2026.4 with AVX512-BF16, 768x3072: 0.83, 0.48 and 0.51 times as fast as FP32 in ONNX "
        "Runtime with 8, 64 and 256 rows, 1.16 with one, where weights in 8 bits are 4.2",
        applies=lambda situation: "avx512-bf16" in situation.bf16_sets and "amx-bf16" not in situation.bf16_sets,
    ),
    Rule(
        what="BF16 arithmetic",
        reason="ONNX Runtime has no BF16 kernels on x86, and AMX multiplies bytes at twice the rate of BF16: INT8 is "
        "entered instead. OpenVINO computes in BF16 on this processor, if a runtime of its own is worth it to you",
        evidence="Intel's optimisation manual: 2048 operations a cycle on bytes, 1024 in BF16; not measured here",
        applies=lambda situation: "amx-bf16" in situation.bf16_sets,
    ),
    Rule(
        what="BF16 arithmetic",
        reason="ONNX Runtime multiplies in BF16 only if `mlas.enable_gemm_fastmath_arm64_bfloat16` is set, and then "
        "the same file answers differently from machine to machine: it stays off",
        evidence="its rounding is 0.2 % of a product, 6 times that of FP16",
        applies=lambda situation: "bf16" in situation.bf16_sets,
    ),
    Rule(
        what="BF16 storage",
        reason="as small as FP16 storage, with 8 times the rounding error; weights beyond FP16's range stay in FP32",
        evidence="8 bits of significand against 11",
        applies=lambda _: True,
    ),
    Rule(
        what="a scale per tensor for 8-bit weights",
        reason="a scale per channel rounds several times finer where channels are uneven, for little time",
        evidence="error 0.012 against 0.05 to 0.21 of the output, 0.96 to 0.97 times as fast with 64 rows, 0.79 to "
        "0.87 with one (AVX-512 with VNNI, ONNX Runtime 1.32)",
        applies=lambda situation: situation.has("MatMul") or situation.has("Gemm") or situation.has("Conv"),
    ),
    Rule(
        what="INT8 dynamic convolutions",
        reason="ONNX Runtime has no signed kernel for them and is several times slower with the unsigned one",
        evidence="onnxruntime#15888, #12558, #3130",
        applies=lambda situation: situation.has("Conv"),
    ),
    Rule(
        what="INT8 in the QOperator format with signed activations",
        reason="on x86 it falls back to a kernel that is 3 to 10 times slower than FP32",
        evidence="0.09 to 0.32 times as fast as FP32 on AVX2, ONNX Runtime 1.30",
        applies=lambda situation: situation.is_x86 or not situation.machine.instruction_sets,
    ),
    Rule(
        what="INT8 depthwise convolutions among convolutions in float",
        reason="they move more bytes than they compute, and the conversions around them cost more than is saved",
        evidence="0.65 to 0.78 times as fast as FP32 on AVX2",
        applies=lambda situation: not situation.layers or bool(_depthwise(situation)),
        measured=lambda situation: _range_of(_depthwise(situation)),
    ),
    Rule(
        what="INT8 for nodes that it makes slower, in the mixed variant",
        reason="what the conversions cost is more than the products save, in small products above all",
        evidence="",
        applies=lambda situation: len(_slower(situation)) > len(_depthwise(situation)),
        measured=lambda situation: _range_of([it for it in _slower(situation) if it not in _depthwise(situation)]),
    ),
    Rule(
        what="8-bit weights in full range",
        reason="this processor adds pairs of 8-bit products in 16 bits and cuts the sums off, so weights get 7 bits",
        evidence="one product whose exact result is known was computed on this machine, and it was cut off",
        applies=lambda situation: situation.saturates,
    ),
    Rule(
        what="unstructured zeros",
        reason="no CPU runtime skips them: 99 % zeros run as fast as none",
        evidence="7.15, 7.15 and 7.20 ms at 50, 90 and 99 % zeros against 7.20 ms without",
        applies=lambda _: True,
    ),
)
