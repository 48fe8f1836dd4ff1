"""Source in, verified ONNX out: nothing is called converted before it has answered like its source."""

from forwardpass.convert.converting import convert_to_onnx
from forwardpass.convert.pickles import plain_weights
from forwardpass.convert.values import Conversion, ParityCheck, TorchSource

__all__ = ["Conversion", "ParityCheck", "TorchSource", "convert_to_onnx", "plain_weights"]
