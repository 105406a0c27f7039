"""Environment -> where spans go, and what settings leave out of trajectories."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starpo_trace.capture.destination import choose_destinations
from starpo_trace.config import (
    CAPTURE_CONTENT_VARIABLE,
    MAX_CONTENT_VARIABLE,
    METRICS_VARIABLE,
    SAMPLE_VARIABLE,
    CaptureConfig,
    has_otlp_metrics,
    read_config,
)
from starpo_trace.doctor.finding import Finding
from starpo_trace.errors import ConfigError
from starpo_trace.privacy.build import build_redactor

_WAIT_S: Final = 3.0
_LEAST_FREE: Final = 1 << 30


def read_environment() -> tuple[CaptureConfig, list[Finding]]:
    """What `instrument()` without arguments records here, and the variables that it cannot use."""
    logger, handler = logging.getLogger("starpo_trace"), _Gatherer()
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        config = read_config(
            store=None, endpoint=None, tracer_provider=None, history=None, policy_id=None
        )
        build_redactor(config.redaction)
    except ConfigError as error:
        handler.findings.append(Finding(level="problem", what=str(error)))
        config = CaptureConfig()
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
    return config, handler.findings


class _Gatherer(logging.Handler):
    """Warnings -> findings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.findings: list[Finding] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was logged."""
        self.findings.append(Finding(level="problem", what=record.getMessage()))


def check_destination(config: CaptureConfig) -> Iterator[Finding]:
    """Where spans go that are recorded with this configuration, and whether they can."""
    store, has_otlp = choose_destinations(config)
    if has_otlp:
        yield _check_endpoint(
            os.environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    if store is not None:
        yield _check_store(store)
    yield Finding(
        level="note",
        what="arguments of instrument(), and a TracerProvider that the program sets, come first",
        do="they cannot be seen from here",
    )


def check_metrics(config: CaptureConfig) -> Iterator[Finding]:
    """Where metrics go with this configuration, and whether they can."""
    names = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if config.metrics is False:
        yield Finding(level="note", what=f"{METRICS_VARIABLE} switches them off")
    elif has_otlp_metrics():
        yield _check_endpoint(os.environ, *names)
    else:
        why = "no endpoint is named"
        if any(os.environ.get(name) for name in names):
            why = "OTEL_SDK_DISABLED, OTEL_METRICS_EXPORTER or the protocol gRPC forbids it"
        yield Finding(
            level="note",
            what=f"nowhere, unless the program sets a MeterProvider: {why}",
            do="docs/live.md says how they reach Prometheus and Grafana",
        )


def _check_endpoint(environment: Mapping[str, str], *variables: str) -> Finding:
    for name in variables:
        endpoint = environment.get(name)
        if endpoint:
            break
    else:
        name, endpoint = "endpoint", ""
    where = f"{endpoint} ({name})"
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        host, port, where = None, 0, f"{where}: {error}"
    if host is None:
        return Finding(level="problem", what=f"{where} names no host", do="give a URL")
    try:
        socket.create_connection((host, port), timeout=_WAIT_S).close()
    except OSError as error:
        return Finding(
            level="problem",
            what=f"{where} cannot be reached: {error}",
            do="start the collector (`starpo-trace collect`), or correct the variable",
        )
    return Finding(level="ok", what=f"{where}, which answers")


def _check_store(store: Path) -> Finding:
    name = "STARPO_STORE" if os.environ.get("STARPO_STORE") else "the default"
    where = f"the local store {store} ({name})"
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Finding(level="problem", what=f"{where}: {folder} is no folder", do="move it away")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            level="problem", what=f"{where}: {folder} cannot be written to", do="set STARPO_STORE"
        )
    free = shutil.disk_usage(folder).free
    told = f"{where}, {free / 2**30:,.1f} GiB free"
    if free < _LEAST_FREE:
        return Finding(level="problem", what=told, do="free the disk, or set STARPO_STORE")
    return Finding(level="ok", what=told)


def check_settings(config: CaptureConfig) -> Iterator[Finding]:
    """What the environment leaves out of trajectories."""
    environment = os.environ
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Finding(
            level="problem",
            what="OTEL_SDK_DISABLED=true: nothing is recorded",
            do="unset it",
        )
    disabled = environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    if {"starpo", "*"} & {name.strip() for name in disabled.split(",")}:
        yield Finding(
            level="problem",
            what=f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={disabled}: `opentelemetry-instrument` "
            "leaves Starpo out",
            do="take it out of the list",
        )
    if config.history == "off":
        yield Finding(
            level="problem",
            what=f"{CAPTURE_CONTENT_VARIABLE}={environment.get(CAPTURE_CONTENT_VARIABLE)}: no "
            "prompts, answers, arguments or results are recorded; nothing can be learned from",
            do="unset it; secrets are masked by default",
        )
    if config.sample is not None and config.sample < 1.0:
        yield Finding(
            level="note" if config.sample else "problem",
            what=f"{SAMPLE_VARIABLE}={config.sample:g}: so many of the runs are recorded, whole",
        )
    elif environment.get("OTEL_TRACES_SAMPLER"):
        yield _check_sampler(environment)
    if config.max_content_bytes is not None:
        yield Finding(
            level="note",
            what=f"{MAX_CONTENT_VARIABLE}={config.max_content_bytes:,}: runs with longer content "
            "are fit for no training",
        )
    if config.policy_id is None:
        yield Finding(
            level="note",
            what="no policy: runs do not say which checkpoint or prompt made them",
            do="set STARPO_POLICY_ID, or trajectory(policy_id=...)",
        )


def _check_sampler(environment: Mapping[str, str]) -> Finding:
    sampler = environment["OTEL_TRACES_SAMPLER"].strip().lower()
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "")
    told = f"OTEL_TRACES_SAMPLER={sampler}"
    is_share = sampler.endswith("traceidratio")
    if is_share:
        told += f" with OTEL_TRACES_SAMPLER_ARG={argument}"
    try:
        is_nothing = sampler.endswith("always_off") or (is_share and float(argument) == 0.0)
    except ValueError:
        is_nothing = False
    what = "records no run" if is_nothing else "decides which runs are recorded"
    return Finding(
        level="problem" if is_nothing else "note",
        what=f"{told} {what}",
        do=f"unset it, or use {SAMPLE_VARIABLE}",
    )
