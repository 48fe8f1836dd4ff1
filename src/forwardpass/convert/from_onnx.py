"""From an ONNX file of the user's to a proven one: checked, in one file, its batch dynamic where that can be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from forwardpass.convert.batches import fixed_batch, free_batch
from forwardpass.convert.jobs import Job
from forwardpass.convert.locating import diverging_onnx_node
from forwardpass.convert.onnx_files import write_checked
from forwardpass.convert.opset import set_opset
from forwardpass.convert.parity import BATCH_SIZES, shape_grid
from forwardpass.convert.proving import Locate, Proven, inputs_are_batchable, proven_onnx, signature_of
from forwardpass.convert.values import AS_IS
from forwardpass.core.calls import random_calls
from forwardpass.core.protocols import Runtime
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array, Signature
from forwardpass.core.variants import Format
from forwardpass.errors import ConversionError, InvalidModel
from forwardpass.predict import InFixedBatches
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.options import num_available_cores

__all__ = ["prove_file"]


def prove_file(source: Path, job: Job) -> Proven:
    """Write a checked copy, and hold it against the file that it was made from.

    Raises:
        ConversionError: the copy does not run or answer the same at some shape, or not in the opset asked for.
        InvalidModel: it is no ONNX file that can be run.
        UsageError: the file is not there, or the samples do not fit it.
    """
    job.progress("checking the ONNX file", done=0.2)
    write_checked(source, job.out)
    if job.opset is not None:
        set_opset(job.out, job.opset, name=job.name)
    original = open_runtime(Format.ONNX, str(source), options=RuntimeOptions(num_threads=num_available_cores()))
    locate = _locate_in_file(source, job)
    num_rows = fixed_batch(original.signature)
    if num_rows is not None:
        return _with_fixed_batch(original, num_rows, job)
    for group in job.samples.groups if job.samples is not None else ():
        original.signature.validate(_rows(group, 1))
    batchable = inputs_are_batchable(original.signature)
    calls = _calls(job.samples, original.signature, BATCH_SIZES if batchable else (1,))
    notes = () if batchable else ("The inputs have no batch axis in common: this model runs one request at a time.",)
    return proven_onnx(original, calls, AS_IS, job, notes=notes, locate=locate)


def _locate_in_file(source: Path, job: Job) -> Locate:
    return lambda call: diverging_onnx_node(source, job.out, Format.ONNX, call, tolerance=job.tolerance)


def _with_fixed_batch(original: Runtime, num_rows: int, job: Job) -> Proven:
    """Make the batch dynamic if the model then answers like the original; otherwise keep it as it is, and say so."""
    for group in job.samples.groups if job.samples is not None else ():
        original.signature.validate(_rows(group, num_rows))
    kept = job.out.read_bytes()
    free_batch(job.out, num_rows)
    try:
        calls = _calls(job.samples, signature_of(job.out), BATCH_SIZES)
        note = f"The batch was fixed at {num_rows}. It is dynamic now, and every row answers as it did."
        return proven_onnx(InFixedBatches(original, num_rows=num_rows), calls, AS_IS, job, notes=(note,))
    except (ConversionError, InvalidModel):
        job.out.write_bytes(kept)
    note = (
        f"The batch is fixed at {num_rows}: this model runs that many rows a call, since the number is built into it. "
        "Export it with a dynamic batch axis."
    )
    return proven_onnx(original, _calls(job.samples, original.signature, (num_rows,)), AS_IS, job, notes=(note,))


def _calls(samples: Samples | None, signature: Signature, batch_sizes: tuple[int, ...]) -> Iterable[dict[str, Array]]:
    if samples is not None:
        return shape_grid(samples, batch_sizes=batch_sizes)
    made_up = random_calls(signature, batch_sizes, {})
    return [call for calls in made_up.values() for call in calls]


def _rows(group: SampleGroup, num_rows: int) -> dict[str, Array]:
    return dict(group.take(np.arange(num_rows) % len(group)).inputs)
