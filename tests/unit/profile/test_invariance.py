"""The audit of batch invariance against models whose behaviour in a batch is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from forwardpass.core.tensors import Array, Signature, Tensors, TensorSpec
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.invariance import InvarianceAudit, audit_invariance

WEIGHTS = np.random.default_rng(0).standard_normal((16, 4))


class FakeRuntime:
    """Runs a function of `x [batch, 16]`."""

    name = "fake"
    version = "1"

    def __init__(self, function: Callable[[Array], Array], *, batch: int | str = "batch", dtype: str = "float32"):
        x = TensorSpec(name="x", dtype=dtype, shape=(batch, 16))
        y = TensorSpec(name="y", dtype="float32", shape=(batch, 4))
        self.signature = Signature(inputs=(x,), outputs=(y,))
        self._function = function

    def run(self, tensors: Tensors) -> dict[str, Array]:
        return {"y": self._function(tensors["x"])}


def row_by_row(x: Array) -> Array:
    return np.stack([(row.astype(np.float64) @ WEIGHTS).astype(np.float32) for row in x])


def shared_scale(x: Array) -> Array:
    """Quantise with one scale over the batch, as dynamic quantisation does."""
    scale = max(float(np.abs(x).max()) / 127, 1e-9)
    return row_by_row(np.round(x / scale) * scale)


def rounding(x: Array) -> Array:
    return row_by_row(x) * np.float32(1 + 1e-6 * (len(x) > 1))


def tie_breaking(x: Array) -> Array:
    scores = np.ones((len(x), 4), np.float32)
    scores[:, len(x) % 4] += np.float32(1e-6)
    return scores


def audit(function: Callable[[Array], Array], **options: int | str) -> InvarianceAudit:
    generator = np.random.default_rng(1)
    pools = [{"x": generator.standard_normal((8, 16)).astype(np.float32)} for _ in range(2)]
    return audit_invariance(FakeRuntime(function, **options), pools, budget_s=60)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (row_by_row, BatchInvariance.BITWISE),
        (rounding, BatchInvariance.TOLERANCE),
        (shared_scale, BatchInvariance.INTERFERENCE),
        (tie_breaking, BatchInvariance.INTERFERENCE),
    ],
)
def test_a_known_behaviour_gets_its_verdict(function: Callable[[Array], Array], verdict: BatchInvariance) -> None:
    assert audit(function).verdict is verdict


def test_a_shared_scale_is_found_worst_beside_outliers() -> None:
    found = audit(shared_scale)
    assert found.max_difference > 0.01
    assert "neighbours scaled by 20" in found.worst_case


def test_interference_at_a_single_position_is_found() -> None:
    def last_row_suffers(x: Array) -> Array:
        y = row_by_row(x)
        if len(x) > 1:
            y[-1] += 1
        return y

    assert audit(last_row_suffers).verdict is BatchInvariance.INTERFERENCE


def test_a_nan_beside_a_number_is_interference() -> None:
    def nan_in_batches(x: Array) -> Array:
        return row_by_row(x) * np.float32(np.nan if len(x) > 1 else 1)

    assert audit(nan_in_batches).verdict is BatchInvariance.INTERFERENCE


def test_a_model_of_one_row_is_not_batchable_and_still_has_its_answers_hashed() -> None:
    single, other = audit(row_by_row, batch=8), audit(lambda x: row_by_row(x) + 1, batch=8)
    assert single.verdict is BatchInvariance.NOT_BATCHABLE
    assert single.num_comparisons == 0
    assert single.answers_sha256 != other.answers_sha256


def test_token_ids_are_never_scaled_or_zeroed() -> None:
    seen: set[int] = set()

    def look_up(x: Array) -> Array:
        seen.update(x.reshape(-1).tolist())
        return np.zeros((len(x), 4), np.float32)

    ids = np.arange(100, 164).reshape(4, 16)
    audit_invariance(FakeRuntime(look_up, dtype="int64"), [{"x": ids}], budget_s=60)
    assert seen == set(range(100, 164))


def test_without_a_budget_only_the_answers_of_rows_alone_are_taken() -> None:
    sizes: set[int] = set()

    def record(x: Array) -> Array:
        sizes.add(len(x))
        return row_by_row(x)

    pool = {"x": np.ones((4, 16), np.float32)}
    assert audit_invariance(FakeRuntime(record), [pool], budget_s=0).num_comparisons == 0
    assert sizes == {1}
