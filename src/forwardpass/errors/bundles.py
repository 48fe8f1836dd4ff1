"""Bundles that cannot be trusted or understood."""

from __future__ import annotations

from forwardpass.errors.base import ForwardpassError

__all__ = [
    "BundleDamaged",
    "BundleError",
    "BundleNotFound",
    "UnsafePath",
    "UnsupportedSchema",
]


class BundleError(ForwardpassError):
    """A bundle that cannot be trusted or understood."""

    slug = "bundle"


class BundleNotFound(BundleError, FileNotFoundError):
    """There is no bundle at this place."""

    slug = "bundle-not-found"

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"No bundle at '{path}': expected a folder with a manifest.json ('forwardpass ship' makes one). "
            "'forwardpass serve' takes folders of versions and ONNX files, too."
        )


class BundleDamaged(BundleError, ValueError):
    """A file of the bundle is missing, altered, or was never declared."""

    slug = "bundle-damaged"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The bundle '{path}' is damaged: {reason}. Build it again with 'forwardpass ship'.")


class UnsupportedSchema(BundleError, ValueError):
    """The manifest was written by a version that this one does not know."""

    slug = "unsupported-schema"

    def __init__(self, *, path: str, found: object, supported: int) -> None:
        self.path = path
        self.found = found
        self.supported = supported
        super().__init__(
            f"The bundle '{path}' has schema version {found}, but this forwardpass reads version {supported}. "
            "Install the forwardpass that wrote it, or build the bundle again."
        )


class UnsafePath(BundleError, PermissionError):
    """A path in a bundle that leaves the bundle's folder."""

    slug = "unsafe-path"

    def __init__(self, *, path: str, member: str, reason: str) -> None:
        self.path = path
        self.member = member
        self.reason = reason
        super().__init__(
            f"Refusing to open the bundle '{path}': its file '{member}' {reason}. Bundles hold plain files only."
        )
