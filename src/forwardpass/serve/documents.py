"""What the server says of its own interface: an OpenAPI document, and a page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from forwardpass.core.protocols import StreamingDecoder
from forwardpass.core.tensors import TensorSpec
from forwardpass.core.version import VERSION
from forwardpass.protocol import DATATYPES, NAMES
from forwardpass.serve.exchange import Exchange, Response
from forwardpass.serve.forms import FORM, example_of, file_fields
from forwardpass.serve.repository import Repository
from forwardpass.serve.responses import json_response
from forwardpass.serve.served import Served
from forwardpass.serve.streaming import EVENTS

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["DocumentRoutes", "openapi_document"]

MAX_EXAMPLE_ELEMENTS = 1024
OPENAPI_VERSION = "3.1.0"
HTML = "text/html; charset=utf-8"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The page may talk to this server and to nobody else."""
_INTEGER = {"type": "integer"}
_ERROR = {"$ref": "#/components/schemas/Error"}
_REFUSALS = {
    "400": "The request does not follow the protocol, or a tensor does not fit the model.",
    "401": "An API key is needed.",
    "403": "The API key does not allow this.",
    "404": "There is no such model or version.",
    "406": "The answer cannot be given in the form that the client accepts.",
    "408": "The request was not received in time.",
    "413": "The body is too large.",
    "415": "The model does not take this kind of body or file.",
    "422": "This request has ended worker processes before and is not run again for a while.",
    "429": "It would come too late; Retry-After says when to try again.",
    "500": "The processor failed on this request.",
    "503": "The server is loading or stopping.",
    "504": "It could not be answered within its deadline.",
}
_SCALARS: Mapping[str, dict[str, object]] = {
    "bool": {"type": "boolean"},
    "object": {"type": "string"},
    "float16": {"type": "number"},
    "float32": {"type": "number"},
    "float64": {"type": "number"},
}


