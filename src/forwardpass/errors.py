"""Every error that a user of forwardpass can meet, in one tree.

A class takes the facts as keywords, keeps them, and writes the sentence itself: what failed, the value, what was
expected, what to do. The `slug` is stable; `--json`, the HTTP API and the documentation refer to it. Exit codes and
HTTP status codes are not here: the command line and the server map the branches of this tree to theirs.

    ForwardpassError
    ├── UsageError               the user named something that is not there or does not fit
    │   ├── SourceNotFound
    │   ├── InvalidReference
    │   ├── InvalidOption
    │   ├── InvalidSamples
    │   ├── InvalidMetric
    │   ├── UntrustedPickle
    │   ├── UnknownProcessor
    │   ├── InvalidConfig
    │   ├── InvalidPipelines
    │   ├── InvalidKeyFile
    │   ├── InvalidStudent
    │   └── InvalidModel
    ├── BundleError              a bundle that cannot be trusted or understood
    │   ├── BundleNotFound
    │   ├── BundleDamaged
    │   ├── UnsupportedSchema
    │   └── UnsafePath
    ├── ConversionError          a model that cannot take the other form
    │   ├── UnsupportedOperator
    │   ├── OpsetUnavailable
    │   ├── ExportFailed
    │   │   └── DataDependentControlFlow
    │   ├── CannotPrune
    │   ├── NothingGained
    │   ├── NothingToQuantise
    │   └── ParityFailed
    ├── EnvironmentProblem       this machine lacks something
    │   ├── MissingExtra
    │   ├── MissingCompiler
    │   ├── EnvironmentUnavailable
    │   ├── StorageFailed
    │   ├── AddressInUse
    │   ├── WorkInProgress
    │   └── ChildFailed
    ├── ModelNotServed           the server cannot load its model
    ├── GoldenMismatch           a variant does not answer on this machine as it did when it was built
    └── RequestError             one request that cannot be answered
        ├── MalformedRequest
        ├── TensorMismatch
        ├── InputRejected
        ├── OutOfMemory
        ├── BodyTooLarge
        ├── UnsupportedMediaType
        ├── NotAcceptable
        ├── NotFound
        ├── Overloaded
        ├── DeadlineExceeded
        ├── NotReady
        ├── RequestQuarantined
        ├── Unauthorized
        ├── Forbidden
        ├── RateLimited
        ├── ServerUnreachable    the three that only a client meets
        ├── ServerFailed
        └── InvalidAnswer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "AddressInUse",
    "BodyTooLarge",
    "BundleDamaged",
    "BundleError",
    "BundleNotFound",
    "CannotPrune",
    "ChildFailed",
    "ConversionError",
    "DataDependentControlFlow",
    "DeadlineExceeded",
    "EnvironmentProblem",
    "EnvironmentUnavailable",
    "ExportFailed",
    "Forbidden",
    "ForwardpassError",
    "GoldenMismatch",
    "InputRejected",
    "InvalidAnswer",
    "InvalidConfig",
    "InvalidKeyFile",
    "InvalidMetric",
    "InvalidModel",
    "InvalidOption",
    "InvalidPipelines",
    "InvalidReference",
    "InvalidSamples",
    "InvalidStudent",
    "MalformedRequest",
    "MissingExtra",
    "ModelNotServed",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "NothingGained",
    "NothingToQuantise",
    "OpsetUnavailable",
    "OutOfMemory",
    "Overloaded",
    "ParityFailed",
    "RateLimited",
    "RequestError",
    "RequestQuarantined",
    "ServerFailed",
    "ServerUnreachable",
    "SourceNotFound",
    "StorageFailed",
    "TensorMismatch",
    "Unauthorized",
    "UnknownProcessor",
    "UnsafePath",
    "UnsupportedMediaType",
    "UnsupportedOperator",
    "UnsupportedSchema",
    "UntrustedPickle",
    "UsageError",
    "WorkInProgress",
]


class ForwardpassError(Exception):
    """Something that forwardpass tells its user in one sentence."""

    slug: ClassVar[str] = "error"


# --- what the user named -------------------------------------------------------------------------------------------


class UsageError(ForwardpassError):
    """The user named something that is not there or does not fit."""

    slug = "usage"


class SourceNotFound(UsageError, FileNotFoundError):
    """A path given by the user leads nowhere."""

    slug = "source-not-found"

    def __init__(self, *, path: str, expected: str) -> None:
        self.path = path
        self.expected = expected
        super().__init__(f"Cannot find '{path}': expected {expected}.")


class InvalidReference(UsageError, ValueError):
    """A `package.module:name` that does not lead to a usable object."""

    slug = "invalid-reference"

    def __init__(self, *, reference: str, reason: str) -> None:
        self.reference = reference
        self.reason = reason
        super().__init__(f"Cannot use '{reference}': {reason}. Expected 'package.module:name'.")


class InvalidOption(UsageError, ValueError):
    """An option whose value does not parse or does not fit the others."""

    slug = "invalid-option"

    def __init__(self, *, option: str, value: str, expected: str) -> None:
        self.option = option
        self.value = value
        self.expected = expected
        problem = f"Invalid value '{value}' for {option}" if value else f"{option} is missing"
        super().__init__(f"{problem}: expected {expected}.")


class InvalidConfig(UsageError, ValueError):
    """A configuration file with mistakes, all of them named."""

    slug = "invalid-config"

    def __init__(self, *, path: str, mistakes: Sequence[str]) -> None:
        self.path = path
        self.mistakes = tuple(mistakes)
        listed = "".join(f"\n  - {mistake}" for mistake in mistakes)
        super().__init__(f"The configuration '{path}' cannot be used:{listed}")


class InvalidPipelines(UsageError, ValueError):
    """Pipelines whose steps do not fit together, with every reason."""

    slug = "invalid-pipelines"

    def __init__(self, *, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        listed = "".join(f"\n  - {mistake}" for mistake in mistakes)
        super().__init__(f"The pipelines cannot be served:{listed}")


class InvalidKeyFile(UsageError, ValueError):
    """A file of API keys that cannot be read."""

    slug = "invalid-key-file"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Cannot use '{path}' as a file of API keys: {reason}. 'forwardpass keys add' makes one.")


class InvalidSamples(UsageError, ValueError):
    """Samples that cannot be measured with."""

    slug = "invalid-samples"

    def __init__(self, *, origin: str, reason: str, hint: str = "") -> None:
        self.origin = origin
        self.reason = reason
        self.hint = hint
        super().__init__(_sentence(f"Cannot use the samples of '{origin}': {reason}.", hint))


class InvalidMetric(UsageError, ValueError):
    """A metric that is unknown, or does not fit the model and the samples."""

    slug = "invalid-metric"

    def __init__(self, *, metric: str, reason: str, hint: str = "") -> None:
        self.metric = metric
        self.reason = reason
        self.hint = hint
        super().__init__(_sentence(f"Cannot score with the metric '{metric}': {reason}.", hint))


class UntrustedPickle(UsageError, PermissionError):
    """A checkpoint that would have to be unpickled, which can run code."""

    slug = "untrusted-pickle"

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"Refusing to load '{path}': it is a pickle, and loading a pickle can run code. Save weights with "
            "safetensors.torch.save_file, an estimator with skops.io.dump, or pass --trust-pickle if you made this "
            "file yourself."
        )


class UnknownProcessor(UsageError, LookupError):
    """A processor that no installed package provides."""

    slug = "unknown-processor"

    def __init__(self, *, name: str, available: Sequence[str]) -> None:
        self.name = name
        self.available = tuple(available)
        super().__init__(
            f"No installed package provides the processor '{name}'. Available: {', '.join(available) or 'none'}. "
            "Install the package that registers it under the entry point group 'forwardpass.processors'."
        )


class InvalidModel(UsageError, ValueError):
    """A model file that its runtime cannot load."""

    slug = "invalid-model"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Cannot load the model '{path}': {reason}.")


class InvalidStudent(UsageError, ValueError):
    """A network that cannot learn from its teacher."""

    slug = "invalid-student"

    def __init__(self, *, student: str, reason: str, hint: str) -> None:
        self.student = student
        self.reason = reason
        self.hint = hint
        super().__init__(f"'{student}' cannot be taught by the source: {reason}. {hint}")


# --- bundles -------------------------------------------------------------------------------------------------------


class BundleError(ForwardpassError):
    """A bundle that cannot be trusted or understood."""

    slug = "bundle"


class BundleNotFound(BundleError, FileNotFoundError):
    """There is no bundle at this place."""

    slug = "bundle-not-found"

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"No bundle at '{path}': expected a folder with a manifest.json ('forwardpass ship' makes one). "
            "'forwardpass serve' takes folders of versions and ONNX files, too."
        )


class BundleDamaged(BundleError, ValueError):
    """A file of the bundle is missing, altered, or was never declared."""

    slug = "bundle-damaged"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The bundle '{path}' is damaged: {reason}. Build it again with 'forwardpass ship'.")


class UnsupportedSchema(BundleError, ValueError):
    """The manifest was written by a version that this one does not know."""

    slug = "unsupported-schema"

    def __init__(self, *, path: str, found: object, supported: int) -> None:
        self.path = path
        self.found = found
        self.supported = supported
        super().__init__(
            f"The bundle '{path}' has schema version {found}, but this forwardpass reads version {supported}. "
            "Install the forwardpass that wrote it, or build the bundle again."
        )


class UnsafePath(BundleError, PermissionError):
    """A path in a bundle that leaves the bundle's folder."""

    slug = "unsafe-path"

    def __init__(self, *, path: str, member: str, reason: str) -> None:
        self.path = path
        self.member = member
        self.reason = reason
        super().__init__(
            f"Refusing to open the bundle '{path}': its file '{member}' {reason}. Bundles hold plain files only."
        )


