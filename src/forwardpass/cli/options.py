"""Options that several commands share, and how their words become values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from forwardpass.errors import InvalidOption
from forwardpass.optimize.prices import DEFAULT_PRICES, known_prices
from forwardpass.profile import ProfileSettings

__all__ = [
    "comma_separated_counts",
    "conversion_options",
    "data_option",
    "dynamic_axes",
    "json_option",
    "lean_options",
    "max_size_option",
    "max_sizes",
    "model_argument",
    "quality_options",
    "source_options",
]

_DYNAMIC = re.compile(r"(?P<input>[^:=]+):(?P<axis>\d{1,2})=(?P<name>[A-Za-z_]\w*)", re.ASCII)
_MAX_SIZE = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<size>[1-9]\d{0,8})", re.ASCII)

Command = TypeVar("Command", bound=Callable[..., Any])

model_argument = click.argument("model")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")


def data_option(*, required: bool) -> Callable[[Command], Command]:
    """Where the samples come from."""
    return click.option(
        "--data",
        required=required,
        metavar="SAMPLES",
        help="Representative inputs: an .npz file, a folder of them, or package.module:function. Arrays are named "
        "after the model's inputs; 'labels' is optional.",
    )


def source_options(function: Command) -> Command:
    """How a PyTorch source is loaded."""
    options = (
        click.option(
            "--weights", default="", metavar="FILE", help="Weights of a package.module:factory source (.safetensors)."
        ),
        click.option(
            "--trust-pickle",
            is_flag=True,
            help="Allow --weights to be a pickled checkpoint, read in a process of its own, tensors only; or MODEL to "
            "be a pickled estimator, read in a process of its own, where it may run any code.",
        ),
    )
    return _apply(function, options)


def conversion_options(function: Command) -> Command:
    """How a PyTorch source becomes ONNX."""
    options = (
        click.option(
            "--opset", type=click.IntRange(min=7), default=None, help="ONNX opset; default: the exporter's own."
        ),
        click.option(
            "--dynamic",
            multiple=True,
            metavar="INPUT:AXIS=NAME",
            help="An axis whose size varies although all samples have the same one, such as pixels:2=height. May be "
            "repeated; axes that vary together have the same name. Axes that vary in the samples need not be named.",
        ),
    )
    return _apply(function, options)


def dynamic_axes(texts: tuple[str, ...]) -> dict[str, dict[int, str]]:
    """Read `pixels:2=height`.

    >>> dynamic_axes(("pixels:2=height", "pixels:3=width"))
    {'pixels': {2: 'height', 3: 'width'}}

    Raises:
        InvalidOption: a text has another form.
    """
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        match = _DYNAMIC.fullmatch(text)
        if match is None:
            raise InvalidOption(option="--dynamic", value=text, expected="INPUT:AXIS=NAME such as pixels:2=height")
        axes.setdefault(match["input"], {})[int(match["axis"])] = match["name"]
    return axes


max_size_option = click.option(
    "--max-size",
    multiple=True,
    metavar="NAME=SIZE",
    help="How long a dynamic axis may get, such as batch=64 or sequence=512: for --to executorch, which plans its "
    "memory beforehand. [default: as long as in the samples, twice that where they never vary, and 32 rows]",
)


def max_sizes(texts: tuple[str, ...]) -> dict[str, int]:
    """Read `sequence=512`.

    >>> max_sizes(("batch=64", "sequence=512"))
    {'batch': 64, 'sequence': 512}

    Raises:
        InvalidOption: a text has another form.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        match = _MAX_SIZE.fullmatch(text)
        if match is None:
            raise InvalidOption(option="--max-size", value=text, expected="NAME=SIZE such as sequence=512")
        sizes[match["name"]] = int(match["size"])
    return sizes


