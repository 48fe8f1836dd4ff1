"""The two models that are served: one for which the server is the cost, one for which the model is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers.load import Array
from forwardpass.core.slo import Slo
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.profile import ProfileSettings, describe_machine, profile_variants
from forwardpass.wiring.inputs import no_progress

__all__ = ["WORKLOADS", "Workload", "write_bundle", "write_model"]

OPSET = 18
ROW_SIZE = 64
NUM_SCORES = 10
NUM_HIDDEN = 32
NUM_LAYERS = 6
HEAD_SIZE = 64
NUM_TOKENS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model, its latency target, and what a careful operator would set for it.

    `max_batch` is the largest batch that takes less than half of the target, `window_s` a twenty-fifth of it, and
    `max_waiting` is what can be answered within the target: the limits of servers that need to be told.
    """

    name: str
    input_name: str
    dtype: str
    slo_s: float
    max_batch: int
    max_waiting: int
    placements: tuple[tuple[int, int], ...]
    """Workers and threads of each."""
    profile_batches: tuple[int, ...]
    limit_shares: tuple[float, ...] = ()
    """Rates that everybody is offered alike, in shares of what the model allows in process; none where the server is
    what limits."""

    @property
    def window_s(self) -> float:
        """How long a batch may wait for more, where a server wants to know."""
        return self.slo_s / 25

    def row(self) -> Array:
        """Return the row that every client sends."""
        generator = np.random.default_rng(0)
        if self.dtype == "float32":
            return generator.standard_normal(ROW_SIZE).round(4).astype(np.float32)
        return generator.integers(0, NUM_TOKENS, ROW_SIZE)


WORKLOADS = {
    "mlp": Workload(
        name="mlp",
        input_name="pixels",
        dtype="float32",
        slo_s=0.025,
        max_batch=64,
        max_waiting=64,
        placements=((1, 1), (2, 1)),
        profile_batches=(1, 4, 16, 64),
    ),
    "encoder": Workload(
        name="encoder",
        input_name="tokens",
        dtype="int64",
        slo_s=0.1,
        max_batch=4,
        max_waiting=8,
        placements=((1, 2), (2, 1)),
        profile_batches=(1, 2, 4, 8),
        limit_shares=(0.75, 0.8, 0.85, 0.9, 0.95),
    ),
}


def write_model(workload: Workload, path: Path, *, hidden_size: int) -> Path:
    """Write the ONNX file that everybody serves: `[batch, 64] -> scores [batch, 10]`."""
    graph = _Graph()
    scores = _mlp(graph) if workload.name == "mlp" else _encoder(graph, hidden_size)
    graph.node("Identity", [scores], "scores")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(workload.dtype))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            workload.name,
            [helper.make_tensor_value_info(workload.input_name, kind, ["batch", ROW_SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", NUM_SCORES])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_bundle(workload: Workload, model: Path, destination: Path) -> Path:
    """Pack the file with its measured latencies and its target, as `forwardpass ship` does."""
    variant = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(model))
    row = workload.row()
    calls = {size: ({workload.input_name: np.stack([row] * size)},) for size in workload.profile_batches}
    settings = ProfileSettings(
        batch_sizes=workload.profile_batches, num_rounds=5, round_s=0.1, cell_budget_s=2.0, num_cold_starts=2
    )
    (profile,) = profile_variants([variant], calls, settings=settings, progress=no_progress)
    packing = PackingList(
        name=workload.name,
        variants=[
            VariantToPack(
                variant=variant,
                invariance=profile.invariance.verdict,
                exact_batch_sizes=profile.invariance.exact_batch_sizes,
                exact_thread_counts=profile.invariance.exact_thread_counts,
                latency=tuple(profile.latency_tables()),
            )
        ],
        golden_inputs=calls[1],
        machine=describe_machine(),
        slo=Slo(percent=99, limit_s=workload.slo_s),
    )
    pack_bundle(destination, packing)
    return destination


class _Graph:
    """Nodes and weights under construction; the weights are random, of a size that keeps activations near 1."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(0)
        self._numbers = itertools.count()

    def node(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = output or f"t{next(self._numbers)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, array: Array) -> str:
        """Add an array and return its name."""
        name = f"w{next(self._numbers)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def matrix(self, *shape: int) -> str:
        """Add a random matrix."""
        return self.constant((self._generator.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def dense(self, given: str, num_inputs: int, num_outputs: int) -> str:
        """Multiply with a random matrix and add a bias."""
        product = self.node("MatMul", [given, self.matrix(num_inputs, num_outputs)])
        return self.node("Add", [product, self.constant(np.full(num_outputs, 0.01, np.float32))])

    def norm(self, given: str, size: int) -> str:
        """Normalise the last axis."""
        ones, zeros = self.constant(np.ones(size, np.float32)), self.constant(np.zeros(size, np.float32))
        return self.node("LayerNormalization", [given, ones, zeros], axis=-1)


def _mlp(graph: _Graph) -> str:
    hidden = graph.node("Relu", [graph.dense("pixels", ROW_SIZE, NUM_HIDDEN)])
    return graph.dense(hidden, NUM_HIDDEN, NUM_SCORES)


def _encoder(graph: _Graph, size: int) -> str:
    state = graph.node("Gather", [graph.constant(_embeddings(size)), "tokens"])
    for _ in range(NUM_LAYERS):
        state = graph.norm(graph.node("Add", [state, _attention(graph, state, size)]), size)
        inner = graph.node("Relu", [graph.dense(state, size, 4 * size)])
        state = graph.norm(graph.node("Add", [state, graph.dense(inner, 4 * size, size)]), size)
    pooled = graph.node("ReduceMean", [state, graph.constant(np.array([1]))], keepdims=0)
    return graph.dense(pooled, size, NUM_SCORES)


def _embeddings(size: int) -> Array:
    return np.random.default_rng(1).standard_normal((NUM_TOKENS, size)).astype(np.float32)


def _attention(graph: _Graph, state: str, size: int) -> str:
    split = graph.constant(np.array([0, ROW_SIZE, size // HEAD_SIZE, HEAD_SIZE]))

    def heads(perm: list[int]) -> str:
        return graph.node("Transpose", [graph.node("Reshape", [graph.dense(state, size, size), split])], perm=perm)

    queries, keys, values = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scale = graph.constant(np.array(1 / np.sqrt(HEAD_SIZE), np.float32))
    logits = graph.node("Mul", [graph.node("MatMul", [queries, keys]), scale])
    mixed = graph.node("MatMul", [graph.node("Softmax", [logits], axis=-1), values])
    together = graph.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    joined = graph.node("Reshape", [together, graph.constant(np.array([0, ROW_SIZE, size]))])
    return graph.dense(joined, size, size)
