"""What a node saves depends on its neighbours; what stays in 8 bits saves there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.optimize.gains import (
    Neighbours,
    NodeGain,
    contextual_saving,
    gaining_nodes,
    slower_dynamic,
    slower_static,
)

NUM_NODES = 6
NAMES = [f"conv{at}" for at in range(NUM_NODES)]
CHAIN = {
    name: Neighbours(
        before=NAMES[at - 1] if at else "",
        after=tuple(NAMES[at + 1 : at + 2]),
        is_read_in_float=at == NUM_NODES - 1,
    )
    for at, name in enumerate(NAMES)
}


def times(value: float) -> Measurement:
    return Measurement(value=value, unit="ratio", interval=Interval(low=value, high=value), num_repetitions=3)


def node(alone: float, inside: float) -> NodeGain:
    return NodeGain(float_s=times(1.0), static=times(alone), inside=times(inside))


GAINS = st.lists(st.tuples(st.floats(0.3, 3), st.floats(1, 2)), min_size=NUM_NODES, max_size=NUM_NODES).map(
    lambda pairs: {name: node(alone, alone * more) for name, (alone, more) in zip(NAMES, pairs, strict=True)}
)


@given(GAINS)
def test_every_node_that_stays_saves_and_all_that_save_alone_stay(gains: dict[str, NodeGain]) -> None:
    staying = gaining_nodes(gains, CHAIN, frozenset(NAMES))
    assert all(contextual_saving(gains[name], CHAIN[name], staying) > 0 for name in staying)
    alone = {name for name, gain in gains.items() if gain.static is not None and gain.static.value > 1}
    assert alone <= staying
    assert gaining_nodes(gains, CHAIN, staying) == staying


def test_a_convolution_between_two_in_8_bits_counts_as_measured_inside() -> None:
    gain = node(0.5, 2.0)
    both, none = frozenset(NAMES), frozenset[str]()
    assert contextual_saving(gain, CHAIN["conv2"], none) == -1.0
    assert contextual_saving(gain, CHAIN["conv2"], both) == 0.5
    assert contextual_saving(gain, CHAIN["conv0"], both) == -0.25
    assert contextual_saving(NodeGain(failure="no kernel"), CHAIN["conv0"], both) == 0.0


def test_only_what_is_surely_slower_in_every_company_is_left_in_float() -> None:
    unsure = Measurement(value=0.9, unit="ratio", interval=Interval(low=0.7, high=1.1), num_repetitions=3)
    gains = {
        "lost": node(0.5, 0.9),
        "good inside": node(0.5, 1.5),
        "product": NodeGain(float_s=times(1.0), static=times(0.8), dynamic=times(1.2)),
        "unsure": NodeGain(float_s=times(1.0), static=unsure, dynamic=times(0.4)),
        "unmeasured": NodeGain(failure="no kernel"),
    }
    assert slower_static(gains) == {"lost", "product"}
    assert slower_dynamic(gains) == {"unsure"}
