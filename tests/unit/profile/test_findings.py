"""How far answers to one row are apart."""

from __future__ import annotations

import numpy as np

from forwardpass.profile.findings import compare


def test_answers_of_different_lengths_differ_without_being_compared_value_by_value() -> None:
    """A model whose values decide how many rows come out answers with none, too."""
    none, one = np.zeros((0, 3), np.float32), np.ones((1, 3), np.float32)
    for answer, reference in ((one, none), (none, one)):
        found = compare({"y": answer}, {"y": reference}, {"y": 1.0})
        assert found.is_flip
        assert not found.is_rounding