# --- conversion ----------------------------------------------------------------------------------------------------


class ConversionError(ForwardpassError):
    """A model that cannot take the other form."""

    slug = "conversion"


class UnsupportedOperator(ConversionError):
    """The exporter has no translation for an operator of the model."""

    slug = "unsupported-operator"

    def __init__(self, *, operator: str, location: str = "", opset: int | None = None) -> None:
        self.operator = operator
        self.location = location
        self.opset = opset
        where = f" ({location})" if location else ""
        target = f" in opset {opset}" if opset is not None else ""
        super().__init__(
            f"Cannot convert the operator '{operator}'{where}: ONNX has no translation for it{target}. "
            "Replace it in the model by supported operators, or re-run with a newer --opset."
        )


class OpsetUnavailable(ConversionError):
    """The model cannot be written in the version of the operators that was asked for."""

    slug = "opset-unavailable"

    def __init__(self, *, source: str, opset: int, found: int, reason: str, hint: str = "") -> None:
        self.source = source
        self.opset = opset
        self.found = found
        self.reason = reason
        self.hint = hint
        super().__init__(
            _sentence(
                f"Cannot write '{source}' in opset {opset} (it is in opset {found}): {reason}.",
                hint or f"Re-run without --opset, or with --opset {found}.",
            )
        )


