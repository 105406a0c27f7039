"""A model call with a span of its own: the only owner of its start, stop and failure.

The span itself, its step number, its delta history and the trajectory's verdict happen here, once.
"""

import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from starpo_trace import semconv
from starpo_trace.capture.apart import set_current
from starpo_trace.capture.episode import Trajectory, mark_error
from starpo_trace.capture.exchange import (
    LLMRequest,
    LLMResponse,
    StreamOutcome,
    complete_response,
    decide_step_kind,
    describe_request,
    describe_response,
    list_reasons,
    redact_request,
    redact_response,
)
from starpo_trace.capture.history import History, Prompt, describe_lone_prompt
from starpo_trace.capture.keys import CALL_KEY
from starpo_trace.capture.lineage import Lineage
from starpo_trace.capture.outcome import name_error
from starpo_trace.capture.runtime import Runtime
from starpo_trace.capture.spans import has_plain_sampler, put_attributes
from starpo_trace.capture.tally import measure_call
from starpo_trace.guard import Guard, handle_failure
from starpo_trace.messages import dump_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

    from starpo_trace.config import HistoryMode
    from starpo_trace.privacy.redactor import Redactor

_LIMITED_KEYS: Final = (
    semconv.INPUT_MESSAGES,
    semconv.OUTPUT_MESSAGES,
    semconv.TOOL_DEFINITIONS,
    semconv.REQUEST_PARAMETERS,
)


class Call(Protocol):
    """A model call in progress, as a provider's patch sees it."""

    context: "Context"
    """Context to make current during the request."""
    trajectory: Trajectory | None
    """The run it belongs to."""
    is_stream: bool
    """Whether the answer was asked for as a stream."""

    def note_first_chunk(self) -> None:
        """Record how long the first chunk of a stream took."""
        ...

    def finish(
        self,
        response: LLMResponse,
        *,
        error: BaseException | None = None,
        outcome: StreamOutcome | None = None,
    ) -> None:
        """Record what was answered, how the stream ended and what went wrong; once."""
        ...

    def fail(self, error: BaseException) -> None:
        """Record a request that raised instead of answering."""
        ...


