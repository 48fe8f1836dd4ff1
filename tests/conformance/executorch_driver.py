"""Runs in the environment of ExecuTorch: `python executorch_driver.py COMMAND FOLDER`; one JSON line on stdout."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import forwardpass
from forwardpass.convert import TorchSource, convert
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import ForwardpassError
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.runtimes import RuntimeOptions, open_runtime
from tests.models import MACHINE

SOURCES = "tests.integration.conversion_sources"


def silent(text: str, *, done: float) -> None:
    """Say nothing."""


def make_tokens(folder: Path) -> dict[str, Any]:
    """Write `tokens.pte`, with two dynamic axes."""
    generator = np.random.default_rng(1)
    groups = tuple(SampleGroup(inputs={"ids": generator.integers(0, 20, (6, size))}) for size in (3, 7))
    conversion = convert(
        TorchSource(reference=f"{SOURCES}:tokens"),
        Samples(groups=groups),
        to=Format.EXECUTORCH,
        out=folder / "tokens.pte",
        max_sizes={"sequence": 9, "batch": 8},
        progress=silent,
    )
    runtime = open_runtime(Format.EXECUTORCH, conversion.variant.location, options=RuntimeOptions())
    return {
        "worst_difference": conversion.worst_difference,
        "num_shapes": len(conversion.parity),
        "notes": conversion.notes,
        "exporter": conversion.exporter,
        "inputs": [(spec.name, spec.shape) for spec in runtime.signature.inputs],
        "outputs": [(spec.name, spec.shape) for spec in runtime.signature.outputs],
        "is_as_told": runtime.signature == conversion.signature,
    }


def run_natively(folder: Path) -> dict[str, Any]:
    """Run `tokens.pte` with ExecuTorch's public interface and nothing of ours."""
    warnings.simplefilter("ignore")
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(folder / "tokens.pte").load_method("forward")
    assert method is not None
    ids = torch.from_numpy(np.load(folder / "ids.npy"))
    return {"answers": [value.tolist() for value in method.execute([ids])]}


def use_tokens(folder: Path) -> dict[str, Any]:
    """Run `tokens.pte` as a runtime, a bundle and a subject of measuring."""
    path = str(folder / "tokens.pte")
    runtime = open_runtime(Format.EXECUTORCH, path, options=RuntimeOptions())
    ids = np.arange(60).reshape(20, 3) % 20
    whole = runtime.run({"ids": ids})  # memory is planned for 8 rows
    parts = [runtime.run({"ids": row[None]}) for row in ids]
    kept = {name: answer.copy() for name, answer in whole.items()}
    runtime.run({"ids": ids + 1 - 1})
    refusals = []
    for given in (np.zeros((1, 10), np.int64),):
        try:
            runtime.run({"ids": given})
        except ForwardpassError as error:
            refusals.append(str(error))
    settings = forwardpass.ProfileSettings(
        batch_sizes=(1, 2), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=1
    )
    (profile,) = forwardpass.profile_model(path, axis_sizes={"sequence": 5}, settings=settings).profiles
    variant = Variant(name="pte", format=Format.EXECUTORCH, precision=Precision.FP32, location=path)
    packing = PackingList(
        name="tokens",
        variants=[VariantToPack(variant=variant, invariance=BatchInvariance.BITWISE)],
        golden_inputs=[{"ids": ids[:2]}],
        machine=MACHINE,
    )
    pack_bundle(folder / "bundle", packing)
    answers = forwardpass.load(folder / "bundle").predict({"ids": ids})
    return {
        "is_same_in_parts": all(
            np.array_equal(whole[name], np.concatenate([part[name] for part in parts])) for name in whole
        ),
        "is_kept": all(np.array_equal(whole[name], kept[name]) for name in whole),
        "is_same_from_bundle": all(np.array_equal(whole[name], answers[name]) for name in whole),
        "refusals": refusals,
        "runtime": profile.runtime,
    }


def make_eight_bits(folder: Path) -> dict[str, Any]:
    """Write a network in 8 bits, static, and as it is; tell sizes and how far apart they are."""
    from tests.integration import conversion_sources as sources

    images = np.random.default_rng(1).standard_normal((60, 3, 12, 12)).astype(np.float32)
    samples = Samples(groups=(SampleGroup(inputs={"pixels": images}),))
    sizes, answers = {}, {}
    for precision in (Precision.FP32, Precision.INT8_STATIC, Precision.INT8_DYNAMIC):
        out = folder / f"{precision.value}.pte"
        convert(sources.wide_network(), samples, to=Format.EXECUTORCH, precision=precision, out=out, progress=silent)
        sizes[precision.value] = out.stat().st_size
        runtime = open_runtime(Format.EXECUTORCH, str(out), options=RuntimeOptions())
        answers[precision.value] = runtime.run({"pixels": images[:5]})["scores"].tolist()
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    picked = convert(
        sources.Picked(),
        Samples(groups=(SampleGroup(inputs={"x": x}),)),
        to=Format.EXECUTORCH,
        precision=Precision.INT8_DYNAMIC,
        out=folder / "picked.pte",
        progress=silent,
    )
    return {"sizes": sizes, "answers": answers, "picked": picked.worst_difference}


def make_program(folder: Path) -> dict[str, Any]:
    """Write a `.pt2` file, and an ExecuTorch file from that."""
    from tests.integration import conversion_sources as sources

    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    samples = Samples(groups=(SampleGroup(inputs={"y": x[:, :3].copy(), "x": x}),))  # not in the order of forward
    program = TorchSource(reference=f"{SOURCES}:two_inputs")
    convert(program, samples, to=Format.PT2, out=folder / "two.pt2", progress=silent)
    source = TorchSource(reference=str(folder / "two.pt2"))
    conversion = convert(source, samples, to=Format.EXECUTORCH, out=folder / "two.pte", progress=silent)
    refused = ""
    try:
        odd = sources.Unsupported()
        convert(
            odd,
            Samples(groups=(SampleGroup(inputs={"x": x}),)),
            to=Format.EXECUTORCH,
            out=folder / "o.pte",
            progress=silent,
        )
    except ForwardpassError as error:
        refused = str(error)
    return {
        "worst_difference": conversion.worst_difference,
        "outputs": [check.output for check in conversion.worst_outputs],
        "refused": refused,
        "left": sorted(path.name for path in folder.iterdir()),
    }


def break_program(folder: Path) -> dict[str, Any]:
    """Let the converter change the weights of the second layer, and tell what is said then."""
    from forwardpass.convert import executorch
    from tests.integration import conversion_sources as sources

    program = executorch.PROGRAM.read_text()
    loading = '    program = torch.export.load(folder / "program.pt2")\n'
    assert loading in program
    broken = folder / "broken.py"
    broken.write_text(program.replace(loading, loading + '    program.state_dict["second.weight"].data.add_(1.0)\n'))
    executorch.PROGRAM = broken
    torch.manual_seed(1)  # Weights by chance may let the last layer answer zeros, changed or not.
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    samples = Samples(groups=(SampleGroup(inputs={"x": x}),))
    try:
        convert(sources.TwoLayers(), samples, to=Format.EXECUTORCH, out=folder / "m.pte", progress=silent)
    except ForwardpassError as error:
        return {"told": str(error)}
    return {"told": ""}


if __name__ == "__main__":
    commands = {
        "make-tokens": make_tokens,
        "run-natively": run_natively,
        "use-tokens": use_tokens,
        "make-eight-bits": make_eight_bits,
        "make-program": make_program,
        "break-program": break_program,
    }
    sys.stdout.write(json.dumps(commands[sys.argv[1]](Path(sys.argv[2]))) + "\n")
