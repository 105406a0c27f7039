"""Compared turns -> a row for each turn and trajectory, figures for each cohort.

A figure is a mean over tasks of the mean over a task's trajectories of the mean over a trajectory's
turns, so that a long run counts as one run and only tasks count as independent
(`stats.estimate_success_rate`).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import polars as pl

from starpo_train.evals.path import ToolCall
from starpo_train.replay.actions import Action
from starpo_train.replay.comparing import METRICS, TurnComparison
from starpo_train.stats import estimate_success_rate

ALL: Final = "all"
NO_COHORT: Final = "(no cohort)"

_TURN_SCHEMA: Final = {
    **dict.fromkeys(("trajectory_id", "task_id", "cohort"), pl.String),
    "turn": pl.Int64,
    **dict.fromkeys(("recorded_decision", "recorded_calls", "recorded_text"), pl.String),
    **dict.fromkeys(("decision", "calls", "text", "problem"), pl.String),
    **dict.fromkeys(METRICS, pl.Boolean),
    "recorded_valid": pl.Boolean,
    "invalid_because": pl.String,
    **{f"{name}_null": pl.String for name in METRICS},
}
_TRAJECTORY_SCHEMA: Final = {
    **dict.fromkeys(("trajectory_id", "task_id", "cohort"), pl.String),
    **dict.fromkeys(("num_turns", "num_asked", "first_departure"), pl.Int64),
    **dict.fromkeys(METRICS, pl.Float64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedTrajectory:
    """A logged success, turn by turn."""

    trajectory_id: str
    task_id: str | None
    """None: a task of its own."""
    cohort: str | None
    turns: tuple[tuple[int, TurnComparison], ...]
    """(number of the turn, what was found), in order."""

    def average(self, metric: str) -> float | None:
        """Share of the turns that have a value; None without any."""
        values = [each.values[metric] for _, each in self.turns]
        known = [float(value) for value in values if value is not None]
        return fmean(known) if known else None

    def find_departure(self) -> int | None:
        """The first turn at which another call, or none, or one too many would have been made."""
        for turn, each in self.turns:
            if each.values["same_call"] is False or each.values["same_decision"] is False:
                return turn
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A metric of one cohort."""

    cohort: str
    metric: str
    value: float | None
    """None: no turn has a value."""
    low: float | None
    high: float | None
    num_tasks: int
    num_trajectories: int
    num_turns: int


def list_turns(compared: Sequence[ComparedTrajectory]) -> pl.DataFrame:
    """A row for each turn."""
    rows = [
        {
            "trajectory_id": trajectory.trajectory_id,
            "task_id": trajectory.task_id,
            "cohort": trajectory.cohort,
            "turn": turn,
            **{f"recorded_{key}": value for key, value in _describe(each.recorded).items()},
            **_describe(each.asked),
            "problem": None if each.asked is None else each.asked.problem,
            **each.values,
            "recorded_valid": each.recorded_valid,
            "invalid_because": each.invalid_because,
            **{f"{name}_null": each.nulls.get(name) for name in METRICS},
        }
        for trajectory in compared
        for turn, each in trajectory.turns
    ]
    return pl.DataFrame(rows, schema=_TURN_SCHEMA)


def list_trajectories(compared: Sequence[ComparedTrajectory]) -> pl.DataFrame:
    """A row for each trajectory: shares of its turns, and where it first would have gone another way."""
    rows = [
        {
            "trajectory_id": each.trajectory_id,
            "task_id": each.task_id,
            "cohort": each.cohort,
            "num_turns": len(each.turns),
            "num_asked": sum(turn.asked is not None for _, turn in each.turns),
            "first_departure": each.find_departure(),
            **{metric: each.average(metric) for metric in METRICS},
        }
        for each in compared
    ]
    return pl.DataFrame(rows, schema=_TRAJECTORY_SCHEMA)


def summarize(compared: Sequence[ComparedTrajectory]) -> list[Figure]:
    """Every metric over all, then by cohort where there is more than one."""
    groups = {ALL: list(compared)}
    cohorts = sorted({each.cohort or NO_COHORT for each in compared})
    if len(cohorts) > 1:
        groups |= {
            name: [each for each in compared if (each.cohort or NO_COHORT) == name]
            for name in cohorts
        }
    return [
        estimate_figure(members, metric, cohort=name)
        for name, members in groups.items()
        for metric in METRICS
    ]


def estimate_figure(members: Sequence[ComparedTrajectory], metric: str, *, cohort: str) -> Figure:
    """One metric with its 95% interval, tasks as clusters."""
    by_task: dict[tuple[str, str], list[float]] = defaultdict(list)
    num_turns = 0
    for each in members:
        share = each.average(metric)
        if share is not None:
            lone = ("trajectory", each.trajectory_id)
            by_task[lone if each.task_id is None else ("task", each.task_id)].append(share)
            num_turns += sum(turn.values[metric] is not None for _, turn in each.turns)
    found = estimate_success_rate([fmean(v) for v in by_task.values()]) if by_task else None
    return Figure(
        cohort=cohort,
        metric=metric,
        value=None if found is None else found.value,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        num_tasks=len(by_task),
        num_trajectories=sum(len(values) for values in by_task.values()),
        num_turns=num_turns,
    )


def count_decisions(compared: Sequence[ComparedTrajectory]) -> Counter[tuple[str, str]]:
    """(recorded decision, the checkpoint's) -> turns."""
    return Counter(
        (turn.recorded.decision, turn.asked.decision)
        for each in compared
        for _, turn in each.turns
        if turn.asked is not None
    )


def count_nulls(compared: Sequence[ComparedTrajectory]) -> dict[str, dict[str, int]]:
    """Metric -> reason -> turns without a value."""
    counts = {metric: Counter[str]() for metric in METRICS}
    for each in compared:
        for _, turn in each.turns:
            for metric, reason in turn.nulls.items():
                counts[metric][reason] += 1
    return {metric: dict(found.most_common()) for metric, found in counts.items()}


def count_recorded_valid(compared: Sequence[ComparedTrajectory]) -> tuple[int, int]:
    """(recorded turns whose calls meet their schemas, recorded turns of which that is known)."""
    known = [
        turn.recorded_valid
        for each in compared
        for _, turn in each.turns
        if turn.recorded_valid is not None
    ]
    return sum(known), len(known)


def _describe(action: Action | None) -> dict[str, str | None]:
    if action is None:
        return dict.fromkeys(("decision", "calls", "text"))
    return {
        "decision": action.decision,
        "calls": json.dumps([_write_call(call) for call in action.calls], ensure_ascii=False),
        "text": action.text,
    }


def _write_call(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}
