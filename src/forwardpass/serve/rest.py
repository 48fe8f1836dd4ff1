"""The routes of the Open Inference Protocol v2 for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forwardpass.core.tensors import TensorSpec
from forwardpass.errors import DeadlineExceeded, MalformedRequest, RequestError
from forwardpass.protocol import BINARY_TYPE, JSON_LENGTH_HEADER, NAMES, TIMEOUT_HEADER
from forwardpass.serve.exchange import Exchange, Response
from forwardpass.serve.oip import InferCall, decode_infer, decode_raw_infer, describe_tensors
from forwardpass.serve.pipelines import Pipeline
from forwardpass.serve.request import Answer, Result
from forwardpass.serve.responses import error_response, json_response
from forwardpass.serve.served import Described, Served, ServedVersion
from forwardpass.serve.versions import ModelVersion

__all__ = [
    "EXTENSIONS",
    "InferRoutes",
    "answering",
    "decode_call",
    "describe_config",
    "describe_model",
    "header_timeout_s",
    "shorter",
]

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
ENSEMBLE = "ensemble"
"""What Triton calls a pipeline."""
MAX_DIGITS = 9
_TIMEOUT, _JSON_LENGTH = TIMEOUT_HEADER.encode(), JSON_LENGTH_HEADER.encode()


class InferRoutes:
    """Inference and metadata."""

    def infer(self, model: Served, version: str | None, exchange: Exchange) -> None:
        """Run the model on the tensors of the body."""
        chosen = model.version(version)
        try:
            call = decode_call(exchange, chosen)
        except RequestError as error:
            chosen.failed(error)
            raise
        asked_s = timeout_s = shorter(header_timeout_s(exchange.headers), call.timeout_s)
        if exchange.waited_s:
            asked_s = chosen.timeout_s if asked_s is None else asked_s
            timeout_s = asked_s - exchange.waited_s
        exchange.on_abandoned = model.submit(
            chosen,
            call.tensors,
            call.num_rows,
            answering(exchange, chosen, call, asked_s=asked_s),
            timeout_s=timeout_s,
            priority=call.priority,
            trace=exchange.trace,
        )

    def metadata(self, model: Served, version: str | None, exchange: Exchange) -> None:
        """Describe the inputs and outputs."""
        exchange.respond(json_response(describe_model(model, version)))

    def config(self, model: Served, version: str | None, exchange: Exchange) -> None:
        """Describe how the model is run."""
        exchange.respond(json_response(describe_config(model, version)))


def answering(exchange: Exchange, chosen: ServedVersion, call: InferCall, *, asked_s: float | None) -> Answer:
    """Return what puts the outputs of a call, or its error, into the words that its client reads.

    `asked_s` is the deadline as the client set it, of which a part may have passed before the request was read.
    """

    def answer(result: Result) -> None:
        if isinstance(result, DeadlineExceeded) and asked_s is not None:
            exchange.respond(error_response(DeadlineExceeded(deadline_s=asked_s)))
        elif isinstance(result, RequestError):
            exchange.respond(error_response(result))
        elif call.binary:
            body, num_json_bytes = chosen.writer.write_binary(result, call)
            headers = ((JSON_LENGTH_HEADER, str(num_json_bytes)),)
            exchange.respond(Response(status=200, body=body, headers=headers, content_type=BINARY_TYPE))
        else:
            exchange.respond(Response(status=200, body=chosen.writer.write(result, call)))

    return answer


def describe_model(model: Served, version: str | None) -> dict[str, object]:
    """Return a model's metadata as the protocol has it."""
    chosen = model.described(version)
    return {
        "name": model.name,
        "versions": list(model.versions) if version is None else [chosen.number],
        "platform": _platform(chosen),
        "inputs": describe_tensors(chosen.signature.inputs),
        "outputs": describe_tensors(chosen.signature.outputs),
        "properties": _properties(chosen),
    }


