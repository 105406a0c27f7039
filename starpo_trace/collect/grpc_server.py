"""OTLP/gRPC: `TraceService/Export`, `LogsService/Export`.

Declared as a stream of messages, which is the same on the wire: gRPC would else read the message
before asking whether its sender is allowed to send one. Its own decompression is off, so that both
protocols inflate within the same limits.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio

from starpo_trace.collect.access import Address, TlsFiles, Tokens
from starpo_trace.collect.answers import NO_METRICS, build_status, encode_response
from starpo_trace.collect.decode import PROTOBUF
from starpo_trace.collect.inflate import sniff_encoding
from starpo_trace.collect.limits import Limits
from starpo_trace.collect.receiver import Receiver
from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.collect.signals import SIGNALS, Signal
from starpo_trace.errors import ConfigError
from starpo_trace.guard import Guard

_PACKAGE: Final = "opentelemetry.proto.collector"
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_KEY: Final = "grpc-status-details-bin"
_SHUTDOWN_S: Final = 40.0


class GrpcService:
    """The methods of OTLP/gRPC."""

    def __init__(self, receiver: Receiver, tokens: Tokens) -> None:
        self.receiver = receiver
        self._tokens = tokens

    def build_handlers(self) -> list[grpc.GenericRpcHandler]:
        """Handlers of all three OTLP services."""
        methods: dict[str, Any] = {
            signal.service: partial(self._export, signal) for signal in SIGNALS
        }
        methods["metrics.v1.MetricsService"] = self._decline
        return [
            grpc.method_handlers_generic_handler(
                f"{_PACKAGE}.{name}", {"Export": grpc.stream_unary_rpc_method_handler(method)}
            )
            for name, method in methods.items()
        ]

    async def _export(
        self,
        signal: Signal,
        messages: AsyncIterator[bytes],
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> bytes:
        refusal = RefusedError(Reason.UNAVAILABLE, "the receiver failed; see its log")
        with Guard("answering an OTLP request"):
            try:
                return await self._store(signal, messages, context)
            except RefusedError as error:
                refusal = error
        return await self._abort(refusal, context)

    async def _store(
        self,
        signal: Signal,
        messages: AsyncIterator[bytes],
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        authorization = metadata.get("authorization")
        self._tokens.check(authorization if isinstance(authorization, str) else None)
        with self.receiver.admit() as admission:
            message = await _read_message(messages, self.receiver.limits)
            admission.hold(len(message))
            decoded = await self.receiver.store(
                admission,
                message,
                signal,
                encoding=sniff_encoding(message),
                content_type=PROTOBUF,
            )
        return encode_response(decoded, signal)

    async def _decline(
        self, _messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> bytes:
        return await self._abort(RefusedError(Reason.NOT_FOUND, NO_METRICS), context)

    async def _abort(
        self, refusal: RefusedError, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> bytes:
        self.receiver.count_refused(refusal.reason)
        details = build_status(refusal).SerializeToString()
        await context.abort(
            _CODES[refusal.grpc_code], str(refusal), trailing_metadata=((_DETAILS_KEY, details),)
        )
        raise AssertionError  # `abort` does not return


class GrpcServer:
    """A gRPC server on one address."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port
        """The port it listens on."""

    async def stop(self) -> None:
        """Accept nothing more, and wait for what is in flight."""
        await self._server.stop(_SHUTDOWN_S)


async def start_grpc(service: GrpcService, address: Address, tls: TlsFiles | None) -> GrpcServer:
    """Listen on an address.

    Raises:
        OSError: it cannot be opened.
    """
    limits = service.receiver.limits
    options = [
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", 2 * limits.max_requests),
        ("grpc.max_metadata_size", 32 << 10),
        ("grpc.server_handshake_timeout_ms", int(limits.header_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(tuple(service.build_handlers()))
    try:
        if tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), _load_credentials(tls))
    except RuntimeError as error:
        raise OSError(0, str(error)) from error
    await server.start()
    return GrpcServer(server, port)


async def _read_message(messages: AsyncIterator[bytes], limits: Limits) -> bytes:
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for message in messages:
                return message
    except TimeoutError:
        raise RefusedError(
            Reason.TIMEOUT, f"no whole message within {limits.body_timeout_s:g} s"
        ) from None
    raise RefusedError(Reason.DISCONNECTED, "the client left, or its message was too large")


def _load_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    try:
        pair = (files.key.read_bytes(), files.cert.read_bytes())
        client_ca = files.client_ca.read_bytes() if files.client_ca is not None else None
    except OSError as error:
        raise ConfigError(f"--tls-cert, --tls-key, --client-ca: {error}") from error
    return grpc.ssl_server_credentials(
        [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
    )
