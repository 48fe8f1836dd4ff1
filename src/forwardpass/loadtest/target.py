"""The server as it is asked before the load: what it takes, and whether it takes what will be sent."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidAnswer, InvalidOption, ServerFailed, ServerUnreachable, SourceNotFound
from forwardpass.loadtest.messages import Prepare
from forwardpass.loadtest.settings import TargetSettings
from forwardpass.loadtest.template import MAX_BODIES, Body, fill_template
from forwardpass.loadtest.tensors import ModelMetadata, infer_bodies, made_up_inputs, sample_inputs
from forwardpass.protocol import TIMEOUT_HEADER

__all__ = ["Target", "prepare_requests"]

PATIENCE_S = 30.0
_MODEL_PATH = re.compile(r"(?P<base>.*?)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/infer)?/?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_Document = TypeVar("_Document")


class _Server(msgspec.Struct, frozen=True):
    extensions: list[str] = []


class _Indexed(msgspec.Struct, frozen=True):
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said."""

    status: int
    body: bytes
    ends_with_connection: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server's address, taken apart."""

    url: str
    is_tls: bool
    host: str
    port: int
    path: str
    certificates: Path | None = None

    @classmethod
    def parse(cls, url: str, certificates: Path | None) -> Target:
        """Take a URL apart.

        Raises:
            InvalidOption: it is not one of HTTP or HTTPS.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or " " in url:
            raise InvalidOption(option="URL", value=url, expected="an address such as http://127.0.0.1:8000")
        return cls(
            url=f"{parts.scheme}://{parts.netloc}",
            is_tls=parts.scheme == "https",
            host=parts.hostname,
            port=port or (443 if parts.scheme == "https" else 80),
            path=parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else ""),
            certificates=certificates,
        )

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def resolve(self) -> str:
        """Return the first address that takes a connection.

        Raises:
            ServerUnreachable: none does.
        """
        try:
            with socket.create_connection((self.host, self.port), timeout=PATIENCE_S) as connection:
                address: str = connection.getpeername()[0]
                return address
        except OSError as error:
            raise self._unreachable(error) from error

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """Send one request.

        Raises:
            ServerUnreachable: there is no connection, or no answer.
            InvalidAnswer: it is not HTTP.
        """
        with closing(self._connection()) as connection:
            try:
                connection.request(method, path, body, dict(headers))
                response = connection.getresponse()
                ends = response.length is None and not response.chunked
                return Answer(status=response.status, body=response.read(), ends_with_connection=ends)
            except OSError as error:  # a certificate that is not trusted is one, too
                raise self._unreachable(error) from error
            except (http.client.HTTPException, ValueError) as error:
                raise InvalidAnswer(url=self.url, reason="it is not HTTP") from error

    def _connection(self) -> http.client.HTTPConnection:
        if not self.is_tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        context = ssl.create_default_context()
        if self.certificates is not None:
            try:
                context.load_verify_locations(self.certificates)
            except OSError as error:
                expected = f"a PEM file of certificates ({error.strerror or error})"
                raise InvalidOption(option="--ca", value=str(self.certificates), expected=expected) from error
        return http.client.HTTPSConnection(self.host, self.port, timeout=PATIENCE_S, context=context)

    def _unreachable(self, error: OSError) -> ServerUnreachable:
        if isinstance(error, TimeoutError):
            reason = f"no answer within {PATIENCE_S:g} s"
        elif isinstance(error, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted ({error.verify_message}); --ca names another authority"
        elif isinstance(error, BrokenPipeError | ConnectionResetError):
            reason = "it closed the connection without an answer"
        else:
            reason = (error.strerror or str(error) or type(error).__name__)[:200]
            reason = reason[:1].lower() + reason[1:]
        return ServerUnreachable(url=self.url, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTarget:
    """Requests that the server is known to answer, encoded, and what they are, in words."""

    prepare: Prepare
    description: str


def prepare_requests(
    settings: TargetSettings, samples: Samples | None, *, seed: int, timeout_s: float, max_connections: int
) -> PreparedTarget:
    """Find out what the server takes, encode requests, and send the first one to see whether it is answered.

    Raises:
        ServerUnreachable: the server is not there.
        ServerFailed: it does not answer such a request as expected.
        InvalidAnswer: it does not speak the protocol.
        InvalidOption: there are several models, or the template has a mistake.
        InvalidSamples: the samples do not fit the model.
    """
    target = Target.parse(settings.url, settings.certificates)
    address = target.resolve()
    headers = _headers(settings)
    rows = _rows(samples) if samples is not None else []
    if settings.path is not None or settings.template is not None:
        method, path, bodies, words = _template_requests(settings, target, rows, seed)
    else:
        method, path, bodies, words = _tensor_requests(settings, target, rows, seed, headers)
    answer = target.ask(method, path, {**headers, **dict(_body_headers(bodies[0]))}, bodies[0].content or None)
    if answer.status not in (settings.statuses or range(200, 300)):
        raise ServerFailed(status=answer.status, reason=_reason(answer, f"{method} {path}"))
    prepare = Prepare(
        host=address,
        port=target.port,
        requests=[_encode(method, path, target.authority, headers, body) for body in bodies],
        statuses=list(settings.statuses),
        timeout_s=timeout_s,
        max_connections=max_connections,
        answers_end_with_connection=answer.ends_with_connection,
        server_name=target.host if target.is_tls else None,
        certificates=str(settings.certificates) if settings.certificates is not None else None,
    )
    return PreparedTarget(prepare=prepare, description=f"{target.url}, {words}")


def _template_requests(
    settings: TargetSettings, target: Target, rows: Sequence[Mapping[str, Array]], seed: int
) -> tuple[str, str, list[Body], str]:
    path = target.path + (settings.path or "")
    path = path if path.startswith("/") else f"/{path}"
    if not path.isascii() or any(character.isspace() for character in path):
        raise InvalidOption(option="--path", value=path, expected="a path such as /predict, percent-encoded")
    if settings.template is None:
        return "GET", path, [Body(content=b"")], f"GET {path}"
    try:
        text = settings.template.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceNotFound(path=str(settings.template), expected="a JSON file with placeholders") from error
    bodies = fill_template(text, rows=rows, folder=settings.template.parent, seed=seed)
    return "POST", path, bodies, f"POST {path} from {settings.template.name}"


def _tensor_requests(
    settings: TargetSettings,
    target: Target,
    rows: Sequence[Mapping[str, Array]],
    seed: int,
    headers: Mapping[str, str],
) -> tuple[str, str, list[Body], str]:
    match = _MODEL_PATH.fullmatch(target.path)
    base = match["base"] if match else target.path
    name = settings.model or (match["model"] if match else None) or _only_model(target, base, headers)
    version = f"/versions/{match['version']}" if match and match["version"] else ""
    model_path = f"{base}/v2/models/{quote(name, safe='%')}{version}"
    extensions = _get(target, f"{base}/v2", headers, _Server).extensions
    metadata = _get(target, model_path, headers, ModelMetadata)
    is_binary = "binary_tensor_data" in extensions
    if not is_binary and any(it.datatype == "FP16" for it in metadata.inputs):
        raise InvalidAnswer(url=target.url, reason="a model takes FP16, but binary_tensor_data is not announced")
    if rows:
        requests = sample_inputs(metadata.inputs, rows, num_rows=settings.num_rows, origin=settings.data or "")
    else:
        requests = made_up_inputs(metadata.inputs, num_rows=settings.num_rows, seed=seed)
    form = "binary tensors" if is_binary else "JSON tensors"
    made = "samples" if rows else "made-up inputs"
    words = f"model {name}, {settings.num_rows} row{'s' if settings.num_rows > 1 else ''} of {made} as {form}"
    return "POST", f"{model_path}/infer", infer_bodies(requests, is_binary=is_binary), words


def _only_model(target: Target, base: str, headers: Mapping[str, str]) -> str:
    answer = target.ask("POST", f"{base}/v2/repository/index", headers, b"{}")
    if answer.status in (401, 403):
        expected = f"an API key that may read and infer (the server answered with status {answer.status})"
        raise InvalidOption(
            option="--key", value="…" if "authorization" in map(str.lower, headers) else "", expected=expected
        )
    if answer.status != 200:
        expected = (
            f"the model's name, since the server does not list its models (status {answer.status}); "
            "for an endpoint of another kind, --path and --template"
        )
        raise InvalidOption(option="--model", value="", expected=expected)
    names = list(dict.fromkeys(model.name for model in _decode(target, answer.body, list[_Indexed])))
    if len(names) != 1:
        raise InvalidOption(option="--model", value="", expected=f"one of {', '.join(names) or 'no models'}")
    return names[0]


def _get(target: Target, path: str, headers: Mapping[str, str], kind: type[_Document]) -> _Document:
    answer = target.ask("GET", path, headers)
    if answer.status != 200:
        raise ServerFailed(status=answer.status, reason=_reason(answer, f"GET {path}"))
    return _decode(target, answer.body, kind)


def _decode(target: Target, body: bytes, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "; for an endpoint of another kind give --path and --template"
        raise InvalidAnswer(url=target.url, reason=f"{error}{hint}") from error


def _reason(answer: Answer, what: str) -> str:
    """Quote what the server says is wrong, in one line."""
    text = answer.body.decode("utf-8", "replace")
    try:
        document = msgspec.json.decode(answer.body)
        text = str(document.get("error") or document.get("detail") or text) if isinstance(document, dict) else text
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    said = " ".join(text.split())[:200].rstrip(".")
    return f"{what}: {said}" if said else what


def _headers(settings: TargetSettings) -> dict[str, str]:
    headers = {}
    for name, value in settings.headers:
        is_bad = not _HEADER_NAME.fullmatch(name) or not value.isprintable() or not value.isascii()
        if is_bad or name.lower() in ("host", "content-length", "content-type", "transfer-encoding", "connection"):
            expected = "a name and a value, such as 'Authorization: Bearer KEY', that is not a header of the transport"
            raise InvalidOption(option="--header", value=f"{name}: …", expected=expected)
        headers[name.lower()] = value
    if settings.deadline_s is not None:
        headers[TIMEOUT_HEADER] = str(max(round(settings.deadline_s * 1e3), 1))
    return headers


def _body_headers(body: Body) -> Sequence[tuple[str, str]]:
    return (("content-type", body.content_type), *body.headers) if body.content else ()


def _encode(method: str, path: str, authority: str, headers: Mapping[str, str], body: Body) -> bytes:
    pairs = [("host", authority), ("accept", "*/*"), *headers.items(), *_body_headers(body)]
    if body.content:
        pairs.append(("content-length", str(len(body.content))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs), "", ""]
    return "\r\n".join(lines).encode("ascii") + body.content


def _rows(samples: Samples) -> list[dict[str, Array]]:
    """Take single samples, groups of one shape one after another, as many as are sent in turn."""
    share = -(-MAX_BODIES // len(samples.groups))
    rows = [
        {
            name: array[at : at + 1].reshape(array.shape[1:]) for name, array in group.inputs.items()
        }  # a string alone would be no array
        for group in samples.groups
        for at in range(min(len(group), share))
    ]
    return rows[:MAX_BODIES]
