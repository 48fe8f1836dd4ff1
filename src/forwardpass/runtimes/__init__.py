"""What executes a variant. Nothing else in forwardpass imports a model library to run a model."""

from forwardpass.runtimes.files import companions, format_of, is_saved_model, is_torch_path
from forwardpass.runtimes.opening import import_runtime, open_runtime, runtime_versions
from forwardpass.runtimes.options import RuntimeOptions

__all__ = [
    "RuntimeOptions",
    "companions",
    "format_of",
    "import_runtime",
    "is_saved_model",
    "is_torch_path",
    "open_runtime",
    "runtime_versions",
]
