"""Finished steps are found again only while nothing that they depend on has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwardpass.errors import WorkInProgress
from forwardpass.ship.store import StepStore, step_key


def finished(root: Path) -> StepStore:
    store = StepStore(root)
    (store.begin("convert") / "model.onnx").write_bytes(b"weights")
    store.finish("convert", "key", b'{"a":1}')
    return store


def test_a_finished_step_is_found_by_its_key(tmp_path: Path) -> None:
    assert finished(tmp_path).find("convert", "key") == b'{"a":1}'
    assert StepStore(tmp_path).find("convert", "another key") is None
    assert StepStore(tmp_path).find("optimize", "key") is None


@pytest.mark.parametrize("content", [b"weight", b"WEIGHTS", None])
def test_a_step_whose_file_was_touched_runs_again(tmp_path: Path, content: bytes | None) -> None:
    store = finished(tmp_path)
    model = store.folder("convert") / "model.onnx"
    model.unlink() if content is None else model.write_bytes(content)
    assert store.find("convert", "key") is None


def test_a_step_that_was_interrupted_or_garbled_runs_again(tmp_path: Path) -> None:
    store = finished(tmp_path)
    (store.folder("convert") / "done.json").write_bytes(b"{")
    assert store.find("convert", "key") is None
    store.begin("convert")
    assert store.find("convert", "key") is None
    assert list(store.folder("convert").iterdir()) == []


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with (
        finished(tmp_path).locked(),
        pytest.raises(WorkInProgress, match="Another forwardpass is at work"),
        StepStore(tmp_path).locked(),
    ):
        pass
    with StepStore(tmp_path).locked():
        pass


def test_a_run_that_keeps_nothing_leaves_no_folder(tmp_path: Path) -> None:
    root = tmp_path / ".forwardpass" / "shop"
    store = StepStore(root)
    with pytest.raises(ValueError, match="refused"), store.locked():
        store.begin("convert")
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []
    with store.locked():
        finished(root)
    assert store.find("convert", "key") == b'{"a":1}'


def test_only_the_folder_of_the_run_that_kept_nothing_is_removed(tmp_path: Path) -> None:
    finished(tmp_path / ".forwardpass" / "other")
    with StepStore(tmp_path / ".forwardpass" / "shop").locked():
        pass
    assert [path.name for path in (tmp_path / ".forwardpass").iterdir()] == ["other"]


def test_a_key_depends_on_every_part() -> None:
    assert len({step_key("a", 1), step_key("a", 2), step_key("b", 1), step_key("a1"), step_key("a", 1, None)}) == 5
