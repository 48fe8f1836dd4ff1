"""The audit of batch invariance against runtimes whose behaviour in a batch is known by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass.core.tensors import Array, Signature, Tensors, TensorSpec
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile import InvarianceAudit, audit_invariance, invariance
from forwardpass.profile.cases import MAX_BATCH_SIZE
from forwardpass.profile.invariance import digest_answers

WEIGHTS = np.random.default_rng(0).standard_normal((16, 4))
ROUNDING = 1e-6
"""Eight units in the last place of a float32: no bit pattern survives it, and no user could notice."""


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
    return (x.astype(np.float64)[:, :, None] * WEIGHTS).sum(axis=1).astype(np.float32)


def shared_scale(x: Array) -> Array:
    """Quantise with one scale over the batch, as dynamic quantisation does."""
    scale = max(float(np.abs(x).max()) / 127, 1e-9)
    return row_by_row(np.round(x / scale) * scale)


def pools() -> list[Tensors]:
    generator = np.random.default_rng(1)
    return [{"x": generator.standard_normal((8, 16)).astype(np.float32)} for _ in range(2)]


def audit(function: Callable[[Array], Array], *, budget_s: float = 600) -> InvarianceAudit:
    return audit_invariance(FakeRuntime(function), pools(), budget_s=budget_s)


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_rows_that_know_nothing_of_each_other_are_bitwise_and_everything_was_compared() -> None:
    found = audit(row_by_row)
    assert found.verdict is BatchInvariance.BITWISE
    assert (found.max_difference, found.worst_case, found.num_flips, found.gaps) == (0.0, "", 0, ())
    assert found.covered_batch_sizes == tuple(range(1, 34))
    assert found.exact_batch_sizes == ()
    assert found.num_comparisons > 16 * sum(range(1, 34)), "16 rows, each at every position of every batch size"


def test_a_row_alone_that_rounds_otherwise_leaves_all_larger_sizes_to_pad_to() -> None:
    found = audit(lambda x: row_by_row(x) * np.float32(1 + ROUNDING * (len(x) > 1)))
    assert found.verdict is BatchInvariance.FIXED_SHAPES
    assert found.exact_batch_sizes == tuple(range(2, 34))
    assert 0 < found.max_difference < 1e-5


def test_rounding_that_depends_on_the_position_is_within_tolerance() -> None:
    def by_position(x: Array) -> Array:
        return row_by_row(x) * (1 + ROUNDING * np.arange(len(x), dtype=np.float32))[:, None]

    found = audit(by_position)
    assert found.verdict is BatchInvariance.TOLERANCE
    assert found.exact_batch_sizes == ()


def test_a_shared_scale_is_interference_and_worst_beside_outliers() -> None:
    found = audit(shared_scale)
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert found.max_difference > 0.01
    assert "neighbours scaled by 20" in found.worst_case
    assert found.gaps == ("Interference was found, and the rest was left out.",)


def test_ties_broken_by_the_batch_size_flip_decisions_and_agree_among_the_sizes_of_a_row_alone() -> None:
    def tie_breaking(x: Array) -> Array:
        scores = np.ones((len(x), 4), np.float32)
        scores[:, len(x) % 4] += np.float32(ROUNDING)
        return scores

    found = audit(tie_breaking)
    assert found.verdict is BatchInvariance.FIXED_SHAPES
    assert found.exact_batch_sizes == tuple(range(1, 34, 4))
    assert found.num_flips > 100


def test_ties_broken_by_the_position_are_interference_however_small() -> None:
    def tie_breaking(x: Array) -> Array:
        scores = np.ones((len(x), 4), np.float32)
        scores[np.arange(len(x)), np.arange(len(x)) % 4] += np.float32(ROUNDING)
        return scores

    assert audit(tie_breaking).verdict is BatchInvariance.INTERFERENCE


@pytest.mark.parametrize("position", [0, 15, -1])
def test_interference_at_a_single_position_of_a_single_size_is_found(position: int) -> None:
    def one_row_suffers(x: Array) -> Array:
        y = row_by_row(x)
        if len(x) == 29:
            y[position] += 1
        return y

    found = audit(one_row_suffers)
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert found.worst_case.startswith(f"batch of 29, row {position % 29 + 1},")


def test_sizes_that_agree_on_garbage_are_no_sizes_to_pad_to() -> None:
    found = audit(lambda x: row_by_row(x) * np.float32(np.nan if len(x) > 1 else 1))
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert found.exact_batch_sizes == ()


def test_a_score_that_is_nearly_zero_by_cancellation_may_move_as_much_as_others_round() -> None:
    def cancelling(x: Array) -> Array:
        y = row_by_row(x)
        y[np.abs(x[:, 0]) < 0.3] *= np.float32(1e-6)
        return y + np.float32(ROUNDING * (len(x) > 1))

    found = audit(cancelling)
    assert found.max_difference < 1e-4
    assert found.verdict is BatchInvariance.FIXED_SHAPES


def test_a_runtime_that_rolls_dice_is_interference() -> None:
    generator = np.random.default_rng(2)

    def dropout(x: Array) -> Array:
        return row_by_row(x * (generator.random(x.shape) > 0.1))

    assert audit(dropout).verdict is BatchInvariance.INTERFERENCE


# --- a law over all such runtimes ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How a made-up runtime rounds: by a label of the batch size, and at some sizes by more than that."""

    labels: tuple[int, ...]
    by_position: frozenset[int] = frozenset()
    by_neighbour: frozenset[int] = frozenset()
    is_coarse: bool = field(default=False)
    """Whether position and neighbours matter by more than rounding."""

    def run(self, x: Array) -> Array:
        size = len(x)
        factor = np.full((size, 1), 1 + 2 * ROUNDING * self.labels[size - 1])
        step = 0.01 if self.is_coarse else ROUNDING
        if size in self.by_position:
            factor[size // 2 :] *= 1 + step
        if size in self.by_neighbour and np.abs(x).max() > 10:
            factor *= 1 + step
        return (row_by_row(x) * factor).astype(np.float32)

    @property
    def spoilt(self) -> set[int]:
        return set((self.by_position | self.by_neighbour) - {1})

    @property
    def classes(self) -> list[tuple[int, ...]]:
        good = [size for size in range(1, 34) if size not in self.spoilt]
        groups = [tuple(size for size in good if self.labels[size - 1] == label) for label in set(self.labels)]
        return [group for group in groups if len(group) > 1]

    @property
    def verdict(self) -> BatchInvariance:
        if not self.spoilt and len(set(self.labels)) == 1:
            return BatchInvariance.BITWISE
        if self.spoilt and self.is_coarse:
            return BatchInvariance.INTERFERENCE
        return BatchInvariance.FIXED_SHAPES if self.classes else BatchInvariance.TOLERANCE


sizes = st.frozensets(st.integers(2, MAX_BATCH_SIZE), max_size=4) | st.just(frozenset(range(2, 34)))
label_lists = st.one_of(
    st.just([0] * 33),
    st.integers(2, 5).map(lambda modulus: [size % modulus for size in range(1, 34)]),
    st.integers(1, 32).map(lambda edge: [int(size > edge) for size in range(1, 34)]),
    st.lists(st.integers(0, 4), min_size=33, max_size=33),
    st.just(list(range(33))),
)
behaviours = st.builds(
    Behaviour,
    labels=label_lists.map(tuple),
    by_position=st.just(frozenset[int]()) | sizes,
    by_neighbour=st.just(frozenset[int]()) | sizes,
    is_coarse=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(behaviours)
def test_the_audit_finds_the_class_that_a_runtime_was_built_to_have(behaviour: Behaviour) -> None:
    pool = {"x": np.random.default_rng(3).uniform(0.5, 1.5, (3, 16)).astype(np.float32)}
    found = audit_invariance(FakeRuntime(behaviour.run), [pool], budget_s=600)
    assert found.verdict is behaviour.verdict
    if found.verdict is BatchInvariance.FIXED_SHAPES:
        best = max(behaviour.classes, key=lambda group: (len(group), -group[0]))
        assert found.exact_batch_sizes == best
    else:
        assert found.exact_batch_sizes == ()


# --- what is run ---------------------------------------------------------------------------------------------------


def test_token_ids_are_never_scaled_or_zeroed() -> None:
    seen: set[int] = set()

    def look_up(x: Array) -> Array:
        seen.update(x.reshape(-1).tolist())
        return np.zeros((len(x), 4), np.float32)

    ids = np.arange(100, 164).reshape(4, 16)
    audit_invariance(FakeRuntime(look_up, dtype="int64"), [{"x": ids}], budget_s=600)
    assert seen == set(range(100, 164))


def test_calls_of_one_row_are_each_others_neighbours() -> None:
    def first_row_decides(x: Array) -> Array:
        return row_by_row(np.broadcast_to(x[:1], x.shape))

    singles = [{"x": pool["x"][row : row + 1]} for pool in pools() for row in range(4)]
    found = audit_invariance(FakeRuntime(first_row_decides), singles, budget_s=600)
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert "All rows were alike" not in found.gaps[0]


def test_made_up_ids_meet_zeros_and_the_audit_says_that_all_rows_were_alike() -> None:
    def shared_table(x: Array) -> Array:
        return np.full((len(x), 4), x.mean(), np.float32)

    ones = np.ones((4, 16), np.int64)
    found = audit_invariance(FakeRuntime(shared_table, dtype="int64"), [{"x": ones}], budget_s=600)
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert found.gaps[0] == "All rows were alike, as made-up integers are: give real samples that differ."


class MaskedRuntime:
    """Sums `x [batch, length]` where `attention_mask` says so, or over everything if it is careless."""

    name = "masked"
    version = "1"

    def __init__(self, *, is_careless: bool = False, shortest: int = 1):
        mask = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "length"))
        x = TensorSpec(name="x", dtype="float32", shape=("batch", "length"))
        y = TensorSpec(name="y", dtype="float32", shape=("batch", 1))
        self.signature = Signature(inputs=(x, mask), outputs=(y,))
        self._is_careless = is_careless
        self._shortest = shortest
        self.lengths: set[int] = set()

    def run(self, tensors: Tensors) -> dict[str, Array]:
        x, mask = tensors["x"].astype(np.float64), tensors["attention_mask"]
        self.lengths.add(x.shape[1])
        if x.shape[1] < self._shortest:
            raise ValueError("too short")
        num = x.shape[1] if self._is_careless else mask.sum(axis=1)
        return {"y": ((x * mask).sum(axis=1) / num)[:, None].astype(np.float32)}


