"""What the gains of single nodes foretell of whole variants, so that a brief search makes only what may win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forwardpass.core.measurement import Measurement
from forwardpass.errors import NothingToQuantise
from forwardpass.optimize.candidates import MIXED, WHOLE, completed, not_slower
from forwardpass.optimize.choice import MIN_GAIN
from forwardpass.optimize.gains import (
    Neighbours,
    NodeGain,
    contextual_saving,
    find_links,
    gaining_nodes,
    slower_dynamic,
    slower_static,
)
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_structure
from forwardpass.optimize.weighting import WEIGHTS
from forwardpass.optimize.weights import FORMS
from forwardpass.optimize.writers import MATRIX_OPERATORS, QUANTISED_OPERATORS, whole_nodes
from forwardpass.report.format import format_seconds

__all__ = ["Forecast", "forecast_savings"]

AS_IN_FLOAT = ("onnx-graph", "fp16-storage")
"""What computes as the float model does; ONNX Runtime optimises the graph whenever it loads one."""
TWINS = {"int8-static-smooth": "int8-static", "int8-dynamic-smooth": "int8-dynamic"}
"""What is as fast as another variant and only nearer to the source."""
ALWAYS_COMPARED = frozenset({WHOLE, "int8-static"})
"""Which of the two is faster depends on what stands between the nodes, and only whole files show that."""
WORTH_WRITING = 1.02
"""As fast, by the nodes, for a variant to be written once more without those that are slower in 8 bits."""
LEAST_SHARE = 0.9
"""Of the greatest saving among what keeps the floor: what is foretold to save less is not made."""
UNHANDY = {
    **dict.fromkeys((MIXED, *(name for name, _ in WEIGHTS.values())), "it would take a search of its own"),
    **dict.fromkeys(("int8-dynamic", "int8-dynamic-smooth"), "requests could not share a batch"),
}
"""What is made only if its nodes would be so much faster than with the best of the others that the choice would not
call it a tie, and why."""
ENOUGH_TO_SPARE = 0.5
"""Of what may be lost: what keeps the floor so easily needs no twin that is nearer to the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds of a call in one thread that variants save by the sums of their nodes, by name; negative for a loss."""

    saved_s: Mapping[str, float]
    float_s: float = 0.0
    """What all the nodes take in float."""
    saved_by_all_s: float | None = None
    """What `int8-static` would save if those of its nodes that are slower in 8 bits were in 8 bits, too."""

    def needless(self, name: str, held: Mapping[str, float]) -> str:
        """Return why a variant would not win against those that keep the floor; empty if it may, or nothing is known.

        `held` has the share of what may be lost that each of them has to spare.

        >>> forecast = Forecast(saved_s={"int8-static-whole": 2e-3, "int8-static-smooth": 1e-3})
        >>> forecast.needless("int8-static-smooth", held={"int8-static-whole": 0.1})
        'foretold to save 1.00 ms of a call, where int8-static-whole, which keeps the floor, saves 2.00 ms'
        >>> forecast.needless("int8-static-smooth", held={})
        ''
        """
        saved_s = self.saved_s.get(name)
        if saved_s is None:
            return ""
        if name in AS_IN_FLOAT:
            return "the arithmetic is that of the float model"
        if saved_s <= 0:
            return "no node would be faster than in float"
        if held.get(TWINS.get(name, ""), 0.0) >= ENOUGH_TO_SPARE:
            return f"{TWINS[name]}, which is as fast, keeps the floor with half of what may be lost to spare"
        best = max((it for it in held if it in self.saved_s), key=lambda it: self.saved_s[it], default=None)
        nearer = next((twin for twin, plain in TWINS.items() if plain == name and twin in held), "")
        if nearer and WHOLE not in self.saved_s:
            return f"{nearer}, which is as fast and nearer to the source, keeps the floor"
        if best is None or name in ALWAYS_COMPARED or saved_s >= self._least_s(name, self.saved_s[best]):
            return ""
        return (
            f"foretold to save {format_seconds(saved_s)} of a call, where {best}, which keeps the floor, "
            f"saves {format_seconds(self.saved_s[best])}{_but(name, is_more=saved_s > self.saved_s[best])}"
        )

    @property
    def favours_float_nodes(self) -> bool:
        """Whether it pays to write once more what has nodes in 8 bits that are slower so; it takes little.

        >>> Forecast(saved_s={"int8-static": 2e-3}, float_s=5e-3, saved_by_all_s=1.98e-3).favours_float_nodes
        False
        >>> Forecast(saved_s={"int8-static": 2e-3}, float_s=5e-3, saved_by_all_s=-1e-3).favours_float_nodes
        True
        """
        by_all_s = self.saved_by_all_s
        return by_all_s is not None and self.saved_s.get("int8-static", by_all_s) > self._beyond_s(
            by_all_s, WORTH_WRITING
        )

    def _least_s(self, name: str, best_s: float) -> float:
        """Return what a variant has to save to be made beside one that saves `best_s`."""
        if name not in UNHANDY:
            return LEAST_SHARE * best_s
        return self._beyond_s(best_s, MIN_GAIN)

    def _beyond_s(self, best_s: float, times: float) -> float:
        """Return what nodes have to save to be so many times as fast as those that save `best_s`."""
        return best_s + (1 - 1 / times) * max(self.float_s - best_s, 0.0)

    def order(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return names in the order in which they are made.

        Without convolutions, what is smoothed comes before its plain form, which it makes needless if it keeps the
        floor: in networks of matrix products uneven channels are the rule.

        >>> Forecast(saved_s={}).order(["int8-static-whole", "int8-static", "int8-static-smooth"])
        ('int8-static-whole', 'int8-static-smooth', 'int8-static')
        """
        if WHOLE in self.saved_s:
            return tuple(names)
        plain = {name: TWINS.get(name, name) for name in names}
        places = list(plain.values())
        return tuple(sorted(names, key=lambda name: (places.index(plain[name]), name not in TWINS)))


