"""Arguments and environment -> what to record, and where to."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from starpo_trace.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from starpo_trace.privacy.redaction import Redaction

HistoryMode = Literal["full", "delta", "off"]

DEFAULT_STORE: Final = Path(".starpo") / "traces"
CAPTURE_CONTENT_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
SAMPLE_VARIABLE: Final = "STARPO_SAMPLE"
MAX_CONTENT_VARIABLE: Final = "STARPO_MAX_CONTENT_BYTES"
_MIN_CONTENT_BYTES: Final = 256
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
    environment: Mapping[str, str] = os.environ,
) -> CaptureConfig:
    """Arguments of `instrument()` and the environment -> configuration.

    Raises:
        ConfigError: `history` is no mode, the endpoint is no http(s) URL, `sample` is no share,
            `max_content_bytes` is too small to say what was cut, or a variable holds what it
            cannot.
    """
    if history is not None and history not in _HISTORY_MODES:
        raise ConfigError(
            f"history={history!r} in instrument(): use one of {', '.join(_HISTORY_MODES)}"
        )
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
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
    )


def _read_sample(sample: float | None, environment: Mapping[str, str]) -> float | None:
    where = "sample={!r} in instrument()"
    value: float | str | None = sample
    if sample is None:
        where = f"{SAMPLE_VARIABLE}={{!r}} in the environment"
        value = environment.get(SAMPLE_VARIABLE) or None
    if value is None:
        return None
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"{where.format(value)}: give a share between 0 and 1, like 0.1")
    return share


def _read_max_content(limit: int | None, environment: Mapping[str, str]) -> int | None:
    where = "max_content_bytes={!r} in instrument()"
    value: int | str | None = limit
    if limit is None:
        where = f"{MAX_CONTENT_VARIABLE}={{!r}} in the environment"
        value = environment.get(MAX_CONTENT_VARIABLE) or None
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < _MIN_CONTENT_BYTES:
        raise ConfigError(
            f"{where.format(value)}: give a number of bytes from {_MIN_CONTENT_BYTES} on; leave it "
            "out for no limit"
        )
    return number


def _read_max_store_bytes(environment: Mapping[str, str]) -> int | None:
    text = environment.get("STARPO_STORE_MAX_BYTES", "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(
            f"STARPO_STORE_MAX_BYTES={text!r} in the environment: give a whole number of bytes"
        )
    return int(text)


def read_default_store(environment: Mapping[str, str] = os.environ) -> Path:
    """Folder of the local store when nobody named one."""
    return Path(environment.get("STARPO_STORE") or DEFAULT_STORE)


def has_otlp_environment(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the standard variables name an OTLP endpoint for traces."""
    return bool(
        environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )
