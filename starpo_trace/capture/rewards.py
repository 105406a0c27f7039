"""What a run was worth -> a span that links to what was judged, now or days later."""

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsFloat, get_args

from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Link, SpanContext, TraceFlags

from starpo_trace import semconv
from starpo_trace.capture.episode import (
    Trajectory,
    current_trajectory,
    find_open_trajectory,
)
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.runtime import Runtime, get_runtime_or_warn
from starpo_trace.capture.tally import Judged
from starpo_trace.errors import ConfigError
from starpo_trace.guard import Guard, handle_failure, warn_once
from starpo_trace.signing import Keyring, SignedReward, find_keyring, parse_key, sign_reward

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

Scope = Literal["step", "turn", "trajectory"]
Kind = Literal["process", "outcome"]
Source = Literal["environment", "user", "rule", "judge"]

_MAX_STEP: Final = 2**31 - 1
_MAX_PROBLEMS: Final = 100
_MAX_PROBLEM: Final = 120
_problems: set[str] = set()
"""Refused rewards that were logged by themselves; past the limit all others are one problem."""
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
    task_id: str | None
    """Task of the run that was judged; None for that of the run in progress."""
    verifier_digest: str | None
    """Hash of the verifier's code or image."""


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
    task_id: str | None = None,
    verifier_digest: str | None = None,
    sign: bool | None = None,
    key: str | Keyring | None = None,
) -> None:
    """Record what the run, or a part of it, was worth.

    Inside a trajectory it is about that one. Later, also from another process, name the
    `trajectory_id`. Sending a reward again (same id) replaces its value, so a sender may retry.
    A reward that cannot be recorded, say of no finite number, is logged and left out, and the
    run has the reason `reward_refused`.

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
        step: The step that was judged; default the latest model call, where the run is in
            progress in this process.
        judge_id: Model and version that judged, pinned.
        judge_prompt_hash: Hash of the judge's prompt.
        task_id: The run's task, which a signature covers; default that of the run in progress.
        verifier_digest: Hash of the verifier's code or image, which a signature covers.
        sign: Whether to sign: default when there is a key; True records nothing without one.
        key: Key to sign with, `"id:hex"` or a `Keyring`; default `STARPO_REWARD_KEY` or the first
            of `STARPO_REWARD_KEY_FILE`. Keep keys out of the agent's own process.
    """
    if not is_instrumentation_enabled():
        return
    try:
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
            task_id=task_id,
            verifier_digest=verifier_digest,
        )
        _check_judgement(judgement, name)
        _check_names(value if isinstance(value, Mapping) else (name,))
        keyring = None if sign is False else _find_keyring(key, is_needed=sign is True)
        if isinstance(value, Mapping):
            values = {key: _read_value(item, key) for key, item in value.items()}
        else:
            values = {name: _read_value(value, name)}
        for each, number in values.items():
            is_vector = isinstance(value, Mapping) and reward_id is not None
            own_id = f"{reward_id}:{each}" if is_vector else reward_id
            _record_reward(each, number, judgement, own_id, trajectory_id, keyring)
    except Exception as error:  # noqa: BLE001 (as in `Guard`)
        with Guard("reporting a reward that is not recorded"):
            _report_refusal(error, name, trajectory_id)


def _report_refusal(error: Exception, name: str, trajectory_id: str | None) -> None:
    """Log a reward that is not recorded, each problem once; the run misses what it was worth."""
    doing = "recording a reward"
    with Guard(doing):
        trajectory = current_trajectory()
        if trajectory_id is not None and (trajectory is None or trajectory.id != trajectory_id):
            trajectory = find_open_trajectory(redact_text(str(trajectory_id)))
        if trajectory is not None:
            trajectory.note_reason("reward_refused")
        problem = redact_text(f"{name!r}: {str(error).partition(':')[0]}")[:_MAX_PROBLEM]
        if len(_problems) < _MAX_PROBLEMS or problem in _problems:
            _problems.add(problem)
            doing = f"{doing} ({problem})"
    handle_failure(doing, error)


def _record_reward(
    name: str,
    value: float,
    judgement: Judgement,
    reward_id: str | None,
    trajectory_id: str | None,
    keyring: Keyring | None,
) -> None:
    lost = None if trajectory_id is None else f"the reward {name!r} for {trajectory_id}"
    runtime = get_runtime_or_warn("reward()", lost=lost)
    if runtime is None:
        return
    name, judgement = redact_text(name), _redact_judgement(judgement)
    reward_id = reward_id and redact_text(reward_id)
    trajectory_id = trajectory_id and redact_text(trajectory_id)
    trajectory = current_trajectory()
    if trajectory is not None and trajectory_id not in {None, trajectory.id}:
        trajectory = None  # it is about another run than the one in progress
    judged = trajectory
    if judged is None and trajectory_id is not None:
        judged = find_open_trajectory(trajectory_id)
    if trajectory is None and trajectory_id is None:
        raise ValueError(
            f"reward {name!r} belongs to no trajectory: call it inside `with trajectory(...)`, or "
            "give trajectory_id="
        )
    judged_id = judged.id if judged is not None else trajectory_id
    step = judgement.step
    if step is None and judgement.scope != "trajectory":
        step = None if judged is None else judged.last_llm_step
        if step is None:
            raise ValueError(
                f"reward {name!r} of scope {judgement.scope!r} names no step, and no model call of "
                f"{judged_id} is known here: give step="
            )
    task_id = judgement.task_id
    if task_id is None and judged is not None:
        task_id = judged.task_id
    signed = SignedReward(
        trajectory_id=str(judged_id),
        task_id=task_id,
        reward_id=reward_id
        or f"{judged_id}:{judgement.scope}:{'' if step is None else step}:{name}",
        name=name,
        value=value,
        scope=judgement.scope,
        step=step,
        kind=judgement.kind,
        source=judgement.source,
        signed_ns=time.time_ns(),
        verifier_digest=judgement.verifier_digest,
    )
    tracer = runtime.get_tracer()
    attributes = _describe_reward(signed, judgement, has_content=runtime.history_mode != "off")
    if keyring is not None:
        attributes[semconv.REWARD_SIGNATURE] = sign_reward(signed, keyring)
        attributes[semconv.REWARD_SIGNED_NS] = signed.signed_ns
    if trajectory is not None:
        attributes[semconv.STEP] = trajectory.num_steps
        attributes.update(trajectory.describe_part())
        attributes[semconv.TASK_ID] = task_id
    target = _find_target(judgement, step, judged, trajectory_id)
    tracer.start_span(
        f"evaluate {name}",
        # A late reward is its own trace; the span that happens to be current judged nothing.
        context=None if trajectory is not None else Context(),
        links=() if target is None else (Link(target),),
        attributes={key: item for key, item in attributes.items() if item is not None},
    ).end()
    with Guard("measuring a reward"):
        _measure_reward(runtime, signed, judgement, judged)


