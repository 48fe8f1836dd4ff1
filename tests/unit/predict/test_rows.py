"""Rows that are run in other numbers than they come."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.batch_sizes import allowed_rows, padded_rows
from forwardpass.core.tensors import Array, Signature, Tensors, TensorSpec
from forwardpass.predict import InExactBatches

SPEC = TensorSpec(name="x", dtype="float32", shape=("batch",))


@dataclass(eq=False)
class SizeSensitive:
    """Answers each row with itself and the size of the batch that it was run in."""

    name: str = "fake"
    version: str = "1"
    signature: Signature = field(default_factory=lambda: Signature(inputs=(SPEC,), outputs=(SPEC,)))
    sizes: list[int] = field(default_factory=list)

    def run(self, tensors: Tensors) -> dict[str, Array]:
        self.sizes.append(len(tensors["x"]))
        return {"x": tensors["x"], "size": np.full(len(tensors["x"]), len(tensors["x"]))}


@given(
    num_rows=st.integers(1, 60),
    batch_sizes=st.sets(st.integers(1, 20), min_size=1).map(sorted),
    wanted=st.integers(1, 20),
)
def test_batches_have_allowed_sizes_only_and_every_row_its_own_answer(
    num_rows: int, batch_sizes: list[int], wanted: int
) -> None:
    fake = SizeSensitive()
    most = allowed_rows(wanted, batch_sizes)
    given_rows = np.arange(num_rows, dtype=np.float32)
    answers = InExactBatches(fake, batch_sizes=batch_sizes, max_rows=most).run({"x": given_rows})
    np.testing.assert_array_equal(answers["x"], given_rows)
    assert len(answers["size"]) == num_rows
    assert set(fake.sizes) <= set(batch_sizes)
    assert max(fake.sizes) <= most
    last = num_rows % most
    assert fake.sizes == [most] * (num_rows // most) + ([padded_rows(last, batch_sizes)] if last else [])
