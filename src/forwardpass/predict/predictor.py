"""The same checks and the same answers as the server, inside the user's own process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.bundle import Bundle, BundledVariant, open_bundle
from forwardpass.core.batch_sizes import allowed_rows
from forwardpass.core.protocols import Encoder, Processor, Runtime
from forwardpass.core.strings import are_strings, as_strings
from forwardpass.core.tensors import Array, Signature, Tensors
from forwardpass.core.variants import BatchInvariance
from forwardpass.errors import MalformedRequest, TensorMismatch
from forwardpass.predict.exactness import SameAnswer, exact_batch_sizes, max_batch_rows
from forwardpass.predict.golden import GoldenCheck, check_golden
from forwardpass.predict.rows import InExactBatches, RowByRow
from forwardpass.processors import open_processor
from forwardpass.runtimes import RuntimeOptions, open_runtime

__all__ = ["Predictor", "open_variant", "verify_variant"]


def open_variant(
    bundle: Bundle, name: str | None = None, *, options: RuntimeOptions, file: Path | None = None
) -> Runtime:
    """Load a variant of a bundle, from `file` if it was copied there, and check it against its golden answers.

    A variant whose rows change each other's answers runs them one at a time.

    Raises:
        InvalidOption: there is no variant of this name.
        GoldenMismatch: it answers differently on this machine.
    """
    variant = bundle.variant(name)
    runtime = open_runtime(variant.format, str(file or bundle.locate(variant.path)), options=options)
    calls = bundle.golden_calls(variant)
    check_golden(runtime, calls, variant=variant.name, tolerance=variant.golden.tolerance)
    return RowByRow(runtime) if variant.invariance is BatchInvariance.INTERFERENCE else runtime


def verify_variant(bundle: Bundle, name: str | None = None) -> GoldenCheck:
    """Load a variant, re-run its golden calls and return how far it is from them.

    Raises:
        InvalidOption: there is no variant of this name.
        GoldenMismatch: it answers differently on this machine.
    """
    variant = bundle.variant(name)
    runtime = open_runtime(variant.format, str(bundle.locate(variant.path)), options=RuntimeOptions())
    calls = bundle.golden_calls(variant)
    return check_golden(runtime, calls, variant=variant.name, tolerance=variant.golden.tolerance)


class Predictor:
    """A bundle that answers in this process. Calls from several threads are run one after another."""

    def __init__(self, bundle: Bundle, variant: str, runtime: Runtime, processor: Processor | None) -> None:
        self._bundle = bundle
        self._variant = variant
        self._runtime = runtime
        self._processor = processor
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        variant: str | None = None,
        num_threads: int = 1,
        same_answer: SameAnswer = SameAnswer.AFFORDABLE,
    ) -> Predictor:
        """Open the bundle at `path` with its default variant, or with `variant`.

        Rows are divided and padded as by a server with as many threads and the same `same_answer`, so the answers are
        its answers to the last bit, where the variant can do that.

        Raises:
            BundleError: the bundle cannot be trusted.
            GoldenMismatch: the variant answers differently on this machine.
        """
        bundle = open_bundle(path)
        runtime = open_variant(bundle, variant, options=RuntimeOptions(num_threads=num_threads))
        runtime = _in_exact_batches(runtime, bundle.variant(variant), same_answer, num_threads)
        record = bundle.manifest.processor
        processor = open_processor(record.name, bundle.locate(record.folder), bundle.signature) if record else None
        return cls(bundle, bundle.variant(variant).name, runtime, processor)

    def __repr__(self) -> str:
        """Name the bundle and its variant, with what goes in and what comes out, on one line."""
        inputs, outputs = (
            ", ".join(f"{spec.name} {spec}" for spec in specs)
            for specs in (self.signature.inputs, self.signature.outputs)
        )
        return f"<Predictor {self._bundle.name}, {self._variant}: {inputs} → {outputs}>"

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the model."""
        return self._bundle.signature

    def predict(self, inputs: Tensors | Array) -> dict[str, Array]:
        """Run tensors and return the outputs by name.

        `inputs` maps names to arrays; a model with one input also takes the bare array. An array of another
        floating-point or integer width is converted where no value changes its kind (float64 to float32), and text
        to the bytes that strings are.

        Raises:
            TensorMismatch: a name, dtype or shape does not fit the signature.
        """
        tensors = self._as_tensors(inputs)
        self.signature.validate(tensors)
        with self._lock:
            return self._runtime.run(tensors)

    def ask(self, **fields: object) -> Mapping[str, object]:
        """Answer a person's input with the bundle's processor, for example `ask(text="good morning")`.

        Raises:
            MalformedRequest: the bundle has no processor, or a field does not fit it.
        """
        if self._processor is None:
            raise MalformedRequest(reason=f"the bundle '{self._bundle.name}' has no processor; use predict()")
        if not isinstance(self._processor, Encoder):
            raise MalformedRequest(reason=f"the processor of '{self._bundle.name}' encodes nothing; use predict()")
        return self._processor.decode(self.predict(self._processor.encode(fields)))

    def _as_tensors(self, inputs: Tensors | Array) -> dict[str, Array]:
        specs = {spec.name: spec for spec in self.signature.inputs}
        if not isinstance(inputs, Mapping):
            if len(specs) != 1:
                raise TensorMismatch(
                    tensor=next(iter(specs)),
                    reason="was not named",
                    expected=f"a mapping of {', '.join(specs)}",
                )
            inputs = {next(iter(specs)): np.asarray(inputs)}
        tensors = {}
        for name, value in inputs.items():
            array = np.asarray(value)
            tensors[name] = _cast(array, np.dtype(specs[name].dtype) if name in specs else array.dtype)
        return tensors


def _in_exact_batches(runtime: Runtime, variant: BundledVariant, same_answer: SameAnswer, num_threads: int) -> Runtime:
    table = next((table for table in variant.latency if table.num_threads == num_threads), None)
    most = max_batch_rows(variant, table)
    sizes = exact_batch_sizes(variant, same_answer, most, table)
    return InExactBatches(runtime, batch_sizes=sizes, max_rows=allowed_rows(most, sizes)) if sizes else runtime


def _cast(array: Array, wanted: np.dtype[Any]) -> Array:
    if wanted.kind == "O":  # numpy would make objects of numbers, too
        return as_strings(array) if are_strings(array) else array
    return array.astype(wanted) if np.can_cast(array.dtype, wanted, "same_kind") else array
