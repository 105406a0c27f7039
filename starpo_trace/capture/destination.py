"""Configuration -> a tracer provider of our own, and the destinations behind it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from starpo_trace.config import (
    CaptureConfig,
    HistoryMode,
    has_otlp_environment,
    read_default_store,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_SAMPLER_VARIABLE: Final = "OTEL_TRACES_SAMPLER"
_MAX_SPAN_ATTRIBUTES: Final = 1024
_NO_USERS_SERVICES: Final = frozenset({"crewAI-telemetry"})
"""Of global providers that a library set, for usage statistics of its makers."""


class Destination(Protocol):
    """Where spans go, and what is known about how they fared."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything accepted has arrived; False when it has not."""
        ...

    def read_stats(self) -> dict[str, int]:
        """Counts of spans: sent, accepted, acknowledged, rejected, waiting, dropped."""
        ...

    def is_interrupted_here(self) -> bool:
        """Whether this thread was interrupted while it handed a span over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProvider:
    """A provider that we opened, and shall close."""

    provider: "TracerProvider"
    """Where the tracer comes from."""
    destinations: Sequence[Destination]
    """Its span processors."""
    history_mode: HistoryMode
    """As configured, or the default for these destinations."""


def choose_destinations(config: CaptureConfig) -> tuple[Path | None, bool]:
    """Folder of the store, if any, and whether spans are exported by OTLP."""
    if config.store is not None or config.endpoint is not None:
        return config.store, config.endpoint is not None
    has_otlp = has_otlp_environment()
    return (None if has_otlp else read_default_store()), has_otlp


def build_own_provider(config: CaptureConfig) -> OwnProvider:
    """Open the store, the OTLP export, or both."""
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    store, has_otlp = choose_destinations(config)
    sampler = None  # what OTEL_TRACES_SAMPLER says
    if config.sample is not None:
        from starpo_trace.capture.sampling import TrajectorySampler

        sampler = TrajectorySampler(config.sample)
    unset = SpanLimits.UNSET
    limits = SpanLimits(
        max_span_attributes=_MAX_SPAN_ATTRIBUTES,
        max_attribute_length=unset,  # cut JSON is no JSON
        max_span_attribute_length=unset,
    )
    provider = TracerProvider(span_limits=limits, sampler=sampler)
    if sampler is None and os.environ.get(_SAMPLER_VARIABLE):
        from starpo_trace.capture.sampling import LateRewardSampler

        provider.sampler = LateRewardSampler(provider.sampler)
    destinations: list[Destination] = []
    if store is not None:
        from starpo_trace.store.sink import MAX_STORE_BYTES, SpanSink

        max_bytes = config.max_store_bytes
        sink = SpanSink(store, max_store_bytes=MAX_STORE_BYTES if max_bytes is None else max_bytes)
        provider.add_span_processor(sink)
        destinations.append(sink)
    if has_otlp:
        from starpo_trace.store.exporting import build_otlp_processor

        processor = build_otlp_processor(config.endpoint)
        provider.add_span_processor(processor)
        destinations.append(processor)
    return OwnProvider(
        provider=provider,
        destinations=destinations,
        history_mode=config.history or ("full" if has_otlp else "delta"),
    )


def is_set_by_user(provider: Any) -> bool:
    """Whether a global tracer provider is one that the program has set."""
    from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider

    if isinstance(provider, (NoOpTracerProvider, ProxyTracerProvider)):
        return False
    about = getattr(getattr(provider, "resource", None), "attributes", None) or {}
    return about.get("service.name") not in _NO_USERS_SERVICES
