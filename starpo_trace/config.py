"""Arguments and environment -> what to record, and where to."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from starpo_trace.errors import ConfigError
from starpo_trace.guard import warn_once

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from starpo_trace.privacy.redaction import Redaction

HistoryMode = Literal["full", "delta", "off"]

DEFAULT_STORE: Final = Path(".starpo") / "traces"
CAPTURE_CONTENT_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
SAMPLE_VARIABLE: Final = "STARPO_SAMPLE"
MAX_CONTENT_VARIABLE: Final = "STARPO_MAX_CONTENT_BYTES"
MAX_STORE_VARIABLE: Final = "STARPO_STORE_MAX_BYTES"
METRICS_VARIABLE: Final = "STARPO_METRICS"
FAIL_BELOW_VARIABLE: Final = "STARPO_METRICS_FAIL_BELOW"
_DEFAULT_FAIL_BELOW: Final = 0.5
_SWITCH: Final = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_MIN_CONTENT_BYTES: Final = 256
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DEFAULT_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 86_400.0
_HISTORY_MODES: Final = ("full", "delta", "off")
_NO_CONTENT_VALUES: Final = frozenset({"no_content", "false", "0", "event_only"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """What `instrument()` was asked for; the destination is chosen at the first span."""

    store: Path | None = None
    """Explicit folder of the local store."""
    endpoint: str | None = None
    """Explicit OTLP/HTTP traces endpoint."""
    tracer_provider: "TracerProvider | None" = None
    """Explicit provider of the caller's."""
    history: HistoryMode | None = None
    """Explicit history mode; None: delta into the local store, full elsewhere."""
    policy_id: str | None = None
    """Policy of trajectories that name none."""
    sample: float | None = None
    """Share of trajectories to record; None: all, or what the provider's sampler says."""
    max_content_bytes: int | None = None
    """Longest content attribute; None: no limit."""
    redaction: "Redaction | bool" = True
    """What is masked before anything is recorded; True: the built-in secret rules."""
    metrics: "MeterProvider | bool" = True
    """Where metrics go: True the global provider, else the standard variables' endpoint."""
    fail_below: float = _DEFAULT_FAIL_BELOW
    """Rewards below this count as failed evaluations."""
    max_store_bytes: int | None = None
    """Size that the local store's folder may reach; None: the store's own default."""


def read_config(  # noqa: PLR0913 (one keyword per argument of `instrument()`)
    *,
    store: str | os.PathLike[str] | None,
    endpoint: str | None,
    tracer_provider: "TracerProvider | None",
    history: str | None,
    policy_id: str | None,
    sample: float | None = None,
    max_content_bytes: int | None = None,
    redaction: "Redaction | bool" = True,
    metrics: "MeterProvider | bool" = True,
    environment: Mapping[str, str] = os.environ,
) -> CaptureConfig:
    """Arguments of `instrument()` and the environment -> configuration.

    A variable that holds what it cannot is warned of and left out: the program that it was set for
    is not the place to find out.

    Raises:
        ConfigError: `history` is no mode, the endpoint is no http(s) URL, `sample` is no share, or
            `max_content_bytes` is too small to say what was cut.
    """
    if history is not None and history not in _HISTORY_MODES:
        raise ConfigError(
            f"history={history!r} in instrument(): use one of {', '.join(_HISTORY_MODES)}"
        )
    if store is not None and not isinstance(store, (str, os.PathLike)):
        raise ConfigError(f"store={store!r} in instrument(): give the path of a folder")
    if store is not None and not os.fspath(store):
        raise ConfigError(
            f"store={store!r} in instrument(): give the path of a folder, or leave it out"
        )
    if tracer_provider is not None and not hasattr(tracer_provider, "get_tracer"):
        raise ConfigError(
            f"tracer_provider={tracer_provider!r} in instrument(): give an OpenTelemetry "
            "TracerProvider; a URL belongs into endpoint="
        )
    if not isinstance(metrics, bool) and not hasattr(metrics, "get_meter"):
        raise ConfigError(
            f"metrics={metrics!r} in instrument(): give an OpenTelemetry MeterProvider, True or False"
        )
    if endpoint is not None and not str(endpoint).startswith(("http://", "https://")):
        raise ConfigError(
            f"endpoint={endpoint!r} in instrument(): give the whole traces URL, "
            "like http://collector:4318/v1/traces"
        )
    if environment.get(CAPTURE_CONTENT_VARIABLE, "").strip().lower() in _NO_CONTENT_VALUES:
        history = "off"  # an operator's switch wins over the program's own wish
    return CaptureConfig(
        store=None if store is None else Path(store),
        endpoint=endpoint,
        tracer_provider=tracer_provider,
        history=cast("HistoryMode | None", history),
        policy_id=policy_id or environment.get("STARPO_POLICY_ID"),
        sample=_read_sample(sample, environment),
        max_content_bytes=_read_max_content(max_content_bytes, environment),
        max_store_bytes=_read_max_store_bytes(environment),
        redaction=redaction,
        metrics=_read_metrics(metrics, environment),
        fail_below=_read_fail_below(environment),
    )


