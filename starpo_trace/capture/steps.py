"""What an agent does and sees between model calls -> spans of its trajectory."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Literal, get_args

import orjson
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import Trajectory, current_trajectory, mark_error
from starpo_trace.capture.history import History
from starpo_trace.capture.runtime import get_runtime_or_warn
from starpo_trace.guard import Guard
from starpo_trace.messages import dump_json, from_openai_chat

StepKind = Literal["planner", "tool", "retriever", "verifier", "finalizer", "other"]

_OPERATIONS: Final = {"tool": "execute_tool", "retriever": "retrieval"}


class Step:
    """A step in progress: yielded by `step()`."""

    def __init__(self, *, number: int | None, span: Span, has_content: bool) -> None:
        self.number = number
        """Its place in the trajectory; None outside of one."""
        self.span = span
        """Its span."""
        self._has_content = has_content

    def result(self, value: Any) -> None:
        """Record what the step gave; text as it is, anything else as JSON."""
        with Guard("recording a step's result"):
            if self._has_content:
                self.span.set_attribute(semconv.TOOL_CALL_RESULT, _as_text(value))


class StepScope:
    """Context manager made by `step()`."""

    def __init__(self, kind: StepKind, name: str, call_id: str | None, arguments: Any) -> None:
        self._kind: StepKind = kind
        self._name = name
        self._call_id = call_id
        self._arguments = arguments
        self._step: Step | None = None
        self._attachment: Attachment | None = None
        self._has_content = False

    def __enter__(self) -> Step:
        with Guard("beginning a step"):
            self._step = self._begin()
            self._attachment = Attachment(trace.set_span_in_context(self._step.span))
            return self._step
        return Step(number=None, span=trace.INVALID_SPAN, has_content=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with Guard("ending a step"):
            if self._attachment is not None:
                self._attachment.detach()
            if self._step is not None:
                if error is not None:
                    mark_error(self._step.span, error, has_content=self._has_content)
                self._step.span.end()

    async def __aenter__(self) -> Step:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _begin(self) -> Step:
        runtime = get_runtime_or_warn("step()")
        if runtime is None:
            return Step(number=None, span=trace.INVALID_SPAN, has_content=False)
        kind = self._kind
        with Guard("naming a step's kind"):
            if kind not in get_args(StepKind):
                kind = "other"
                raise ValueError(
                    f"kind {self._kind!r} of step {self._name!r}: use one of "
                    f"{', '.join(get_args(StepKind))}"
                )
        operation = _OPERATIONS.get(kind, kind)
        trajectory = current_trajectory()
        number = None if trajectory is None else trajectory.take_step()
        attributes = _common_attributes("step", trajectory)
        attributes[semconv.OPERATION_NAME] = operation
        attributes[semconv.STEP_KIND] = kind
        attributes[semconv.TOOL_NAME] = self._name
        if number is not None:
            attributes[semconv.STEP] = number
        tracer = runtime.get_tracer()
        self._has_content = runtime.history_mode != "off"
        if self._call_id is not None:
            attributes[semconv.TOOL_CALL_ID] = self._call_id
        if self._arguments is not None and self._has_content:
            attributes[semconv.TOOL_CALL_ARGUMENTS] = _as_text(self._arguments)
        span = tracer.start_span(
            f"{operation} {self._name}", kind=SpanKind.INTERNAL, attributes=attributes
        )
        if trajectory is not None and number is not None:
            trajectory.set_step_span(number, span)
        return Step(number=number, span=span, has_content=self._has_content)


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
        if runtime is None:
            return
        trajectory = current_trajectory()
        tracer = runtime.get_tracer()
        attributes = _common_attributes("state", trajectory)
        attributes[semconv.STATE_NAME] = name
        if runtime.history_mode != "off":
            states = {} if trajectory is None else trajectory.states
            attributes.update(_describe_state(obj, name, states))
        tracer.start_span(f"state {name}", attributes=attributes).end()


def observe(messages: Sequence[Mapping[str, Any]]) -> None:
    """Record what the agent saw after its last model call, which no later call would show.

    Args:
        messages: The whole history, as chat messages in OpenAI's format.
    """
    with Guard("recording an observation"):
        runtime = get_runtime_or_warn("observe()")
        if runtime is None:
            return
        trajectory = current_trajectory()
        tracer = runtime.get_tracer()
        history = trajectory.history if trajectory is not None else History()
        prompt = history.describe_prompt(
            [from_openai_chat(_as_chat_message(message)) for message in messages],
            runtime.history_mode,
        )
        attributes = {**_common_attributes("observation", trajectory), **prompt.attributes}
        tracer.start_span("observe", attributes=attributes).end()
        history.learn_prompt(prompt)


def make_merge_patch(old: Any, new: Any) -> Any:
    """Two JSON values -> the RFC 7396 patch from one to the other.

    Lossy where `new` holds nulls in objects, which a patch cannot say; the caller checks.

    Example: `make_merge_patch({"a": 1, "b": 2}, {"a": 1, "c": 3}) == {"b": None, "c": 3}`.
    """
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif type(old[key]) is not type(value) or old[key] != value:
            patch[key] = make_merge_patch(old[key], value)
    return patch


def apply_merge_patch(value: Any, patch: Any) -> Any:
    """Value and patch -> patched value (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge_patch(result.get(key), item)
    return result


def _describe_state(
    obj: Any, name: str, states: dict[str, tuple[str, Any]]
) -> dict[str, AttributeValue]:
    """State -> its attributes; remembers it in `states` as the base of the next."""
    text = dump_json(obj)
    value = _load_json(text)
    data = _dump_canonical(value)
    digest = blake2b(data, digest_size=16).hexdigest()
    earlier = states.get(name)
    states[name] = (digest, value)
    attributes: dict[str, AttributeValue] = {semconv.STATE_HASH: digest}
    if earlier is not None:
        patch = make_merge_patch(earlier[1], value)
        patch_text = dump_json(patch)
        restored = apply_merge_patch(earlier[1], patch)
        if len(patch_text) < len(text) and _dump_canonical(restored) == data:
            attributes[semconv.STATE_BASE] = earlier[0]
            attributes[semconv.STATE_DIFF] = patch_text
            return attributes
    attributes[semconv.STATE_VALUE] = text
    return attributes


def _load_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # lone surrogates
        return json.loads(text)


def _dump_canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _common_attributes(record: str, trajectory: Trajectory | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: record,
    }
    if trajectory is not None:
        attributes[semconv.TRAJECTORY_ID] = trajectory.id
        attributes[semconv.STEP] = trajectory.num_steps
    return attributes


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else dump_json(value)


def _as_chat_message(message: Any) -> Mapping[str, Any]:
    """Chat message as a mapping, also when the agent keeps the SDK's own objects."""
    if isinstance(message, Mapping):
        return message
    return message.model_dump(exclude_unset=True, exclude={"parsed"}, warnings=False)
