"""The onnx package, which serving does without: missing, it is a sentence and not a traceback."""

from forwardpass.errors import MissingExtra

try:
    import onnx
except ImportError as error:
    raise MissingExtra(package="onnx", extra="onnx", purpose="reading and writing ONNX files") from error

__all__ = ["onnx"]
