"""Attributes -> a span, at the least cost the SDK allows.

The SDK checks and copies every attribute it is given, which costs more than the span itself. Ours
are built by this package from values that are valid already, so on the SDK's own spans they are
put in place in one go, at the end; any other kind of span gets them through its public methods.
"""

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import Span, Tracer
from opentelemetry.util.types import AttributeValue

_SDK_SPAN: Final = getattr(sdk, "_Span", None)
_PLAIN_SAMPLERS: Final = (
    sampling.StaticSampler,
    sampling.ParentBased,
    sampling.TraceIdRatioBased,
)
"""Samplers that decide without looking at attributes."""


def has_plain_sampler(tracer: Tracer) -> bool:
    """Whether a span of this tracer may begin without attributes and be sampled the same."""
    return isinstance(getattr(tracer, "sampler", None), _PLAIN_SAMPLERS)


def put_attributes(span: Span, attributes: Mapping[str, AttributeValue]) -> None:
    """Set attributes whose keys and values are valid, and which nobody changes afterwards."""
    bounded: Any = getattr(span, "_attributes", None) if type(span) is _SDK_SPAN else None
    fields: dict[str, Any] = getattr(bounded, "__dict__", {})
    target = fields.get("_dict")
    max_length = fields.get("max_value_len")
    if max_length is not None:
        from starpo_trace.limits import limit_json

        attributes = {
            key: limit_json(value, max_length) if type(value) is str else value
            for key, value in attributes.items()
        }
    elif isinstance(target, dict):
        max_attributes = fields.get("maxlen")
        if max_attributes is None or len(target) + len(attributes) <= max_attributes:
            target.update(attributes)
            return
    span.set_attributes(attributes)
