"""`forwardpass convert`: another form of the model, and the proof that it answers the same."""

from __future__ import annotations

import click

from forwardpass.cli.options import (
    conversion_options,
    data_option,
    dynamic_axes,
    json_option,
    model_argument,
    source_options,
)
from forwardpass.cli.progress import shown_progress
from forwardpass.cli.rendering import echo_json, echo_table

__all__ = ["command"]


@click.command("convert")
@model_argument
@click.option("--to", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="The form wanted.")
@click.option("--out", required=True, metavar="FILE", help="Where the converted model goes.")
@data_option(required=False)
@source_options
@conversion_options
@json_option
def command(
    model: str,
    form: str,
    out: str,
    *,
    data: str | None,
    weights: str,
    trust_pickle: bool,
    opset: int | None,
    dynamic: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert MODEL and run the result on a grid of shapes against its source before keeping it.

    MODEL is package.module:factory (PyTorch) or an ONNX file.

    \b
    Example:
      forwardpass convert shop.models:build --weights w.safetensors --data samples.npz --out model.onnx
    """
    from forwardpass.wiring import convert_model

    del form  # one form so far; the option is there so that a script says what it means
    with shown_progress() as progress:
        conversion = convert_model(
            model,
            out=out,
            data=data,
            weights=weights,
            opset=opset,
            axes=dynamic_axes(dynamic),
            trust_pickle=trust_pickle,
            progress=progress,
        )
    if as_json:
        echo_json({"conversion": conversion})
        return
    echo_table(
        [
            ["file", conversion.variant.location],
            ["exporter", f"{conversion.exporter}, opset {conversion.opset}"],
            ["inputs", ", ".join(f"{spec.name} {spec}" for spec in conversion.signature.inputs)],
            ["outputs", ", ".join(f"{spec.name} {spec}" for spec in conversion.signature.outputs)],
            [
                "compared",
                f"{len(conversion.parity)} shapes, worst relative difference {conversion.worst_difference:.2g}",
            ],
        ]
    )
    for note in conversion.notes:
        click.echo(f"note: {note}")
