"""What a repository loads when several ask at once; nothing is read from the disk here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forwardpass.errors import ModelNotServed
from forwardpass.serve.models import ModelConfig, Traffic
from forwardpass.serve.repository import Repository
from forwardpass.serve.settings import ModelSettings


def test_nobody_loads_with_traffic_that_is_about_to_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, wrong = Traffic(labels={"stable": "1"}), Traffic(labels={"stable": "2"})
    loaded: list[Traffic] = []

    async def load(_: Repository, config: ModelConfig) -> None:
        loaded.append(config.traffic)
        await asyncio.sleep(0)
        if config.traffic == wrong:
            raise ModelNotServed(model="m", reason="version 2 is damaged.")

    async def play() -> None:
        repository = Repository(
            [ModelConfig(name="m", path=Path("m"), traffic=usual)],
            root=None,
            defaults=ModelSettings(),
            grace_s=1.0,
            on_change=lambda: None,
        )
        refused, reloaded = await asyncio.gather(
            repository.set_traffic("m", wrong), repository.load("m"), return_exceptions=True
        )
        assert isinstance(refused, ModelNotServed)
        assert reloaded is None
        assert repository.traffic("m") == usual
        assert [line.reason for line in repository.index()] == ["not loaded"]

    monkeypatch.setattr(Repository, "_load", load)
    monkeypatch.setattr("forwardpass.serve.repository.check_traffic", lambda _: None)
    asyncio.run(play())
    assert loaded == [wrong, usual]
