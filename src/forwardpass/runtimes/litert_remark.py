"""LiteRT writes a line to stderr, once in each process, when it first gives a graph to XNNPACK.

It has no switch for that. So the first graph is one of our own, and the line is dropped while that is prepared: nothing
that is said of a user's model is ever looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

__all__ = ["hear_remark"]

REMARK = b"INFO: "
STDERR = 2
MAX_BYTES = 65536


def hear_remark() -> None:
    """Let LiteRT say what it has to say of itself; lines of any other kind come through."""
    try:
        said = _diverted(lambda: Interpreter(model_content=_least_model(), num_threads=1).allocate_tensors())
    except OSError:  # there is no stderr: then nobody reads it either
        return
    others = [line for line in said.splitlines(keepends=True) if not line.startswith(REMARK)]
    if others:
        os.write(STDERR, b"".join(others))


def _diverted(act: Callable[[], object]) -> bytes:
    """Return what is written to the descriptor of stderr meanwhile, where C++ writes."""
    stderr = os.dup(STDERR)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # a process that is started meanwhile may hold the other end for as long as it runs
    try:
        os.dup2(writing, STDERR)
        try:
            act()
        finally:
            os.dup2(stderr, STDERR)
        try:
            return os.read(reading, MAX_BYTES)
        except BlockingIOError:
            return b""
    finally:
        for descriptor in (stderr, reading, writing):
            os.close(descriptor)


def _least_model() -> bytes:
    """Return a graph of one operator that XNNPACK takes: the absolute value of a number."""
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = [_number(b"x"), _number(b"y")], [0], [1]
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph.operators = [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ABS
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], [schema.BufferT()]
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _number(name: bytes) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, [1], schema.TensorType.FLOAT32, 0
    return made
