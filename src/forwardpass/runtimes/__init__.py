"""What executes a variant. Nothing else in forwardpass imports a model library to run a model."""

from forwardpass.runtimes.opening import open_runtime, runtime_versions
from forwardpass.runtimes.options import RuntimeOptions

__all__ = ["RuntimeOptions", "open_runtime", "runtime_versions"]
