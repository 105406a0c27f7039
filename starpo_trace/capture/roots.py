"""Identity of a run -> its root span, and the Context that it is current in."""

import operator
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from starpo_trace import semconv
from starpo_trace.capture.apart import set_current
from starpo_trace.capture.episode import Trajectory, leave_finished_run
from starpo_trace.capture.keys import AROUND_KEY, TRAJECTORY_KEY
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.parts import Checkpoint, Part, make_part, read_token, send_identity
from starpo_trace.capture.runtime import Runtime, get_runtime_or_warn
from starpo_trace.capture.tally import Tally
from starpo_trace.guard import Guard, warn_once
from starpo_trace.messages import write_text

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

DEFAULT_NAME: Final = "agent"
_NUMBERS: Final = (semconv.ATTEMPT, semconv.SEED)


def begin_trajectory(
    name: str, given: Mapping[str, object], resume: str | None
) -> tuple[Trajectory, Context]:
    """Begin a run: what is yielded of it, and the Context for its block."""
    leave_finished_run()
    runtime = get_runtime_or_warn("trajectory()")
    if not is_instrumentation_enabled():
        runtime = None
    checkpoint = None if resume is None else _read_checkpoint(resume)
    identity = _complete_identity(name, given, checkpoint, runtime)
    part = None
    if checkpoint is not None:
        part = make_part("resume", base=checkpoint.num_steps, parent=checkpoint.part)
    trajectory_id = checkpoint.trajectory_id if checkpoint else given.get(semconv.TRAJECTORY_ID)
    span = _start_root_span(runtime, identity, part, checkpoint)
    trajectory_id = (
        _mask_id(write_text(trajectory_id)) if trajectory_id else _make_trajectory_id(span)
    )
    span.set_attribute(semconv.TRAJECTORY_ID, trajectory_id)
    begun = Trajectory(
        trajectory_id=trajectory_id,
        span=span,
        history_mode=runtime.history_mode if runtime is not None else "off",
        identity=identity,
        part=part,
        is_sampled=span.is_recording(),
        tally=None if runtime is None or runtime.get_meters() is None else Tally(),
    )
    if checkpoint is not None:
        begun.history.restore_tail(checkpoint.tail)
    context = otel_context.set_value(AROUND_KEY, otel_context.get_current())
    context = otel_context.set_value(TRAJECTORY_KEY, begun, context)
    if runtime is None:
        return begun, context
    context = set_current(span, context)
    return begun, send_identity(
        context, begun.id, begun, identity=identity, part=part, is_sampled=begun.is_sampled
    )


def _read_checkpoint(resume: str) -> Checkpoint | None:
    """Token -> checkpoint; a run whose token cannot be read begins anew."""
    with Guard("reading a resume token"):
        return read_token(resume)
    return None


def _complete_identity(
    name: str,
    given: Mapping[str, object],
    checkpoint: Checkpoint | None,
    runtime: Runtime | None,
) -> dict[str, str | int]:
    identity: dict[str, object] = {}
    if runtime is not None and runtime.config.policy_id is not None:
        identity[semconv.POLICY_ID] = runtime.config.policy_id
    if checkpoint is not None:
        identity.update(checkpoint.identity)
        if name == DEFAULT_NAME:
            name = str(identity.get(semconv.AGENT_NAME, name))
    identity.update({key: value for key, value in given.items() if value is not None})
    identity.pop(semconv.TRAJECTORY_ID, None)
    identity[semconv.AGENT_NAME] = name
    numbers = {key: _read_number(key, identity.pop(key, None)) for key in _NUMBERS}
    texts = {key: redact_text(value) for key, value in identity.items()}
    return {**texts, **{key: value for key, value in numbers.items() if value is not None}}


def _read_number(key: str, value: object) -> int | None:
    """Attempt or seed -> what a span can hold; None, and a warning, for what it cannot."""
    if value is None:
        return None
    try:
        number = int(operator.index(value))  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is not None and -(2**63) <= number < 2**63:
        return number
    warn_once(
        f"number {key}",
        "%s=%r of trajectory() is not recorded: give a whole number of at most 64 bits with its "
        "sign, like %s=7",
        key.rpartition(".")[2],
        value,
        key.rpartition(".")[2],
    )
    return None


def _start_root_span(
    runtime: Runtime | None,
    identity: Mapping[str, str | int],
    part: Part | None,
    checkpoint: Checkpoint | None,
) -> Span:
    if runtime is None:
        return trace.INVALID_SPAN
    first = None
    if checkpoint is not None and checkpoint.trace_id:
        first = SpanContext(
            checkpoint.trace_id,
            checkpoint.span_id,
            is_remote=True,
            trace_flags=TraceFlags(
                TraceFlags.SAMPLED if checkpoint.is_sampled else TraceFlags.DEFAULT
            ),
        )
    tracer = runtime.get_tracer()
    if checkpoint is not None and not checkpoint.is_sampled:
        runtime.follow_trajectories()
        return NonRecordingSpan(first or trace.INVALID_SPAN_CONTEXT)
    attributes: dict[str, AttributeValue] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "trajectory",
        semconv.OPERATION_NAME: "invoke_agent",
        **identity,
    }
    if part is not None:
        attributes.update(part.describe())
    return tracer.start_span(
        f"invoke_agent {identity[semconv.AGENT_NAME]}",
        kind=SpanKind.INTERNAL,
        attributes=attributes,
        links=() if first is None else (Link(first),),
    )


def _mask_id(trajectory_id: str) -> str:
    masked = redact_text(trajectory_id)
    if masked != trajectory_id:
        warn_once(
            "masked trajectory id",
            "a trajectory_id holds what is masked and is recorded as %r; runs whose ids differ only "
            "there become one. Give ids without secrets, or leave them out",
            masked,
        )
    return masked


def _make_trajectory_id(span: Span) -> str:
    own = span.get_span_context()
    around = trace.get_current_span().get_span_context()
    if not own.is_valid or own.span_id == around.span_id:  # nothing is recorded
        return uuid.uuid4().hex
    return f"{own.trace_id:032x}-{own.span_id:016x}"
