"""What both ends of the Open Inference Protocol v2 need: the names of datatypes, and tensors as bytes or JSON lists.

Which requests a server takes, and what a client makes of an answer, is theirs.
"""

from forwardpass.protocol.datatypes import DATATYPES, NAMES, NAMES_BY_DTYPE
from forwardpass.protocol.headers import BINARY_TYPE, JSON_LENGTH_HEADER, JSON_TYPE, TIMEOUT_HEADER
from forwardpass.protocol.lists import decode_tensor, encode_list
from forwardpass.protocol.raw import MAX_RANK, check_shape, decode_raw, encode_raw, listed, raw_buffer

__all__ = [
    "BINARY_TYPE",
    "DATATYPES",
    "JSON_LENGTH_HEADER",
    "JSON_TYPE",
    "MAX_RANK",
    "NAMES",
    "NAMES_BY_DTYPE",
    "TIMEOUT_HEADER",
    "check_shape",
    "decode_raw",
    "decode_tensor",
    "encode_list",
    "encode_raw",
    "listed",
    "raw_buffer",
]
