"""What an agent does and sees between model calls -> spans of its trajectory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.capture.apart import set_current
from starpo_trace.capture.attachment import Entry, OpenEntries
from starpo_trace.capture.episode import Trajectory, current_trajectory, mark_error
from starpo_trace.capture.history import History
from starpo_trace.capture.lineage import Lineage
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.parts import STEP_SAMPLED_KEY
from starpo_trace.capture.runtime import Runtime, get_runtime_or_warn
from starpo_trace.guard import Guard
from starpo_trace.limits import limit_json
from starpo_trace.mergepatch import apply_merge_patch, dump_canonical, load_json, make_merge_patch
from starpo_trace.messages import dump_json, from_openai_chat, make_encodable

if TYPE_CHECKING:
    from starpo_trace.privacy.redactor import Redactor

StepKind = Literal["planner", "tool", "retriever", "verifier", "finalizer", "other"]

_OPERATIONS: Final = {"tool": "execute_tool", "retriever": "retrieval"}


class Step:
    """A step in progress: yielded by `step()`."""

    def __init__(
        self,
        *,
        number: int | None,
        span: Span,
        recorder: "_ContentRecorder | None" = None,
    ) -> None:
        self.number = number
        """Its place in the trajectory; None outside of one."""
        self.span = span
        """Its span."""
        self._recorder = recorder
        self._num_forks = Lineage.num_forks

    def result(self, value: Any) -> None:
        """Record what the step gave; text as it is, anything else as JSON."""
        with Guard("recording a step's result"):
            if self._recorder is not None and self.span.is_recording():
                self.span.set_attribute(
                    semconv.TOOL_CALL_RESULT, self._recorder.write_content(value)
                )

    def end(self, error: BaseException | None) -> None:
        """End its span, with the exception that left it."""
        if self._num_forks != Lineage.num_forks:
            return
        try:
            if error is not None:
                mark_error(self.span, error, has_content=self._recorder is not None)
        finally:
            self.span.end()


class StepScope:
    """Context manager made by `step()`."""

    def __init__(self, kind: StepKind, name: str, call_id: str | None, arguments: Any) -> None:
        self._kind: StepKind = kind
        self._name = name
        self._call_id = call_id
        self._arguments = arguments
        self._open: OpenEntries[Step] = OpenEntries()

    def __enter__(self) -> Step:
        if not is_instrumentation_enabled():
            return Step(number=None, span=trace.INVALID_SPAN)
        with Guard("beginning a step"):
            step, context = begin_step(self._kind, self._name, self._call_id, self._arguments)
            self._open.add(None if context is None else Entry(context), step)
            return step
        return Step(number=None, span=trace.INVALID_SPAN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with Guard("ending a step"):
            opened = self._open.take()
            if opened is None:
                return
            entry, step = opened
            if entry is not None:
                entry.leave()
            step.end(error)

    async def __aenter__(self) -> Step:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def begin_step(
    kind: StepKind, name: str, call_id: str | None, arguments: Any
) -> tuple[Step, Context | None]:
    """A step that begins -> the step, and the Context for it; None where nothing is recorded."""
    runtime = get_runtime_or_warn("step()")
    if runtime is None:
        return Step(number=None, span=trace.INVALID_SPAN), None
    with Guard("naming a step's kind"):
        if kind not in get_args(StepKind):
            given, kind = kind, "other"
            raise ValueError(
                f"kind {given!r} of step {name!r}: use one of {', '.join(get_args(StepKind))}"
            )
    operation = _OPERATIONS.get(kind, kind)
    trajectory = current_trajectory()
    number = None if trajectory is None else trajectory.take_step()
    attributes = _common_attributes("step", trajectory)
    attributes[semconv.OPERATION_NAME] = operation
    attributes[semconv.STEP_KIND] = kind
    attributes[semconv.TOOL_NAME] = shown = redact_text(str(name))
    if number is not None:
        attributes[semconv.STEP] = number
    tracer = runtime.get_tracer()
    recorder = _make_recorder(runtime, trajectory)
    if call_id is not None:
        attributes[semconv.TOOL_CALL_ID] = redact_text(str(call_id))
    if arguments is not None and recorder is not None:
        attributes[semconv.TOOL_CALL_ARGUMENTS] = recorder.write_content(arguments)
    span = tracer.start_span(f"{operation} {shown}", kind=SpanKind.INTERNAL, attributes=attributes)
    if trajectory is not None and number is not None:
        trajectory.set_step_span(number, span)
    context = set_current(span)
    if number is None:
        context = otel_context.set_value(STEP_SAMPLED_KEY, span.is_recording(), context)
    return Step(number=number, span=span, recorder=recorder), context


def step(
    kind: StepKind, name: str, *, call_id: str | None = None, arguments: Any = None
) -> StepScope:
    """Record a step that is no model call, around a `with` or `async with` block.

    An exception that leaves the block is recorded as the step's error, and goes on.

    Example:
        with starpo_trace.step("tool", "search", call_id=call.id, arguments=text) as step:
            step.result(search(text))

    Args:
        kind: What the step is for: tool, retriever, verifier, planner, finalizer or other.
        name: Name of the tool.
        call_id: Id of the tool call the model made, which joins the step to its action.
        arguments: What the tool was given; text is kept verbatim, anything else as JSON.
    """
    return StepScope(kind, name, call_id, arguments)


def state(obj: Any, name: str = "state") -> None:
    """Record the state of the environment (or of the agent) at this point of the trajectory.

    Written whole the first time, later as a merge patch where that is smaller. What JSON cannot
    hold is kept as its `repr`.

    Args:
        obj: The state.
        name: Which state, when there are several.
    """
    with Guard("recording a state"):
        runtime = get_runtime_or_warn("state()")
        if runtime is None or not is_instrumentation_enabled():
            return
        trajectory = current_trajectory()
        tracer = runtime.get_tracer()
        attributes = _common_attributes("state", trajectory)
        attributes[semconv.STATE_NAME] = shown_name = redact_text(name)
        recorder = _make_recorder(runtime, trajectory)
        if recorder is not None:
            states = {} if trajectory is None else trajectory.states
            attributes.update(_describe_state(obj, name, states, recorder))
        tracer.start_span(f"state {shown_name}", attributes=attributes).end()


def observe(messages: Sequence[Mapping[str, Any]]) -> None:
    """Record what the agent saw after its last model call, which no later call would show.

    Args:
        messages: The whole history, as chat messages in OpenAI's format.
    """
    with Guard("recording an observation"):
        runtime = get_runtime_or_warn("observe()")
        if runtime is None or not is_instrumentation_enabled():
            return
        trajectory = current_trajectory()
        tracer = runtime.get_tracer()
        history = trajectory.history if trajectory is not None else History()
        seen = [from_openai_chat(_as_chat_message(message)) for message in messages]
        if runtime.redactor is not None and runtime.history_mode != "off":
            seen = [runtime.redactor.redact_message(message) for message in seen]
        prompt = history.describe_prompt(seen, runtime.history_mode)
        attributes = {**_common_attributes("observation", trajectory), **prompt.attributes}
        recorder = _make_recorder(runtime, trajectory)
        text = attributes.get(semconv.INPUT_MESSAGES)
        if recorder is not None and isinstance(text, str):
            attributes[semconv.INPUT_MESSAGES] = recorder.limit(text)
        tracer.start_span("observe", attributes=attributes).end()
        history.learn_prompt(prompt)


def _common_attributes(record: str, trajectory: Trajectory | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: record,
    }
    if trajectory is not None:
        attributes[semconv.TRAJECTORY_ID] = trajectory.id
        attributes[semconv.STEP] = trajectory.num_steps
        if record != "step":  # whose span `set_step_span` marks
            attributes.update(trajectory.describe_part())
    return attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class _ContentRecorder:
    """What may be recorded of content: redacted, and no longer than the limit."""

    redactor: "Redactor | None"
    max_bytes: int | None
    trajectory: Trajectory | None

    def write_content(self, value: Any) -> str:
        """Text as it is, anything else as JSON."""
        text = make_encodable(value) if isinstance(value, str) else dump_json(value)
        return self.limit(text if self.redactor is None else self.redactor.redact_json(text))

    def limit(self, text: str) -> str:
        """Text -> text within the limit; notes on the trajectory when something was cut."""
        if self.max_bytes is None:
            return text
        limited = limit_json(text, self.max_bytes)
        if limited is not text and self.trajectory is not None:
            self.trajectory.note_reason("content_truncated")
        return limited


def _make_recorder(runtime: Runtime, trajectory: Trajectory | None) -> _ContentRecorder | None:
    """None when no content may be recorded."""
    if runtime.history_mode == "off":
        return None
    return _ContentRecorder(
        redactor=runtime.redactor,
        max_bytes=runtime.config.max_content_bytes,
        trajectory=trajectory,
    )


def _describe_state(
    obj: Any, name: str, states: dict[str, tuple[str, Any]], recorder: _ContentRecorder
) -> dict[str, AttributeValue]:
    """State -> its attributes; remembers it in `states` as the base of the next."""
    text = dump_json(obj)
    if recorder.redactor is not None:
        text = recorder.redactor.redact_json(text)
    value = load_json(text)
    data = dump_canonical(value)
    digest = blake2b(data, digest_size=16).hexdigest()
    attributes: dict[str, AttributeValue] = {semconv.STATE_HASH: digest}
    earlier = states.get(name)
    limit = recorder.max_bytes
    if earlier is not None:
        patch = make_merge_patch(earlier[1], value)
        patch_text = dump_json(patch)
        restored = apply_merge_patch(earlier[1], patch)
        is_shorter = len(patch_text) < len(text)
        is_within = limit is None or limit_json(patch_text, limit) is patch_text
        if is_shorter and is_within and dump_canonical(restored) == data:
            attributes[semconv.STATE_BASE] = earlier[0]
            attributes[semconv.STATE_DIFF] = patch_text
            states[name] = (digest, value)
            return attributes
    attributes[semconv.STATE_VALUE] = limited = recorder.limit(text)
    if limited is text:
        states[name] = (digest, value)
    else:  # nobody could apply a patch to it
        states.pop(name, None)
    return attributes


def _as_chat_message(message: Any) -> Mapping[str, Any]:
    """Chat message as a mapping, also when the agent keeps the SDK's own objects."""
    if isinstance(message, Mapping):
        return message
    return message.model_dump(exclude_unset=True, exclude={"parsed"}, warnings=False)
