"""The messages of the protocol's gRPC form, with Triton's extensions: names, numbers and types, as on the wire.

They live in a descriptor pool of their own, so that a process may also load a client that brings the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["DATA_TYPES", "KIND_CPU", "message_class"]

KIND_CPU = 2
_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)
DATA_TYPES = {name: number for number, name in enumerate(_TYPES)}
"""Numbers of `TYPE_…` in a model's configuration. Enumerations are int32 on the wire, and in the table below."""

_INFERENCE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:1:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:1:bool",
    "ModelReadyRequest": "name:1:string version:2:string",
    "ModelReadyResponse": "ready:1:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:1:string version:2:string extensions:3:string*",
    "ModelMetadataRequest": "name:1:string version:2:string",
    "ModelMetadataResponse": (
        "name:1:string versions:2:string* platform:3:string inputs:4:inference.TensorMetadata* "
        "outputs:5:inference.TensorMetadata*"
    ),
    "TensorMetadata": "name:1:string datatype:2:string shape:3:int64*",
    "InferParameter": (
        "bool_param:1:bool? int64_param:2:int64? string_param:3:string? double_param:4:double? uint64_param:5:uint64?"
    ),
    "InferTensorContents": (
        "bool_contents:1:bool* int_contents:2:int32* int64_contents:3:int64* uint_contents:4:uint32* "
        "uint64_contents:5:uint64* fp32_contents:6:float* fp64_contents:7:double* bytes_contents:8:bytes*"
    ),
    "InferInputTensor": (
        "name:1:string datatype:2:string shape:3:int64* parameters:4:map:inference.InferParameter "
        "contents:5:inference.InferTensorContents"
    ),
    "InferRequestedOutputTensor": "name:1:string parameters:2:map:inference.InferParameter",
    "ModelInferRequest": (
        "model_name:1:string model_version:2:string id:3:string parameters:4:map:inference.InferParameter "
        "inputs:5:inference.InferInputTensor* outputs:6:inference.InferRequestedOutputTensor* "
        "raw_input_contents:7:bytes*"
    ),
    "InferOutputTensor": (
        "name:1:string datatype:2:string shape:3:int64* parameters:4:map:inference.InferParameter "
        "contents:5:inference.InferTensorContents"
    ),
    "ModelInferResponse": (
        "model_name:1:string model_version:2:string id:3:string parameters:4:map:inference.InferParameter "
        "outputs:5:inference.InferOutputTensor* raw_output_contents:6:bytes*"
    ),
    "ModelStreamInferResponse": "error_message:1:string infer_response:2:inference.ModelInferResponse",
    "ModelConfigRequest": "name:1:string version:2:string",
    "ModelConfigResponse": "config:1:inference.ModelConfig",
    "ModelConfig": (
        "name:1:string platform:2:string backend:17:string max_batch_size:4:int32 input:5:inference.ModelInput* "
        "output:6:inference.ModelOutput* instance_group:7:inference.ModelInstanceGroup* "
        "parameters:14:map:inference.ModelParameter"
    ),
    "ModelInput": "name:1:string data_type:2:int32 dims:4:int64*",
    "ModelOutput": "name:1:string data_type:2:int32 dims:3:int64*",
    "ModelInstanceGroup": "name:1:string kind:4:int32 count:2:int32",
    "ModelParameter": "string_value:1:string",
    "ModelStatisticsRequest": "name:1:string version:2:string",
    "StatisticDuration": "count:1:uint64 ns:2:uint64",
    "InferStatistics": (
        "success:1:inference.StatisticDuration fail:2:inference.StatisticDuration queue:3:inference.StatisticDuration "
        "compute_input:4:inference.StatisticDuration compute_infer:5:inference.StatisticDuration "
        "compute_output:6:inference.StatisticDuration cache_hit:7:inference.StatisticDuration "
        "cache_miss:8:inference.StatisticDuration"
    ),
    "InferBatchStatistics": (
        "batch_size:1:uint64 compute_input:2:inference.StatisticDuration compute_infer:3:inference.StatisticDuration "
        "compute_output:4:inference.StatisticDuration"
    ),
    "ModelStatistics": (
        "name:1:string version:2:string last_inference:3:uint64 inference_count:4:uint64 execution_count:5:uint64 "
        "inference_stats:6:inference.InferStatistics batch_stats:7:inference.InferBatchStatistics*"
    ),
    "ModelStatisticsResponse": "model_stats:1:inference.ModelStatistics*",
    "RepositoryIndexRequest": "repository_name:1:string ready:2:bool",
    "RepositoryIndexResponse": "models:1:inference.ModelIndex*",
    "ModelIndex": "name:1:string version:2:string state:3:string reason:4:string",
    "ModelRepositoryParameter": "bool_param:1:bool? int64_param:2:int64? string_param:3:string? bytes_param:4:bytes?",
    "RepositoryModelLoadRequest": (
        "repository_name:1:string model_name:2:string parameters:3:map:inference.ModelRepositoryParameter"
    ),
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": (
        "repository_name:1:string model_name:2:string parameters:3:map:inference.ModelRepositoryParameter"
    ),
    "RepositoryModelUnloadResponse": "",
}
"""`name:number:type`; `*` is repeated, `?` belongs to the one-of `parameter_choice`, `map` has strings for keys."""

_HEALTH = {"HealthCheckRequest": "service:1:string", "HealthCheckResponse": "status:1:int32"}

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "double": _FIELD.TYPE_DOUBLE,
    "float": _FIELD.TYPE_FLOAT,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}


def message_class(name: str) -> Any:
    """Return the class of a message, such as `inference.ModelInferRequest`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def _file(package: str, messages: dict[str, str]) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        if "?" in fields:
            message.oneof_decl.add(name="parameter_choice")
        for field in fields.split():
            _add_field(message, f".{package}.{name}", field)
    return file


def _add_field(message: Any, full_name: str, written: str) -> None:
    name, number, kind = written.split(":", 2)
    label = _FIELD.LABEL_REPEATED if kind.endswith("*") or kind.startswith("map:") else _FIELD.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if kind.startswith("map:"):
        entry = f"{''.join(word.title() for word in name.split('_'))}Entry"
        nested = message.nested_type.add(name=entry)
        nested.options.map_entry = True
        _set_type(nested.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL), "string")
        _set_type(nested.field.add(name="value", number=2, label=_FIELD.LABEL_OPTIONAL), kind.removeprefix("map:"))
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f"{full_name}.{entry}"
        return
    if kind.endswith("?"):
        field.oneof_index = 0
    _set_type(field, kind.rstrip("*?"))


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{kind}"


def _files() -> Iterator[descriptor_pb2.FileDescriptorProto]:
    yield _file("inference", _INFERENCE)
    yield _file("grpc.health.v1", _HEALTH)


_POOL = descriptor_pool.DescriptorPool()
for _each in _files():
    _POOL.Add(_each)
