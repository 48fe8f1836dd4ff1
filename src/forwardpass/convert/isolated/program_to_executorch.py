"""A `torch.export` program to ExecuTorch: `python program_to_executorch.py FOLDER`.

Reads `job.json` and `program.pt2` in the folder, and for 8 bits also `example.npz` (one call to trace with) and
`calibration.npz` (arrays named `<call>:<input>`). Writes `model.pte`, or one line into `failure.txt`.

The job says the `precision`, the `backend` (`xnnpack` or `portable`), the `signature` (a text that the file carries),
the `limits` (the greatest sizes by input and axis) and `num_dynamic_axes` (how many of them may differ).
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIGNATURE_METHOD = "forwardpass_signature"
MISSING = re.compile(r"Operator (?:torch\._ops\.)?(?P<operator>\w+\.\w+)\S* is not in Core ATen opset")


def main(folder: Path) -> None:
    """Convert what is in the folder."""
    job = json.loads((folder / "job.json").read_text())
    import torch
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.load(folder / "program.pt2")
    if job["precision"] != "fp32":
        program = quantised(program, folder, job)
    signature = torch.frombuffer(bytearray(job["signature"].encode()), dtype=torch.uint8)
    lowered = to_edge_transform_and_lower(
        program,
        partitioner=[xnnpack(job["num_dynamic_axes"])] if job["backend"] == "xnnpack" else [],
        constant_methods={SIGNATURE_METHOD: signature},
    )
    (folder / "model.pte").write_bytes(bytes(lowered.to_executorch().buffer))


def xnnpack(num_dynamic_axes: int) -> Any:
    """Return what decides which operators XNNPACK computes.

    It cannot insert or drop an axis of a tensor with two dynamic ones, and the partitioner does not look for that.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    if num_dynamic_axes < 2:
        return XnnpackPartitioner()
    reshaping = ("UnsqueezeCopyConfig", "SqueezeCopyConfig")
    return XnnpackPartitioner(configs=[kind for kind in ALL_PARTITIONER_CONFIGS if kind.__name__ not in reshaping])


def quantised(program: Any, folder: Path, job: dict[str, Any]) -> Any:
    """Return the program with weights in 8 bits, and activations, too: by ranges that were seen, or as they come."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        def transform_for_annotation(self, model: Any) -> Any:
            return with_whole_numbers(super().transform_for_annotation(model))

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=job["precision"] == "int8-dynamic")
    prepared = prepare_pt2e(program.module(), Quantizer().set_global(config))
    with torch.no_grad():
        for call in calibration(folder / "calibration.npz"):
            prepared(**call)
    (example,) = calibration(folder / "example.npz")
    dynamic: Any = torch.export.Dim.AUTO
    shapes = {
        tensor: {int(axis): dynamic(max=limit) for axis, limit in limits.items()}
        for tensor, limits in job["limits"].items()
    }
    return torch.export.export(convert_pt2e(prepared), (), kwargs=example, dynamic_shapes=shapes)


def with_whole_numbers(model: Any) -> Any:
    """Give constants beside whole numbers their type back: the quantiser makes 0.0 of 0, and indices no indices."""
    import torch

    for node in model.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or value.dtype.is_floating_point:
            continue
        for constant in node.all_input_nodes:
            kept = getattr(model, str(constant.target), None) if constant.op == "get_attr" else None
            if isinstance(kept, torch.Tensor) and kept.ndim == 0 and kept.dtype.is_floating_point:
                setattr(model, str(constant.target), kept.to(value.dtype))
    return model


def calibration(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the calls of an archive; names without a number are one call."""
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as archive:
        calls: dict[str, dict[str, Any]] = {}
        for key in archive.files:
            call, separator, tensor = key.partition(":")
            calls.setdefault(call if separator else "", {})[tensor or call] = torch.from_numpy(archive[key])
    yield from calls.values()


def sentence(error: BaseException) -> str:
    """Say in one line what went wrong, by the name of the operator if it is about one."""
    operator = MISSING.search(str(error))
    if operator is not None:
        return f"it has no kernel for the operator '{operator['operator']}'"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        main(Path(sys.argv[1]))
    except BaseException as error:  # the exporter raises what lies deep below it
        Path(sys.argv[1], "failure.txt").write_text(sentence(error))
        sys.exit(1)
