"""A bundle running in this process: opened, checked against its golden answers, then asked."""

from forwardpass.predict.golden import check_golden, relative_error
from forwardpass.predict.predictor import Predictor, open_variant

__all__ = ["Predictor", "check_golden", "open_variant", "relative_error"]
