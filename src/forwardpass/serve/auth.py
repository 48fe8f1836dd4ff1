"""Who may do what: API keys of which only the hash is stored, with scopes, an end and a rate."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec

from forwardpass.errors import Forbidden, InvalidKeyFile, RateLimited, Unauthorized
from forwardpass.report.writing import check_writable

__all__ = ["Gate", "KeyRecord", "KeyRing", "OpenGate", "Scope", "new_key", "read_keys", "write_keys"]

PREFIX = "fp_"
NUM_BYTES = 32
LOOK_S = 1.0
"""How often the file is looked at."""
GRANT_S = 0.5

log = logging.getLogger("forwardpass.serve")


class Scope(StrEnum):
    """What a key allows. `admin` allows everything."""

    INFER = "infer"
    READ = "read"
    ADMIN = "admin"


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as it is stored. Random keys of 256 bits need no slow hash."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    expires_at: datetime | None = None
    requests_per_s: float | None = None


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keys: tuple[KeyRecord, ...]


class Gate:
    """Lets requests pass, or raises."""

    def check(self, headers: Mapping[bytes, bytes], scope: Scope | None) -> None:
        """Return if the request may pass; without a scope, with any key that is valid.

        Raises:
            Unauthorized: the key is missing, unknown or has expired.
            Forbidden: the key does not have this scope.
            RateLimited: the key has used up its requests.
        """
        raise NotImplementedError

    def grant_s(self, headers: Mapping[bytes, bytes], scope: Scope) -> float:
        """Return for how many seconds a request like one that has passed may pass unchecked."""
        raise NotImplementedError


class OpenGate(Gate):
    """A server without keys: anybody who reaches it may infer; who may change it depends on where it listens."""

    def __init__(self, *, is_loopback: bool) -> None:
        self._is_loopback = is_loopback

    def check(self, headers: Mapping[bytes, bytes], scope: Scope | None) -> None:
        """Let everything pass but control from elsewhere."""
        if scope is Scope.ADMIN and not self._is_loopback:
            raise Forbidden(reason="models are loaded and unloaded over the network only with an API key (--keys)")
        if scope is Scope.ADMIN and b"origin" in headers:
            raise Forbidden(reason="web pages of other sites may not load or unload models")

    def grant_s(self, headers: Mapping[bytes, bytes], scope: Scope) -> float:
        """Let what is not control pass for ever."""
        return 0.0 if scope is Scope.ADMIN else math.inf


@dataclass(slots=True)
class _Bucket:
    """A second's worth of requests that refills steadily."""

    tokens: float
    at_s: float


class KeyRing(Gate):
    """The keys of a file, read again when it changes. A file that cannot be read leaves the keys as they were."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._clock = clock
        self._now = now
        self._buckets: dict[str, _Bucket] = {}
        self._looked_s = clock()
        self._stamp = _stamp(path)
        self._records = {record.sha256: record for record in read_keys(path)}

    def check(self, headers: Mapping[bytes, bytes], scope: Scope | None) -> None:
        """Let the request pass if its key allows it."""
        now_s = self._clock()
        self._look(now_s)
        record = self._find(_key_in(headers))
        if record.expires_at is not None and record.expires_at <= self._now():
            raise Unauthorized(reason=f"this one expired at {record.expires_at:%Y-%m-%d %H:%M} UTC")
        if scope is not None and scope not in record.scopes and Scope.ADMIN not in record.scopes:
            raise Forbidden(reason=f"this API key does not have the scope '{scope}'")
        if record.requests_per_s is not None:
            self._spend(record, record.requests_per_s, now_s)

    def grant_s(self, headers: Mapping[bytes, bytes], scope: Scope) -> float:
        """Let a key without a rate pass for half a second: as long as a change of the file may stay unseen anyway."""
        record = self._find(_key_in(headers))
        if record.requests_per_s is not None:
            return 0.0
        left_s = math.inf if record.expires_at is None else (record.expires_at - self._now()).total_seconds()
        return max(0.0, min(GRANT_S, left_s))

    def _find(self, key: bytes) -> KeyRecord:
        digest = hashlib.sha256(key).hexdigest()
        found = None
        for stored, record in self._records.items():
            if hmac.compare_digest(stored, digest):
                found = record
        if found is None:
            raise Unauthorized(reason="this one is not known")
        return found

    def _spend(self, record: KeyRecord, requests_per_s: float, now_s: float) -> None:
        most = max(requests_per_s, 1.0)
        bucket = self._buckets.setdefault(record.sha256, _Bucket(most, now_s))
        bucket.tokens = min(most, bucket.tokens + (now_s - bucket.at_s) * requests_per_s)
        bucket.at_s = now_s
        if bucket.tokens < 1.0:
            raise RateLimited(retry_after_s=(1.0 - bucket.tokens) / requests_per_s, requests_per_s=requests_per_s)
        bucket.tokens -= 1.0

    def _look(self, now_s: float) -> None:
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._records = {record.sha256: record for record in read_keys(self._path)}
        except InvalidKeyFile as error:
            log.error("the API keys are as before: %s", error)  # noqa: TRY400 - the sentence says it all
        else:
            log.info("the API keys are read again: %s", ", ".join(key.name for key in self._records.values()) or "none")


def new_key(
    name: str, scopes: tuple[Scope, ...], *, expires_at: datetime | None = None, requests_per_s: float | None = None
) -> tuple[str, KeyRecord]:
    """Make a key; return it, which is the only time it is seen, and what is stored of it."""
    key = PREFIX + secrets.token_urlsafe(NUM_BYTES)
    record = KeyRecord(
        name=name,
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        scopes=scopes,
        expires_at=expires_at,
        requests_per_s=requests_per_s,
    )
    return key, record


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """Read a file of keys.

    Raises:
        InvalidKeyFile: it is not there, or not such a file.
    """
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=_KeyFile).keys
    except OSError as error:
        raise InvalidKeyFile(path=str(path), reason=(error.strerror or str(error)).lower()) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidKeyFile(path=str(path), reason=str(error)) from error
    if any(record.expires_at is not None and record.expires_at.tzinfo is None for record in keys):
        raise InvalidKeyFile(path=str(path), reason="an expiry has no time zone")
    return keys


def write_keys(path: Path, keys: tuple[KeyRecord, ...]) -> None:
    """Write a file of keys that only its owner may read, whole or not at all.

    Raises:
        InvalidOption: the folder does not exist.
        StorageFailed: it may not be written to.
    """
    check_writable(path, option="FILE")
    text = msgspec.json.format(msgspec.json.encode(_KeyFile(keys=keys)), indent=2) + b"\n"
    partial = path.with_name(f".{path.name}.partial")
    partial.touch(mode=0o600)
    partial.write_bytes(text)
    partial.replace(path)


def _key_in(headers: Mapping[bytes, bytes]) -> bytes:
    word, _, key = headers.get(b"authorization", b"").partition(b" ")
    if word.lower() == b"bearer" and key:
        return key.strip()
    if given := headers.get(b"x-api-key"):
        return given.strip()
    raise Unauthorized(reason="there is none")


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)