class DocumentRoutes:
    """`/openapi.json` and `/docs`."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._template: Template | None = None

    def openapi(self, exchange: Exchange) -> None:
        """Answer the document."""
        exchange.respond(json_response(openapi_document(list(self._repository.served.values()))))

    def page(self, exchange: Exchange) -> None:
        """Answer the page."""
        from jinja2 import Environment, PackageLoader, select_autoescape

        if self._template is None:
            loader = PackageLoader("forwardpass.serve")
            environment = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True)
            self._template = environment.get_template("docs.html")
        models = [_described(model) for model in self._repository.served.values()]
        page = self._template.render(models=models, version=VERSION, refusals=_REFUSALS)
        policy = ("content-security-policy", POLICY)
        exchange.respond(Response(status=200, body=page.encode(), headers=(policy,), content_type=HTML))


def openapi_document(models: list[Served]) -> dict[str, object]:
    """Describe every route of the models that are served."""
    paths: dict[str, object] = {
        "/v2": {"get": _get("Name, version and extensions of the server.", "server")},
        "/v2/health/live": {"get": _get("Whether the server runs.", "server")},
        "/v2/health/ready": {"get": _get("Whether every model answers.", "server", "503")},
        "/v2/models/stats": {"get": _get("Statistics of all models.", "server", "401", "403")},
        "/metrics": {"get": _get("Metrics for Prometheus.", "server", "401", "403", media="text/plain")},
    }
    for model in models:
        paths |= _model_paths(model)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "forwardpass", "version": VERSION, "description": "Open Inference Protocol v2."},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {"type": "string", "description": "What is wrong, in one sentence."},
                        "slug": {"type": "string", "description": "Its stable name."},
                        "facts": {"type": "object", "description": "What the sentence is made of."},
                    },
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _model_paths(model: Served) -> dict[str, object]:
    base, name = f"/v2/models/{model.name}", model.name
    return {
        base: {"get": _get(f"Inputs and outputs of {name}.", name, "401", "403")},
        f"{base}/ready": {"get": _get(f"Whether {name} answers.", name, "503")},
        f"{base}/config": {"get": _get(f"How {name} is run.", name, "401", "403")},
        f"{base}/stats": {"get": _get(f"Statistics of {name}.", name, "401", "403")},
        f"{base}/infer": {"post": _post(f"Run {name} on tensors.", name, _infer_schema(model), _infer_answer(model))},
        f"/v1/models/{name}/predict": {"post": _predict(model)},
    }


def _predict(model: Served) -> dict[str, Any]:
    """Describe the friendly route: JSON, and what else the processor takes and gives."""
    encoder, decoder = model.default.encoder, model.default.decoder
    route = _post(f"Ask {model.name} with {_taken(model)}.", model.name, _predict_schema(model), {"type": "object"})
    files = file_fields(encoder)
    content = route["requestBody"]["content"]
    if files:
        one_or_more = {
            name: {"type": "array", "items": {"type": "string", "contentMediaType": ", ".join(media_types)}}
            for name, media_types in files.items()
        }
        form = {"type": "object", "required": list(files), "properties": one_or_more}
        encoding = {name: {"contentType": ", ".join(media_types)} for name, media_types in files.items()}
        content[FORM] = {"schema": form, "encoding": encoding}
        content |= {media_type: {} for media_types in files.values() for media_type in media_types}
        del content["application/json"]
    elif encoder is not None:
        content[FORM] = {"schema": {"type": "object"}}
    if isinstance(decoder, StreamingDecoder):
        route["responses"]["200"]["content"][EVENTS] = {"schema": {"type": "string"}}
    return route


def _taken(model: Served) -> str:
    files = ", ".join(file_fields(model.default.encoder))
    return f"files ({files})" if files else "plain JSON"


def _get(summary: str, tag: str, *refusals: str, media: str = "application/json") -> dict[str, object]:
    schema = {"type": "object"} if media == "application/json" else {"type": "string"}
    return {"summary": summary, "tags": [tag], "responses": _responses(schema, refusals, media)}


def _post(summary: str, tag: str, body: object, answer: object) -> dict[str, Any]:
    timeout = {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "description": "Within how many milliseconds the answer is of use.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    }
    return {
        "summary": summary,
        "tags": [tag],
        "parameters": [timeout],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses(answer, tuple(_REFUSALS), "application/json"),
    }


def _responses(schema: object, refusals: tuple[str, ...], media: str) -> dict[str, object]:
    wrong = {
        status: {"description": _REFUSALS[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in refusals
    }
    return {"200": {"description": "The answer.", "content": {media: {"schema": schema}}}, **wrong}


def _infer_schema(model: Served) -> dict[str, object]:
    inputs = [_tensor_schema(spec) for spec in model.default.signature.inputs]
    schema: dict[str, object] = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {
                    "timeout": _INTEGER | {"minimum": 1, "description": "Microseconds."},
                    "priority": _INTEGER | {"minimum": 0, "description": "1 is the highest."},
                    "binary_data_output": {"type": "boolean"},
                },
            },
            "inputs": {"type": "array", "minItems": len(inputs), "items": {"anyOf": inputs}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"enum": [spec.name for spec in model.default.signature.outputs]}},
                },
            },
        },
    }
    example = _infer_example(model)
    return schema if example is None else schema | {"example": example}


def _tensor_schema(spec: TensorSpec) -> dict[str, object]:
    return {
        "type": "object",
        "description": str(spec),
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": NAMES[spec.dtype]},
            "shape": {
                "type": "array",
                "minItems": len(spec.shape),
                "maxItems": len(spec.shape),
                "items": _INTEGER | {"minimum": 1},
            },
            "data": {"type": "array", "items": {"anyOf": [_scalar(spec), {"type": "array"}]}},
        },
    }


def _scalar(spec: TensorSpec) -> dict[str, object]:
    return dict(_SCALARS.get(spec.dtype, _INTEGER))


def _infer_answer(model: Served) -> dict[str, object]:
    del model
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"enum": list(DATATYPES)},
            "shape": {"type": "array", "items": _INTEGER},
            "data": {"type": "array"},
        },
    }
    return {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": tensor},
        },
    }


def _predict_schema(model: Served) -> dict[str, object]:
    if model.default.encoder is not None:
        example = example_of(model.default.encoder)
        described: dict[str, object] = {
            "type": "object",
            "description": f"The fields that the processor of {model.name} takes.",
        }
        return described if example is None else described | {"example": example}
    inputs = {
        spec.name: {"type": "array", "description": str(spec), "items": {"anyOf": [_scalar(spec), {"type": "array"}]}}
        for spec in model.default.signature.inputs
    }
    inner = {"type": "object", "required": list(inputs), "properties": inputs, "additionalProperties": False}
    return {"type": "object", "required": ["inputs"], "properties": {"inputs": inner}, "additionalProperties": False}


def _infer_example(model: Served) -> dict[str, object] | None:
    """Return a request of one row that is answered, unless a person could not read it."""
    inputs = []
    for spec in model.default.signature.inputs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        count = 1
        for size in shape:
            count *= size
        if count > MAX_EXAMPLE_ELEMENTS:
            return None
        value: object = {"bool": True, "object": "text"}.get(spec.dtype, 0)
        inputs.append({"name": spec.name, "shape": shape, "datatype": NAMES[spec.dtype], "data": [value] * count})
    return {"inputs": inputs}


def _described(model: Served) -> dict[str, object]:
    version = model.default
    return {
        "name": model.name,
        "versions": ", ".join(model.names),
        "how": version.describe(),
        "takes": _taken(model) if version.encoder is not None else '{"inputs": {name: nested lists}}',
        "file_field": next(iter(file_fields(version.encoder)), ""),
        "streams": isinstance(version.decoder, StreamingDecoder),
        "inputs": [(spec.name, NAMES[spec.dtype], _axes(spec)) for spec in version.signature.inputs],
        "outputs": [(spec.name, NAMES[spec.dtype], _axes(spec)) for spec in version.signature.outputs],
        "fields": example_of(version.encoder),
        "example": _infer_example(model),
    }


def _axes(spec: TensorSpec) -> str:
    return " × ".join(map(str, spec.shape)) or "one value"
