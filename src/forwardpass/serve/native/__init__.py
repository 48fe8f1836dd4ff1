"""A front in native code for what is asked most: an inference in the common form, on a connection in the common form.

Whatever is unusual in a request or its framing is left to the reference in Python, `forwardpass.serve.http` and what
stands behind it, so both give the same answers; `tests/unit/serve/test_native_*` hold them against each other.
The compiled part is optional: `is_available` tells whether it was built, and the Python front does everything without.
"""

from forwardpass.serve.native.front import NativeFront, is_available

__all__ = ["NativeFront", "is_available"]
