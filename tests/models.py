"""Tiny ONNX models and bundles that the tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from forwardpass.bundle import BundledVariant, BundleWriter, GoldenRecord, Manifest
from forwardpass.core.measurement import Machine
from forwardpass.core.tensors import Array
from forwardpass.core.variants import BatchInvariance, Format, Precision, Recipe, Variant
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.runtimes import RuntimeOptions, open_runtime

MACHINE = Machine(
    cpu="test",
    instruction_sets=(),
    num_cores=1,
    memory_bytes=1,
    os="linux",
    python="3",
    runtimes=(("onnxruntime", "1"),),
)


def write_mlp(path: Path, *, num_inputs: int = 64, num_outputs: int = 10, seed: int = 0) -> Path:
    """Write `pixels [batch, num_inputs] -> scores [batch, num_outputs]`, one hidden layer."""
    generator = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32) * 0.2, name)

    nodes = [
        helper.make_node("Gemm", ["pixels", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", num_inputs])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", num_outputs])],
        [weights("w1", num_inputs, 32), weights("b1", 32), weights("w2", 32, num_outputs), weights("b2", num_outputs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_fixed_batch(path: Path, num_rows: int, *, mixes_rows: bool = False) -> Path:
    """Write an MLP of a fixed batch, with that number in a Reshape, and perhaps with rows that see each other."""
    model = onnx.load(str(write_mlp(path, num_inputs=4)))
    sizes = numpy_helper.from_array(np.array([num_rows, -1]), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node("Reshape", ["flat", "sizes"], ["shaped"]))
    last = ("CumSum", ["shaped", "axis"]) if mixes_rows else ("Neg", ["shaped"])
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "axis"))
    model.graph.node.append(helper.make_node(*last, ["scores"]))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = num_rows
    onnx.save(model, str(path))
    return path


def write_cnn(path: Path) -> Path:
    """Write a convolution, a depthwise one, pooling and a classifier; images `[batch, 3, 8, 8]`."""
    generator = np.random.default_rng(1)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((generator.standard_normal(shape) * 0.3).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["pixels", "w1", "b1"], ["c1"], name="plain", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="depthwise", group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"], name="classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [
            weights("w1", 16, 3, 3, 3),
            weights("b1", 16),
            weights("w2", 16, 1, 3, 3),
            weights("w3", 16, 10),
            weights("b3", 10),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def write_bundle(folder: Path, model: Path, calls: list[dict[str, Array]], *, name: str = "mlp") -> Path:
    """Write a bundle with one FP32 variant whose golden answers come from ONNX Runtime."""
    runtime = open_runtime(Format.ONNX, str(model), options=RuntimeOptions())
    variant = BundledVariant(
        name="onnx-fp32",
        format=Format.ONNX,
        precision=Precision.FP32,
        path="variants/onnx-fp32/model.onnx",
        recipe=Recipe(),
        invariance=BatchInvariance.BITWISE,
        golden=GoldenRecord(path="golden/onnx-fp32.npz", tolerance=1e-4),
    )
    with BundleWriter(folder) as writer:
        writer.add_file(variant.path, model)
        writer.add_calls("golden/inputs.npz", calls)
        writer.add_calls(variant.golden.path, [runtime.run(call) for call in calls])
        writer.commit(
            Manifest(
                schema_version=1,
                name=name,
                created_at="2026-01-01T00:00:00Z",
                forwardpass_version="0",
                signature=runtime.signature,
                default_variant=variant.name,
                variants=(variant,),
                golden_inputs="golden/inputs.npz",
                files={},
                machine=MACHINE,
            )
        )
    return folder


def write_embedding(path: Path, *, num_words: int = 12, size: int = 4) -> Path:
    """Write `input_ids, attention_mask [batch, sequence] -> embedding [batch, size]`: a sum over a table's rows.

    An id beyond the table makes ONNX Runtime fail, which is what a bad request does to a real model.
    """
    table = np.arange(num_words * size, dtype=np.float32).reshape(num_words, size)
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    last = numpy_helper.from_array(np.array([-1], dtype=np.int64), "last")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["words", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axes"], ["embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]),
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(table, "table"), axes, last],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_counter(path: Path) -> Path:
    """Write `steps [batch, 1] -> counted [batch, 1]`: it counts to each number, one step after another."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["go_on"]),
            helper.make_node("Less", ["step", "steps"], ["is_below"]),
            helper.make_node("Cast", ["is_below"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["before", "one"], ["after"]),
        ],
        "count",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["batch", 1]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["steps"], ["most"], keepdims=0),
        helper.make_node("Cast", ["steps"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["numbers", "numbers"], ["zeros"]),
        helper.make_node("Loop", ["most", "", "zeros"], ["counted"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "counter",
        [helper.make_tensor_value_info("steps", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("counted", TensorProto.FLOAT, ["batch", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_ones(path: Path) -> Path:
    """Write `size [batch, 1] -> ones [batch, n]`, n being the largest size: a number makes an answer of any length."""
    nodes = [
        helper.make_node("ReduceMax", ["size"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "one"], ["width"]),
        helper.make_node("Shape", ["size"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "width"], ["shape"], axis=0),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32), "value")
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "ones",
        [helper.make_tensor_value_info("size", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("ones", TensorProto.FLOAT, ["batch", "n"])],
        [numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    return _save(graph, path)


def write_typed(path: Path, dtype: str, *, size: int = 2) -> Path:
    """Write `x [batch, size] -> y [batch, size]` of any dtype, which is the same."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "typed",
        [helper.make_tensor_value_info("x", kind, ["batch", size])],
        [helper.make_tensor_value_info("y", kind, ["batch", size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_greeter(path: Path) -> Path:
    """Write `text [batch] -> reply [batch], echo [batch], known [batch]`: a table of strings, the text, a number."""
    table = {"hello": "good day", "": "say something", "café": "thé"}
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])
    replies: dict[str, Any] = {
        "keys_strings": list(table),
        "values_strings": list(table.values()),
        "default_string": "what?",
    }
    numbers: dict[str, Any] = {"keys_strings": list(table), "values_int64s": [1] * len(table), "default_int64": 0}
    graph = helper.make_graph(
        [
            helper.make_node("LabelEncoder", ["text"], ["reply"], domain="ai.onnx.ml", **replies),
            helper.make_node("Identity", ["text"], ["echo"]),
            helper.make_node("LabelEncoder", ["text"], ["known"], domain="ai.onnx.ml", **numbers),
        ],
        "greeter",
        [text],
        [
            helper.make_tensor_value_info("reply", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("echo", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("known", TensorProto.INT64, ["batch"]),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def write_text_bundle(folder: Path) -> Path:
    """Write a bundle with a tokenizer of a few words in front of the embedding model."""
    words = ["[PAD]", "[UNK]", "the", "a", "cat", "kitten", "sleeps", "naps", "."]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    variant = Variant(
        name="onnx-fp32",
        format=Format.ONNX,
        precision=Precision.FP32,
        location=str(write_embedding(source / "embedding.onnx")),
    )
    ids = np.array([[2, 4, 6]], dtype=np.int64)
    packing = PackingList(
        name="text",
        variants=[VariantToPack(variant=variant, invariance=BatchInvariance.BITWISE)],
        golden_inputs=[{"input_ids": ids, "attention_mask": np.ones_like(ids)}],
        machine=MACHINE,
        processor="sentence-encoder",
        processor_folder=source,
    )
    pack_bundle(folder, packing)
    return folder


def write_colours(path: Path, *, side: int = 8) -> Path:
    """Write `pixels [batch, 3, side, side] -> scores [batch, 3]`: how much red, green and blue a picture has."""
    axes = numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes")
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels", "axes"], ["scores"], keepdims=0)],
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [axes],
    )
    return _save(graph, path)


def write_loudness(path: Path) -> Path:
    """Write `waveform [batch, samples] -> loudness [batch]`: the mean of the absolute values."""
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["waveform"], ["absolute"]),
            helper.make_node("ReduceMean", ["absolute", "axes"], ["loudness"], keepdims=0),
        ],
        "loudness",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("loudness", TensorProto.FLOAT, ["batch"])],
        [axes],
    )
    return _save(graph, path)


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_image_bundle(folder: Path, *, name: str = "colours", **settings: object) -> Path:
    """Write a bundle that says which of three colours a picture has most of."""
    given = {"height": 8, "width": 8, "labels": ["red", "green", "blue"], "activation": "none"} | settings
    call = {"pixels": np.ones((1, 3, 8, 8), np.float32)}
    return pack_with_processor(folder, write_colours, call, name, "image-classifier", {"image.json": given})


def write_audio_bundle(folder: Path, *, name: str = "loudness", **settings: object) -> Path:
    """Write a bundle that says how loud a sound is."""
    call = {"waveform": np.ones((1, 16), np.float32)}
    return pack_with_processor(folder, write_loudness, call, name, "waveform", {"waveform.json": settings})


def pack_with_processor(
    folder: Path,
    write: Callable[[Path], Path],
    call: dict[str, Array],
    name: str,
    processor: str,
    settings: Mapping[str, object],
) -> Path:
    """Pack one model with a processor and its files of JSON."""
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir()
    for file, content in settings.items():
        (source / file).write_text(json.dumps(content))
    variant = Variant(
        name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(write(source / "model.onnx"))
    )
    packing = PackingList(
        name=name,
        variants=[VariantToPack(variant=variant, invariance=BatchInvariance.BITWISE)],
        golden_inputs=[call],
        machine=MACHINE,
        processor=processor,
        processor_folder=source,
    )
    pack_bundle(folder, packing)
    return folder


def mlp_calls(*, num_calls: int = 2, num_inputs: int = 64) -> list[dict[str, Array]]:
    """Return calls of one, two, … rows of random pixels."""
    generator = np.random.default_rng(5)
    return [
        {"pixels": generator.standard_normal((rows, num_inputs)).astype(np.float32)} for rows in range(1, num_calls + 1)
    ]