def describe_config(model: Served, version: str | None) -> dict[str, object]:
    """Return how a model is run, in Triton's words."""
    chosen = model.described(version)
    if isinstance(chosen, Pipeline):
        return _describe_pipeline(chosen)
    assert isinstance(chosen, ModelVersion), "there are models and pipelines"
    is_batchable = chosen.signature.is_batchable
    return {
        "name": model.name,
        "platform": f"{chosen.variant.format.value}_{chosen.variant.format.value}v1",
        "backend": chosen.variant.format.value,
        "max_batch_size": chosen.max_batch_rows if is_batchable else 0,
        "input": _configured(chosen.signature.inputs, is_batchable=is_batchable),
        "output": _configured(chosen.signature.outputs, is_batchable=is_batchable),
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": chosen.sizing.num_workers}],
        "parameters": {
            "threads": {"string_value": str(chosen.sizing.num_threads)},
            "low_load_threads": {"string_value": str((chosen.sizing.wide or chosen.sizing).num_threads)},
            "variant": {"string_value": chosen.variant.name},
        },
    }


def _describe_pipeline(pipeline: Pipeline) -> dict[str, object]:
    """Return a pipeline as Triton describes an ensemble; how many rows it takes is left to its steps."""
    signature = pipeline.signature
    return {
        "name": pipeline.name,
        "platform": ENSEMBLE,
        "backend": "",
        "max_batch_size": 0,
        "input": _configured(signature.inputs, is_batchable=False),
        "output": _configured(signature.outputs, is_batchable=False),
        "instance_group": [],
        "parameters": {
            "steps": {"string_value": pipeline.describe()},
            "max_in_flight": {"string_value": str(pipeline.config.max_in_flight)},
        },
    }


def _platform(chosen: Described) -> str:
    if not isinstance(chosen, ModelVersion):
        return ENSEMBLE
    form = chosen.variant.format.value
    return f"{form}_{form}v1"


def _properties(chosen: Described) -> dict[str, str]:
    if isinstance(chosen, ModelVersion):
        return {"variant": chosen.variant.name, "precision": chosen.variant.precision.value}
    return {"steps": chosen.describe()}


def _configured(specs: Sequence[TensorSpec], *, is_batchable: bool) -> list[dict[str, object]]:
    """Describe tensors without their batch axis."""
    return [
        {
            "name": spec.name,
            "data_type": "TYPE_STRING" if spec.dtype == "object" else f"TYPE_{NAMES[spec.dtype]}",
            "dims": [size if isinstance(size, int) else -1 for size in spec.shape[is_batchable:]],
        }
        for spec in specs
    ]


def decode_call(exchange: Exchange, version: ServedVersion) -> InferCall:
    """Decode the body of an inference.

    Raises:
        MalformedRequest: it is not of this protocol.
        TensorMismatch: a tensor does not fit the signature or its own shape.
    """
    text = exchange.headers.get(_JSON_LENGTH)
    if text is None:
        return decode_infer(exchange.body, version.signature)
    if not text.isdigit() or len(text) > MAX_DIGITS or int(text) > len(exchange.body):
        limit = len(exchange.body)
        raise MalformedRequest(
            reason=f"the header Inference-Header-Content-Length must be a number from 0 to {limit}, the body's length"
        )
    if int(text) == 0:
        return decode_raw_infer(exchange.body, version.signature)
    return decode_infer(exchange.body, version.signature, num_json_bytes=int(text))


def header_timeout_s(headers: Mapping[bytes, bytes]) -> float | None:
    """Return the deadline that the client's header sets.

    Raises:
        MalformedRequest: it is not a positive whole number.
    """
    text = headers.get(_TIMEOUT)
    if text is None:
        return None
    if not text.isdigit() or len(text) > MAX_DIGITS or int(text) == 0:
        raise MalformedRequest(reason="the header X-Request-Timeout-Ms must be a positive whole number of milliseconds")
    return int(text) / 1e3


def shorter(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two deadlines, where None is no deadline."""
    return min((seconds for seconds in (one, other) if seconds is not None), default=None)