def _but(name: str, *, is_more: bool) -> str:
    """Say what speaks against an unhandy variant, after what it would save."""
    if name not in UNHANDY:
        return ""
    return f"; that is hardly less, and {UNHANDY[name]}" if is_more else f"; {UNHANDY[name]}"


def forecast_savings(source: Path, gains: Mapping[str, NodeGain]) -> Forecast | None:
    """Return what every variant of the float file saves by the gains of its nodes; None if no node was measured."""
    if not any(gain.float_s for gain in gains.values()):
        return None
    model = load_structure(source)
    saved_s = dict.fromkeys(AS_IN_FLOAT, 0.0)
    saved_s |= {MIXED: _mixed_s(model, gains)} | {name: _weights_s(gains, bits) for bits, (name, _) in WEIGHTS.items()}
    with suppress(NothingToQuantise):
        saved_s[WHOLE] = _whole_s(model, gains)
    with suppress(NothingToQuantise):
        saved_s["int8-static"] = _static_s(source, model, gains)
    with suppress(NothingToQuantise):
        saved_s["int8-dynamic"] = _dynamic_s(source, gains)
    saved_s |= {twin: saved_s[name] for twin, name in TWINS.items() if name in saved_s}
    by_all_s = None
    with suppress(NothingToQuantise):
        names = frozenset(not_slower(source, QUANTISED_OPERATORS, frozenset()))
        by_all_s = _in_company_s(model, gains, names)
    return Forecast(
        saved_s=saved_s,
        saved_by_all_s=by_all_s,
        float_s=sum(gain.float_s.value for gain in gains.values() if gain.float_s),
    )


def _whole_s(model: onnx.ModelProto, gains: Mapping[str, NodeGain]) -> float:
    found = [gains[node.name] for node in whole_nodes(model) if node.name in gains]
    return sum(_saved_s(gain, gain.inside or gain.static) for gain in found)


def _static_s(source: Path, model: onnx.ModelProto, gains: Mapping[str, NodeGain]) -> float:
    names = frozenset(not_slower(source, QUANTISED_OPERATORS, slower_static(gains)))
    return _in_company_s(model, gains, names)


def _dynamic_s(source: Path, gains: Mapping[str, NodeGain]) -> float:
    names = not_slower(source, MATRIX_OPERATORS, slower_dynamic(gains))
    return sum(_saved_s(gains[name], gains[name].dynamic) for name in names if name in gains)


def _mixed_s(model: onnx.ModelProto, gains: Mapping[str, NodeGain]) -> float:
    links = find_links(model)
    return _in_company_s(model, gains, completed(model, gaining_nodes(gains, links, frozenset(gains))))


def _weights_s(gains: Mapping[str, NodeGain], bits: int) -> float:
    forms = [str(form) for form in FORMS[bits]]
    return sum(max((_saved_s(gain, gain.blocks.get(form)) for form in forms), default=0.0) for gain in gains.values())


def _in_company_s(model: onnx.ModelProto, gains: Mapping[str, NodeGain], names: frozenset[str]) -> float:
    links = find_links(model)
    return sum(contextual_saving(gains[it], links.get(it, Neighbours()), names) for it in names if it in gains)


def _saved_s(gain: NodeGain, times: Measurement | None) -> float:
    return gain.float_s.value * (1 - 1 / times.value) if gain.float_s is not None and times is not None else 0.0
