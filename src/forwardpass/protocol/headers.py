"""The headers of the protocol over HTTP, in lower case."""

from __future__ import annotations

__all__ = ["BINARY_TYPE", "JSON_LENGTH_HEADER", "JSON_TYPE", "TIMEOUT_HEADER"]

JSON_LENGTH_HEADER = "inference-header-content-length"
"""How long the JSON is where the bytes of tensors follow it."""
TIMEOUT_HEADER = "x-request-timeout-ms"
"""Within how many milliseconds the answer is of use: forwardpass's own."""
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