class LLMCall:
    """A model call with a span of its own. Finishes exactly once, whoever comes first."""

    def __init__(
        self, runtime: Runtime, request: LLMRequest, trajectory: Trajectory | None
    ) -> None:
        self.trajectory = trajectory
        self.is_stream = request.is_stream
        self.is_passed_on = request.is_passed_on
        """Whether an SDK below makes the same call."""
        self._runtime = runtime
        self._request = request
        self._wire_response: LLMResponse | None = None
        self._once = threading.Lock()
        self._num_forks = Lineage.num_forks
        self._step = None if trajectory is None else trajectory.take_step()
        tracer = runtime.get_tracer()  # the first span decides where to, and so the history mode
        self._history_mode: HistoryMode = runtime.history_mode
        self.span: Span = _start_span(tracer, request, runtime.redactor)
        self.context: Context = otel_context.set_value(CALL_KEY, self, set_current(self.span))
        self._is_recording = self.span.is_recording()
        self._attributes: dict[str, AttributeValue] = {}
        self._notes: dict[str, AttributeValue] = {}
        self._failed: list[dict[str, str | int]] = []
        self._last_failed = 0
        self.num_inner = 0
        """Calls of the SDKs below, so far."""
        self._prompt: Prompt | None = None
        if trajectory is not None and self._step is not None:
            trajectory.set_step_span(self._step, self.span, is_llm=not request.is_retrieval)
        if self._is_recording:
            self._describe_request(request)
        self._is_measured = runtime.get_meters() is not None
        self._started_s = time.perf_counter()

    @property
    def is_finished(self) -> bool:
        """Whether its end has begun to be recorded."""
        return self._once.locked()

    def _describe_request(self, request: LLMRequest) -> None:
        """Take the request down now: the program may change its messages while it waits."""
        mode = self._history_mode
        redactor = self._runtime.redactor
        if redactor is not None:
            request = redact_request(request, redactor)
        self._request = request
        attributes = describe_request(request, has_content=mode != "off")
        trajectory = self.trajectory
        if not request.is_retrieval:
            if trajectory is None:
                self._prompt = describe_lone_prompt(request.messages, mode)
            else:
                self._prompt = trajectory.history.describe_prompt(
                    request.messages,
                    mode,
                    previous_response_id=None if request.is_rebased else request.base_id,
                )
            attributes.update(self._prompt.attributes)
        if trajectory is not None and self._step is not None:
            attributes[semconv.TRAJECTORY_ID] = trajectory.id
            attributes[semconv.STEP] = self._step
        self._attributes = attributes

    def adopt_request(self, request: LLMRequest) -> None:
        """Prefer what an SDK below sent over what its caller was asked."""
        self._wire_response = None  # of an attempt before this one
        if self._is_recording:
            if not request.messages:  # an SDK below that we know little about
                return
            if self._request.is_routed and not request.is_routed:
                request.provider, request.is_routed = self._request.provider, True
            self._describe_request(request)

    def adopt_response(self, response: LLMResponse) -> None:
        """Remember what an SDK below received; it completes what its caller makes of it.

        Of several layers the lowest finishes first and has seen most.
        """
        if self._wire_response is None:
            self._wire_response = response

    def note_first_chunk(self) -> None:
        """Record how long the first chunk of a stream took."""
        self._notes[semconv.RESPONSE_TIME_TO_FIRST_CHUNK] = time.perf_counter() - self._started_s

    def note_routing(self, attributes: "Mapping[str, AttributeValue]") -> None:
        """Record where a router sent the call; of several attempts the last one counts."""
        redactor = self._runtime.redactor
        told = attributes if redactor is None else redactor.redact_value(attributes)
        self._notes.update(told)

    def note_failed_attempt(self, error: Exception, number: int) -> None:
        """Remember that an SDK below failed, whose caller may try again.

        Of several layers the lowest that fails does so first, and was begun after the others.
        """
        if number <= self._last_failed:
            return
        self._last_failed = number
        request = self._request
        status = getattr(error, "status_code", None)
        told = {
            "model": request.model,
            "address": request.address,
            "port": request.port,
            "error": name_error(error),
            "status": status if isinstance(status, int) else None,
        }
        self._failed.append({key: value for key, value in told.items() if value is not None})

    def finish(
        self,
        response: LLMResponse,
        *,
        error: BaseException | None = None,
        outcome: StreamOutcome | None = None,
    ) -> None:
        """End the span with what was answered, how the stream ended and what went wrong."""
        if not self._once.acquire(blocking=False) or self._num_forks != Lineage.num_forks:
            return
        try:
            try:
                self._measure(response, error)
                if self._is_recording:
                    self._record(response, error, outcome)
            finally:
                # Here the program's own span processors run too.
                self.span.end(response.ended_ns)
        except Exception as failure:  # noqa: BLE001 (as in `Guard`)
            handle_failure("ending a model call", failure)

    def fail(self, error: BaseException) -> None:
        """End the span of a request that raised instead of answering."""
        outcome: StreamOutcome | None = None
        if self.is_stream:
            outcome = "error" if isinstance(error, Exception) else "cancelled"
        self.finish(LLMResponse(), error=error, outcome=outcome)

    def _measure(self, response: LLMResponse, error: BaseException | None) -> None:
        """Count the call, also one that is not recorded."""
        meters = self._runtime.get_meters() if self._is_measured else None
        if meters is None:
            return
        with Guard("measuring a model call"):
            duration_s = time.perf_counter() - self._started_s
            called = measure_call(self._request, response, self._wire_response, error, duration_s)
            meters.put(called)
            trajectory = self.trajectory
            if trajectory is not None and trajectory.tally and not self._request.is_retrieval:
                is_answered = error is None or bool(response.messages)
                trajectory.tally.add_call(called, is_answered=is_answered)

    def _record(
        self,
        response: LLMResponse,
        error: BaseException | None,
        outcome: StreamOutcome | None,
    ) -> None:
        attributes = self._attributes
        attributes.update(self._notes)
        if self._failed:
            attributes[semconv.FAILED_ATTEMPTS] = dump_json(self._failed)
        try:
            self._describe_response(response, error, outcome)
        finally:  # what is known of the request is kept whatever is wrong with the answer
            max_bytes = self._runtime.config.max_content_bytes
            if max_bytes is not None:
                self._limit_content(max_bytes)
            put_attributes(self.span, attributes)
            if error is not None:
                mark_error(self.span, error, has_content=self._history_mode != "off")
            elif response.error_type is not None:
                self._mark_failure(response.error_type, response.error_message)

    def _limit_content(self, max_bytes: int) -> None:
        from starpo_trace.limits import limit_json

        for key in _LIMITED_KEYS:
            text = self._attributes.get(key)
            if not isinstance(text, str):
                continue
            self._attributes[key] = limited = limit_json(text, max_bytes)
            if limited is not text and self.trajectory is not None:
                self.trajectory.note_reason("content_truncated")

    def _mark_failure(self, kind: str, message: str | None) -> None:
        """Record a failure that the server reported in its answer."""
        redactor = self._runtime.redactor
        kind = redactor.redact_text(kind) if redactor else kind
        description = kind
        if message and self._history_mode != "off":
            description = f"{kind}: {redactor.redact_text(message) if redactor else message}"
        self.span.set_attribute(semconv.ERROR_TYPE, kind)
        self.span.set_status(Status(StatusCode.ERROR, description))

    def _describe_response(
        self,
        response: LLMResponse,
        error: BaseException | None,
        outcome: StreamOutcome | None,
    ) -> None:
        mode = self._history_mode
        attributes = self._attributes
        trajectory = self.trajectory
        if self._wire_response is not None:
            response = complete_response(response, self._wire_response)
        if self._runtime.redactor is not None:
            response = redact_response(
                response,
                self._runtime.redactor,
                is_prompt_redacted=self._request.is_redacted,
            )
        attributes.update(describe_response(response, has_content=mode != "off"))
        if mode != "off" and self._prompt is not None:
            if trajectory is None:
                if response.prompt_token_ids is not None:
                    attributes[semconv.PROMPT_TOKEN_IDS] = dump_json(response.prompt_token_ids)
            else:
                self._learn(trajectory.history, self._prompt, response)
        is_turn = not self._request.is_retrieval
        if outcome == "exhausted" and is_turn and not response.finish_reasons:
            outcome = "cut"  # the server stopped before the answer said that it ends
        if outcome is not None:
            attributes[semconv.STREAM_OUTCOME] = outcome
        if trajectory is not None and not self._request.is_retrieval:
            attributes[semconv.STEP_KIND] = decide_step_kind(self._request, response)
            trajectory.note_call(
                list_reasons(self._request, response, error, outcome, self._prompt)
            )

    def _learn(self, history: History, prompt: Prompt, response: LLMResponse) -> None:
        """Let the calls that follow leave out what this span holds."""
        answer = response.messages[0] if response.messages else None
        history.learn_prompt(prompt, answer, response_id=response.id)
        if self._request.conversation_id is not None:
            history.learn_prompt(prompt, answer, response_id=self._request.conversation_id)
        if response.prompt_token_ids is not None:
            self._attributes.update(
                history.describe_tokens(
                    -1 if self._step is None else self._step,
                    response.prompt_token_ids,
                    response.response_token_ids or [],
                    self._history_mode,
                )
            )


def _start_span(tracer: trace.Tracer, request: LLMRequest, redactor: "Redactor | None") -> Span:
    attributes: dict[str, AttributeValue] | None = None
    model = request.model
    if redactor is not None:
        model = redactor.redact_text(model)
    if not has_plain_sampler(tracer):
        shown = request if redactor is None else redact_request(request, redactor)
        attributes = describe_request(shown, has_content=False)
    return tracer.start_span(
        f"{request.operation} {model}".rstrip(),
        kind=SpanKind.CLIENT,
        attributes=attributes,
        start_time=request.started_ns,
    )