class ExportFailed(ConversionError):
    """The model could not be traced or written."""

    slug = "export-failed"

    def __init__(self, *, source: str, reason: str, hint: str = "") -> None:
        self.source = source
        self.reason = reason
        self.hint = hint
        super().__init__(_sentence(f"Cannot convert '{source}': {reason}.", hint))


class DataDependentControlFlow(ExportFailed):
    """The model takes another path for other values, which a traced graph cannot."""

    slug = "data-dependent-control-flow"

    def __init__(self, *, source: str, location: str) -> None:
        self.location = location
        super().__init__(
            source=source,
            reason="its control flow depends on the values of a tensor" + (f" at {location}" if location else ""),
            hint="Use torch.where or torch.cond instead of Python's if, or move the decision out of the model.",
        )


class CannotPrune(ConversionError):
    """A model whose channels cannot be followed, or none of which can go."""

    slug = "cannot-prune"

    def __init__(self, *, model: str, reason: str, hint: str = "") -> None:
        self.model = model
        self.reason = reason
        self.hint = hint
        advice = hint or "Try --distill with a smaller student of your own, which needs no tracing."
        super().__init__(f"Cannot prune '{model}': {reason}. {advice}")


class NothingToQuantise(ConversionError):
    """A model none of whose nodes gains from 8 bits."""

    slug = "nothing-to-quantise"

    def __init__(self, *, operators: Sequence[str]) -> None:
        self.operators = tuple(operators)
        super().__init__(f"There is nothing to quantise: no {' or '.join(operators)} with constant weights.")


class NothingGained(ConversionError):
    """A variant that would be no better than one that is made anyway."""

    slug = "nothing-gained"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Nothing would be gained: {reason}.")


class ParityFailed(ConversionError):
    """The converted model answers differently from its source."""

    slug = "parity-failed"

    def __init__(self, *, output: str, shape: str, difference: float, tolerance: float, node: str = "") -> None:
        self.output = output
        self.shape = shape
        self.difference = difference
        self.tolerance = tolerance
        self.node = node
        first = f" The first node that differs is {node}." if node else ""
        super().__init__(
            f"The converted model answers differently from its source: output '{output}' is off by {difference:.3g} "
            f"(relative, tolerance {tolerance:.3g}) for inputs {shape}.{first} The file was not kept."
        )

    def at(self, node: str) -> ParityFailed:
        """Return this failure with the first node that differs."""
        return ParityFailed(
            output=self.output, shape=self.shape, difference=self.difference, tolerance=self.tolerance, node=node
        )


