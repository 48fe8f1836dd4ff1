"""The Python of the README and the how-to pages runs as it stands there, and the links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from forwardpass.serve import ModelConfig
from tests.e2e.serving import serving_models

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SERVED = "http://localhost:8000"
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def blocks() -> list[tuple[str, str]]:
    pages = [page for page in PAGES if page.name not in ("python.md",)]
    return [
        (f"{page.relative_to(ROOT)}:{number}", re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE))
        for page in pages
        for number, match in enumerate(BLOCK.finditer(page.read_text()))
    ]


@pytest.fixture(scope="module")
def address(user_folder: Path) -> Iterator[str]:
    """The user's bundles, served."""
    names = {"shop": "shop-bundle", "minilm": "minilm-bundle"}
    configs = [ModelConfig(name=name, path=user_folder / bundle) for name, bundle in names.items()]
    with serving_models(configs) as running:
        yield f"http://127.0.0.1:{running.port}"


@pytest.mark.parametrize(("place", "code"), blocks(), ids=[place for place, _ in blocks()])
def test_a_block_of_python_runs(
    place: str, code: str, user_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    import torch

    monkeypatch.chdir(user_folder)
    if SERVED in code:
        code = code.replace(SERVED, request.getfixturevalue("address"))
    exec(compile(code, place, "exec"), {"images": np.zeros((3, 64), np.float32), "model": torch.nn.Linear(2, 2)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []
