"""One call of a model -> one span. The only owner of its start, stop and failure.

Provider patches translate their wire format into `LLMRequest` and `LLMResponse` and call
`begin_call`; everything about the span itself, its step number, its delta history and the
trajectory's verdict happens here, once.
"""

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.capture.episode import Trajectory, current_trajectory, mark_error
from starpo_trace.capture.history import History, Prompt
from starpo_trace.capture.runtime import Runtime
from starpo_trace.config import HistoryMode
from starpo_trace.guard import Guard
from starpo_trace.messages import Message, dump_json

if TYPE_CHECKING:
    from opentelemetry.context import Context

StreamOutcome = Literal["exhausted", "closed", "dropped", "cancelled", "error"]

_CALL_KEY: Final = otel_context.create_key("starpo-llm-call")


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRequest:
    """What a program asked a model, in no provider's dialect."""

    provider: str
    """`gen_ai.provider.name`."""
    model: str
    """Model name as sent."""
    messages: Sequence[Message]
    """The whole prompt."""
    tool_definitions: Any = None
    """Tool definitions as sent; None when no tools were offered."""
    parameters: Mapping[str, AttributeValue] = field(default_factory=dict)
    """Sampling parameters under their semantic-convention keys."""
    address: str | None = None
    """Host of the server."""
    port: int | None = None
    """Port of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMResponse:
    """What a model answered, possibly only in part."""

    id: str | None = None
    """The server's id of the response."""
    model: str | None = None
    """Model name as received."""
    messages: Sequence[Message] = ()
    """One per choice."""
    finish_reasons: Sequence[str] = ()
    """One per choice that finished."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """Token counts under their semantic-convention keys; absent when the server did not say."""
    prompt_token_ids: list[int] | None = None
    """Ids of the whole prompt, as the server's model read them."""
    response_token_ids: list[int] | None = None
    """Ids sampled for choice 0."""
    response_logprobs: list[float] | None = None
    """Log-probability of each sampled token of choice 0."""
    is_unread: bool = False
    """Whether the body went to the program unread."""


class LLMCall:
    """A model call in progress. Finishes exactly once, whoever comes first."""

    def __init__(
        self,
        *,
        span: Span,
        prompt: Prompt,
        request: LLMRequest,
        history_mode: HistoryMode,
        trajectory: Trajectory | None,
        step: int | None,
    ) -> None:
        self.span = span
        """The call's span."""
        self.context: Context = otel_context.set_value(
            _CALL_KEY, self, trace.set_span_in_context(span)
        )
        """Context to make current during the request."""
        self.trajectory = trajectory
        """The run it belongs to."""
        self.is_stream = bool(request.parameters.get(semconv.REQUEST_STREAM))
        """Whether the answer was asked for as a stream."""
        self._prompt = prompt
        self._offers_tools = bool(request.tool_definitions)
        self._history_mode: HistoryMode = history_mode
        self._step = step
        self._started_s = time.perf_counter()
        self._once = threading.Lock()

    def note_first_chunk(self) -> None:
        """Record how long the first chunk of a stream took."""
        self.span.set_attribute(
            semconv.RESPONSE_TIME_TO_FIRST_CHUNK, time.perf_counter() - self._started_s
        )

    def finish(
        self,
        response: LLMResponse,
        *,
        error: BaseException | None = None,
        outcome: StreamOutcome | None = None,
    ) -> None:
        """End the span with what was answered, how the stream ended and what went wrong."""
        if not self._once.acquire(blocking=False):
            return
        with Guard("ending a model call"):
            try:
                if self.span.is_recording():
                    self._record(response, error, outcome)
            finally:
                self.span.end()

    def fail(self, error: BaseException) -> None:
        """End the span of a request that raised instead of answering."""
        outcome: StreamOutcome | None = None
        if self.is_stream:
            outcome = "error" if isinstance(error, Exception) else "cancelled"
        self.finish(LLMResponse(), error=error, outcome=outcome)

    def _record(
        self,
        response: LLMResponse,
        error: BaseException | None,
        outcome: StreamOutcome | None,
    ) -> None:
        has_content = self._history_mode != "off"
        attributes = describe_response(response, has_content=has_content)
        history = self.trajectory.history if self.trajectory is not None else History()
        if has_content:
            answer = response.messages[0] if response.messages else None
            history.learn_prompt(self._prompt, answer)
            attributes.update(self._describe_tokens(response, history))
        if outcome is not None:
            attributes[semconv.STREAM_OUTCOME] = outcome
        if self.trajectory is not None:
            attributes[semconv.STEP_KIND] = self._decide_step_kind(response)
            self.trajectory.note_call(_list_reasons(response, error, outcome))
        self.span.set_attributes(attributes)
        if error is not None:
            mark_error(self.span, error, has_content=has_content)

    def _describe_tokens(
        self, response: LLMResponse, history: History
    ) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {}
        response_ids = response.response_token_ids
        if response.prompt_token_ids is not None:
            attributes.update(
                history.describe_tokens(
                    -1 if self._step is None else self._step,
                    response.prompt_token_ids,
                    response_ids or [],
                    self._history_mode,
                )
            )
        if response_ids is not None:
            attributes[semconv.RESPONSE_TOKEN_IDS] = dump_json(response_ids)
        if response.response_logprobs is not None:
            attributes[semconv.RESPONSE_LOGPROBS] = dump_json(response.response_logprobs)
        return attributes

    def _decide_step_kind(self, response: LLMResponse) -> str:
        asks_for_tools = any(
            part["type"] == "tool_call"
            for message in response.messages
            for part in message["parts"]
        )
        return "planner" if asks_for_tools or not self._offers_tools else "finalizer"


class OpenStream(Protocol):
    """A stream that a program is reading."""

    call: LLMCall

    def abandon(self) -> None:
        """Finish the call with what was read so far."""
        ...


_open_streams: "weakref.WeakSet[OpenStream]" = weakref.WeakSet()


def begin_call(runtime: Runtime, request: LLMRequest) -> LLMCall:
    """Start the span of a model call."""
    trajectory = current_trajectory()
    tracer = runtime.get_tracer()
    mode = runtime.history_mode  # the first span decides where to, and so the default
    history = trajectory.history if trajectory is not None else History()
    prompt = history.describe_prompt(request.messages, mode)
    attributes: dict[str, AttributeValue] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: request.provider,
        semconv.REQUEST_MODEL: request.model,
        **request.parameters,
        **prompt.attributes,
    }
    if request.address is not None:
        attributes[semconv.SERVER_ADDRESS] = request.address
    if request.port is not None:
        attributes[semconv.SERVER_PORT] = request.port
    if request.tool_definitions and mode != "off":
        attributes[semconv.TOOL_DEFINITIONS] = dump_json(request.tool_definitions)
    step = None
    if trajectory is not None:
        step = trajectory.take_step()
        attributes[semconv.TRAJECTORY_ID] = trajectory.id
        attributes[semconv.STEP] = step
    elif (remote_id := baggage.get_baggage(semconv.TRAJECTORY_ID)) is not None:
        attributes[semconv.TRAJECTORY_ID] = str(remote_id)
    span = tracer.start_span(f"chat {request.model}", kind=SpanKind.CLIENT, attributes=attributes)
    if trajectory is not None and step is not None:
        trajectory.set_step_span(step, span, is_llm=True)
    return LLMCall(
        span=span,
        prompt=prompt,
        request=request,
        history_mode=mode,
        trajectory=trajectory,
        step=step,
    )


def is_call_open() -> bool:
    """Whether this code runs inside a model call that already has its span."""
    return otel_context.get_value(_CALL_KEY) is not None


def describe_response(response: LLMResponse, *, has_content: bool) -> dict[str, AttributeValue]:
    """Response -> the attributes that say what was answered."""
    attributes: dict[str, AttributeValue] = dict(response.usage)
    if response.id is not None:
        attributes[semconv.RESPONSE_ID] = response.id
    if response.model is not None:
        attributes[semconv.RESPONSE_MODEL] = response.model
    if response.finish_reasons:
        attributes[semconv.RESPONSE_FINISH_REASONS] = list(response.finish_reasons)
    if has_content and response.messages:
        attributes[semconv.OUTPUT_MESSAGES] = dump_json(response.messages)
    return attributes


def _list_reasons(
    response: LLMResponse, error: BaseException | None, outcome: StreamOutcome | None
) -> set[str]:
    """Why a call is worth less to training than it might be."""
    reasons: set[str] = set()
    if error is not None:
        reasons.add("call_error")
        if outcome in {None, "error"} and not response.messages:
            return reasons  # nothing was sampled, so nothing is missing
    is_cut = outcome == "exhausted" and not response.finish_reasons
    if is_cut or outcome not in {None, "exhausted"}:
        reasons.add("stream_incomplete")
    if response.is_unread:
        reasons.add("unread_response")
    if response.prompt_token_ids is None or response.response_token_ids is None:
        reasons.add("token_ids_missing")
    if response.response_logprobs is None:
        reasons.add("logprob_missing")
    return reasons


def watch_stream(stream: OpenStream) -> None:
    """Remember an open stream, to finish it with its trajectory at the latest."""
    _open_streams.add(stream)


def finish_open_calls(trajectory: Trajectory | None = None) -> None:
    """Finish the streams that nobody has read to the end: of one trajectory, or all."""
    for stream in list(_open_streams):
        if trajectory is None or stream.call.trajectory is trajectory:
            stream.abandon()