# --- this machine --------------------------------------------------------------------------------------------------


class EnvironmentProblem(ForwardpassError):
    """This machine lacks something that the work needs."""

    slug = "environment"


class MissingExtra(EnvironmentProblem, ImportError):
    """An optional dependency is not installed."""

    slug = "missing-extra"

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        self.purpose = purpose
        super().__init__(
            f"{purpose[:1].upper()}{purpose[1:]} needs the package '{package}'. "
            f"Install it with: pip install 'forwardpass[{extra}]'"
        )


class MissingCompiler(EnvironmentProblem, FileNotFoundError):
    """Something has to be compiled, and there is no compiler."""

    slug = "missing-compiler"

    def __init__(self) -> None:
        super().__init__(
            "Compiling a program with PyTorch's Inductor needs a C++ compiler, and none was found. "
            "Install g++ (on Debian: apt-get install g++), or name one in the variable CXX."
        )


class EnvironmentUnavailable(EnvironmentProblem):
    """A converter lives in an environment of its own, which cannot be made here."""

    slug = "environment-unavailable"

    def __init__(self, *, name: str, folder: str, reason: str) -> None:
        self.name = name
        self.folder = folder
        self.reason = reason
        super().__init__(
            f"Cannot make the environment of '{name}' in '{folder}': {reason}. It needs the package registry once, and "
            "room on the disk; XDG_CACHE_HOME moves it."
        )


class StorageFailed(EnvironmentProblem, OSError):
    """A file could not be written, for example because the disk is full."""

    slug = "storage-failed"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Cannot write '{path}': {reason}. Nothing incomplete was left behind.")


class AddressInUse(EnvironmentProblem, OSError):
    """The server cannot listen where it was told to."""

    slug = "address-in-use"

    def __init__(self, *, address: str, reason: str, options: str = "--host or --port") -> None:
        self.address = address
        self.reason = reason
        self.options = options
        super().__init__(f"Cannot listen on {address}: {reason}. Choose another with {options}.")


class WorkInProgress(EnvironmentProblem, BlockingIOError):
    """Another process works in the same folder."""

    slug = "work-in-progress"

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(f"Another forwardpass is at work in '{path}'. Wait for it, or choose another --out.")


class ChildFailed(EnvironmentProblem):
    """A process that forwardpass started ended before it answered."""

    slug = "child-failed"

    def __init__(self, *, purpose: str, reason: str) -> None:
        self.purpose = purpose
        self.reason = reason
        super().__init__(f"The process for {purpose} failed: {reason.rstrip('.')}.")


# --- answers -------------------------------------------------------------------------------------------------------


class GoldenMismatch(ForwardpassError):
    """A variant does not answer on this machine as it did when it was built."""

    slug = "golden-mismatch"

    def __init__(self, *, variant: str, output: str, difference: float, tolerance: float, machine: str) -> None:
        self.variant = variant
        self.output = output
        self.difference = difference
        self.tolerance = tolerance
        self.machine = machine
        super().__init__(
            f"The variant '{variant}' answers differently on this machine ({machine}): output '{output}' is off by "
            f"{difference:.3g} (tolerance {tolerance:.3g}) from the golden answer. Build the bundle on this kind of "
            "machine, or choose a float variant with --variant."
        )


class ModelNotServed(ForwardpassError):
    """The worker of a server could not load its model, or the model failed its golden check."""

    slug = "model-not-served"

    def __init__(self, *, model: str, reason: str) -> None:
        self.model = model
        self.reason = reason
        super().__init__(f"Cannot serve '{model}': {reason}")


class RequestError(ForwardpassError):
    """One request that cannot be answered."""

    slug = "request"


class MalformedRequest(RequestError, ValueError):
    """The body or a header does not follow the protocol."""

    slug = "malformed-request"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Malformed request: {reason}.")


class TensorMismatch(RequestError, ValueError):
    """A tensor does not fit the model's signature."""

    slug = "tensor-mismatch"

    def __init__(self, *, tensor: str, reason: str, expected: str) -> None:
        self.tensor = tensor
        self.reason = reason
        self.expected = expected
        super().__init__(f"Input '{tensor}' {reason}; expected {expected}.")


