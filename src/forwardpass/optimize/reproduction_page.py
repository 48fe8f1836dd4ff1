"""How to make the variants again, and how to tell that they are the same."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from forwardpass.convert import Conversion
from forwardpass.optimize.values import Optimization, Provenance
from forwardpass.report.page import (
    Column,
    Fact,
    RowGroup,
    Section,
    render_code,
    render_facts,
    render_notes,
    render_paragraph,
    render_table,
)

__all__ = ["reproduction_section"]

_DETERMINISM = """\
The same recipe, source, samples and versions give the same bytes.
Which nodes stay in float can rest on timings: another run may decide otherwise; then recipe and file differ."""


def reproduction_section(conversion: Conversion, optimization: Optimization) -> Section:
    """Return the command, the versions, the recipe of each variant and the hashes of its files."""
    lead = (
        f"{_made_from(conversion)} opset {conversion.opset}, compared with the source at "
        f"{len(conversion.parity)} shapes; the worst relative difference is {conversion.worst_difference:.1e}."
    )
    columns = [Column(title="Variant"), Column(title="Recipe", kind="wrap")]
    made = [candidate for candidate in optimization.candidates if candidate.files]
    rows: list[list[str | Markup]] = [
        [candidate.variant.name, " → ".join(map(str, candidate.variant.recipe.steps))] for candidate in made
    ]
    table = render_table(columns, [RowGroup(rows=rows)], name="Recipes")
    hashes = [f"{file.sha256}  {file.name}" for candidate in made for file in candidate.files]
    check = (
        (render_paragraph("The files, as sha256sum -c takes them:"), render_code("\n".join(hashes))) if hashes else ()
    )
    notes = render_notes([*conversion.notes, *_DETERMINISM.splitlines()])
    given = list(_given(optimization.provenance)) if optimization.provenance is not None else []
    return Section(title="How to make it again", lead=lead, parts=(*given, table, *check, notes))


def _made_from(conversion: Conversion) -> str:
    if conversion.is_as_given:
        return "A checked copy of the ONNX file that was given, in"
    return f"Converted by the {conversion.exporter} exporter to ONNX, in"


def _given(provenance: Provenance) -> Iterator[Markup]:
    """Yield what to type, with which versions, and what it starts from."""
    if provenance.command:
        yield render_code(provenance.command)
    yield render_facts(
        [
            Fact(name="Versions", value=", ".join(f"{name} {version}" for name, version in provenance.packages)),
            Fact(name="Source", value=provenance.source),
            Fact(name="SHA-256 of the source", value=provenance.source_sha256),
            *(Fact(name=f"SHA-256 of {name} samples", value=sha256) for name, sha256 in provenance.samples),
        ]
    )
