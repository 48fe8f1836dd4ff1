"""Reading representative inputs from files, folders and functions."""

from forwardpass.samples.loading import LABELS, load_samples, load_splits

__all__ = ["LABELS", "load_samples", "load_splits"]
