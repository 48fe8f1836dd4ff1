"""The public functions: the one place that picks real adapters and puts the layers together."""

from __future__ import annotations

from pathlib import Path

from forwardpass.predict import Predictor

__all__ = ["load"]


def load(bundle: Path | str, *, variant: str | None = None, num_threads: int = 1) -> Predictor:
    """Open a bundle for use in this process, without a server, with the same checks.

    Raises:
        BundleError: the bundle cannot be trusted.
        GoldenMismatch: it answers differently on this machine.
    """
    return Predictor.open(bundle, variant=variant, num_threads=num_threads)
