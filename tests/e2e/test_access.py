"""Who may do what: API keys, TLS, and bodies that are larger than they look."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import ssl
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.errors import Forbidden, InvalidKeyFile, InvalidOption, RateLimited, Unauthorized
from forwardpass.serve import ModelConfig, PipelineConfig, StepConfig
from forwardpass.serve.auth import KeyRing, OpenGate, Scope, new_key, read_keys, write_keys
from tests.e2e.serving import (
    PATIENCE_S,
    RunningServer,
    eventually,
    infer_body,
    post,
    read_to_the_end,
    serve_settings,
    serving,
    serving_models,
)
from tests.models import mlp_calls, write_bundle, write_mlp

INFER = "/v2/models/mlp/infer"
BODY = infer_body({"pixels": np.ones((1, 64), np.float32)})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    return write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One key of each scope, one that has expired, and where their file is."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {scope.value: new_key(scope.value, (scope,)) for scope in Scope}
    made["old"] = new_key("old", (Scope.ADMIN,), expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    made["slow"] = new_key("slow", (Scope.INFER,), requests_per_s=0.001)
    write_keys(path, tuple(record for _, record in made.values()))
    return {name: key for name, (key, _) in made.items()} | {"path": str(path)}


@pytest.fixture(scope="module")
def guarded(bundle: Path, keys: dict[str, str]) -> Iterator[RunningServer]:
    chosen = serve_settings(keys=Path(keys["path"]))
    config = ModelConfig(name="mlp", path=bundle, settings=chosen.model)
    pipeline = PipelineConfig(name="alone", steps=(StepConfig(model="mlp"),))
    with serving_models([config], settings=chosen, pipelines=[pipeline]) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_asks_for_its_scope_and_no_other_key_passes(guarded: RunningServer, keys: dict[str, str]) -> None:
    """Every route there is, by every key; what comes after the gate does not matter here."""
    application = guarded.server._application
    routes = [
        (path, method, endpoint.scope)
        for path, methods in application.routes.items()
        for method, endpoint in methods.items()
    ]
    routes += [
        ("/v2/repository/models/nothing/load", b"POST", Scope.ADMIN),
        ("/v2/repository/models/nothing/unload", b"POST", Scope.ADMIN),
        ("/v1/models/nothing/traffic", b"PUT", Scope.ADMIN),
    ]
    assert ("/v2/models/alone/infer", b"POST", Scope.INFER) in routes
    assert len(routes) > 25
    opened = {None: {"none", "infer", "read", "admin", "old"}, Scope.INFER: {"infer", "admin"}}
    opened |= {Scope.READ: {"read", "admin"}, Scope.ADMIN: {"admin"}}
    for path, method, scope in routes:
        for name in ("none", "infer", "read", "admin", "old"):
            headers = bearer(keys[name]) if name != "none" else {}
            status = guarded.ask(method.decode(), path, b"{}" if method != b"GET" else None, headers).status
            assert (status not in (401, 403)) == (name in opened[scope]), (path, name, status)
            if status == 403:
                assert name in ("infer", "read")


@pytest.mark.parametrize("path", ["/nothing", "/v2/models/nothing/infer", "/v1/models/mlp:predict"])
def test_only_who_has_a_key_is_told_what_there_is_instead(
    guarded: RunningServer, keys: dict[str, str], path: str
) -> None:
    for name in ("none", "infer", "read", "admin", "old"):
        answer = guarded.ask("POST", path, BODY, bearer(keys[name]) if name != "none" else {})
        assert answer.status == (401 if name in ("none", "old") else 404), name
        assert ("mlp" in answer.json["error"].replace(path, "")) == (answer.status == 404 and path != "/nothing")


@pytest.mark.parametrize(
    ("headers", "status", "sentence"),
    [
        ({}, 401, "This needs a valid API key: there is none. Send it as 'Authorization: Bearer KEY'."),
        ({"Authorization": "Bearer "}, 401, "This needs a valid API key: there is none."),
        ({"Authorization": "Basic YTpi"}, 401, "This needs a valid API key: there is none."),
        ({"Authorization": "Bearer fp_wrong"}, 401, "This needs a valid API key: this one is not known."),
        ({"X-API-Key": "fp_wrong"}, 401, "This needs a valid API key: this one is not known."),
    ],
)
def test_who_has_no_key_is_told(guarded: RunningServer, headers: dict[str, str], status: int, sentence: str) -> None:
    answer = guarded.ask("POST", INFER, BODY, headers)
    assert answer.status == status
    assert answer.json["error"].startswith(sentence)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_may_come_in_either_header(guarded: RunningServer, keys: dict[str, str]) -> None:
    assert guarded.ask("POST", INFER, BODY, bearer(keys["infer"])).status == 200
    assert guarded.ask("POST", INFER, BODY, {"X-API-Key": keys["infer"]}).status == 200


def test_a_key_that_has_sent_enough_is_told_when_to_come_back(guarded: RunningServer, keys: dict[str, str]) -> None:
    assert guarded.ask("POST", INFER, BODY, bearer(keys["slow"])).status == 200
    refused = guarded.ask("POST", INFER, BODY, bearer(keys["slow"]))
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 900


def test_without_a_key_the_body_is_not_read(guarded: RunningServer) -> None:
    with guarded.connect() as connection:
        head = post(INFER, b"").replace(b"content-length: 0", b"content-length: 50000000")
        connection.sendall(head)
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 401 ")


def test_a_server_takes_over_new_keys_and_keeps_the_old_if_the_file_breaks(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "keys.json"
    first, first_record = new_key("first", (Scope.INFER,))
    write_keys(path, (first_record,))
    with serving(bundle, serve_settings(keys=path)) as running:
        second, record = new_key("second", (Scope.INFER,))
        write_keys(path, (record,))
        eventually(lambda: running.ask("POST", INFER, BODY, bearer(second)).status == 200)
        assert running.ask("POST", INFER, BODY, bearer(first)).status == 401
        assert "the API keys are read again: second" in caplog.messages
        assert running.ask("GET", "/", headers=bearer(second)).status == 403, "it names the models"
        path.write_text("{")

        def is_noticed() -> bool:
            assert running.ask("POST", INFER, BODY, bearer(second)).status == 200
            return "the API keys are as before" in caplog.text

        eventually(is_noticed)


class Times:
    """A clock that goes where it is told."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@given(
    rate=st.floats(0.1, 50.0),
    pauses=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60),
    wall_jump=st.timedeltas(-timedelta(days=1), timedelta(days=1)),
)
def test_no_pattern_of_requests_gets_more_than_its_rate(
    tmp_path_factory: pytest.TempPathFactory, rate: float, pauses: list[float], wall_jump: timedelta
) -> None:
    path = tmp_path_factory.mktemp("ring") / "keys.json"
    key, record = new_key("one", (Scope.INFER,), requests_per_s=rate)
    write_keys(path, (record,))
    clock = Times()
    ring = KeyRing(path, clock=clock, now=lambda: datetime(2030, 1, 1, tzinfo=UTC) + wall_jump)
    passed = 0
    for pause in pauses:
        clock.s += pause
        try:
            ring.check({b"authorization": b"Bearer " + key.encode()}, Scope.INFER)
            passed += 1
        except RateLimited as refusal:
            assert 0 < refusal.retry_after_s <= 1 / rate + 1e-9  # noqa: PT017 - most calls do not raise
    assert passed <= max(rate, 1.0) + clock.s * rate + 1e-6


