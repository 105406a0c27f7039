"""Trajectory rows of two policies -> one pair of numbers per task."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from starpo_train.errors import DataError
from starpo_train.gate.margins import GateConfig
from starpo_train.stats import Floats

NEEDED_COLUMNS = (
    "task_id",
    "policy_id",
    "cohort",
    "environment_name",
    "environment_version",
    "reward",
    "num_steps",
    "input_tokens",
    "output_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTasks:
    """What one policy did on each task; row t of every array is the same task."""

    success_T: Floats
    """Share of the rewarded attempts that succeeded; nan when none has a reward."""
    success_low_T: Floats
    """The same with every attempt without a reward counted as failed."""
    success_high_T: Floats
    """The same with every attempt without a reward counted as succeeded."""
    tokens_T: Floats
    """Mean input + output tokens of a trajectory; nan when any attempt lacks usage."""
    steps: tuple[Floats, ...]
    """Steps of every attempt that recorded them, per task."""
    attempts_T: Floats
    """Attempts."""
    rewarded_T: Floats
    """Attempts with a reward."""

    @property
    def num_trajectories(self) -> int:
        """Trajectories on these tasks."""
        return int(self.attempts_T.sum())

    @property
    def num_missing_rewards(self) -> int:
        """Those without a reward."""
        return int((self.attempts_T - self.rewarded_T).sum())

    def select(self, rows: Sequence[int]) -> "PolicyTasks":
        """The same policy on some of the tasks."""
        index = np.asarray(rows, dtype=np.intp)
        return PolicyTasks(
            success_T=self.success_T[index],
            success_low_T=self.success_low_T[index],
            success_high_T=self.success_high_T[index],
            tokens_T=self.tokens_T[index],
            steps=tuple(self.steps[row] for row in rows),
            attempts_T=self.attempts_T[index],
            rewarded_T=self.rewarded_T[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTasks:
    """Two policies on the tasks that both attempted."""

    task_ids: tuple[str, ...]
    """Tasks that both sides attempted, sorted."""
    cohorts: tuple[str | None, ...]
    """Cohort of each task; null when none is named."""
    candidate: PolicyTasks
    """The policy that may replace the baseline."""
    baseline: PolicyTasks
    """The policy in use."""
    only_candidate: tuple[str, ...]
    """Tasks left out because the baseline never attempted them."""
    only_baseline: tuple[str, ...]
    """Tasks left out because the candidate never attempted them."""
    num_without_task: int
    """Trajectories left out because they name no task."""

    def bound_changes(self) -> tuple[Floats, Floats]:
        """Change of success per task, with missing rewards at their worst and at their best."""
        cand, base = self.candidate, self.baseline
        worst_T = cand.success_low_T - base.success_high_T
        return worst_T, cand.success_high_T - base.success_low_T

    def select(self, rows: Sequence[int]) -> "PairedTasks":
        """The same pair on some of the tasks."""
        return PairedTasks(
            task_ids=tuple(self.task_ids[row] for row in rows),
            cohorts=tuple(self.cohorts[row] for row in rows),
            candidate=self.candidate.select(rows),
            baseline=self.baseline.select(rows),
            only_candidate=self.only_candidate,
            only_baseline=self.only_baseline,
            num_without_task=self.num_without_task,
        )


def pair_tasks(
    candidate: pl.DataFrame, baseline: pl.DataFrame, *, success_threshold: float
) -> PairedTasks:
    """Rows of the `trajectories` table -> per-task numbers of both policies, in the same order.

    A reward at or above `success_threshold` is a success; a missing or non-finite one is neither
    success nor failure.

    Raises:
        DataError: a column is missing, the two share no task, or a task has two cohorts.
    """
    sides = {"candidate": candidate, "baseline": baseline}
    for name, frame in sides.items():
        require_columns(frame, where=name)
    grouped = {name: summarize_tasks(frame, success_threshold) for name, frame in sides.items()}
    names = {name: set(frame["task_id"]) for name, frame in grouped.items()}
    common = sorted(names["candidate"] & names["baseline"])
    if not common:
        raise DataError(
            f"candidate ({len(names['candidate'])} tasks) and baseline ({len(names['baseline'])} "
            "tasks) share no task_id; evaluate both on the same tasks"
        )
    cohorts = _merge_cohorts(grouped.values())
    return PairedTasks(
        task_ids=tuple(common),
        cohorts=tuple(cohorts.get(task) for task in common),
        candidate=_collect_policy(grouped["candidate"], common),
        baseline=_collect_policy(grouped["baseline"], common),
        only_candidate=tuple(sorted(names["candidate"] - names["baseline"])),
        only_baseline=tuple(sorted(names["baseline"] - names["candidate"])),
        num_without_task=sum(frame["task_id"].null_count() for frame in sides.values()),
    )


def require_columns(frame: pl.DataFrame, *, where: str) -> None:
    """Raise `DataError` unless the frame has every column a comparison reads."""
    missing = [column for column in NEEDED_COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(
            f"{where} has no column {missing[0]!r}; pass rows of the dataset's trajectories table"
        )


def find_obstacles(
    candidate: pl.DataFrame, baseline: pl.DataFrame, *, other: str = "baseline"
) -> list[str]:
    """What makes the two incomparable, however many tasks there are; `other` names the second."""
    obstacles = []
    for column, noun in (("environment_name", "environments"), ("environment_version", "versions")):
        names = [sorted(map(str, frame[column].unique())) for frame in (candidate, baseline)]
        if names[0] != names[1]:
            obstacles.append(
                f"The environments differ: {noun} {', '.join(names[0])} for the candidate, "
                f"{', '.join(names[1])} for the {other}; evaluate both in the same one."
            )
    return obstacles


def find_faults(
    candidate: pl.DataFrame, baseline: pl.DataFrame, paired: PairedTasks, *, config: GateConfig
) -> list[str]:
    """What makes the answer none, though the two can be compared: slips in the data or the gate file."""
    faults = []
    policies = _list_policies(candidate)
    if len(policies) > 1:
        faults.append(
            f"The candidate mixes {len(policies)} policies ({', '.join(policies[:3])}), so that no "
            "verdict is about one of them; give the evaluation of the one that would ship."
        )
    rewards = pl.concat([frame["reward"].cast(pl.Float64) for frame in (candidate, baseline)])
    rewards = rewards.filter(rewards.is_finite())
    success = np.concatenate([paired.candidate.success_T, paired.baseline.success_T])
    success = success[np.isfinite(success)]
    if len(rewards) and len(success):
        lowest, highest = float(rewards.min()), float(rewards.max())  # type: ignore[arg-type]
        threshold = f"gate.success_threshold = {config.success_threshold:g}"
        seen = f"rewards go from {lowest:g} to {highest:g}"
        if success.max() == 0:
            faults.append(
                f"No run of either side reaches {threshold} ({seen}), so that success says nothing."
            )
        elif success.min() == 1 and lowest < highest:
            faults.append(
                f"Every run of both sides reaches {threshold} although {seen}, so that success says "
                "nothing; set it between them."
            )
    known = {cohort for cohort in paired.cohorts if cohort is not None}
    there = ", ".join(sorted(known)) or "none"
    faults += [
        f"gate.ood_cohorts: no paired task is of the cohort {cohort!r}; there are {there}."
        for cohort in config.ood_cohorts
        if cohort not in known
    ]
    return faults


def list_notes(candidate: pl.DataFrame, baseline: pl.DataFrame, paired: PairedTasks) -> list[str]:
    """What a reader must know about the data: exclusions, gaps, mixed policies."""
    notes = []
    for role, other, tasks in (
        ("candidate", "baseline", paired.only_candidate),
        ("baseline", "candidate", paired.only_baseline),
    ):
        if tasks:
            sample = ", ".join(tasks[:3]) + (", ..." if len(tasks) > 3 else "")
            notes.append(
                f"{len(tasks)} tasks of the {role} that the {other} never attempted are left out: "
                f"{sample}."
            )
    if paired.num_without_task:
        notes.append(f"{paired.num_without_task} trajectories name no task and are left out.")
    for role, side in (("candidate", paired.candidate), ("baseline", paired.baseline)):
        if side.num_missing_rewards:
            notes.append(
                f"{side.num_missing_rewards} of {side.num_trajectories} trajectories of the {role} "
                "have no reward; the bounds on success count them at their worst and best."
            )
    policies = [_list_policies(frame) for frame in (candidate, baseline)]
    if len(policies[1]) > 1:
        mixed = ", ".join(policies[1][:3])
        notes.append(f"The baseline mixes {len(policies[1])} policies: {mixed}.")
    if policies[0] and policies[0] == policies[1]:
        notes.append(f"Candidate and baseline are the same policy: {', '.join(policies[0][:3])}.")
    return notes


def _list_policies(frame: pl.DataFrame) -> list[str]:
    return sorted(map(str, frame["policy_id"].drop_nulls().unique()))


def drop_replayed(trajectories: pl.DataFrame, rewarded: pl.Expr) -> pl.DataFrame:
    """Leave out what an interrupted evaluation left behind.

    That is a trajectory without a reward whose task and attempt were played again to a reward;
    counted as missing, it would widen the bounds although nothing is missing.
    """
    if "attempt" not in trajectories.columns:
        return trajectories
    replayed = pl.col("attempt").is_not_null() & rewarded.any().over("task_id", "attempt")
    return trajectories.filter(rewarded | ~replayed)


def summarize_tasks(trajectories: pl.DataFrame, success_threshold: float) -> pl.DataFrame:
    """Rows of the `trajectories` table -> one row per named task, sorted by task_id.

    Columns: task_id, cohorts (list), num_trajectories, num_rewarded, num_successes, tokens
    (mean; null when any attempt lacks usage), steps (list).
    """
    reward = pl.col("reward").cast(pl.Float64)
    rewarded = reward.is_finite().fill_null(value=False)
    tokens = pl.col("input_tokens") + pl.col("output_tokens")
    return (
        drop_replayed(trajectories, rewarded)
        .filter(pl.col("task_id").is_not_null())
        .group_by("task_id")
        .agg(
            cohorts=pl.col("cohort").drop_nulls().unique().sort(),
            num_trajectories=pl.len(),
            num_rewarded=rewarded.sum(),
            num_successes=(rewarded & (reward >= success_threshold)).sum(),
            tokens=pl.when(tokens.null_count() == 0).then(tokens.mean()),
            steps=pl.col("num_steps").drop_nulls().sort(),
        )
        .sort("task_id")
    )


def _merge_cohorts(frames: Iterable[pl.DataFrame]) -> dict[str, str]:
    cohorts: dict[str, str] = {}
    for frame in frames:
        for task, names in frame.select("task_id", "cohorts").iter_rows():
            for name in names:
                if cohorts.setdefault(task, name) != name:
                    raise DataError(
                        f"task {task!r} has the cohorts {cohorts[task]!r} and {name!r}; "
                        "a task belongs to one cohort in both datasets"
                    )
    return cohorts


def _collect_policy(grouped: pl.DataFrame, task_ids: list[str]) -> PolicyTasks:
    rows = grouped.filter(pl.col("task_id").is_in(task_ids)).sort("task_id")
    total = rows["num_trajectories"].to_numpy().astype(np.float64)
    known = rows["num_rewarded"].to_numpy().astype(np.float64)
    successes = rows["num_successes"].to_numpy().astype(np.float64)
    return PolicyTasks(
        success_T=np.divide(successes, known, out=np.full(len(rows), np.nan), where=known > 0),
        success_low_T=successes / total,
        success_high_T=(successes + total - known) / total,
        tokens_T=rows["tokens"].cast(pl.Float64).fill_null(np.nan).to_numpy().copy(),
        steps=tuple(np.asarray(steps, dtype=np.float64) for steps in rows["steps"].to_list()),
        attempts_T=total,
        rewarded_T=known,
    )
