"""A bundle running in this process: packed, opened, checked against its golden answers, then asked."""

from forwardpass.predict.exactness import SameAnswer, exact_batch_sizes, max_batch_rows
from forwardpass.predict.golden import GoldenCheck, check_golden, relative_error
from forwardpass.predict.packing import FLOAT_TOLERANCE, PackingList, VariantToPack, pack_bundle
from forwardpass.predict.predictor import Predictor, open_variant, verify_variant
from forwardpass.predict.rows import InExactBatches, InFixedBatches

__all__ = [
    "FLOAT_TOLERANCE",
    "GoldenCheck",
    "InExactBatches",
    "InFixedBatches",
    "PackingList",
    "Predictor",
    "SameAnswer",
    "VariantToPack",
    "check_golden",
    "exact_batch_sizes",
    "max_batch_rows",
    "open_variant",
    "pack_bundle",
    "relative_error",
    "verify_variant",
]
