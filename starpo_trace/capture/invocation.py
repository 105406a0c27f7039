"""A call of a model begins -> its record: a span, or what completes the span of a call around it.

Provider patches translate their wire format into `LLMRequest` and `LLMResponse` and call
`begin_call`. A call made inside another one (a router calling an SDK) gets no span of its own: what
the inner one saw on the wire completes the outer one's span.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from starpo_trace.capture.episode import Trajectory, current_trajectory
from starpo_trace.capture.exchange import LLMRequest, LLMResponse, StreamOutcome
from starpo_trace.capture.keys import CALL_KEY
from starpo_trace.capture.lineage import list_alive
from starpo_trace.capture.llmcall import Call, LLMCall
from starpo_trace.capture.runtime import get_runtime

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue


class InnerCall:
    """A model call inside another one's: it completes that one's span."""

    def __init__(self, outer: LLMCall, request: LLMRequest) -> None:
        self.trajectory = outer.trajectory
        self.is_stream = request.is_stream
        self.context: Context = otel_context.get_current()
        self._outer = outer
        outer.num_inner += 1
        self._number = outer.num_inner
        outer.adopt_request(request)

    def is_inside(self, call: Call) -> bool:
        """Whether it was begun by a call, or after it for the same span."""
        if isinstance(call, InnerCall):
            return call._outer is self._outer and call._number < self._number
        return call is self._outer

    def note_routing(self, attributes: "Mapping[str, AttributeValue]") -> None:
        """Hand it to the outer call."""
        self._outer.note_routing(attributes)

    def note_first_chunk(self) -> None:
        """Leave the time to the outer call."""

    def finish(
        self,
        response: LLMResponse,
        *,
        error: BaseException | None = None,
        outcome: StreamOutcome | None = None,
    ) -> None:
        """Hand what was received to the outer call."""
        if error is None or response.messages:
            self._outer.adopt_response(response)
        if error is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Leave the failure to the outer call, which may try again."""
        if isinstance(error, Exception):
            self._outer.note_failed_attempt(error, self._number)


def begin_call(read_request: Callable[..., LLMRequest], *arguments: Any) -> Call | None:
    """Start the record of a model call; None when it is not to be recorded.

    `read_request(*arguments)` is called only when it is.
    """
    runtime = get_runtime()
    if runtime is None:
        return None
    if not otel_context.get_current():  # nothing can be suppressed, and no run is in progress
        return LLMCall(runtime, read_request(*arguments), None)
    if not is_instrumentation_enabled():
        return None
    outer = otel_context.get_value(CALL_KEY)
    request = read_request(*arguments)
    # Threads and tasks begun inside a call may live on, in its Context; and what an SDK's hooks
    # ask another model is a call of its own.
    if isinstance(outer, LLMCall) and outer.is_passed_on and not outer.is_finished:
        return InnerCall(outer, request)
    return LLMCall(runtime, request, current_trajectory())


class OpenStream(Protocol):
    """A stream that a program is reading."""

    call: Call

    def abandon(self) -> None:
        """Finish the call with what was read so far."""
        ...


_open_streams: "weakref.WeakValueDictionary[int, OpenStream]" = weakref.WeakValueDictionary()


def watch_stream(stream: OpenStream) -> None:
    """Remember an open stream, to finish it with its trajectory at the latest."""
    _open_streams[id(stream)] = stream


def note_routing(call: Call, attributes: "Mapping[str, AttributeValue]") -> None:
    """Record where a router sent a call."""
    if attributes and isinstance(call, LLMCall | InnerCall):
        call.note_routing(attributes)


def finish_inner_streams(call: Call) -> None:
    """Finish the streams of the SDKs below a call that ends before they do."""
    for stream in list_alive(_open_streams):
        inner = stream.call
        if isinstance(inner, InnerCall) and inner is not call and inner.is_inside(call):
            stream.abandon()


def finish_open_calls(trajectory: Trajectory | None = None) -> None:
    """Finish the streams that nobody has read to the end: of one trajectory, or all."""
    for stream in list_alive(_open_streams):
        if trajectory is None or stream.call.trajectory is trajectory:
            stream.abandon()
