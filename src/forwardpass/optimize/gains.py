"""What 8 bits save in each node, measured on this machine: once for each distinct operator, attributes and shapes.

A node becomes a graph of its own, in float and quantised by the same writer as the whole model, and the files run in
turns in a child process. A convolution is measured in two forms: alone, with float at both ends, and inside, between
others in 8 bits, where nothing is converted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forwardpass.core.measurement import Measurement
from forwardpass.core.samples import Samples
from forwardpass.core.statistics import measure_median, measure_ratio
from forwardpass.core.tensors import Array
from forwardpass.optimize.calibration import CalibrationMethod, TensorHistogram
from forwardpass.optimize.clocking import Timer
from forwardpass.optimize.exposing import Exposer
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.results import ResultStore, content_key
from forwardpass.optimize.timing import TimingRequest
from forwardpass.optimize.weights import ALL_FORMS, BlockStore, weight_nodes, write_weights
from forwardpass.optimize.writers import (
    MATRIX_OPERATORS,
    QUANTISED_OPERATORS,
    StaticPlan,
    write_dynamic,
    write_static,
)
from forwardpass.profile import describe_machine
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = [
    "Neighbours",
    "NodeGain",
    "compare_files",
    "contextual_saving",
    "describe_node",
    "find_links",
    "gaining_nodes",
    "glance_at_files",
    "measure_gains",
    "slower_dynamic",
    "slower_static",
    "time_in_turns",
    "weighted_nodes",
]

TRANSPARENT = frozenset({"Relu", "Clip", "MaxPool", "Identity", "Flatten", "Reshape", "Squeeze"})
"""What runs on bytes as well as on floats, so that two convolutions with it between them stay in 8 bits."""

ROUNDS, ROUNDS_OF_A_BRIEF_SEARCH = 11, 5
ROUND_S, ROUND_S_OF_A_BRIEF_SEARCH = 4e-3, 2e-3

_ENDS = (-3.0, 3.0)
_INPUT, _OUTPUT = "x", "y"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGain:
    """One distinct node: seconds of a call in float, and how many times as fast it is in 8 bits (None: not measured).

    `inside` is a convolution whose input and output are bytes already.
    """

    float_s: Measurement | None = None
    static: Measurement | None = None
    inside: Measurement | None = None
    dynamic: Measurement | None = None
    blocks: dict[str, Measurement] = field(default_factory=dict)
    """Of a matrix product whose weights alone are in 4 or 8 bits, by the form's words."""
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The convolutions that a node reads from and is read by, through what is transparent.

    `is_read_in_float` says that something else reads it, too.
    """

    before: str = ""
    after: tuple[str, ...] = ()
    is_read_in_float: bool = True


def contextual_saving(gain: NodeGain, around: Neighbours, in_8_bits: frozenset[str]) -> float:
    """Return the seconds that a node saves in 8 bits if these others are in 8 bits, too; negative for a loss.

    Between float at both ends the node counts as it was measured alone, between bytes at both as measured inside, and
    half-way with one of each.
    """
    if gain.float_s is None or gain.static is None:
        return 0.0
    alone = gain.float_s.value * (1 - 1 / gain.static.value)
    if gain.inside is None:
        return alone
    inside = gain.float_s.value * (1 - 1 / gain.inside.value)
    reads_bytes = around.before in in_8_bits
    writes_bytes = bool(around.after) and not around.is_read_in_float and in_8_bits.issuperset(around.after)
    return alone + (inside - alone) * (reads_bytes + writes_bytes) / 2


def gaining_nodes(
    gains: Mapping[str, NodeGain], links: Mapping[str, Neighbours], names: frozenset[str]
) -> frozenset[str]:
    """Return those of the nodes that save time in 8 bits in each other's company.

    The node that loses most leaves first, for its neighbours then lose the bytes at that end.
    """
    staying = set(names)
    while staying:
        company = frozenset(staying)
        savings = {name: contextual_saving(gains[name], links.get(name, Neighbours()), company) for name in staying}
        worst = min(sorted(staying), key=lambda name: savings[name])
        if savings[worst] > 0:
            break
        staying.remove(worst)
    return frozenset(staying)


def slower_static(gains: Mapping[str, NodeGain]) -> frozenset[str]:
    """Return the nodes that are surely slower in static 8 bits, whatever stands around them."""
    return frozenset(
        name
        for name, gain in gains.items()
        if _is_slower(gain.static) and (gain.inside is None or _is_slower(gain.inside))
    )


def slower_dynamic(gains: Mapping[str, NodeGain]) -> frozenset[str]:
    """Return the nodes that are surely slower when they are quantised call by call."""
    return frozenset(name for name, gain in gains.items() if _is_slower(gain.dynamic))


def _is_slower(gain: Measurement | None) -> bool:
    return gain is not None and gain.interval.high < 1


def find_links(model: onnx.ModelProto) -> dict[str, Neighbours]:
    """Return the neighbours of every convolution."""
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    links = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        ends = _ends(node.output[0], readers)
        is_read_in_float = not ends or any(end.op_type != "Conv" for end in ends) or node.output[0] in outputs
        links[node.name] = Neighbours(
            before=_maker(node.input[0], makers),
            after=tuple(end.name for end in ends if end.op_type == "Conv"),
            is_read_in_float=is_read_in_float,
        )
    return links


def _maker(tensor: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    node = makers.get(tensor)
    while node is not None and node.op_type in TRANSPARENT:
        node = makers.get(node.input[0])
    return node.name if node is not None and node.op_type == "Conv" else ""


def _ends(tensor: str, readers: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    found = []
    for node in readers.get(tensor, []):
        found += _ends(node.output[0], readers) if node.op_type in TRANSPARENT else [node]
    return found


def measure_gains(
    source: Path,
    samples: Samples,
    *,
    store: ResultStore,
    reduce_range: bool,
    num_rows: int = 1,
    has_time: Callable[[], bool] = lambda: True,
    is_brief: bool = False,
    timer: Timer | None = None,
    exposer: Exposer | None = None,
) -> dict[str, NodeGain]:
    """Return the gain of every node that multiplies an activation with constant weights, depthwise ones too.

    Results of earlier searches on the same processor with the same runtime are taken from `store`; a brief one, which
    takes fewer rounds, takes those of a longer one, and not the other way round. When the time is over, the nodes that
    are left are not in the result.
    """
    model = load_named(source)
    nodes = weighted_nodes(model)
    names = sorted({node.input[0] for node in nodes})
    runtime = (exposer or Exposer()).expose(source, names)
    shapes = _input_shapes(runtime, nodes, next(iter(samples.batches(num_rows))).inputs)
    machine = describe_machine()
    gains: dict[str, NodeGain] = {}
    with tempfile.TemporaryDirectory(prefix="forwardpass-gains-") as folder, _kept_or_new(timer) as clock:
        for node in nodes:
            single = _single(model, node, shapes[node.name])
            key = content_key(
                "node-gain-2", machine.cpu, machine.instruction_sets, machine.runtimes, reduce_range, _identity(single)
            )
            brief_key = content_key(key, "brief")
            known = store.find(key, NodeGain) or (store.find(brief_key, NodeGain) if is_brief else None)
            if known is None:
                if not has_time():
                    continue
                num_rounds = ROUNDS_OF_A_BRIEF_SEARCH if is_brief else ROUNDS
                round_s = ROUND_S_OF_A_BRIEF_SEARCH if is_brief else ROUND_S
                known = _measure(
                    single, clock, Path(folder), num_rounds=num_rounds, round_s=round_s, reduce_range=reduce_range
                )
                store.keep(brief_key if is_brief else key, known)
            gains[node.name] = known
    return gains


def weighted_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that multiply an activation with constant weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in QUANTISED_OPERATORS and node.input[0] not in constants and node.input[1] in constants
    ]


def describe_node(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """Write a node's operator and the shape of its weights."""
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    kind = "depthwise Conv" if groups > 1 and weights.dims[1] == 1 else node.op_type
    return f"{kind} {'×'.join(map(str, weights.dims))}"


