"""`forwardpass optimize`: leaner variants, each measured, and a choice with reasons."""

from __future__ import annotations

from pathlib import Path

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
from forwardpass.cli.rendering import echo_json

__all__ = ["command"]


@click.command("optimize")
@model_argument
@data_option(required=True)
@click.option("--out", required=True, metavar="FOLDER", help="Where the variants go.")
@source_options
@conversion_options
@quality_options
@lean_options
@click.option("--quick", is_flag=True, help="Make and measure only what may win, more shortly.")
@json_option
def command(
    model: str,
    *,
    data: str,
    out: str,
    weights: str,
    trust_pickle: bool,
    opset: int | None,
    dynamic: tuple[str, ...],
    metric: str | None,
    metric_direction: str,
    max_drop: str | None,
    floor: float | None,
    target: str,
    slo: str | None,
    pin_processor: bool,
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
    budget: str | None,
    routes: str,
    prices: str,
    vcpu_hour_usd: float | None,
    gb_hour_usd: float | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Make leaner variants of MODEL, measure each beside its source on this machine, and choose one.

    Variants: graph optimisation, FP16 storage, INT8 dynamic, INT8 static, both smoothed (SmoothQuant), mixed
    precision, and weights alone in 8 or 4 bits, by what each node gains on this machine.
    A variant is kept only if its score stays above the floor on the validation split; the table quotes the test split,
    which the search never sees. --prune, --sparsity, --distill and --quantise-aware change the network itself (PyTorch
    sources only) and train it with the source as its teacher; labels help and are not needed.

    \b
    Example:
      forwardpass optimize shop.models:build --weights w.safetensors --data samples.npz --out variants
      forwardpass optimize shop.models:build --data samples.npz --out variants --prune 50% --max-drop 2%
      forwardpass optimize shop.models:build --data samples.npz --out variants --distill layers=2
    """
    from forwardpass.cli.settings import lean_settings, optimize_settings
    from forwardpass.wiring import optimize_model

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
    with shown_progress() as progress:
        result = optimize_model(
            model,
            data=data,
            out=out,
            weights=weights,
            metric=metric,
            higher_is_better=metric_direction == "max",
            settings=settings,
            opset=opset,
            axes=dynamic_axes(dynamic),
            trust_pickle=trust_pickle,
            lean=lean,
            progress=progress,
            command=command_line(),
        )
    if as_json:
        echo_json({"optimization": result})
        return
    echo_candidates(result)
    click.echo(f"report: {Path(out) / 'report.html'}, the same as JSON: {Path(out) / 'optimization.json'}")