def masked_pool(length: int) -> Tensors:
    x = np.random.default_rng(4).standard_normal((4, length)).astype(np.float32)
    return {"x": x, "attention_mask": np.ones((4, length), np.int64)}


def test_a_padded_row_is_compared_with_itself_unpadded_at_lengths_no_longer_than_given() -> None:
    runtime = MaskedRuntime()
    found = audit_invariance(runtime, [masked_pool(8)], budget_s=600)
    assert found.padding is not None
    assert found.padding.verdict is BatchInvariance.BITWISE
    assert found.padding.num_comparisons == 6
    assert runtime.lengths == {4, 7, 8}


def test_a_model_that_averages_over_its_padding_is_found_and_may_still_be_batched_with_rows_of_its_length() -> None:
    found = audit_invariance(MaskedRuntime(is_careless=True), [masked_pool(8)], budget_s=600)
    assert found.verdict is BatchInvariance.BITWISE
    assert found.padding is not None
    assert found.padding.verdict is BatchInvariance.INTERFERENCE
    assert found.padding.max_difference == pytest.approx(0.5, rel=1e-6)
    assert found.padding.worst_case.startswith("4 of 8 positions")


def test_a_model_that_takes_no_shorter_rows_is_said_so() -> None:
    found = audit_invariance(MaskedRuntime(shortest=8), [masked_pool(8)], budget_s=600)
    assert found.padding is None
    assert found.gaps == ("Padding was not compared: the model does not take shorter rows than those given.",)


