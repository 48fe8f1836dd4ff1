"""Where a server is and how it is spoken to: the address, and the heads of requests to it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from forwardpass.client.operations import Operation
from forwardpass.errors import InvalidOption
from forwardpass.protocol import JSON_LENGTH_HEADER, TIMEOUT_HEADER

__all__ = ["Address", "Tls", "check_headers", "parse_url", "render"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Host and port, the part of the path before `/v2`, and whether TLS is spoken."""

    host: str
    port: int
    prefix: str
    is_tls: bool

    @property
    def url(self) -> str:
        """As it can be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.is_tls else ''}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the server is believed, and what we show it. `verify=False` believes anybody: for tests only."""

    verify: bool = True
    authority: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def check(self, address: Address) -> None:
        """Refuse an address without TLS where the caller has set up TLS: keys would go over the network readable.

        Raises:
            InvalidOption: it is such an address.
        """
        is_set_up = self.authority is not None or self.certificate is not None
        if is_set_up and not address.is_tls:
            expected = "'https://…', since ca or certificate is given"
            raise InvalidOption(option="url", value=address.url, expected=expected)

    def context(self) -> ssl.SSLContext:
        """Make what connections need.

        Raises:
            InvalidOption: a file cannot be read or is no PEM.
        """
        try:
            context = ssl.create_default_context(cafile=self.authority)
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.private_key)
        except (OSError, ssl.SSLError) as error:
            shown = self.certificate or self.authority
            raise InvalidOption(option="ca or certificate", value=str(shown), expected="PEM files") from error
        context.set_alpn_protocols(["http/1.1"])
        return context


def parse_url(url: str) -> Address:
    """Read `http://host:port/prefix`; without a scheme it is HTTP.

    Raises:
        InvalidOption: it is not that.
    """
    expected = "'http://host:port' or 'https://host:port'"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidOption(option="url", value=url, expected=expected) from error
    if parts.scheme not in _PORTS or not host or parts.query or parts.fragment or parts.username is not None:
        raise InvalidOption(option="url", value=parts.hostname or url, expected=expected)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidOption(option="url", value=repr(url), expected=expected)
    return Address(
        host=host,
        port=port if port is not None else _PORTS[parts.scheme],
        prefix=parts.path.rstrip("/"),
        is_tls=parts.scheme == "https",
    )


def check_headers(headers: Mapping[str, str]) -> str:
    """Return the lines of headers.

    Raises:
        InvalidOption: one would not be a header any more.
    """
    for name, value in headers.items():
        is_name = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not is_name or not value.isascii() or not value.isprintable():
            raise InvalidOption(option="headers", value=name[:64], expected="names and values of printable ASCII")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def render(operation: Operation[Any], *, prefix: str, lines: str, left_s: float | None) -> bytes:
    """Write the head of a request; `lines` are the headers that all requests have."""
    length = sum(map(len, operation.body))
    timeout = "" if left_s is None else f"{TIMEOUT_HEADER}: {min(max(int(left_s * 1e3), 1), 999_999_999)}\r\n"
    json_length = operation.num_json_bytes
    extra = "" if json_length is None else f"{JSON_LENGTH_HEADER}: {json_length}\r\n"
    body = f"content-type: {operation.content_type}\r\ncontent-length: {length}\r\n{extra}" if operation.body else ""
    return f"{operation.method} {prefix}{operation.path} HTTP/1.1\r\n{lines}{timeout}{body}\r\n".encode()