def _measure_reward(
    runtime: Runtime, signed: SignedReward, judgement: Judgement, judged: Trajectory | None
) -> None:
    """Count a reward: of a whole run in progress when that ends, any other now."""
    meters = runtime.get_meters()
    if meters is None:
        return
    measured = Judged(
        trajectory_id=signed.trajectory_id,
        reward_id=signed.reward_id,
        name=signed.name,
        value=signed.value,
        min=judgement.min,
        max=judgement.max,
        scope=signed.scope,
        is_outcome=signed.kind == "outcome",
        is_late=judged is None,
        identity=None if judged is None else judged.identity,
    )
    if judged is not None and judged.tally is not None and signed.scope == "trajectory":
        judged.tally.rewards[measured.reward_id] = measured
    else:
        meters.put(measured)


def _redact_judgement(judgement: Judgement) -> Judgement:
    """Judgement -> what may be recorded of it, and signed."""
    names = ("label", "explanation", "judge_id", "judge_prompt_hash", "task_id", "verifier_digest")
    texts = {name: getattr(judgement, name) for name in names}
    return replace(
        judgement, **{name: redact_text(text) for name, text in texts.items() if text is not None}
    )


def _describe_reward(
    reward: SignedReward, judgement: Judgement, *, has_content: bool
) -> "dict[str, AttributeValue | None]":
    """What is judged, how and by whom -> attributes."""
    return {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "reward",
        semconv.TRAJECTORY_ID: reward.trajectory_id,
        semconv.TASK_ID: reward.task_id,
        semconv.EVALUATION_NAME: reward.name,
        semconv.EVALUATION_VALUE: reward.value,
        semconv.EVALUATION_LABEL: judgement.label,
        semconv.EVALUATION_EXPLANATION: judgement.explanation if has_content else None,
        semconv.REWARD_ID: reward.reward_id,
        semconv.REWARD_SCOPE: reward.scope,
        semconv.REWARD_KIND: reward.kind,
        semconv.REWARD_SOURCE: reward.source,
        semconv.REWARD_MIN: None if judgement.min is None else float(judgement.min),
        semconv.REWARD_MAX: None if judgement.max is None else float(judgement.max),
        semconv.REWARD_STEP: reward.step,
        semconv.REWARD_JUDGE_ID: judgement.judge_id,
        semconv.REWARD_JUDGE_PROMPT_HASH: judgement.judge_prompt_hash,
        semconv.REWARD_VERIFIER_DIGEST: reward.verifier_digest,
    }


def _find_keyring(key: str | Keyring | None, *, is_needed: bool) -> Keyring | None:
    """Keys to sign with; a reward that need not be signed goes without where they are unusable."""
    keyring = None
    if isinstance(key, Keyring):
        keyring = key
    elif key is not None:
        keyring = Keyring(keys=dict([parse_key(key, "key=")]))
    elif is_needed:
        keyring = find_keyring()
    else:
        with Guard("reading the key that signs rewards; they are not signed"):
            keyring = find_keyring()
    if keyring is None and is_needed:
        raise ConfigError(
            "reward(sign=True) without a key: set STARPO_REWARD_KEY_FILE or give key=; "
            "`starpo-trace keys new` makes one"
        )
    if keyring is not None and keyring.is_exposed:
        warn_once(
            "reward key exposed",
            "other users can read the file of the keys that sign rewards; do `chmod 600` on it",
        )
    return keyring


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


def _check_names(names: Iterable[Any]) -> None:
    if not all(names):
        raise ValueError("reward with an empty name: give it one, or leave name= out")


def _check_judgement(judgement: Judgement, name: str) -> None:
    step = judgement.step
    is_number = isinstance(step, int) and not isinstance(step, bool)
    if step is not None and not (is_number and 0 <= step <= _MAX_STEP):
        raise ValueError(f"reward {name!r} has step={step!r}: give the number of a step, from 0")
    for side in ("min", "max"):
        bound = getattr(judgement, side)
        if bound is not None:
            _read_value(bound, f"{side} of {name}")
    for word, known in (
        (judgement.scope, Scope),
        (judgement.kind, Kind),
        (judgement.source, Source),
    ):
        if word not in get_args(known):
            raise ValueError(f"reward with {word!r}: use one of {', '.join(get_args(known))}")
