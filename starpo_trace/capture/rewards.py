"""What a run was worth -> a span that links to what was judged, now or days later."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsFloat, get_args

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags

from starpo_trace import semconv
from starpo_trace.capture.episode import Trajectory, current_trajectory
from starpo_trace.capture.runtime import get_runtime_or_warn
from starpo_trace.guard import Guard

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

Scope = Literal["step", "turn", "trajectory"]
Kind = Literal["process", "outcome"]
Source = Literal["environment", "user", "rule", "judge"]

_GENERATED_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Everything about a reward but its name and value."""

    scope: Scope
    """What was judged."""
    kind: Kind
    """Whether it judges the way or the result."""
    source: Source
    """Who judged."""
    min: float | None
    """Lowest possible value."""
    max: float | None
    """Highest possible value."""
    label: str | None
    """The value in words."""
    explanation: str | None
    """Why."""
    step: int | None
    """Step that was judged; None for the trajectory, or for the latest model call."""
    judge_id: str | None
    """Model and version that judged."""
    judge_prompt_hash: str | None
    """Hash of its prompt."""


def reward(  # noqa: PLR0913 (one keyword per property of a reward)
    value: float | Mapping[str, float],
    *,
    name: str = "reward",
    scope: Scope = "trajectory",
    kind: Kind | None = None,
    source: Source = "environment",
    min: float | None = None,
    max: float | None = None,
    label: str | None = None,
    explanation: str | None = None,
    reward_id: str | None = None,
    trajectory_id: str | None = None,
    step: int | None = None,
    judge_id: str | None = None,
    judge_prompt_hash: str | None = None,
) -> None:
    """Record what the run, or a part of it, was worth.

    Inside a trajectory it is about that one. Later, also from another process, name the
    `trajectory_id`. Sending a reward again (same id) replaces its value, so a sender may retry.
    A value that is no finite number is logged and ignored.

    Args:
        value: The reward, or several by name.
        name: What is measured.
        scope: What was judged: `"trajectory"`, `"turn"` or `"step"`.
        kind: `"outcome"` or `"process"`; default by the scope.
        source: Who judged: `"environment"`, `"user"`, `"rule"` or `"judge"`.
        min: Lowest possible value.
        max: Highest possible value.
        label: The value in words.
        explanation: Why.
        reward_id: Identity of the reward; default made of trajectory, scope, step and name.
        trajectory_id: The run that was judged; default the current one.
        step: The step that was judged; default the latest model call.
        judge_id: Model and version that judged, pinned.
        judge_prompt_hash: Hash of the judge's prompt.
    """
    with Guard("recording a reward"):
        judgement = Judgement(
            scope=scope,
            kind=kind or ("outcome" if scope == "trajectory" else "process"),
            source=source,
            min=min,
            max=max,
            label=label,
            explanation=explanation,
            step=step,
            judge_id=judge_id,
            judge_prompt_hash=judge_prompt_hash,
        )
        _check_judgement(judgement)
        if isinstance(value, Mapping):
            values = {key: _read_value(item, key) for key, item in value.items()}
        else:
            values = {name: _read_value(value, name)}
        for key, number in values.items():
            is_vector = isinstance(value, Mapping) and reward_id is not None
            own_id = f"{reward_id}:{key}" if is_vector else reward_id
            _record_reward(key, number, judgement, own_id, trajectory_id)


def _record_reward(
    name: str,
    value: float,
    judgement: Judgement,
    reward_id: str | None,
    trajectory_id: str | None,
) -> None:
    lost = None if trajectory_id is None else f"the reward {name!r} for {trajectory_id}"
    runtime = get_runtime_or_warn("reward()", lost=lost)
    if runtime is None:
        return
    trajectory = current_trajectory()
    if trajectory is not None and trajectory_id not in {None, trajectory.id}:
        trajectory = None  # it is about another run than the one in progress
    if trajectory is None and trajectory_id is None:
        raise ValueError(
            f"reward {name!r} belongs to no trajectory: call it inside `with trajectory(...)`, or "
            "give trajectory_id="
        )
    judged_id = trajectory.id if trajectory is not None else trajectory_id
    step = judgement.step
    if step is None and judgement.scope != "trajectory" and trajectory is not None:
        step = trajectory.last_llm_step
    tracer = runtime.get_tracer()
    attributes: dict[str, AttributeValue | None] = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "reward",
        semconv.TRAJECTORY_ID: judged_id,
        semconv.STEP: None if trajectory is None else trajectory.num_steps,
        semconv.EVALUATION_NAME: name,
        semconv.EVALUATION_VALUE: value,
        semconv.EVALUATION_LABEL: judgement.label,
        semconv.EVALUATION_EXPLANATION: (
            judgement.explanation if runtime.history_mode != "off" else None
        ),
        semconv.REWARD_ID: reward_id
        or f"{judged_id}:{judgement.scope}:{'' if step is None else step}:{name}",
        semconv.REWARD_SCOPE: judgement.scope,
        semconv.REWARD_KIND: judgement.kind,
        semconv.REWARD_SOURCE: judgement.source,
        semconv.REWARD_MIN: None if judgement.min is None else float(judgement.min),
        semconv.REWARD_MAX: None if judgement.max is None else float(judgement.max),
        semconv.REWARD_STEP: step,
        semconv.REWARD_JUDGE_ID: judgement.judge_id,
        semconv.REWARD_JUDGE_PROMPT_HASH: judgement.judge_prompt_hash,
    }
    target = _find_target(judgement, step, trajectory, trajectory_id)
    tracer.start_span(
        f"evaluate {name}",
        # A late reward is its own trace; the span that happens to be current judged nothing.
        context=None if trajectory is not None else Context(),
        links=() if target is None else (Link(target),),
        attributes={key: item for key, item in attributes.items() if item is not None},
    ).end()


def _find_target(
    judgement: Judgement,
    step: int | None,
    trajectory: Trajectory | None,
    trajectory_id: str | None,
) -> SpanContext | None:
    """Span that was judged; None when a late reward names a run by an id of the user's own."""
    if trajectory is not None:
        target = None
        if judgement.scope != "trajectory":
            target = trajectory.get_step_context(step)
        target = target or trajectory.span.get_span_context()
        return target if target.is_valid else None
    parts = _GENERATED_ID.fullmatch(trajectory_id or "")
    if parts is None:
        return None
    return SpanContext(
        trace_id=int(parts[1], 16),
        span_id=int(parts[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


def _read_value(value: Any, name: str) -> float:
    if isinstance(value, (str, bytes)) or not isinstance(value, SupportsFloat):
        raise TypeError(f"reward {name!r} is {value!r}: give a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"reward {name!r} is {number}: give a finite number")
    return number


def _check_judgement(judgement: Judgement) -> None:
    for word, known in (
        (judgement.scope, Scope),
        (judgement.kind, Kind),
        (judgement.source, Source),
    ):
        if word not in get_args(known):
            raise ValueError(f"reward with {word!r}: use one of {', '.join(get_args(known))}")
