"""Of the rules, a reader hears those that took something away on this processor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forwardpass.optimize.rules import Situation, rules_that_apply
from forwardpass.optimize.values import LayerEvidence
from tests.models import MACHINE


def told(*instruction_sets: str, layers: tuple[str, ...] = ()) -> dict[str, str]:
    machine = replace(MACHINE, instruction_sets=instruction_sets)
    evidence = [LayerEvidence(name=what, what=what) for what in layers]
    rules = rules_that_apply(Situation(machine=machine, saturates=False, layers=evidence))
    assert len({rule.what for rule in rules}) == len(rules), "one reason each"
    return {rule.what: rule.reason for rule in rules}


@pytest.mark.parametrize(
    ("instruction_sets", "words"),
    [
        (("avx2", "fma"), "which has no BF16 instructions either"),
        (("avx2", "avx512f", "avx512-bf16"), "without AMX they lose to FP32 and to INT8"),
        (("avx2", "avx512f", "avx512-bf16", "amx-int8", "amx-bf16"), "AMX multiplies bytes at twice the rate of BF16"),
        (("neon", "dotprod", "bf16"), "only if `mlas.enable_gemm_fastmath_arm64_bfloat16` is set"),
        (("neon",), "which has no BF16 instructions either"),
    ],
)
def test_every_kind_of_processor_has_one_reason_not_to_compute_in_bf16(
    instruction_sets: tuple[str, ...], words: str
) -> None:
    assert words in told(*instruction_sets)["BF16 arithmetic"]


def test_a_scale_per_tensor_is_only_spoken_of_where_there_are_weights() -> None:
    rule = "a scale per tensor for 8-bit weights"
    assert rule in told("avx2", layers=("Gemm 64x32",))
    assert rule not in told("avx2", layers=("LSTM 64x32",))
