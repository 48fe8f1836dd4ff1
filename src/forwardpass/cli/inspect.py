"""`forwardpass inspect`: is this bundle whole, and what is in it?"""

from __future__ import annotations

import click

from forwardpass.bundle import Bundle, BundledVariant
from forwardpass.cli.rendering import echo_json, echo_table, heading
from forwardpass.report.format import format_bytes, format_seconds

__all__ = ["command"]


@click.command("inspect")
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(bundle: str, *, as_json: bool) -> None:
    """Check every file of BUNDLE, re-run its golden answers on this machine, and show what is in it."""
    from forwardpass.wiring import inspect_bundle

    inspection = inspect_bundle(bundle)
    if as_json:
        echo_json({"manifest": inspection.bundle.manifest, "golden": inspection.golden})
        return
    _echo(inspection.bundle)
    heading("Golden answers on this machine")
    echo_table(
        [
            [check.variant, f"off by {check.difference:.2g}", f"limit {check.tolerance:.2g}", "MET"]
            for check in inspection.golden
        ]
    )


def _same_answer(variant: BundledVariant) -> str:
    from forwardpass.profile.gaps import join_sizes

    sizes = f" ({join_sizes(variant.exact_batch_sizes)} rows)" if variant.exact_batch_sizes else ""
    return f"{variant.invariance.value}{sizes}"


def _echo(bundle: Bundle) -> None:
    manifest = bundle.manifest
    size = sum(record.size_bytes for record in manifest.files.values())
    echo_table(
        [
            ["name", manifest.name],
            ["made", f"{manifest.created_at} by forwardpass {manifest.forwardpass_version}"],
            ["measured on", f"{manifest.machine.cpu}, {manifest.machine.num_cores} cores"],
            ["inputs", ", ".join(f"{spec.name} {spec}" for spec in manifest.signature.inputs)],
            ["outputs", ", ".join(f"{spec.name} {spec}" for spec in manifest.signature.outputs)],
            ["processor", manifest.processor.name if manifest.processor else "none"],
            ["target", str(manifest.slo) if manifest.slo else "none"],
            ["files", f"{len(manifest.files)}, {format_bytes(size)}, every SHA-256 as declared"],
        ]
    )
    heading("Variants")
    rows = []
    for variant in manifest.variants:
        table = variant.latency_for()
        latency = format_seconds(table.points[0].p50_s) if table else "not measured"
        mark = "default" if variant.name == manifest.default_variant else ""
        file = manifest.files[variant.path]
        rows.append([variant.name, latency, format_bytes(file.size_bytes), _same_answer(variant), mark])
    echo_table(rows, header=("variant", "p50 at batch 1", "size", "same answer in a batch", ""), right=(1, 2))