def test_without_keys_only_this_machine_may_change_what_is_served() -> None:
    OpenGate(is_loopback=True).check({}, Scope.ADMIN)
    OpenGate(is_loopback=False).check({}, Scope.INFER)
    with pytest.raises(Forbidden, match="only with an API key"):
        OpenGate(is_loopback=False).check({}, Scope.ADMIN)
    with pytest.raises(Forbidden, match="web pages of other sites"):
        OpenGate(is_loopback=True).check({b"origin": b"https://elsewhere.example"}, Scope.ADMIN)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{"name": "a"}]}', '{"keys": [], "more": 1}'])
def test_a_file_that_holds_no_keys_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(InvalidKeyFile, match="forwardpass keys add"):
        KeyRing(path)


def test_only_hashes_are_stored_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, record = new_key("mine", (Scope.INFER,))
    write_keys(path, (record,))
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == (record,)
    with pytest.raises(Unauthorized):
        KeyRing(path).check({b"authorization": b"Bearer " + record.sha256.encode()}, Scope.INFER)


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine with its key, and that of the authority that signed it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    signed = authority.issue_cert("127.0.0.1")
    signed.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "both.pem", folder / "ca.pem"


def test_https_is_spoken_and_nothing_older_than_tls_1_2(bundle: Path, certificate: tuple[Path, Path]) -> None:
    both, authority = certificate
    with serving(bundle, serve_settings(certificate=both)) as running:
        trusting = ssl.create_default_context(cafile=str(authority))
        client = http.client.HTTPSConnection("127.0.0.1", running.port, context=trusting, timeout=PATIENCE_S)
        client.request("POST", INFER, BODY)
        assert client.getresponse().status == 200
        client.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)), running.connect() as plain:
            old.wrap_socket(plain)


