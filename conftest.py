"""What the doctests and the documents find: a user's folder with a model, samples and bundles."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.models import mlp_calls, write_bundle, write_mlp, write_text_bundle

settings.register_profile("forwardpass", deadline=None)  # other processes share the machine; time proves nothing
settings.load_profile("forwardpass")

# Modules of packages that the development environment leaves out have no doctests that could be run.
collect_ignore = [] if find_spec("executorch") else ["src/forwardpass/runtimes/executorch.py"]


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.onnx` (64 pixels in, 10 scores out), `samples.npz`, `shop-bundle` and `minilm-bundle`."""
    folder = tmp_path_factory.mktemp("user")
    generator = np.random.default_rng(2)
    np.savez(
        folder / "samples.npz",
        pixels=generator.standard_normal((100, 64)).astype(np.float32),
        labels=generator.integers(0, 10, 100),
    )
    write_bundle(folder / "shop-bundle", write_mlp(folder / "model.onnx"), mlp_calls(), name="shop")
    write_text_bundle(folder / "minilm-bundle")
    return folder


@pytest.fixture(autouse=True)
def _doctest_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run doctests in the user's folder."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(request.getfixturevalue("user_folder"))
