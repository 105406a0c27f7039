"""OTLP/HTTP: `POST /v1/traces`, `POST /v1/logs`, `GET /healthz`, `GET /stats`.

An ASGI application over uvicorn's connection handling. The body is read here, piece by piece, so
that its size and its time are bounded before anything of it is looked at.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import h11
import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from starpo_trace.collect.access import Address, Tokens
from starpo_trace.collect.answers import (
    NO_METRICS,
    encode_refusal,
    encode_response,
    encode_response_json,
)
from starpo_trace.collect.decode import JSON, PROTOBUF
from starpo_trace.collect.http_body import Body, Receive
from starpo_trace.collect.inflate import check_encoding
from starpo_trace.collect.receiver import Receiver
from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.collect.signals import SIGNALS, Signal
from starpo_trace.guard import Guard

_Send = Callable[[dict[str, Any]], Awaitable[None]]

_MAX_HEADER_BYTES: Final = 32 << 10
_SIGNAL_OF_PATH: Final = {signal.path: signal for signal in SIGNALS}
_SHUTDOWN_S: Final = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    body: bytes
    content_type: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class HttpApp:
    """The ASGI application."""

    def __init__(self, receiver: Receiver, tokens: Tokens) -> None:
        self.receiver = receiver
        self._tokens = tokens

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: _Send) -> None:
        """Answer one request."""
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        content_type = _media_type(headers)
        body = Body(receive, self.receiver.limits, is_asked_for=headers.get("expect") is None)
        answer = None
        with Guard("answering an OTLP request"):
            try:
                answer = await self._answer(scope, headers, content_type, body)
            except RefusedError as refusal:
                answer = await self._refuse(refusal, content_type, body)
        if answer is None:
            refusal = RefusedError(Reason.UNAVAILABLE, "the receiver failed; see its log")
            answer = await self._refuse(refusal, content_type, body)
        head = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(
        self, scope: dict[str, Any], headers: dict[str, str], content_type: str, body: Body
    ) -> _Answer:
        match scope["path"], scope["method"]:
            case path, "POST" if path in _SIGNAL_OF_PATH:
                return await self._export(_SIGNAL_OF_PATH[path], headers, content_type, body)
            case "/healthz", "GET" | "HEAD":
                return _Answer(status=200, body=b'{"status":"ok"}', content_type=JSON)
            case "/stats", "GET" | "HEAD":
                self._tokens.check(headers.get("authorization"))
                stats = orjson.dumps(self.receiver.read_stats())
                return _Answer(status=200, body=stats, content_type=JSON)
            case path, _ if path in _SIGNAL_OF_PATH:
                raise RefusedError(Reason.METHOD, f"send {_SIGNAL_OF_PATH[path].name}s with POST")
            case "/healthz" | "/stats", _:
                raise RefusedError(Reason.METHOD, "read this with GET")
            case "/v1/metrics", _:
                raise RefusedError(Reason.NOT_FOUND, NO_METRICS)
        raise RefusedError(
            Reason.NOT_FOUND, "no such path; send spans to /v1/traces, log records to /v1/logs"
        )

    async def _export(
        self, signal: Signal, headers: dict[str, str], content_type: str, body: Body
    ) -> _Answer:
        self._tokens.check(headers.get("authorization"))
        if content_type not in {PROTOBUF, JSON}:
            raise RefusedError(
                Reason.UNSUPPORTED,
                f"Content-Type {content_type[:80]!r}: send {PROTOBUF} or {JSON}",
            )
        encoding = check_encoding(headers.get("content-encoding", ""))
        with self.receiver.admit() as admission:
            data = await body.read(admission, headers.get("content-length", ""))
            decoded = await self.receiver.store(
                admission, data, signal, encoding=encoding, content_type=content_type
            )
        encode = encode_response_json if content_type == JSON else encode_response
        return _Answer(status=200, body=encode(decoded, signal), content_type=content_type)

    async def _refuse(self, refusal: RefusedError, content_type: str, body: Body) -> _Answer:
        self.receiver.count_refused(refusal.reason)
        headers: list[tuple[bytes, bytes]] = []
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
        if refusal.reason is Reason.UNAUTHENTICATED:
            headers.append((b"www-authenticate", b'Bearer realm="starpo-trace"'))
        if refusal.reason is Reason.METHOD:
            headers.append((b"allow", b"POST" if "POST" in str(refusal) else b"GET"))
        if not body.is_over:
            headers.append((b"connection", b"close"))
            await body.drain()
        kind = JSON if content_type == JSON else PROTOBUF
        if content_type not in {JSON, PROTOBUF}:  # a person or a probe, no exporter
            text = f"{refusal}\n".encode()
            kind = "text/plain; charset=utf-8"
        else:
            text = encode_refusal(refusal, content_type)
        return _Answer(
            status=refusal.http_status, body=text, content_type=kind, headers=tuple(headers)
        )


class HttpServer:
    """Connections of one address."""

    def __init__(self, app: HttpApp, server: asyncio.Server, state: ServerState) -> None:
        self._app = app
        self._server = server
        self._state = state

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Accept nothing more, and wait for what is in flight."""
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=_SHUTDOWN_S)


async def start_http(app: HttpApp, address: Address, tls: ssl.SSLContext | None) -> HttpServer:
    """Listen on an address.

    Raises:
        OSError: it cannot be opened.
    """
    limits = app.receiver.limits
    config = uvicorn.Config(
        app,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    config.load()
    state = ServerState()

    def build_protocol() -> "_BoundedProtocol":
        return _BoundedProtocol(config, state, app.receiver)

    server = await asyncio.get_running_loop().create_server(
        build_protocol,
        address.host,
        address.port,
        ssl=tls,
        ssl_handshake_timeout=limits.header_timeout_s if tls else None,
    )
    return HttpServer(app, server, state)


class _BoundedProtocol(H11Protocol):
    """uvicorn's connection, with a bound on their number and on the wait for headers."""

    def __init__(self, config: uvicorn.Config, state: ServerState, receiver: Receiver) -> None:
        super().__init__(config, state, {})
        self.logger = logging.getLogger("starpo_trace.collect")
        self.access_log = False
        self.timeout_keep_alive = receiver.limits.keep_alive_s
        self._receiver = receiver
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._receiver.limits.max_connections:
            self._receiver.count_refused(Reason.BUSY)
            transport.abort()
            return
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_headers()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._receiver.count_refused(Reason.MALFORMED)
        if self.conn.our_state is h11.SEND_RESPONSE or self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _await_headers(self) -> None:
        """Begin to wait, if it has not begun; what comes meanwhile does not prolong it."""
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self._receiver.limits.header_timeout_s, self._give_up
            )

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._receiver.count_refused(Reason.TIMEOUT)
        self.transport.abort()


def _media_type(headers: dict[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
