"""Responses that are asked for in one request and fetched in another -> one finished call.

A background run's request is answered at once with `queued`, and the program looks for the answer
later. The call stays open until an answer is fetched that is over, whichever request brings it, or
until its trajectory ends. Looks that find it still going on are no calls. An answer to a request
that this process did not make is recorded when it is fetched, as `fetch_response`.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import Trajectory, current_trajectory
from starpo_trace.capture.exchange import LLMRequest, LLMResponse, StreamOutcome
from starpo_trace.capture.invocation import Call, LLMCall, begin_call, watch_stream
from starpo_trace.capture.runtime import get_runtime

_MAX_PENDING: Final = 256
"""Calls kept open; past it the oldest is finished with what is known of it."""
_MAX_ANSWERED: Final = 4096

_pending: "OrderedDict[str, ResponseCall]" = OrderedDict()
_answered: OrderedDict[str, None] = OrderedDict()
"""Ids of responses that a span of this process holds."""


class ResponseCall:
    """A call whose answer may come with another request."""

    def __init__(self, call: Call, *, is_background: bool) -> None:
        self.call = call
        self.context = call.context
        self.trajectory: Trajectory | None = call.trajectory
        self.is_stream = call.is_stream
        self._is_background = is_background
        self._response = LLMResponse()
        self._error: BaseException | None = None
        self._outcome: StreamOutcome | None = None

    def note_first_chunk(self) -> None:
        """Record how long the first chunk of a stream took."""
        self.call.note_first_chunk()

    def finish(
        self,
        response: LLMResponse,
        *,
        error: BaseException | None = None,
        outcome: StreamOutcome | None = None,
    ) -> None:
        """Finish the call, or wait for its answer to be fetched."""
        if response.id is None or is_over(response) or not self._is_background:
            if is_over(response):
                remember_answer(response)
            self.call.finish(response, error=error, outcome=outcome)
            return
        self._response, self._error, self._outcome = response, error, outcome
        _pending[response.id] = self
        watch_stream(self)
        while len(_pending) > _MAX_PENDING:
            _pending.popitem(last=False)[1].abandon()

    def fail(self, error: BaseException) -> None:
        """Finish the call of a request that raised."""
        self.call.fail(error)

    def note_progress(self, response: LLMResponse) -> None:
        """Keep what was fetched of an answer that is not over."""
        if response.messages:
            self._response = response

    def abandon(self) -> None:
        """Finish the call with what is known, because nobody will fetch the rest."""
        if self._response.id is not None:
            _pending.pop(self._response.id, None)
        self.call.finish(self._response, error=self._error, outcome=self._outcome or "dropped")


class FetchCall:
    """A request for an answer to an earlier one: it has no span of its own."""

    def __init__(
        self,
        read_request: Callable[..., LLMRequest],
        arguments: tuple[Any, ...],
        *,
        is_stream: bool,
    ) -> None:
        self.context = otel_context.get_current()
        self.trajectory: Trajectory | None = current_trajectory()
        self.is_stream = is_stream
        self._read_request = read_request
        self._arguments = arguments

    def note_first_chunk(self) -> None:
        """Leave the time out: it is none of a call's."""

    def fail(self, error: BaseException) -> None:
        """Leave the failure to the program: the run goes on."""

    def finish(
        self,
        response: LLMResponse,
        *,
        error: BaseException | None = None,
        outcome: StreamOutcome | None = None,
    ) -> None:
        """Finish the call that the answer belongs to, if it is over."""
        if response.id is None:
            return
        if not is_over(response):
            pending = _pending.get(response.id)
            if pending is not None:
                pending.note_progress(response)
            return
        if response.finish_reasons == ["cancelled"]:
            outcome = "cancelled"
        pending = _pending.pop(response.id, None)
        if pending is not None:
            pending.finish(response, error=error, outcome=outcome)
        elif response.id not in _answered:
            self._record(response, error, outcome)

    def _record(
        self, response: LLMResponse, error: BaseException | None, outcome: StreamOutcome | None
    ) -> None:
        def read_request(*arguments: Any) -> LLMRequest:
            request = self._read_request(*arguments)
            request.operation = "fetch_response"
            request.model = response.model or ""
            return request

        attachment = Attachment(self.context)
        try:
            call = begin_call(read_request, *self._arguments)
        finally:
            attachment.detach()
        if call is not None:
            remember_answer(response)
            call.finish(response, error=error, outcome=outcome)


def begin_response_call(
    read_request: Callable[..., LLMRequest], endpoint: Any, client: Any, options: Any, *rest: Any
) -> Call | None:
    """Start the record of a request for a response."""
    call = begin_call(read_request, endpoint, client, options, *rest)
    if call is None:
        return None
    bodies = (options.json_data, options.extra_json)
    is_background = any(isinstance(body, dict) and body.get("background") for body in bodies)
    # A call inside another one's ends with that one.
    return ResponseCall(call, is_background=is_background and isinstance(call, LLMCall))


def begin_fetch_call(
    read_request: Callable[..., LLMRequest],
    endpoint: Any,
    client: Any,
    options: Any,
    kwargs: Any,
    *rest: Any,
) -> Call | None:
    """Start watching a request for an earlier answer."""
    if get_runtime() is None or not is_instrumentation_enabled():
        return None
    arguments = (endpoint, client, options, kwargs, *rest)
    return FetchCall(read_request, arguments, is_stream=bool(kwargs.get("stream")))


def is_over(response: LLMResponse) -> bool:
    """Whether nothing more of an answer will come."""
    return bool(response.finish_reasons) or response.error_type is not None


def remember_answer(response: LLMResponse) -> None:
    """Note that a span holds this answer."""
    if response.id is not None:
        _answered[response.id] = None
        while len(_answered) > _MAX_ANSWERED:
            _answered.popitem(last=False)
