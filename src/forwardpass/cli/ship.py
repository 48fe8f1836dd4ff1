"""`forwardpass ship`: the whole checklist, from a trained model to a bundle that can be served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forwardpass.cli.candidates import echo_candidates
from forwardpass.cli.command_line import command_line
from forwardpass.cli.options import (
    conversion_options,
    data_option,
    dynamic_axes,
    json_option,
    lean_options,
    model_argument,
    quality_options,
    source_options,
)
from forwardpass.cli.progress import shown_progress
from forwardpass.cli.rendering import checklist_rows, echo_json, echo_table, heading
from forwardpass.errors import InvalidOption

if TYPE_CHECKING:
    from forwardpass.ship import Shipment

__all__ = ["command"]


@click.command("ship")
@model_argument
@data_option(required=True)
@click.option("--out", required=True, metavar="BUNDLE", help="The folder that becomes the bundle.")
@click.option("--name", default=None, help="The model's name in URLs; default: the bundle's folder name.")
@source_options
@quality_options
@conversion_options
@lean_options
@click.option(
    "--processor",
    default="",
    metavar="NAME[:FOLDER]",
    help="Installed processor that turns a person's input into tensors, and the folder of its files: "
    "sentence-encoder:./tokenizer",
)
@click.option("--quick", is_flag=True, help="Make and measure only what may win, more shortly.")
@json_option
def command(
    model: str,
    *,
    data: str,
    out: str,
    name: str | None,
    weights: str,
    trust_pickle: bool,
    metric: str | None,
    metric_direction: str,
    max_drop: str | None,
    floor: float | None,
    target: str,
    slo: str | None,
    pin_processor: bool,
    budget: str | None,
    routes: str,
    prices: str,
    vcpu_hour_usd: float | None,
    gb_hour_usd: float | None,
    opset: int | None,
    dynamic: tuple[str, ...],
    prune: str | None,
    prune_multiple: int | None,
    sparsity: str | None,
    sparsity_per_layer: bool,
    distill: str | None,
    quantise_aware: bool,
    train_data: str,
    epochs: int,
    learning_rate: float,
    seed: int,
    processor: str,
    quick: bool,
    as_json: bool,
) -> int:
    """Run the whole checklist on MODEL and write a bundle: samples, convert, optimise, bundle, verify.

    MODEL is package.module:factory (PyTorch), an ONNX file, or another source that 'forwardpass convert' takes.
    --prune, --sparsity, --distill and --quantise-aware change the network itself, as in 'forwardpass optimize'. An
    interrupted run goes on where it was; finished steps are not run again while source, samples, settings, software and
    machine are the same. Exits with 1 if a line of the checklist misses its limit.

    \b
    Example:
      forwardpass ship shop.models:build --weights w.safetensors --data samples.npz --out shop-bundle \\
          --slo p95=20ms --max-drop 1%
      forwardpass ship shop.models:build --data samples.npz --out shop-bundle --prune 50% --max-drop 2%
    """
    from forwardpass.cli.settings import lean_settings, optimize_settings
    from forwardpass.wiring import ship_model

    settings = optimize_settings(
        max_drop=max_drop,
        floor=floor,
        target=target,
        slo=slo,
        pin_processor=pin_processor,
        budget=budget,
        routes=routes,
        prices=prices,
        vcpu_hour_usd=vcpu_hour_usd,
        gb_hour_usd=gb_hour_usd,
        quick=quick,
    )
    lean = lean_settings(
        prune=prune,
        prune_multiple=prune_multiple,
        sparsity=sparsity,
        per_layer=sparsity_per_layer,
        distill=distill,
        quantise_aware=quantise_aware,
        train_data=train_data,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
    )
    processor_name, processor_folder = _processor(processor)
    with shown_progress() as progress:
        shipment = ship_model(
            model,
            data=data,
            out=out,
            name=name,
            weights=weights,
            metric=metric,
            higher_is_better=metric_direction == "max",
            settings=settings,
            opset=opset,
            axes=dynamic_axes(dynamic),
            trust_pickle=trust_pickle,
            lean=lean,
            processor=processor_name,
            processor_folder=processor_folder,
            progress=progress,
            command=command_line(),
        )
    if as_json:
        echo_json(
            {
                "bundle": str(shipment.bundle.path),
                "ready": shipment.is_ready,
                "checklist": shipment.checklist,
                "optimization": shipment.optimization,
            }
        )
    else:
        _echo(shipment, out)
    return 0 if shipment.is_ready else 1


def _processor(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition(":")
    if folder and not Path(folder).is_dir():
        raise InvalidOption(option="--processor", value=text, expected="an existing folder after the colon")
    return name, Path(folder)


def _echo(shipment: Shipment, out: str) -> None:
    for step in shipment.resumed:
        click.echo(f"{step}: done before for the same inputs, not run again")
    heading("Variants")
    echo_candidates(shipment.optimization)
    heading("Checklist")
    echo_table(checklist_rows(shipment.checklist))
    click.echo()
    ready = "ready to serve" if shipment.is_ready else "NOT READY: a limit is missed"
    click.echo(f"{ready}: {out}")
    click.echo(f"report:  {Path(out) / 'report.html'}")
    click.echo(f"serve:   forwardpass serve {out}")
