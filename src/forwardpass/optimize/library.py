"""The onnx package, which only building needs: missing, it is a sentence and not a traceback."""

from forwardpass.errors import MissingExtra

try:
    import onnx
except ImportError as error:
    raise MissingExtra(package="onnx", extra="onnx", purpose="optimising a model") from error

__all__ = ["onnx"]