class InputRejected(RequestError, ValueError):
    """The model itself cannot run these values, for example a token id beyond its vocabulary."""

    slug = "input-rejected"

    def __init__(self, *, model: str, kind: str) -> None:
        self.model = model
        self.kind = kind
        super().__init__(
            f"The model '{model}' cannot run these values ({kind}). Shapes and dtypes fit; look for ids or indices "
            "beyond what the model knows."
        )


class OutOfMemory(RequestError, MemoryError):
    """The server has not enough memory to run this request, even by itself."""

    slug = "out-of-memory"

    def __init__(self, *, model: str) -> None:
        self.model = model
        super().__init__(
            f"The server has not enough memory to run the model '{model}' on this request. Send fewer rows at once, or "
            "try again later."
        )


class BodyTooLarge(RequestError, ValueError):
    """The request's body is over the limit."""

    slug = "body-too-large"

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(f"The request body is larger than the limit of {max_bytes} bytes.")


class UnsupportedMediaType(RequestError, ValueError):
    """The body, or a part of it, is of a kind that the model does not take."""

    slug = "unsupported-media-type"

    def __init__(self, *, media_type: str, expected: Sequence[str]) -> None:
        self.media_type = media_type
        self.expected = tuple(expected)
        super().__init__(f"The media type '{media_type}' is not taken here; expected {' or '.join(expected)}.")


class NotAcceptable(RequestError):
    """The client accepts only a form of answer that the model cannot give."""

    slug = "not-acceptable"

    def __init__(self, *, wanted: str, available: str) -> None:
        self.wanted = wanted
        self.available = available
        super().__init__(f"This model cannot answer with '{wanted}'; accept '{available}'.")


class NotFound(RequestError, LookupError):
    """The request names a model, version or path that is not served."""

    slug = "not-found"

    def __init__(self, *, what: str, available: Sequence[str] = ()) -> None:
        self.what = what
        self.available = tuple(available)
        hint = f" Available: {', '.join(available)}." if available else ""
        super().__init__(f"There is no {what} here.{hint}")


class Overloaded(RequestError):
    """Accepting the request would not leave it enough time; the client should try later."""

    slug = "overloaded"

    def __init__(self, *, retry_after_s: float, reason: str) -> None:
        self.retry_after_s = retry_after_s
        self.reason = reason
        super().__init__(f"The server is overloaded: {reason}. Try again in {retry_after_s:.3g} s.")


class DeadlineExceeded(RequestError, TimeoutError):
    """The request could not be answered before its deadline."""

    slug = "deadline-exceeded"

    def __init__(self, *, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        super().__init__(f"The request could not be answered within its deadline of {deadline_s:.3g} s.")


class NotReady(RequestError):
    """The server is loading or stopping."""

    slug = "not-ready"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The server is not ready: {reason}.")


class RequestQuarantined(RequestError):
    """The request ended the worker process twice; the same tensors are not run again for a while."""

    slug = "request-quarantined"

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            f"This request has ended the model's worker process twice. It is not run again for {seconds:.0f} s."
        )


class Unauthorized(RequestError):
    """The request carries no API key, or one that is not valid."""

    slug = "unauthorized"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This needs a valid API key: {reason}. Send it as 'Authorization: Bearer KEY'.")


class Forbidden(RequestError):
    """The API key does not allow this."""

    slug = "forbidden"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This is not allowed: {reason}.")


class RateLimited(RequestError):
    """The API key has used up its requests for now."""

    slug = "rate-limited"

    def __init__(self, *, retry_after_s: float, requests_per_s: float) -> None:
        self.retry_after_s = retry_after_s
        self.requests_per_s = requests_per_s
        super().__init__(
            f"This API key may send {requests_per_s:g} requests per second. Try again in {retry_after_s:.3g} s."
        )


class ServerUnreachable(RequestError, ConnectionError):
    """There is no connection to the server, or it broke before the answer was there."""

    slug = "server-unreachable"

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"Cannot reach the server at {url}: {reason}.")


class ServerFailed(RequestError):
    """The server answered with a status that has no class of its own, such as 500."""

    slug = "server-failed"

    def __init__(self, *, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"The server answered with status {status}: {reason}.")


class InvalidAnswer(RequestError, ValueError):
    """What the server sent does not follow the protocol."""

    slug = "invalid-answer"

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"The answer of {url} does not follow the Open Inference Protocol: {reason}.")


def _sentence(statement: str, hint: str) -> str:
    return f"{statement} {hint}" if hint else statement