def test_a_model_of_one_row_is_not_batchable_and_still_has_its_answers_hashed() -> None:
    single, other = (
        audit_invariance(FakeRuntime(function, batch=8), pools(), budget_s=600)
        for function in (row_by_row, lambda x: row_by_row(x) + 1)
    )
    assert single.verdict is BatchInvariance.NOT_BATCHABLE
    assert single.num_comparisons == 0
    assert single.digests != other.digests


def test_hashes_tell_at_which_batch_size_two_processes_differ() -> None:
    def other(x: Array) -> Array:
        return row_by_row(x) * np.float32(1 + ROUNDING * (len(x) == 8))

    ours, theirs = (digest_answers(FakeRuntime(function), pools(), (1, 2, 8)) for function in (row_by_row, other))
    assert [mine == yours for mine, yours in zip(ours, theirs, strict=True)] == [True, True, False]


# --- budgets, in virtual time --------------------------------------------------------------------------------------


@dataclass
class SlowRuntime(FakeRuntime):
    """Takes `row_s` for each row, on a clock of its own."""

    function: Callable[[Array], Array]
    row_s: float
    now_s: float = 0.0
    batch_sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.function)

    def monotonic(self) -> float:
        return self.now_s

    def run(self, tensors: Tensors) -> dict[str, Array]:
        self.now_s += self.row_s * len(tensors["x"])
        self.batch_sizes.append(len(tensors["x"]))
        return super().run(tensors)