def quality_options(function: Command) -> Command:
    """What the search may give up, and what it is looking for."""
    options = (
        click.option(
            "--metric",
            default=None,
            metavar="NAME",
            help="accuracy, f1, mean-error (need labels), agreement, cosine, relative-error (against the source), or "
            "package.module:function. Default: accuracy with integer labels, mean-error with other labels, "
            "cosine without.",
        ),
        click.option(
            "--metric-direction",
            type=click.Choice(["max", "min"]),
            default="max",
            show_default=True,
            help="Whether higher or lower is better, for a metric of your own.",
        ),
        click.option(
            "--max-drop",
            default=None,
            metavar="DROP",
            help="How much of the source's score a variant may lose: a share (1%) or an amount (0.01). "
            "Default: 1%, unless --floor is given.",
        ),
        click.option(
            "--floor",
            type=float,
            default=None,
            metavar="SCORE",
            help="The worst score that a variant may have. With --max-drop, the stricter of the two counts.",
        ),
        click.option(
            "--target",
            type=click.Choice(["latency", "throughput", "size", "cold-start", "cost"]),
            default="latency",
            show_default=True,
            help="What the chosen variant should be best at.",
        ),
        click.option("--slo", default=None, metavar="TARGET", help="Latency target, such as p95=50ms."),
        click.option(
            "--pin-processor",
            is_flag=True,
            help="With --target cold-start, also make files laid out for this kind of processor; others refuse them.",
        ),
        click.option(
            "--budget",
            default=None,
            metavar="TIME",
            help="End the search within this time (90s, 10m, 1h) with the best so far. Default: no limit.",
        ),
        click.option(
            "--routes",
            default="onnx",
            show_default=True,
            metavar="NAMES",
            help="Which variants are made: onnx, torch, or onnx,torch. 'torch' (PyTorch sources) is PyTorch's own "
            "toolkit: programs in float and quantised by torchao, as they are and compiled by Inductor, which takes "
            "half a minute for each.",
        ),
        click.option(
            "--prices",
            default=DEFAULT_PRICES,
            show_default=True,
            metavar="NAME",
            help=f"What --target cost computes with: {', '.join(known_prices())}, or a JSON file of yours.",
        ),
        click.option(
            "--vcpu-hour-usd",
            type=click.FloatRange(min=0),
            default=None,
            metavar="USD",
            help="Price of a processor for an hour, in place of that of --prices.",
        ),
        click.option(
            "--gb-hour-usd",
            type=click.FloatRange(min=0),
            default=None,
            metavar="USD",
            help="Price of a gigabyte of memory for an hour, in place of that of --prices.",
        ),
    )
    return _apply(function, options)


def lean_options(function: Command) -> Command:
    """Which leaner networks are made, and how they are trained."""
    options = (
        click.option(
            "--prune",
            default=None,
            metavar="SHARE",
            help="Take channels away until this share of the multiply-adds is gone (50%), or as many as --max-drop "
            "allows ('floor').",
        ),
        click.option(
            "--prune-multiple",
            type=click.IntRange(min=1),
            default=None,
            help="Channel counts that --prune leaves are multiples of this. Default: 16 on processors with AVX-512, "
            "8 on others and where the layers are too narrow for 16.",
        ),
        click.option(
            "--sparsity",
            default=None,
            metavar="SHARE",
            help="Set this share of the weights to zero (80%). The file compresses better; no CPU runtime is faster.",
        ),
        click.option(
            "--sparsity-per-layer", is_flag=True, help="Count --sparsity in each layer, not over the network."
        ),
        click.option(
            "--distill",
            default=None,
            metavar="STUDENT",
            help="Teach a smaller network: layers=2 (that many of the source's layers), width=50%, both with a comma, "
            "or package.module:factory of your own.",
        ),
        click.option(
            "--quantise-aware",
            is_flag=True,
            help="Train a copy of the network with the rounding of INT8 static, for where that loses too much.",
        ),
        click.option(
            "--train-data",
            default="",
            metavar="SAMPLES",
            help="What these networks learn from; labels are optional. Default: the calibration split.",
        ),
        click.option("--epochs", type=click.IntRange(min=1), default=40, show_default=True, help="Of that training."),
        click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of that training."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of that training."),
    )
    return _apply(function, options)


def comma_separated_counts(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read `1,2,4`.

    Raises:
        InvalidOption: a part is not a positive number.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidOption(option=option, value=text, expected="positive numbers such as 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def profile_settings(
    *, quick: bool, batch_sizes: tuple[int, ...] | None = None, thread_counts: tuple[int, ...] | None = None
) -> ProfileSettings:
    """Return how much to measure."""
    settings = ProfileSettings.quick() if quick else ProfileSettings()
    return replace(
        settings,
        batch_sizes=batch_sizes or settings.batch_sizes,
        thread_counts=thread_counts or settings.thread_counts,
    )


def _apply(function: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        function = option(function)
    return function
