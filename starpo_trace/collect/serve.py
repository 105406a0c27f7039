"""Configuration -> a receiver that runs until it is told to stop."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starpo_trace.collect.access import Address, TlsFiles, Tokens, check_exposure, load_tls
from starpo_trace.collect.commit import CommitLog
from starpo_trace.collect.limits import Limits
from starpo_trace.collect.receiver import Receiver
from starpo_trace.errors import ConfigError, StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """What `starpo-trace collect` was asked to do."""

    store: Path
    """Folder of the trace store; made when it does not exist."""
    http: Address | None
    """Where OTLP/HTTP listens; None for nowhere."""
    grpc: Address | None
    """Where OTLP/gRPC listens; None for nowhere."""
    tokens: Tokens
    """Who may send."""
    tls: TlsFiles | None = None
    """Certificate of both servers."""
    insecure: bool = False
    """Whether to listen beyond this machine without TLS."""
    max_store_bytes: int | None = None
    """Bytes in the store beyond which requests are sent away; None for what the disk holds."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on requests."""
    report_every_s: float = 10.0
    """Pause between progress lines; 0 for none."""


def run_collect(config: CollectConfig) -> None:
    """Receive until SIGTERM or SIGINT; then finish what is in flight and seal the store.

    Raises:
        ConfigError: an address cannot be used, or would be open to everybody.
        StoreError: the store cannot be written at the start.
    """
    addresses = [address for address in (config.http, config.grpc) if address is not None]
    if not addresses:
        raise ConfigError("--http off and --grpc off: nothing to listen on; leave one of them out")
    warnings = check_exposure(
        addresses, tokens=config.tokens, tls=config.tls, insecure=config.insecure
    )
    for warning in warnings:
        report(f"warning: {warning}")
    _check_store(config.store)
    asyncio.run(_serve(config))


async def _serve(config: CollectConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, _interrupt, stop)
    log = CommitLog(
        config.store, max_store_bytes=config.max_store_bytes, on_trouble=_report_trouble
    )
    receiver = Receiver(log, config.limits)
    servers: list[Any] = []
    try:
        servers += await _start_servers(config, receiver)
        reporter = asyncio.create_task(_report_progress(receiver, config.report_every_s))
        await stop.wait()
        report("stopping: finishing what is in flight")
        reporter.cancel()
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
        receiver.close()
        await asyncio.to_thread(log.close)
    report(describe_stats(receiver.read_stats()))


def _interrupt(stop: asyncio.Event) -> None:
    """First Ctrl-C: finish; second: end now. What is acknowledged is on disk either way."""
    if stop.is_set():
        report("ended at once; requests in flight were not acknowledged")
        os._exit(128 + signal.SIGINT)
    stop.set()


async def _start_servers(config: CollectConfig, receiver: Receiver) -> list[Any]:
    from starpo_trace.collect.grpc_server import GrpcService, start_grpc
    from starpo_trace.collect.http_server import HttpApp, start_http

    servers: list[Any] = []
    places: list[str] = []
    context = load_tls(config.tls) if config.tls is not None else None
    try:
        if config.http is not None:
            http = await start_http(HttpApp(receiver, config.tokens), config.http, context)
            servers.append(http)
            scheme = "https" if context is not None else "http"
            places.append(f"{scheme}://{_with_port(config.http, http.port)}/v1/traces")
        if config.grpc is not None:
            _check_free(config.grpc)
            grpc = await start_grpc(GrpcService(receiver, config.tokens), config.grpc, config.tls)
            servers.append(grpc)
            places.append(f"grpc {_with_port(config.grpc, grpc.port)}")
    except OSError as error:
        await asyncio.gather(*(server.stop() for server in servers))
        which = config.grpc if servers else config.http or config.grpc
        raise _explain_bind(error, "--grpc" if which is config.grpc else "--http", which) from error
    access = "token" if config.tokens.is_required else "no token"
    report(f"{', '.join(places)} -> {config.store} ({access}); Ctrl-C stops")
    return servers


def _check_free(address: Address) -> None:
    """Bind and let go: gRPC itself reports a port in use in a page of its own."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address.host, address.port))


def _check_store(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        problem = error.strerror or error
        raise StoreError(f"--store {directory}: cannot be written: {problem}") from error


def _explain_bind(error: OSError, option: str, address: Address | None) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"{option} {address}: the port is in use; stop the program that holds it, "
            "or choose another port"
        )
    return ConfigError(f"{option} {address}: cannot listen there: {error.strerror or error}")


def _with_port(address: Address, port: int) -> Address:
    return Address(host=address.host, port=port)


async def _report_progress(receiver: Receiver, every_s: float) -> None:
    last = describe_stats(receiver.read_stats())
    while every_s > 0:
        await asyncio.sleep(every_s)
        line = describe_stats(receiver.read_stats())
        if line != last:
            report(line)
        last = line


def describe_stats(stats: dict[str, Any]) -> str:
    """Counts -> one line."""
    spans, logs, requests = stats["spans"], stats["log_records"], stats["requests"]
    refused = ", ".join(f"{name} {count:,}" for name, count in requests["refused"].items())
    return (
        f"{spans['acknowledged']:,} spans acknowledged, {spans['rejected']:,} rejected; "
        + (
            f"{logs['acknowledged']:,} log records acknowledged, {logs['rejected']:,} rejected; "
            if logs["accepted"]
            else ""
        )
        + f"{requests['answered']:,} requests answered, refused: {refused or 'none'}"
    )


def _report_trouble(trouble: str) -> None:
    if trouble:
        report(f"{trouble}; requests are sent away with 503 until it can be written again")
    else:
        report("the store can be written again")


def report(text: str) -> None:
    """Write a line to stderr, with the time."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    with contextlib.suppress(OSError):  # a closed terminal is no reason to stop receiving
        sys.stderr.write(f"{stamp} starpo-trace collect: {text}\n")
        sys.stderr.flush()
