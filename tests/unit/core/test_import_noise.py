"""Keeping what libraries say of themselves from those who only import them."""

from __future__ import annotations

import logging

import pytest

from forwardpass.core.import_noise import quiet_imports

LOAD = "Failed to load /somewhere/_C.so: Could not load this library"
ENUM = "%s is an Enum subclass and is now natively supported"


def said() -> None:
    """Log everything that matters once."""
    logging.getLogger("torchao").warning(LOAD)
    logging.getLogger("torchao").warning("The quantised weights are not finite")
    logging.getLogger("torchao").error(LOAD)
    logging.getLogger("torchao.mine").warning(LOAD)
    logging.getLogger("torch.utils._pytree").warning(ENUM, "<enum 'Kind'>")
    logging.getLogger("shop.models").warning(LOAD)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return who said what, and forget it."""
    found = [(record.name, record.levelname) for record in caplog.records]
    caplog.clear()
    return found


def test_only_the_known_lines_are_dropped_and_only_while_the_block_runs(caplog: pytest.LogCaptureFixture) -> None:
    everything = [
        ("torchao", "WARNING"),
        ("torchao", "WARNING"),
        ("torchao", "ERROR"),
        ("torchao.mine", "WARNING"),
        ("torch.utils._pytree", "WARNING"),
        ("shop.models", "WARNING"),
    ]
    said()
    assert lines(caplog) == everything
    with quiet_imports():
        with quiet_imports():
            pass
        said()
        assert lines(caplog) == [everything[1], everything[2], everything[3], everything[5]]
    said()
    assert lines(caplog) == everything


def test_what_the_block_raises_comes_through_and_leaves_no_filter_behind() -> None:
    before = list(logging.getLogger("torchao").filters)
    with pytest.raises(RuntimeError, match="mine"), quiet_imports():
        raise RuntimeError("mine")
    assert logging.getLogger("torchao").filters == before