def compare_files(
    ours: Path, theirs: Path, inputs: Mapping[str, Array], timer: Timer | None = None, *, num_rounds: int = 15
) -> Measurement:
    """Return how many times as fast as `theirs` the file `ours` is, in one thread.

    Raises:
        RuntimeError: one of them cannot run.
    """
    slow, fast = time_in_turns([theirs, ours], inputs, timer, num_rounds=num_rounds, round_s=0.02)
    return measure_ratio(np.array(slow), np.array(fast))


def glance_at_files(files: Sequence[Path], inputs: Mapping[str, Array]) -> list[float]:
    """Return the seconds of a call of each file in one thread, a few rounds in turns: enough to sort by.

    Raises:
        RuntimeError: one of them cannot run.
    """
    rounds = time_in_turns(files, inputs, num_rounds=5, round_s=0.01)
    return [float(np.median(seconds)) for seconds in rounds]


def time_in_turns(
    files: Sequence[Path],
    inputs: Mapping[str, Array],
    timer: Timer | None = None,
    *,
    num_rounds: int = 9,
    round_s: float = 0.003,
) -> list[list[float]]:
    """Return the seconds of a call of each file in one thread, round by round; the files take turns in each round.

    Raises:
        RuntimeError: one of them cannot run.
    """
    with tempfile.TemporaryDirectory(prefix="forwardpass-gains-") as folder, _kept_or_new(timer) as clock:
        call = Path(folder) / "inputs.npz"
        np.savez(call, allow_pickle=False, **inputs)
        timed = clock.time(
            TimingRequest(files=tuple(map(str, files)), inputs=str(call), num_rounds=num_rounds, round_s=round_s)
        )
    if timed.failure:
        raise RuntimeError(timed.failure)
    return [list(rounds) for rounds in timed.call_s]


def _kept_or_new(timer: Timer | None) -> AbstractContextManager[Timer]:
    """Take the timer that was given, which goes on afterwards, or one that ends with its use."""
    return Timer() if timer is None else nullcontext(timer)


