"""What somebody said a recorded run was worth -> a reward span."""

from dataclasses import dataclass
from typing import Any

from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What somebody said a run was worth."""

    value: Any
    """The number; anything else is a rejected reward."""
    name: str = "reward"
    """What was judged."""
    source: str = "environment"
    """environment | user | rule | judge."""
    low: float | None = None
    """Least possible value."""
    high: float | None = None
    """Greatest possible value."""
    explanation: str | None = None
    """Why."""
    judge_id: str | None = None
    """The model that judged."""
    time_ns: int | None = None
    """When, Unix time."""


def make_reward(
    verdict: Verdict,
    trajectory_id: str,
    *,
    form: str,
    ids: tuple[str, str],
    source: str,
    time_ns: int = 0,
    task_id: str | None = None,
) -> SpanRow:
    """Verdict on a whole run -> its reward span."""
    attributes = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "reward",
        semconv.TRAJECTORY_ID: trajectory_id,
        semconv.TASK_ID: task_id,
        semconv.EVALUATION_NAME: verdict.name,
        semconv.EVALUATION_VALUE: verdict.value,
        semconv.EVALUATION_EXPLANATION: verdict.explanation,
        semconv.REWARD_ID: f"{form}:{verdict.name}",
        semconv.REWARD_SCOPE: "trajectory",
        semconv.REWARD_KIND: "outcome",
        semconv.REWARD_SOURCE: verdict.source,
        semconv.REWARD_MIN: verdict.low,
        semconv.REWARD_MAX: verdict.high,
        semconv.REWARD_JUDGE_ID: verdict.judge_id,
    }
    return SpanRow(
        source=source,
        trace_id=ids[0],
        span_id=ids[1],
        name=f"evaluate {verdict.name}",
        scope=semconv.SCOPE_NAME,
        start_ns=time_ns,
        attributes={key: value for key, value in attributes.items() if value is not None},
    )
