"""`forwardpass convert`: another form of the model, and the proof that it answers the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forwardpass.cli.options import (
    conversion_options,
    data_option,
    dynamic_axes,
    json_option,
    max_size_option,
    max_sizes,
    model_argument,
    source_options,
)
from forwardpass.cli.progress import shown_progress
from forwardpass.cli.rendering import echo_json, echo_table

if TYPE_CHECKING:
    from forwardpass.convert import Conversion, OutputCheck

__all__ = ["command"]

FORMS = ("onnx", "ort", "pt2", "aotinductor", "torchscript", "openvino", "litert", "executorch")
"""As `forwardpass.convert.TARGETS`, which to import would cost the command line its speed."""


@click.command("convert")
@model_argument
@click.option("--to", "form", type=click.Choice(FORMS), default="onnx", show_default=True, help="The form wanted.")
@click.option("--out", required=True, metavar="FILE", help="Where the converted model goes.")
@data_option(required=False)
@source_options
@conversion_options
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8-dynamic", "int8-static"]),
    default="fp32",
    show_default=True,
    help="In 8 bits: for --to litert and executorch.",
)
@max_size_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="The greatest relative error that an output may have against the source. [default: 1e-4, in 8 bits 0.1]",
)
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
    precision: str,
    max_size: tuple[str, ...],
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Convert MODEL and run the result on a grid of shapes against its source before keeping it.

    MODEL is package.module:factory (PyTorch), a .pt2 or TorchScript file, a folder with config.json and safetensors
    (transformers), an ONNX file, a .keras file or SavedModel folder, or an estimator of scikit-learn, XGBoost or
    LightGBM (.skops; with --trust-pickle .joblib and .pkl).

    \b
    Example:
      forwardpass convert shop.models:build --weights w.safetensors --data samples.npz --out model.onnx
    """
    from forwardpass.wiring import convert_model

    with shown_progress() as progress:
        conversion = convert_model(
            model,
            to=form,
            out=out,
            data=data,
            weights=weights,
            opset=opset,
            axes=dynamic_axes(dynamic),
            precision=precision,
            max_sizes=max_sizes(max_size),
            tolerance=tolerance,
            trust_pickle=trust_pickle,
            progress=progress,
        )
    if as_json:
        echo_json({"conversion": conversion})
        return
    echo_table(
        [
            ["file", conversion.variant.location],
            ["exporter", _made_by(conversion)],
            ["inputs", ", ".join(f"{spec.name} {spec}" for spec in conversion.signature.inputs)],
            ["outputs", ", ".join(f"{spec.name} {spec}" for spec in conversion.signature.outputs)],
            [
                "compared",
                f"{len(conversion.parity)} shapes, worst relative difference {conversion.worst_difference:.2g}",
            ],
            *([f"  {check.output}", _apart(check)] for check in conversion.worst_outputs),
        ]
    )
    for note in conversion.notes:
        click.echo(f"note: {note}")


def _made_by(conversion: Conversion) -> str:
    return conversion.exporter if conversion.opset is None else f"{conversion.exporter}, opset {conversion.opset}"


def _apart(check: OutputCheck) -> str:
    return (
        f"relative difference {check.difference:.2g}, cosine {check.cosine:.6f}, "
        f"{check.num_flips} row{'' if check.num_flips == 1 else 's'} decided differently"
    )
