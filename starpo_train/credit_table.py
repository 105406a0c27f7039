"""Dataset + credit of turns -> rows for calls and for steps that were judged; Parquet."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import polars as pl

from starpo_train.dataset import Manifest, Trajectory, scan_table
from starpo_train.turncredit import CreditRule, TurnCredit

_SCHEMA: Final = {
    "trajectory_id": pl.String,
    "task_id": pl.String,
    "policy_id": pl.String,
    "end": pl.String,
    "turn": pl.Int64,
    "step": pl.Int64,
    "kind": pl.String,
    "trace_id": pl.String,
    "span_id": pl.String,
    "estimator": pl.String,
    "reward": pl.Float64,
    "return_to_go": pl.Float64,
    "baseline": pl.Float64,
    "advantage": pl.Float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRow:
    """One call, or one other step, with its credit."""

    trajectory_id: str
    task_id: str | None
    policy_id: str | None
    end: str
    turn: int
    """The call, or the last call before the step: the one that asked for it."""
    step: int | None
    kind: str
    """planner | finalizer | ... of a call; `step` of anything else."""
    trace_id: str | None
    span_id: str | None
    estimator: str
    reward: float | None
    return_to_go: float | None
    baseline: float | None
    advantage: float | None
    """Above 0: earned, below: lost; None: nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a call or step stands in its trace."""

    turn: int | None
    step: int | None
    kind: str
    trace_id: str | None
    span_id: str | None


def build_credit_rows(
    manifest: Manifest,
    trajectories: Sequence[Trajectory],
    credits_of: Mapping[str, Sequence[TurnCredit]],
    rule: CreditRule,
) -> list[CreditRow]:
    """Credit of turns -> rows in the order of trajectories, turns and steps.

    A call's row has its turn's credit. A step that rewards were recorded of has what came from it
    on: its turn's return and advantage less what the turn had earned before the step. Other steps
    have a row without numbers, as the environment did them and nobody judged them; so have all
    steps of a turn whose rewards a recipe weighed, as the parts of it are not known.
    """
    places = _read_places(manifest, list(credits_of))
    judged = _read_step_rewards(manifest, list(credits_of))
    rows = []
    for trajectory in trajectories:
        key = trajectory.trajectory_id
        credit_of = {each.turn: each for each in credits_of.get(key, ())}
        own = {turn.turn: turn.reward for turn in trajectory.turns}
        for place in places.get(key, ()):
            turn = place.turn
            if turn is None or turn not in credit_of:
                continue
            credit: TurnCredit | None = credit_of[turn]
            if place.kind == "step":
                parts = judged.get((key, turn), {})
                credit = _cut_credit(credit_of[turn], place.step, parts, own[turn], rule)
            rows.append(
                CreditRow(
                    trajectory_id=key,
                    task_id=trajectory.task_id,
                    policy_id=trajectory.policy_id,
                    end=trajectory.end,
                    turn=turn,
                    step=place.step,
                    kind=place.kind,
                    trace_id=place.trace_id,
                    span_id=place.span_id,
                    estimator=rule.estimator,
                    reward=None if credit is None else credit.reward,
                    return_to_go=None if credit is None else credit.return_to_go,
                    baseline=None if credit is None else credit.baseline,
                    advantage=None if credit is None else credit.advantage,
                )
            )
    return rows


def write_credit_table(path: Path, rows: Sequence[CreditRow]) -> None:
    """Rows -> one Parquet file."""
    pl.DataFrame([asdict(row) for row in rows], schema=_SCHEMA).write_parquet(path)


def _cut_credit(
    credit: TurnCredit,
    step: int | None,
    parts: Mapping[int, float],
    own: float | None,
    rule: CreditRule,
) -> TurnCredit | None:
    """Credit of a step within its turn; None where no reward was recorded of it."""
    if step is None or step not in parts or own is None:
        return None
    # a recipe's weights make another number of the same rewards
    if abs(sum(parts.values()) - own) > 1e-9 * max(1.0, abs(own)):
        return None
    before = rule.process_weight * sum(value for at, value in parts.items() if at < step)
    return TurnCredit(
        turn=credit.turn,
        reward=rule.process_weight * parts[step],
        return_to_go=credit.return_to_go - before,
        baseline=credit.baseline,
        advantage=None if credit.advantage is None else credit.advantage - before,
    )


def _read_places(manifest: Manifest, ids: list[str]) -> dict[str, list[_Place]]:
    """Calls and steps of trajectories, in order; a step belongs to the last call before it."""
    wanted = _wanted(ids)
    spans = scan_table(manifest, "spans").join(wanted, on="trajectory_id", how="semi")
    traces = spans.filter(pl.col("record") == "llm").select("trajectory_id", "turn", "trace_id")
    calls = (
        scan_table(manifest, "turns")
        .join(wanted, on="trajectory_id", how="semi")
        .select("trajectory_id", "turn", "step", "step_kind", "span_id")
        .join(traces, on=("trajectory_id", "turn"), how="left")
        .sort("trajectory_id", "turn")
        .collect()
    )
    steps = (
        spans.filter(pl.col("record") == "step", pl.col("step").is_not_null())
        .select("trajectory_id", "step", "trace_id", "span_id")
        .sort("trajectory_id", "step", "span_id")
        .collect()
    )
    places: dict[str, list[_Place]] = defaultdict(list)
    for key, turn, step, kind, span_id, trace_id in calls.iter_rows():
        place = _Place(
            turn=turn, step=step, kind=kind or "other", trace_id=trace_id, span_id=span_id
        )
        places[key].append(place)
    calls_of = {key: list(found) for key, found in places.items()}
    for key, step, trace_id, span_id in steps.iter_rows():
        asked = _find_caller(calls_of.get(key, ()), step)
        place = _Place(turn=asked, step=step, kind="step", trace_id=trace_id, span_id=span_id)
        places[key].append(place)
    for found in places.values():
        found.sort(key=lambda p: (p.turn is None, p.turn, p.kind == "step", p.step or 0))
    return places


def _find_caller(calls: Sequence[_Place], step: int) -> int | None:
    """Turn of the last call before a step."""
    turns = [call.turn for call in calls if call.step is not None and call.step < step]
    return turns[-1] if turns else None


def _read_step_rewards(
    manifest: Manifest, ids: list[str]
) -> dict[tuple[str, int], dict[int, float]]:
    """(trajectory, turn) -> step -> sum of the rewards that count for it."""
    counts = pl.col("trusted") & ~pl.col("superseded") & (pl.col("scope") != "trajectory")
    rows = (
        scan_table(manifest, "rewards")
        .filter(counts, pl.col("kind") == "process", pl.col("turn").is_not_null())
        .join(_wanted(ids), on="trajectory_id", how="semi")
        .group_by("trajectory_id", "turn", pl.col("step").fill_null(-1))
        .agg(pl.col("value").sum())
        .collect()
    )
    parts: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for key, turn, step, value in rows.iter_rows():
        parts[key, turn][step] = value
    return parts


def _wanted(ids: list[str]) -> pl.LazyFrame:
    return pl.LazyFrame({"trajectory_id": ids}, schema={"trajectory_id": pl.String})
