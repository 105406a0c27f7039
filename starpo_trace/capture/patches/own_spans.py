"""SDKs that write spans of their own: whether these would double ours."""

from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from starpo_trace.capture.runtime import get_runtime


def writes_where_we_write(tracer: Any) -> bool:
    """Whether Starpo records now, and into the provider that this tracer of an SDK's is from."""
    runtime = get_runtime()
    if runtime is None or not is_instrumentation_enabled():
        return False
    theirs = getattr(getattr(tracer, "_tracer", tracer), "span_processor", None)
    ours: Any = runtime.get_tracer()
    return theirs is not None and theirs is getattr(ours, "span_processor", None)