def audit_slowly(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[Array], Array], *, row_s: float, budget_s: float
) -> tuple[InvarianceAudit, SlowRuntime]:
    runtime = SlowRuntime(function, row_s)
    monkeypatch.setattr(invariance, "time", runtime)
    return audit_invariance(runtime, pools(), budget_s=budget_s), runtime


@pytest.mark.parametrize("row_s", [1e-3, 1e-2, 1.0, 100.0])
def test_interference_is_found_in_a_short_time_however_slow_the_model(
    monkeypatch: pytest.MonkeyPatch, row_s: float
) -> None:
    found, runtime = audit_slowly(monkeypatch, shared_scale, row_s=row_s, budget_s=0.5)
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert runtime.now_s <= max(0.5 * 1.2, 18 * row_s), "six rows alone, twice, and two batches of two at least"


@pytest.mark.parametrize("budget_s", [0.5, 1.0, 3.0, 10.0])
def test_what_there_was_no_time_for_is_named(monkeypatch: pytest.MonkeyPatch, budget_s: float) -> None:
    found, runtime = audit_slowly(monkeypatch, row_by_row, row_s=4e-3, budget_s=budget_s)
    assert found.verdict is BatchInvariance.BITWISE
    assert runtime.now_s <= budget_s * 1.2
    assert found.gaps[0].startswith("Not covered for lack of time: batch sizes ") or budget_s == 10.0
    assert set(found.covered_batch_sizes) <= set(runtime.batch_sizes)


def test_more_time_covers_no_fewer_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    covered: Sequence[int] = ()
    for budget_s in (0.1, 0.5, 1.0, 3.0, 10.0, 100.0):
        found, _ = audit_slowly(monkeypatch, row_by_row, row_s=4e-3, budget_s=budget_s)
        assert len(found.covered_batch_sizes) >= len(covered)
        covered = found.covered_batch_sizes
    assert covered == tuple(range(1, 34))
