"""SmoothQuant: channels that are large everywhere are made smaller before they meet the 8-bit scale of their tensor.

In transformers a few channels of an activation are many times larger than the others, and one scale for all leaves the
others a handful of levels. Dividing a channel by a number and multiplying the weights that it meets by the same number
changes nothing in float, and moves the difficulty to the weights, whose scale is per output channel (Xiao et al.,
SmoothQuant, ICML 2023, equation 4). How much is moved is chosen for each activation, by what 8 bits would do to some of
its rows; where that gains little, the activation stays as it is. The division is folded into what produces the
activation where only smoothed products read it; elsewhere it is one multiplication more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import NothingToQuantise
from forwardpass.optimize.exposing import Exposer
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.side_by_side import map_calls
from forwardpass.optimize.writers import MATRIX_OPERATORS, quantisable_nodes
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["ChannelStatistics", "Smoothed", "best_factors", "plan_smoothing", "smoothing_factors", "write_smoothed"]

FACTOR_LIMIT = 1e3
"""Factors beyond it would only say that a channel is (nearly) dead, and cost the float model its accuracy."""
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
MIN_IMPROVEMENT = 1.5
"""How many times the squared error of an activation's products has to fall. On MiniLM, smoothing only where it falls to
half keeps all of the accuracy that smoothing everywhere brings."""
MAX_ROWS = 256
"""Rows of each activation that are kept to try factors on: memory stays bounded however many samples there are."""
NUM_ACTIVATION_LEVELS = 255
NUM_WEIGHT_LEVELS = {False: 127, True: 63}
"""On each side of zero; by whether weights have 7 bits."""


@dataclass(slots=True, kw_only=True)
class ChannelStatistics:
    """What is known of one activation: the greatest absolute value of each channel, and some rows as they are."""

    maxima: Array
    rows: list[Array]

    def add(self, maxima: Array, rows: Array) -> None:
        """Take note of what was seen in one more call."""
        self.maxima = np.maximum(self.maxima, maxima)
        self.rows.append(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """For how many activations the division was folded away, and for how many it was added."""

    num_folded: int
    num_inserted: int


def plan_smoothing(
    source: Path, samples: Samples, *, reduce_range: bool, exposer: Exposer | None = None
) -> dict[str, Array]:
    """Run the samples once and return what the channels of each activation are to be divided by.

    Activations that would gain little are left out. Keys are the names of the activations, values have one number a
    channel, which is the last axis.

    Raises:
        NothingToQuantise: no matrix product has constant weights.
    """
    model = load_named(source)
    readers = _readers(model)
    if not readers:
        raise NothingToQuantise(operators=MATRIX_OPERATORS)
    graph = _Graph(model)
    factors = {}
    runtime = (exposer or Exposer()).expose(source, sorted(readers))
    for name, statistics in _observe(runtime, sorted(readers), samples).items():
        weights = np.concatenate([_weights(graph, node) for node in readers[name]], axis=1)
        best = best_factors(statistics, weights, num_levels=NUM_WEIGHT_LEVELS[reduce_range])
        if best is not None:
            factors[name] = best
    return factors


def best_factors(statistics: ChannelStatistics, weights: Array, *, num_levels: int) -> Array | None:
    """Return the factors with which 8 bits cost the product of rows and `weights` least, or None if that is little."""
    rows = np.concatenate(statistics.rows).astype(np.float32)
    exact = rows @ weights
    limits = np.abs(weights).max(axis=1)

    def error(factors: Array) -> float:
        product = _rounded_rows(rows / factors) @ _rounded_weights(weights * factors[:, None], num_levels)
        return float(((product - exact) ** 2).sum())

    plain = error(np.ones(len(limits), np.float32))
    candidates = [smoothing_factors(statistics.maxima, limits, alpha=alpha) for alpha in ALPHAS]
    errors = [error(factors) for factors in candidates]
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] * MIN_IMPROVEMENT < plain else None


def smoothing_factors(activation: Array, weights: Array, *, alpha: float) -> Array:
    """Return what each channel is divided by: activation^alpha / weights^(1 - alpha), from their greatest values.

    `alpha` 0 leaves the difficulty with the activation, 1 moves all of it to the weights. Dead channels stay.

    >>> smoothing_factors(np.array([16.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0]), alpha=0.5).tolist()
    [4.0, 1.0, 1.0]
    """
    alive = (activation > 0) & (weights > 0)
    ours, theirs = np.where(alive, activation, 1.0), np.where(alive, weights, 1.0)
    factors = ours**alpha / theirs ** (1 - alpha)
    return np.clip(factors, 1 / FACTOR_LIMIT, FACTOR_LIMIT).astype(np.float32)


def write_smoothed(source: Path, target: Path, factors: Mapping[str, Array]) -> Smoothed:
    """Write the float model with these activations smoothed; up to rounding, it answers as before."""
    model = load_named(source)
    graph = _Graph(model)
    readers = _readers(model)
    num_folded = 0
    for name, divisors in factors.items():
        nodes = readers[name]
        for node in nodes:
            graph.scale_rows(node, divisors)
        if graph.is_read_only_by(name, nodes) and graph.divide(name, divisors):
            num_folded += 1
        else:
            graph.insert_division(name, nodes, divisors)
    graph.tidy()
    onnx.save(model, str(target))
    return Smoothed(num_folded=num_folded, num_inserted=len(factors) - num_folded)


def _observe(runtime: OnnxRuntime, names: list[str], samples: Samples) -> dict[str, ChannelStatistics]:
    """Run the samples one at a time and sum up the activations `names`."""
    statistics: dict[str, ChannelStatistics] = {}
    num_rows, stride = max(MAX_ROWS // len(samples), 1), -(-len(samples) // MAX_ROWS)

    def call(numbered: tuple[int, SampleGroup]) -> dict[str, tuple[Array, Array]]:
        number, group = numbered
        answers = {**group.inputs, **runtime.run(group.inputs)}
        return {name: _maxima_and_rows(answers[name], 0 if number % stride else num_rows) for name in names}

    for seen in map_calls(call, enumerate(samples.batches(1))):
        for name, (maxima, rows) in seen.items():
            known = statistics.setdefault(name, ChannelStatistics(maxima=maxima, rows=[]))
            known.add(maxima, rows)
    return statistics


def _maxima_and_rows(values: Array, num_rows: int) -> tuple[Array, Array]:
    """Return the greatest absolute value of each channel of `[..., channels]`, and up to `num_rows` of the rows."""
    flat = values.reshape(-1, values.shape[-1])
    kept = np.unique(np.linspace(0, len(flat) - 1, num_rows).astype(int))
    return np.abs(flat).max(axis=0), flat[kept]


def _rounded_rows(rows: Array) -> Array:
    """Round an activation as 8 bits do: one scale, zero exact."""
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    scale = (high - low) / NUM_ACTIVATION_LEVELS or 1.0
    return np.round(rows / scale) * scale


def _rounded_weights(weights: Array, num_levels: int) -> Array:
    """Round weights as 8 bits do: a scale for every output."""
    scale = np.abs(weights).max(axis=0) / num_levels
    scale[scale == 0] = 1.0
    return np.round(weights / scale) * scale


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the matrix products that can be smoothed, by the activation that they read."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in quantisable_nodes(model, MATRIX_OPERATORS):
        if ranks[node.input[1]] == 2 and not _flag(node, "transA"):
            readers.setdefault(node.input[0], []).append(node)
    return readers


def _weights(graph: _Graph, node: onnx.NodeProto) -> Array:
    """Return the weights of a matrix product as `[channels, outputs]`."""
    weights = graph.constant(node.input[1])
    return weights.T if _flag(node, "transB") else weights


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


class _Graph:
    """A graph whose constants are replaced, never changed: another node may read the same one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self._num_readers = Counter(name for node in model.graph.node for name in _names_read(node))
        self._num_readers.update(output.name for output in model.graph.output)
        self._num_made = 0

    def constant(self, name: str) -> Array:
        """Return the values of a constant."""
        return onnx.numpy_helper.to_array(self._constants[name])

    def is_read_only_by(self, name: str, nodes: list[onnx.NodeProto]) -> bool:
        """Tell whether nobody else reads a tensor, the caller of the model included."""
        return self._num_readers[name] == len(nodes)

    def scale_rows(self, node: onnx.NodeProto, factors: Array) -> None:
        """Multiply the weights that meet each channel by its factor."""
        shaped = factors[None, :] if _flag(node, "transB") else factors[:, None]
        self._replace(node, 1, self.constant(node.input[1]) * shaped)

    def divide(self, name: str, factors: Array) -> bool:
        """Divide the channels of a tensor inside of what produces it; return False where that cannot be done."""
        node = self._producers.get(name)
        if node is None:
            return False
        if node.op_type == "Relu":  # it keeps a positive factor
            return self._num_readers[node.input[0]] == 1 and self.divide(node.input[0], factors)
        if node.op_type == "LayerNormalization" and self._normalises_last_axis(node, len(factors)):
            return self._divide_constants(node, (1, 2), factors)
        if node.op_type == "Gemm" and self._is_constant(node.input[1]):
            return self._divide_product(node, factors)
        if node.op_type == "Add":
            return self._divide_sum(node, factors)
        if node.op_type == "MatMul" and self._is_constant(node.input[1]):
            return self._divide_product(node, factors)
        return False

    def insert_division(self, name: str, nodes: list[onnx.NodeProto], factors: Array) -> None:
        """Divide a tensor on its way to `nodes`, as one multiplication."""
        divided = f"{name}.smooth"
        factor = self._add_constant(f"{name}.smoothing", 1 / factors)
        division = onnx.helper.make_node("Mul", [name, factor], [divided], name=divided)
        for node in nodes:
            node.input[0] = divided
        place = min(list(self._graph.node).index(node) for node in nodes)
        self._graph.node.insert(place, division)
        for known in [it for it in (*self._graph.value_info, *self._graph.input) if it.name == name]:
            self._graph.value_info.append(known)
            self._graph.value_info[-1].name = divided

    def tidy(self) -> None:
        """Drop the constants that nobody reads any more."""
        read = {name for node in self._graph.node for name in _names_read(node)}
        read |= {output.name for output in self._graph.output}
        for tensor in list(self._graph.initializer):
            if tensor.name not in read:
                self._graph.initializer.remove(tensor)

    def _normalises_last_axis(self, node: onnx.NodeProto, num_channels: int) -> bool:
        constants = list(node.input)[1:]
        return len(node.output) == 1 and all(
            self._is_constant(name) and self._constants[name].dims == [num_channels] for name in constants
        )

    def _divide_constants(self, node: onnx.NodeProto, places: tuple[int, ...], factors: Array) -> bool:
        for place in places:
            if place < len(node.input) and node.input[place]:
                self._replace(node, place, self.constant(node.input[place]) / factors)
        return True

    def _divide_product(self, node: onnx.NodeProto, factors: Array) -> bool:
        """Divide the columns of the weights, and the bias of a Gemm."""
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and not (self._is_constant(bias) and self._constants[bias].dims == [len(factors)]):
            return False
        shaped = factors[:, None] if _flag(node, "transB") else factors
        self._replace(node, 1, self.constant(node.input[1]) / shaped)
        return self._divide_constants(node, (2,), factors)

    def _divide_sum(self, node: onnx.NodeProto, factors: Array) -> bool:
        """Divide a product and the bias that is added to it."""
        for ours, bias in ((0, 1), (1, 0)):
            fits = self._is_constant(node.input[bias]) and self._constants[node.input[bias]].dims == [len(factors)]
            if fits and self._num_readers[node.input[ours]] == 1 and self.divide(node.input[ours], factors):
                return self._divide_constants(node, (bias,), factors)
        return False

    def _is_constant(self, name: str) -> bool:
        return name in self._constants

    def _replace(self, node: onnx.NodeProto, place: int, values: Array) -> None:
        node.input[place] = self._add_constant(node.input[place], values)

    def _add_constant(self, stem: str, values: Array) -> str:
        name = f"{stem}.{self._num_made}"
        self._num_made += 1
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, the graphs inside it included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for other in inner.node:
                yield from _names_read(other)
