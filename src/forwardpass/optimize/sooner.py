"""Which variants are also written in forms that start sooner, for a search whose target is the cold start."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from forwardpass.core.protocols import Progress
from forwardpass.core.variants import Format, Precision
from forwardpass.optimize.candidates import Workshop
from forwardpass.optimize.entries import SHARE_OF_MAKING, SHARE_OF_SCORING, Entry, Search
from forwardpass.optimize.making import attempt
from forwardpass.optimize.mapped import build_mapped_form, mapped_forms
from forwardpass.optimize.scoring import Scorer, score_one
from forwardpass.optimize.values import Target

__all__ = ["make_sooner"]

NUM_SMALLEST = 2
"""How many variants beside the float model are also written in forms that start sooner: loading is nearly all that a
model adds to a cold start, and small files load soonest."""


def make_sooner(
    workshop: Workshop, search: Search, entries: Sequence[Entry], scorer: Scorer, progress: Progress
) -> list[Entry]:
    """Write forms that start sooner of the float model and of the smallest variants that keep the floor.

    A form holds to the bytes of its variant or is rejected.
    """
    if search.settings.target is not Target.COLD_START:
        return []
    found = []
    for base in _bases(workshop, entries, scorer):
        for form in mapped_forms(pin_processor=search.settings.pin_processor):
            name = f"{base.variant.name}-{form.suffix}"
            if not search.has_time():
                search.omit(name, str(search.budget))
                continue
            progress(f"making {name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
            make = partial(build_mapped_form, base.variant, form, scorer.splits.calibration, workshop.folder)
            entry = attempt(name, base.variant.precision, workshop, make, format=form.format)
            score_one(entry, scorer, is_needed=False)
            search.note(entry, scorer.metric)
            found.append(entry)
    return found


def _bases(workshop: Workshop, entries: Sequence[Entry], scorer: Scorer) -> list[Entry]:
    own = [entry for entry in entries if entry.variant.name == workshop.baseline.name]
    others = [
        entry
        for entry in scorer.held(entries)
        if entry not in own
        and entry.variant.format is Format.ONNX
        and entry.variant.precision is not Precision.FP16_STORAGE  # mapped weights are those that are computed with
    ]
    others.sort(key=lambda entry: Path(entry.variant.location).stat().st_size)
    return [*own, *others[:NUM_SMALLEST]]
