"""Which trajectories are recorded: whole ones, decided once at the root.

With a provider of ours the SDK's sampler decides by the root's trace id, and every part follows by
the trace flags. In a provider of the user's, whose spans are none of our business, our own spans
alone are left out.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Tracer

from starpo_trace import semconv
from starpo_trace.capture.episode import current_trajectory
from starpo_trace.capture.keys import TRAJECTORY_KEY
from starpo_trace.capture.parts import STEP_SAMPLED_KEY, receive_identity

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TraceState
    from opentelemetry.util.types import Attributes


class TrajectorySampler(ParentBased):
    """`ParentBased(TraceIdRatioBased(share))` that knows trajectories.

    A late reward is always recorded, and so is the rest of a resumed run: the decision fell at its
    beginning. A caller's trace that is no trajectory decides only against recording, because its
    share of sampled requests has nothing to do with ours.
    """

    def __init__(self, share: float) -> None:
        self._by_trace_id = TraceIdRatioBased(share)
        super().__init__(root=self._by_trace_id)

    def should_sample(
        self,
        parent_context: "Context | None",
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: "Attributes" = None,
        links: Sequence[Link] | None = None,
        trace_state: "TraceState | None" = None,
    ) -> SamplingResult:
        """Decide about one span."""
        parent = trace.get_current_span(parent_context).get_span_context()
        decide = super().should_sample
        if _is_decided_elsewhere(attributes, parent):
            decide = ALWAYS_ON.should_sample
        elif parent.is_valid and parent.is_remote and parent.trace_flags.sampled:
            is_part = otel_context.get_value(TRAJECTORY_KEY, parent_context) is not None
            if not is_part and receive_identity(parent_context) is None:
                decide = self._by_trace_id.should_sample
        return decide(parent_context, trace_id, name, kind, attributes, links, trace_state)


class LateRewardSampler(Sampler):
    """A sampler of the environment's, which says nothing about late rewards: they are recorded.

    Each is a trace of its own, so a sampler would decide about it anew, and keep runs whose reward
    it drops.
    """

    def __init__(self, sampler: Sampler) -> None:
        """`sampler` decides about all other spans."""
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: "Context | None",
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: "Attributes" = None,
        links: Sequence[Link] | None = None,
        trace_state: "TraceState | None" = None,
    ) -> SamplingResult:
        """Decide about one span."""
        sampler = self._sampler
        if attributes is not None and attributes.get(semconv.RECORD) == "reward":
            parent = trace.get_current_span(parent_context).get_span_context()
            sampler = sampler if parent.is_valid else ALWAYS_ON
        return sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        """Name of the sampler that decides."""
        return f"LateReward({self._sampler.get_description()})"


class SamplingTracer(Tracer):
    """A tracer whose spans follow the trajectory they belong to."""

    def __init__(self, tracer: Tracer, share: float) -> None:
        """`share` is that of trajectories, and of traces outside of any, to record."""
        self._tracer = tracer
        self._share = share
        self._by_trace_id = TraceIdRatioBased(share)

    def start_span(
        self,
        name: str,
        context: "Context | None" = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: "Attributes" = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001 (OpenTelemetry's signature)
        set_status_on_exception: bool = True,  # noqa: FBT001
    ) -> Span:
        """Start a span, or one that records nothing and leaves the trace around it as it is."""
        parent = trace.get_current_span(context).get_span_context()
        if not self._is_sampled(context, attributes, parent):
            return NonRecordingSpan(parent)
        return self._tracer.start_span(
            name,
            context=context,
            kind=kind,
            attributes=attributes,
            links=links,
            start_time=start_time,
            record_exception=record_exception,
            set_status_on_exception=set_status_on_exception,
        )

    @contextmanager
    def start_as_current_span(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Span]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start a span and make it current."""
        with self._tracer.start_as_current_span(name, *args, **kwargs) as span:
            yield span

    def _is_sampled(
        self, context: "Context | None", attributes: "Attributes", parent: SpanContext
    ) -> bool:
        if (attributes or {}).get(semconv.RECORD) == "reward":
            is_decided = context is not None  # a late one has a context of its own
        else:
            is_decided = _is_decided_elsewhere(attributes, parent)
        if is_decided:
            return True
        trajectory = current_trajectory()
        if trajectory is not None:
            return trajectory.is_sampled
        of_step = otel_context.get_value(STEP_SAMPLED_KEY, context)
        if of_step is not None:
            return bool(of_step)
        if parent.is_valid:  # all of one trace are recorded, or none
            bound = self._by_trace_id.bound
            return parent.trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < bound
        return random.random() < self._share  # noqa: S311


def _is_decided_elsewhere(attributes: Mapping[str, Any] | None, parent: SpanContext) -> bool:
    record = (attributes or {}).get(semconv.RECORD)
    if record == "reward":
        return not parent.is_valid
    if record == "part":  # only begun when the trajectory is recorded
        return not parent.is_valid or parent.trace_flags.sampled
    return record == "trajectory" and semconv.PART in (attributes or {})
