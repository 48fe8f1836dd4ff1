"""Bodies: templates, and tensors that the server's own decoder reads back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.tensors import Signature, TensorSpec
from forwardpass.errors import InvalidAnswer, InvalidOption, InvalidSamples
from forwardpass.loadtest.template import fill_template
from forwardpass.loadtest.tensors import ModelInput, infer_bodies, made_up_inputs, sample_inputs
from forwardpass.protocol import DATATYPES, JSON_LENGTH_HEADER
from forwardpass.serve.oip import decode_infer

HERE = Path()


def filled(text: str, **arrays: object) -> list[object]:
    rows = [{name: np.asarray(array)[at] for name, array in arrays.items()} for at in range(2)] if arrays else []
    return [json.loads(body.content) for body in fill_template(text, rows=rows, folder=HERE, seed=1)]


def test_a_template_without_placeholders_is_sent_as_it_is() -> None:
    assert filled('{"a": [1, null, "x"]}') == [{"a": [1, None, "x"]}]


def test_placeholders_become_values_of_their_kind() -> None:
    template = {
        "floats": "{{floats:4x2}}",
        "float": "{{ float }}",
        "ints": "{{ints:-3:3:5}}",
        "int": "{{int:7:8}}",
        "nested": ["{{choice:cat|dog}}"],
        "text": "The {{choice:cat|cat}} has {{int:4:5}} legs.",
        "row": "{{data:x}}",
    }
    bodies = filled(json.dumps(template), x=[[1.5, 2.5], [3.5, 4.5]])
    assert len(bodies) == 64
    for number, body in enumerate(bodies):
        assert isinstance(body, dict)
        assert np.shape(body["floats"]) == (4, 2)
        assert isinstance(body["float"], float)
        assert len(body["ints"]) == 5
        assert all(-3 <= value < 3 for value in body["ints"])
        assert body["int"] == 7
        assert body["nested"][0] in ("cat", "dog")
        assert body["text"] == "The cat has 4 legs."
        assert body["row"] == [[1.5, 2.5], [3.5, 4.5]][number % 2]
    assert len({json.dumps(body) for body in bodies}) == 64


def test_lines_of_a_file_are_taken_in_turn(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("one\n\ntwo\n")
    bodies = fill_template('{"q": "{{line:questions.txt}}?"}', rows=[], folder=tmp_path, seed=0)
    assert [json.loads(body.content)["q"] for body in bodies[:3]] == ["one?", "two?", "one?"]


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{", "expected JSON with placeholders inside strings"),
        ('{"a": "{{flaots:3}}"}', "Invalid value '{{flaots:3}}' for --template: expected {{float}}"),
        ('{"a": "{{ints:5:5}}"}', "Invalid value '{{ints:5:5}}'"),
        ('{"a": "{{floats}}"}', "Invalid value '{{floats}}'"),
        ('{"a": "{{floats:9999x9999}}"}', "Invalid value '{{floats:9999x9999}}'"),
        ('{"a": "{{data:x}}"}', "expected samples, given with --data"),
        ('{"a": "{{line:none.txt}}"}', "expected a text file that can be read"),
    ],
)
def test_a_mistake_in_a_template_is_named(template: str, part: str) -> None:
    with pytest.raises(InvalidOption, match="--template") as caught:
        filled(template)
    assert part in str(caught.value)


inputs_strategy = st.lists(
    st.tuples(
        st.sampled_from(sorted(set(DATATYPES) - {"FP16", "BYTES"})),
        st.lists(st.sampled_from([1, 2, 3]), min_size=0, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(inputs_strategy, st.integers(1, 4), st.booleans())
def test_the_server_reads_back_what_was_made_up(
    kinds: list[tuple[str, list[int]]], num_rows: int, is_binary: bool
) -> None:
    inputs = [ModelInput(f"x{at}", datatype, [-1, *sizes]) for at, (datatype, sizes) in enumerate(kinds)]
    specs = tuple(
        TensorSpec(name=it.name, dtype=DATATYPES[it.datatype], shape=("batch", *it.shape[1:])) for it in inputs
    )
    requests = made_up_inputs(inputs, num_rows=num_rows, seed=1)
    for tensors, body in zip(requests, infer_bodies(requests, is_binary=is_binary), strict=True):
        length = dict(body.headers).get(JSON_LENGTH_HEADER)
        signature = Signature(inputs=specs, outputs=())
        call = decode_infer(body.content, signature, num_json_bytes=int(length) if length is not None else None)
        for name, array in tensors.items():
            np.testing.assert_array_equal(call.tensors[name], array)
            assert len(array) == num_rows


def test_samples_are_stacked_and_cast_and_shapes_are_not_mixed() -> None:
    rows = [{"x": np.zeros(2)}, {"x": np.ones(2)}, {"x": np.full(3, 2.0)}]
    requests = sample_inputs([ModelInput("x", "FP32", [-1, -1])], rows, num_rows=2, origin="s.npz")
    assert [request["x"].dtype.name for request in requests] == ["float32"] * 3
    assert [request["x"].tolist() for request in requests] == [[[0, 0], [1, 1]], [[1, 1], [1, 1]], [[2] * 3, [2] * 3]]


def test_samples_that_do_not_fit_are_refused() -> None:
    rows = [{"y": np.zeros(2)}]
    with pytest.raises(InvalidSamples) as caught:
        sample_inputs([ModelInput("x", "FP32", [-1, 2])], rows, num_rows=1, origin="s.npz")
    assert str(caught.value) == (
        "Cannot use the samples of 's.npz': they have no array 'x', which the model takes. They have y."
    )
    with pytest.raises(InvalidSamples, match="dtype float64, but the model takes INT64"):
        sample_inputs([ModelInput("y", "INT64", [-1, 2])], rows, num_rows=1, origin="s.npz")


def test_a_datatype_that_nobody_knows_is_not_guessed() -> None:
    with pytest.raises(InvalidAnswer, match="its datatype 'FP8' is unknown"):
        made_up_inputs([ModelInput("x", "FP8", [-1])], num_rows=1, seed=0)