def test_clients_without_the_right_certificate_do_not_get_in(bundle: Path, certificate: tuple[Path, Path]) -> None:
    both, authority = certificate
    with serving(bundle, serve_settings(certificate=both, client_ca=authority)) as running:
        known = ssl.create_default_context(cafile=str(authority))
        known.load_cert_chain(both)
        client = http.client.HTTPSConnection("127.0.0.1", running.port, context=known, timeout=PATIENCE_S)
        client.request("GET", "/v2/health/ready")
        assert client.getresponse().status == 200
        client.close()
        stranger = http.client.HTTPSConnection(
            "127.0.0.1", running.port, context=ssl.create_default_context(cafile=str(authority)), timeout=PATIENCE_S
        )
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            stranger.request("GET", "/v2/health/ready")
            stranger.getresponse()
        stranger.close()


def test_a_certificate_that_cannot_be_read_is_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    with (
        pytest.raises(InvalidOption, match="--tls-cert"),
        serving(bundle, serve_settings(certificate=tmp_path / "cert.pem", private_key=tmp_path / "cert.pem")),
    ):
        pass


# --- compressed bodies


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[RunningServer]:
    with serving(bundle, serve_settings(max_body_bytes=8 * 2**20)) as running:
        yield running


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_request_is_answered_like_a_plain_one(served: RunningServer, encoding: str, pack: object) -> None:
    assert callable(pack)
    answer = served.ask("POST", INFER, pack(BODY), {"Content-Encoding": encoding})
    assert answer.status == 200
    assert answer.body == served.ask("POST", INFER, BODY).body


BOMB = gzip.compress(bytes(100 * 2**20))


@pytest.mark.parametrize(
    ("body", "encoding", "status", "sentence"),
    [
        (BOMB, "gzip", 413, "The request body is larger than the limit of "),
        (os.urandom(1000), "gzip", 400, "Malformed request: the body is not gzip."),
        (gzip.compress(BODY)[:-9], "gzip", 400, "Malformed request: the body is not one whole gzip stream."),
        (gzip.compress(BODY) + b"more", "gzip", 400, "Malformed request: the body is not one whole gzip stream."),
        (BODY, "br", 400, "Malformed request: the content encoding 'br' is not known; gzip and deflate are."),
    ],
    ids=["bomb", "noise", "cut", "more", "brotli"],
)
def test_what_does_not_unpack_is_refused(
    served: RunningServer, body: bytes, encoding: str, status: int, sentence: str
) -> None:
    answer = served.ask("POST", INFER, body, {"Content-Encoding": encoding})
    assert answer.status == status
    assert answer.json["error"].startswith(sentence)


def test_an_empty_server_is_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving_models([], root=tmp_path) as running:
        assert running.ask("GET", "/v2/health/ready").status == 503
        assert json.loads(running.ask("GET", "/").body)["models"] == []
    assert f"there is no model in '{tmp_path}' yet; the server is ready when there is one" in caplog.messages
