"""Spans of ours and those of another provider in one Context -> none is the other's parent.

A Context has one current span, whoever's it is. Where ours go elsewhere than another library's, a
parent of the other kind is one that the reader of the span never gets: the trace has no root there,
and one side's sampling drops what the other records. So a Context of ours also says what was current
around our span. Others go on below that, and ours below ours; the outermost of ours has the trace
that the program was in. Spans of one provider are one tree, as ever.
"""

from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from starpo_trace.capture.keys import LAYER_KEY
from starpo_trace.capture.runtime import Runtime


class _Layer(NamedTuple):
    """A span of ours, and what was current before it and is not ours."""

    span: Span
    around: Span


def set_current(span: Span, context: Context | None = None) -> Context:
    """Context -> the same with a span of ours as the current one."""
    current = trace.get_current_span(context)
    layer = otel_context.get_value(LAYER_KEY, context)
    around = layer.around if isinstance(layer, _Layer) and layer.span is current else current
    context = otel_context.set_value(LAYER_KEY, _Layer(span, around), context)
    return trace.set_span_in_context(span, context)


def choose_parent(runtime: Runtime, tracer: Any, context: Context | None) -> Context | None:
    """Tracer of the SDK's, and where it begins a span -> the Context to begin it in instead.

    None where the Context is right as it is.
    """
    layer = otel_context.get_value(LAYER_KEY, context)
    if not isinstance(layer, _Layer):
        return None
    current, parent = trace.get_current_span(context), layer.around
    is_ours = current is layer.span
    if tracer is runtime.sdk_tracer:
        if is_ours or current.get_span_context().is_remote:
            return None
        theirs = getattr(current, "_span_processor", None)
        if theirs is runtime.span_processor or (theirs is None and not runtime.has_own_provider):
            return None
        parent = layer.span
    elif not is_ours or tracer.span_processor is runtime.span_processor:
        return None
    return trace.set_span_in_context(parent, context)
