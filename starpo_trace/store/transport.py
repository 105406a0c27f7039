"""A batch of spans -> one OTLP request -> what the endpoint said, exactly.

OpenTelemetry's exporters read the standard variables, encode, compress, authenticate and talk TLS.
What they do with an answer does not serve here: they retry for a few seconds, then report no more
than "failure", and count a redirect as success. So the HTTP exporter is given a session in which
every answer looks like success, while the true one is kept, and of the gRPC exporter only the
client is used.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Final, Literal, Protocol

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan
from requests.adapters import BaseAdapter

MAX_REQUEST_BYTES: Final = (4 << 20) - 1024
"""Encoded and before compression; receivers refuse more than 4 MiB by default."""
_MAX_ANSWER_BYTES: Final = 1 << 16
_MAX_PAUSE_S: Final = 300.0
_RETRYABLE_STATUS: Final = frozenset({408, 429, 502, 503, 504})
_CREDENTIAL_VARIABLES: Final = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one request."""

    kind: Literal["taken", "later", "refused", "too_large", "not_sent"]
    """`later` may be tried again; `not_sent` never got as far as the network."""
    reason: str = ""
    """Status and text, or the network's error."""
    num_rejected: int = 0
    """Of a request that was taken: spans that the endpoint says it rejected."""
    pause_s: float | None = None
    """How long the endpoint asked to be left alone."""


class Transport(Protocol):
    """A connection to an endpoint."""

    def send(self, batch: Sequence[ReadableSpan], *, max_timeout_s: float | None) -> Answer:
        """Send a batch once; returns within the configured timeout, or this one if it is less."""
        ...

    def close(self) -> None:
        """Release the connection."""
        ...


class HttpTransport:
    """OTLP/HTTP with protobuf."""

    def __init__(self, endpoint: str | None) -> None:
        """Endpoint, or None for the standard variables."""
        session = load_credential_session(*_CREDENTIAL_VARIABLES) or requests.Session()
        self._adapter = RecordingAdapter()
        for prefix in ("https://", "http://"):
            self._adapter.inner[prefix] = session.get_adapter(prefix)
            session.mount(prefix, self._adapter)
        self._exporter = OTLPSpanExporter(endpoint=endpoint, session=session)

    def send(self, batch: Sequence[ReadableSpan], *, max_timeout_s: float | None) -> Answer:
        """Send a batch once."""
        self._adapter.answer = None
        self._adapter.max_timeout_s = max_timeout_s
        with suppress_instrumentation():
            try:
                self._exporter.export(batch)
            except (ValueError, TypeError) as error:  # before 1.45 what cannot be encoded is raised
                return Answer(kind="not_sent", reason=str(error))
        return self._adapter.answer or Answer(
            kind="not_sent", reason="the request could not be made, see the exporter's log"
        )

    def close(self) -> None:
        """Close the connections."""
        self._exporter.shutdown()


class RecordingAdapter(BaseAdapter):
    """Sends through the session's own adapters, keeps the answer, and claims success."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: dict[str, BaseAdapter] = {}
        self.answer: Answer | None = None
        self.max_timeout_s: float | None = None

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001 (the signature is requests')
        timeout: Any = None,
        verify: bool | str = True,  # noqa: FBT001
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send once; the answer is in `answer`."""
        if self.answer is None:  # the exporter repeats some requests by itself
            self.answer = self._send_once(request, timeout, verify, cert, proxies)
        claimed = requests.Response()
        claimed.status_code = 200
        claimed._content = b""
        claimed.request = request
        claimed.url = request.url or ""
        return claimed

    def _send_once(
        self, request: requests.PreparedRequest, timeout: Any, verify: Any, cert: Any, proxies: Any
    ) -> Answer:
        if _count_plain_bytes(request) > MAX_REQUEST_BYTES:
            return Answer(kind="too_large", reason="more than 4 MiB")
        if self.max_timeout_s is not None and isinstance(timeout, (int, float)):
            timeout = min(timeout, self.max_timeout_s)
        adapter = self.inner["https://" if (request.url or "").startswith("https") else "http://"]
        send = partial(
            adapter.send, request, stream=True, verify=verify, cert=cert, proxies=proxies
        )
        try:
            try:
                response = send(timeout=timeout)
            except requests.exceptions.ConnectTimeout:
                raise
            except requests.exceptions.ConnectionError:
                # Mostly a kept connection that died, say while a serverless process was frozen.
                response = send(timeout=timeout)
            try:
                body = _read_body(response.raw, timeout)
            finally:
                response.close()
        except Exception as error:  # noqa: BLE001 (requests, urllib3 and sockets raise many kinds)
            return Answer(kind="later", reason=f"{type(error).__name__}: {error}")
        return read_http_answer(response.status_code, response.headers, body)

    def close(self) -> None:
        """Close the connections."""
        for adapter in self.inner.values():
            adapter.close()


def _read_body(raw: Any, timeout_s: Any) -> bytes:
    """The beginning of an answer; the timeout is for all of it, a socket's is for each piece."""
    deadline_s = time.monotonic() + (timeout_s if isinstance(timeout_s, (int, float)) else 10.0)
    body = b""
    while len(body) < _MAX_ANSWER_BYTES:
        piece = raw.read1(_MAX_ANSWER_BYTES - len(body), decode_content=True)
        if not piece:
            break
        body += piece
        if time.monotonic() > deadline_s:
            raise TimeoutError("the answer did not end in time")
    return body


def read_http_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """HTTP response -> what it means for the spans of the request."""
    if 200 <= status < 300:
        return read_partial_success(body)
    reason = f"HTTP {status} {body[:200].decode('utf-8', 'replace')}".strip()
    if status == 413:
        return Answer(kind="too_large", reason=reason)
    if status in _RETRYABLE_STATUS:
        pause_s = parse_retry_after(headers.get("Retry-After"))
        return Answer(kind="later", reason=reason, pause_s=pause_s)
    return Answer(kind="refused", reason=reason)


def read_partial_success(body: bytes) -> Answer:
    """Body of a success -> how many spans the endpoint rejected nevertheless."""
    answer = ExportTraceServiceResponse()
    try:
        answer.ParseFromString(body)
    except Exception:  # noqa: BLE001 (endpoints answer JSON or nothing; the status decides)
        return Answer(kind="taken")
    partly = answer.partial_success
    return Answer(
        kind="taken", num_rejected=max(0, partly.rejected_spans), reason=partly.error_message
    )


def parse_retry_after(value: str | None) -> float | None:
    """`Retry-After`, as seconds or as a date -> seconds from now, five minutes at most."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), _MAX_PAUSE_S) if seconds == seconds else None  # noqa: PLR0124


def _count_plain_bytes(request: requests.PreparedRequest) -> int:
    """Size of the body before compression."""
    body = request.body
    if not isinstance(body, bytes):
        return 0
    encoding = (request.headers or {}).get("Content-Encoding", "")
    if encoding == "gzip":
        return int.from_bytes(body[-4:], "little")  # a gzip file ends with it
    if encoding == "deflate":
        import zlib

        return len(zlib.decompress(body))
    return len(body)


def load_credential_session(*variables: str) -> requests.Session | None:
    """Session of the credential provider that the first of the standard variables names."""
    for variable in variables:
        name = os.environ.get(variable)
        if name:
            group = "opentelemetry_otlp_credential_provider"
            for found in entry_points(group=group, name=name):
                return found.load()()
    return None
