"""What holds for every test: signals that arrive, and weights that are the same in every run."""

from __future__ import annotations

import signal
import sys

import pytest

# Tests may run in the background or under `nohup`, which let what they start ignore the signals that they test.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    """Seed PyTorch as pytest-randomly seeds Python and NumPy, where something has imported it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(1)
