"""Name of a compared instrumentation -> its environment, its settings and how it is switched on.

Message content is on for all of them, at what their documentation says.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
STABILITY = "OTEL_SEMCONV_STABILITY_OPT_IN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One way of instrumenting a program."""

    title: str
    """Name in tables."""
    environment: str
    """Virtual environment, and stem of the file of its pinned requirements."""
    start: Callable[[Any, Any], None]
    """Switches it on, given a tracer provider and a logger provider."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that switch content on."""
    is_peer: bool = False
    """Whether it is somebody else's."""
    uses_trajectory: bool = False
    """Whether the calls are made inside of a trajectory."""


def start_none(provider: Any, logger_provider: Any) -> None:
    """No instrumentation."""


def start_floor(provider: Any, logger_provider: Any) -> None:
    """The least one can do."""
    from peers import floor

    floor.instrument(provider)


def start_ours(provider: Any, logger_provider: Any) -> None:
    """`starpo_trace`, with the whole history on every call and nothing redacted."""
    _start_ours(provider, history="full", redaction=False)


def start_ours_redacted(provider: Any, logger_provider: Any) -> None:
    """`starpo_trace` with its default redaction."""
    _start_ours(provider, history="full")


def start_ours_delta(provider: Any, logger_provider: Any) -> None:
    """`starpo_trace` writing only what is new in each history."""
    _start_ours(provider, history="delta", redaction=False)


def _start_ours(provider: Any, **options: Any) -> None:
    import starpo_trace

    known = inspect.signature(starpo_trace.instrument).parameters
    options = {name: value for name, value in options.items() if name in known}
    starpo_trace.instrument(tracer_provider=provider, **options)


def _instrumentor(module: str) -> Callable[[Any, Any], None]:
    def start(provider: Any, logger_provider: Any) -> None:
        instrumentor = import_module(module).OpenAIInstrumentor()
        instrumentor.instrument(tracer_provider=provider, logger_provider=logger_provider)

    return start


SETUPS = {
    "none": Setup(title="no instrumentation", environment="ours", start=start_none),
    "floor": Setup(
        title="floor: span + orjson of the messages", environment="ours", start=start_floor
    ),
    "ours": Setup(title="starpo_trace", environment="ours", start=start_ours),
    "ours-trajectory": Setup(
        title="starpo_trace, in a trajectory",
        environment="ours",
        start=start_ours,
        uses_trajectory=True,
    ),
    "ours-redaction": Setup(
        title="starpo_trace, redaction on", environment="ours", start=start_ours_redacted
    ),
    "ours-delta": Setup(
        title="starpo_trace, delta history, in a trajectory",
        environment="ours",
        start=start_ours_delta,
        uses_trajectory=True,
    ),
    "openinference": Setup(
        title="OpenInference",
        environment="openinference",
        start=_instrumentor("openinference.instrumentation.openai"),
        is_peer=True,
    ),
    "openllmetry": Setup(
        title="OpenLLMetry",
        environment="openllmetry",
        start=_instrumentor("opentelemetry.instrumentation.openai"),
        variables={"TRACELOOP_TRACE_CONTENT": "true"},
        is_peer=True,
    ),
    "genai": Setup(
        title="official genai",
        environment="genai",
        start=_instrumentor("opentelemetry.instrumentation.genai.openai"),
        variables={CONTENT: "span_only"},
        is_peer=True,
    ),
    "contrib-events": Setup(
        title="contrib openai-v2, content in events",
        environment="contrib",
        start=_instrumentor("opentelemetry.instrumentation.openai_v2"),
        variables={CONTENT: "true"},
        is_peer=True,
    ),
    "contrib-spans": Setup(
        title="contrib openai-v2, content on spans",
        environment="contrib",
        start=_instrumentor("opentelemetry.instrumentation.openai_v2"),
        variables={CONTENT: "SPAN_ONLY", STABILITY: "gen_ai_latest_experimental"},
        is_peer=True,
    ),
    "traceai": Setup(
        title="traceAI",
        environment="traceai",
        start=_instrumentor("traceai_openai"),
        is_peer=True,
    ),
}
