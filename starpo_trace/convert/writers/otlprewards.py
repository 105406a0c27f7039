"""Rewards of a trajectory -> spans that link to what they judge, or events on its spans."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.writers.otlpjson import FOREIGN_SCOPE, OutSpan, derive_id
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.semconv import SCOPE_NAME

_EVENT: Final = "gen_ai.evaluation.result"
_JUDGED_AGAIN: Final = re.compile(
    r"source .* is not trusted|outside of its range|there is no step|names no step", re.DOTALL
)
"""Why a reward did not count that is found again in what is written of it."""


@dataclass(slots=True, kw_only=True)
class WrittenRewards:
    """A trajectory's rewards."""

    spans: list[OutSpan] = field(default_factory=list)
    """One for each that is a span of its own."""
    events: list[Row] = field(default_factory=list)
    """Rows of those that are events on another span."""
    losses: set[str] = field(default_factory=set)
    """What could not be said."""


def write_rewards(
    trajectory: TrajectoryRows, root: OutSpan, turns: Sequence[OutSpan]
) -> WrittenRewards:
    """Trajectory, its root and calls -> its rewards."""
    written = WrittenRewards()
    hosts = {root.span_id, *(span.span_id for span in turns)}
    num_rows = Counter(row["span_id"] for row in trajectory.rewards)
    demoted = _find_demoted(trajectory)
    for number, row in enumerate(trajectory.rewards):
        is_own = num_rows[row["span_id"]] == 1 and row["span_id"] not in hosts
        if _is_event(row) and row["span_id"] in hosts:
            written.events.append(row)
            continue
        if row["value"] is None:
            written.losses.add("rewards without a value")
            continue
        if not is_own:
            written.losses.add("span ids of rewards on shared spans")
        if row["signature"] != "missing":
            written.losses.add("signatures of rewards")
        if number in demoted:
            written.losses.add("trust in rewards that a signed one replaced")
        span_id = row["span_id"] if is_own else derive_id(8, trajectory.id, "reward", number)
        counts = number not in demoted and (
            row["trusted"] or bool(_JUDGED_AGAIN.match(row["untrusted_because"] or ""))
        )
        written.spans.append(_write_span(trajectory, row, span_id, root, turns, counts=counts))
    return written


def place_events(events: Sequence[Row], root: OutSpan, turns: Sequence[OutSpan]) -> None:
    """Rows of events -> events on the spans that had them."""
    spans = {span.span_id: span for span in (*turns, root)}
    for row in events:
        attributes = {
            keys.EVALUATION_NAME: row["name"],
            keys.EVALUATION_VALUE: row["value"],
            keys.EVALUATION_EXPLANATION: row["explanation"],
        }
        spans[row["span_id"]].events.append((_EVENT, row["time_ns"], attributes))


def _is_event(row: Row) -> bool:
    """Whether a reward is one that anybody may add to a span of another kind."""
    trace, _, rest = (row["reward_id"] or "").partition(":")
    return row["source"] is None and len(trace) == 32 and rest == f"{row['span_id']}:{row['name']}"


def _write_span(
    trajectory: TrajectoryRows,
    row: Row,
    span_id: str,
    root: OutSpan,
    turns: Sequence[OutSpan],
    *,
    counts: bool,
) -> OutSpan:
    is_of_run = row["scope"] == "trajectory"
    turn: int | None = None if is_of_run else row["turn"]
    target = root if turn is None else turns[turn]
    attributes: dict[str, Any] = {
        keys.SCHEMA: keys.SCHEMA_VERSION,
        keys.RECORD: "reward",
        keys.TRAJECTORY_ID: trajectory.id,
        keys.TASK_ID: trajectory.row["task_id"],
        # Steps up to the last one that any span names exist.
        keys.STEP: row["step"] if counts and row["trusted"] else None,
        keys.EVALUATION_NAME: row["name"],
        keys.EVALUATION_VALUE: row["value"],
        keys.EVALUATION_EXPLANATION: row["explanation"],
        keys.REWARD_ID: row["reward_id"],
        keys.REWARD_SCOPE: row["scope"],
        keys.REWARD_KIND: row["kind"],
        keys.REWARD_SOURCE: row["source"],
        keys.REWARD_MIN: row["min"],
        keys.REWARD_MAX: row["max"],
        keys.REWARD_STEP: None if is_of_run else row["step"],
        keys.REWARD_JUDGE_ID: row["judge_id"],
        keys.REWARD_JUDGE_PROMPT_HASH: row["judge_prompt_hash"],
        keys.REWARD_VERIFIER_DIGEST: row["verifier_digest"],
    }
    return OutSpan(
        trace_id=root.trace_id,
        span_id=span_id,
        name=f"evaluate {row['name']}",
        start_ns=row["time_ns"],
        end_ns=row["time_ns"],
        attributes=attributes,
        links=((target.trace_id, target.span_id),),
        scope=SCOPE_NAME if counts else FOREIGN_SCOPE,
    )


def _find_demoted(trajectory: TrajectoryRows) -> set[int]:
    """Rewards that a signed one replaced, which without signatures would replace it."""
    rows = trajectory.rewards
    if all(row["signature"] == "missing" for row in rows):
        return set()
    demoted: set[int] = set()
    by_id: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row["trusted"]:
            by_id[row["reward_id"]].append(number)
    for group in by_id.values():
        kept = [number for number in group if not rows[number]["superseded"]]
        demoted |= set(group) - set(kept)
    outcomes = [
        number
        for number, row in enumerate(rows)
        if row["trusted"] and not row["superseded"]
        if row["scope"] == "trajectory" and row["kind"] == "outcome"
    ]
    outcomes.sort(key=lambda number: _rank(rows[number]), reverse=True)
    for number in outcomes:
        if rows[number]["value"] == trajectory.row["reward"]:
            return demoted
        demoted.add(number)
    return demoted


def _rank(row: Row) -> tuple[bool, int, str]:
    return row["name"] == "reward", row["time_ns"], row["reward_id"]