def _read_metrics(
    metrics: "MeterProvider | bool", environment: Mapping[str, str]
) -> "MeterProvider | bool":
    text = environment.get(METRICS_VARIABLE, "").strip().lower()
    if text and text not in _SWITCH:
        _warn_of_variable(METRICS_VARIABLE, text, "say on or off; until then it is on")
    return metrics if _SWITCH.get(text, True) else False  # an operator's switch wins


def _read_fail_below(environment: Mapping[str, str]) -> float:
    text = environment.get(FAIL_BELOW_VARIABLE, "").strip()
    try:
        number = float(text) if text else _DEFAULT_FAIL_BELOW
    except ValueError:
        number = float("nan")
    if isfinite(number):
        return number
    _warn_of_variable(
        FAIL_BELOW_VARIABLE, text, f"give a number; until then it is {_DEFAULT_FAIL_BELOW}"
    )
    return _DEFAULT_FAIL_BELOW


def _read_sample(sample: float | None, environment: Mapping[str, str]) -> float | None:
    advice = "give a share between 0 and 1, like 0.1"
    if sample is not None:
        share = _parse_share(sample)
        if share is None:
            raise ConfigError(f"sample={sample!r} in instrument(): {advice}")
        return share
    text = environment.get(SAMPLE_VARIABLE)
    share = _parse_share(text) if text else None
    if text and share is None:
        _warn_of_variable(SAMPLE_VARIABLE, text, f"{advice}; until then all are recorded")
    return share


def _parse_share(value: float | str) -> float | None:
    try:
        share = float(value)
    except (TypeError, ValueError):
        return None
    return share if 0.0 <= share <= 1.0 else None


def _read_max_content(limit: int | None, environment: Mapping[str, str]) -> int | None:
    advice = f"give a number of bytes from {_MIN_CONTENT_BYTES} on; leave it out for no limit"
    if limit is not None:
        number = _parse_content_limit(limit)
        if number is None:
            raise ConfigError(f"max_content_bytes={limit!r} in instrument(): {advice}")
        return number
    text = environment.get(MAX_CONTENT_VARIABLE)
    number = _parse_content_limit(text) if text else None
    if text and number is None:
        _warn_of_variable(MAX_CONTENT_VARIABLE, text, f"{advice}; until then there is none")
    return number


def _parse_content_limit(value: int | str) -> int | None:
    try:
        number = parse_bytes(value) if isinstance(value, str) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number >= _MIN_CONTENT_BYTES else None


def _read_max_store_bytes(environment: Mapping[str, str]) -> int | None:
    text = environment.get(MAX_STORE_VARIABLE, "").strip()
    if not text:
        return None
    try:
        number = parse_bytes(text)
    except ValueError:
        number = 0
    if number < 1:
        advice = "give a number of bytes, as 1000000, 500M or 10G; until then the default holds"
        _warn_of_variable(MAX_STORE_VARIABLE, text, advice)
        return None
    return number


def parse_bytes(text: str) -> int:
    """`1000000`, `500M`, `10 GiB` -> bytes; K, M, G and T are powers of 1024.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]{1,18})\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r}: write a number, as 1000000, 500M or 10G")
    return int(match[1]) << _UNITS[match[2]]


def _warn_of_variable(name: str, value: str, advice: str) -> None:
    warn_once(f"variable {name}", "%s=%r in the environment: %s", name, value, advice)


def read_timeout(timeout_s: float | None) -> float:
    """Seconds that somebody is ready to wait -> seconds to wait: infinity is a day.

    What is no number is the default, five seconds: whoever flushes is about to leave, and shall
    neither be stopped by an exception nor wait for ever.
    """
    try:
        wait_s = _DEFAULT_WAIT_S if timeout_s is None else float(timeout_s)
    except (TypeError, ValueError, OverflowError):
        wait_s = _DEFAULT_WAIT_S
    if isnan(wait_s):
        wait_s = _DEFAULT_WAIT_S
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)


def read_default_store(environment: Mapping[str, str] = os.environ) -> Path:
    """Folder of the local store when nobody named one."""
    return Path(environment.get("STARPO_STORE") or DEFAULT_STORE)


def has_otlp_environment(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the standard variables name an OTLP endpoint for traces."""
    return bool(
        environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def has_otlp_metrics(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the standard variables name an OTLP endpoint for metrics, and do not forbid it.

    Over gRPC nothing is exported by us: its channels do not survive a fork.
    """
    exporters = environment.get("OTEL_METRICS_EXPORTER", "").strip().lower() or "otlp"
    protocol = (
        environment.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    return (
        "otlp" in {name.strip() for name in exporters.split(",")}
        and protocol.strip().lower() != "grpc"
        and environment.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and bool(
            environment.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
            or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        )
    )
