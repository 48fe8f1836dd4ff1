"""Source in, verified file out: nothing is called converted before it has answered like its source."""

from forwardpass.convert.converting import check_axes_can_be_named, convert_to_onnx
from forwardpass.convert.estimators import plain_estimator
from forwardpass.convert.forms import TARGETS, convert
from forwardpass.convert.pickles import plain_weights
from forwardpass.convert.plain import plain_model
from forwardpass.convert.proving import PARITY_TOLERANCE
from forwardpass.convert.values import Conversion, OutputCheck, ParityCheck, PlainModel, TorchSource

__all__ = [
    "PARITY_TOLERANCE",
    "TARGETS",
    "Conversion",
    "OutputCheck",
    "ParityCheck",
    "PlainModel",
    "TorchSource",
    "check_axes_can_be_named",
    "convert",
    "convert_to_onnx",
    "plain_estimator",
    "plain_model",
    "plain_weights",
]