def _input_shapes(
    runtime: OnnxRuntime, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Array]
) -> dict[str, tuple[int, ...]]:
    """Run one call and look at the activations that the nodes read."""
    answers = {**inputs, **runtime.run(inputs)}
    return {node.name: answers[node.input[0]].shape for node in nodes}


def _single(model: onnx.ModelProto, node: onnx.NodeProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return a model of this node alone, with the shape of its input fixed."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = "node"
    copy.input[0], copy.output[0] = _INPUT, _OUTPUT
    del copy.output[1:]
    while len(copy.input) > 2 and copy.input[-1] not in constants:
        copy.input.pop()  # a bias that is computed: a small part of the time, the same in both forms
    weights = []
    for place in range(1, len(copy.input)):
        weights.append(onnx.TensorProto())
        weights[-1].CopyFrom(constants[copy.input[place]])
        weights[-1].name = copy.input[place] = f"w{place}"
    graph = onnx.helper.make_graph(
        [copy],
        "node",
        [onnx.helper.make_tensor_value_info(_INPUT, onnx.TensorProto.FLOAT, list(shape))],
        [onnx.helper.make_tensor_value_info(_OUTPUT, onnx.TensorProto.FLOAT, None)],
        weights,
    )
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=min(model.ir_version, 10))
    return onnx.shape_inference.infer_shapes(single)


def _identity(single: onnx.ModelProto) -> list[object]:
    """Return what makes two nodes take the same time: operator, attributes, shapes, and not the values of weights."""
    node = single.graph.node[0]
    attributes = sorted(onnx.helper.printable_attribute(attribute) for attribute in node.attribute)
    weights = [list(tensor.dims) for tensor in single.graph.initializer]
    shape = [size.dim_value for size in single.graph.input[0].type.tensor_type.shape.dim]
    return [node.op_type, attributes, weights, shape, single.opset_import[0].version]


def _measure(
    single: onnx.ModelProto, timer: Timer, folder: Path, *, num_rounds: int, round_s: float, reduce_range: bool
) -> NodeGain:
    files = {"float": folder / "float.onnx"}
    onnx.save(single, str(files["float"]))
    try:
        files |= _quantised(files["float"], folder, single.graph.node[0].op_type, reduce_range=reduce_range)
    except Exception as error:  # the writers are other people's code; such a node stays in float
        return NodeGain(failure=f"{type(error).__name__}: {error}".splitlines()[0])
    timed = timer.time(TimingRequest(files=tuple(map(str, files.values())), num_rounds=num_rounds, round_s=round_s))
    if timed.failure:
        return NodeGain(failure=timed.failure)
    seconds = {form: np.array(rounds) for form, rounds in zip(files, timed.call_s, strict=True)}

    def ratio(form: str) -> Measurement | None:
        return measure_ratio(seconds["float"], seconds[form]) if form in seconds else None

    return NodeGain(
        float_s=measure_median(seconds["float"], unit="s"),
        static=ratio("static"),
        inside=ratio("inside"),
        dynamic=ratio("dynamic"),
        blocks={form: measured for form in map(str, ALL_FORMS) if (measured := ratio(form)) is not None},
    )


def _quantised(source: Path, folder: Path, operator: str, *, reduce_range: bool) -> dict[str, Path]:
    """Write the forms of a single node in 8 bits."""
    files = {"static": folder / "static.onnx"}
    histograms = {name: TensorHistogram(low=_ENDS[0], high=_ENDS[1]) for name in (_INPUT, _OUTPUT)}
    plan = StaticPlan(nodes=("node",), histograms=histograms)
    write_static(source, files["static"], plan, method=CalibrationMethod.MINMAX, reduce_range=reduce_range)
    if operator in MATRIX_OPERATORS:
        files["dynamic"] = folder / "dynamic.onnx"
        write_dynamic(source, files["dynamic"], reduce_range=reduce_range)
        files |= _in_blocks(source, folder)
    else:
        files["inside"] = folder / "inside.onnx"
        _without_ends(files["static"], files["inside"])
    return files


def _in_blocks(source: Path, folder: Path) -> dict[str, Path]:
    """Write the forms of a single node whose weights alone are in fewer bits, if it can have them."""
    if not weight_nodes(onnx.load(str(source))):
        return {}
    files, store = {}, BlockStore(is_quick=True)
    for form in ALL_FORMS:
        files[str(form)] = folder / f"blocks-{form.bits}-{form.block_size}.onnx"
        write_weights(source, files[str(form)], {"node": form}, store=store)
    return files


def _without_ends(source: Path, target: Path) -> None:
    """Write the quantised node with bytes at both ends: without the first conversion and the last."""
    model = onnx.load(str(source))
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == _INPUT)
    last = next(node for node in model.graph.node if node.output[0] == _OUTPUT)
    entry, exit_ = model.graph.input[0], model.graph.output[0]
    entry.name, exit_.name = first.output[0], last.input[0]
    for end in (entry, exit_):
        end.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    model.graph.node.remove(first)
    model.graph.node.remove(last)
    del model.graph.value_info[:]
    onnx.save(model, str(target))
