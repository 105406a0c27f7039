"""Dataset -> what checks look at beside the trajectories: their facts, rewards, and texts."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from starpo_train.dataset import Manifest, Trajectory, scan_table

NUM_READ: Final = 256
"""Runs whose texts are read, spread evenly over the ids."""
_FACTS: Final = (
    *("trajectory_id", "started_ns", "environment_name", "environment_version"),
    *("distribution", "policy_lag", "input_tokens", "output_tokens"),
)
_REWARDS: Final = (
    *("trajectory_id", "name", "value", "scope", "source", "max", "turn", "step"),
    *("judge_id", "judge_prompt_hash", "explanation", "time_ns"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A row of the rewards table that counts: trusted, and not replaced by a later one."""

    trajectory_id: str
    name: str
    value: float
    scope: str
    """trajectory | turn | step."""
    source: str | None
    """environment | user | rule | judge."""
    max: float | None
    """Greatest possible value, where it was recorded."""
    turn: int | None
    step: int | None
    judge_id: str | None
    judge_prompt_hash: str | None
    explanation: str | None
    time_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A trajectory with what training does not need of it."""

    trajectory: Trajectory
    started_ns: int | None
    environment_name: str | None
    environment_version: str | None
    distribution: str | None
    """id | ood | unknown."""
    policy_lag: int | None
    """Policies between this one and the current, as the recipe's order has them."""
    input_tokens: int | None
    output_tokens: int | None
    rewards: tuple[Reward, ...] = ()

    @property
    def task(self) -> str:
        """Its task; a run without one is a task of its own."""
        task_id = self.trajectory.task_id
        return f"run:{self.trajectory.trajectory_id}" if task_id is None else f"task:{task_id}"

    @property
    def num_tokens(self) -> int | None:
        """What its calls read and wrote: as the server counted, else the recorded ids."""
        if self.input_tokens is not None and self.output_tokens is not None:
            return self.input_tokens + self.output_tokens
        total = 0
        for turn in self.trajectory.turns:
            if turn.prompt_ids_T is None or turn.response_ids_T is None:
                return None
            total += len(turn.prompt_ids_T) + len(turn.response_ids_T)
        return total or None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunText:
    """What was read, thought and recorded in a run."""

    run: Run
    read: tuple[str, ...]
    """JSON of every message that a call read and no model of the run wrote."""
    states: tuple[str, ...]
    """JSON of the states recorded before the last call."""
    reasoning: tuple[str, ...]
    """Reasoning of its calls."""


def read_runs(manifest: Manifest, trajectories: Sequence[Trajectory]) -> list[Run]:
    """Trajectories -> Runs, in their order.

    Raises:
        DataError: the dataset's tables are not those of the manifest.
    """
    wanted = _wanted(trajectories)
    facts = {
        row.pop("trajectory_id"): row
        for row in scan_table(manifest, "trajectories")
        .select(_FACTS)
        .join(wanted, on="trajectory_id", how="semi")
        .collect()
        .iter_rows(named=True)
    }
    rewards: dict[str, list[Reward]] = defaultdict(list)
    for reward in _read_rewards(manifest, wanted):
        rewards[reward.trajectory_id].append(reward)
    return [
        Run(
            trajectory=trajectory,
            rewards=tuple(rewards.get(trajectory.trajectory_id, ())),
            **facts[trajectory.trajectory_id],
        )
        for trajectory in trajectories
    ]


def read_texts(manifest: Manifest, runs: Sequence[Run], *, most: int = NUM_READ) -> list[RunText]:
    """Runs -> the texts of up to `most` of them, spread evenly over those given."""
    chosen = list(runs)
    if len(chosen) > most:
        chosen = [chosen[i * len(chosen) // most] for i in range(most)]
    wanted = _wanted([run.trajectory for run in chosen])
    # `first_turn` is null for an observation after the last call, which nobody read.
    was_read = pl.col("sampled_turn").is_null() & pl.col("first_turn").is_not_null()
    read = _gather(scan_table(manifest, "messages").filter(was_read), wanted, "message")
    turns = scan_table(manifest, "turns")
    last_steps = turns.group_by("trajectory_id").agg(last_step=pl.col("step").max())
    states = scan_table(manifest, "states").join(last_steps, on="trajectory_id")
    before = states.filter(pl.col("step") <= pl.col("last_step"))
    recorded = _gather(before, wanted, "value")
    reasoning = _gather(turns.filter(pl.col("reasoning").is_not_null()), wanted, "reasoning")
    texts = []
    for run in chosen:
        key = run.trajectory.trajectory_id
        texts.append(
            RunText(run=run, read=read[key], states=recorded[key], reasoning=reasoning[key])
        )
    return texts


def list_strings(text: str) -> Iterator[str]:
    """JSON text -> the strings in it, or the text itself where it is no JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        yield text
        return
    yield from _walk(value)


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk(item)


def _read_rewards(manifest: Manifest, wanted: pl.LazyFrame) -> Iterator[Reward]:
    counts = pl.col("trusted") & ~pl.col("superseded") & pl.col("value").is_not_null()
    rows = (
        scan_table(manifest, "rewards")
        .filter(counts)
        .join(wanted, on="trajectory_id", how="semi")
        .select(_REWARDS)
        .sort("trajectory_id", "time_ns", "name", "value")
        .collect()
    )
    return (Reward(**row) for row in rows.iter_rows(named=True))


def _gather(
    table: pl.LazyFrame, wanted: pl.LazyFrame, column: str
) -> defaultdict[str, tuple[str, ...]]:
    rows = (
        table.join(wanted, on="trajectory_id", how="semi")
        .select("trajectory_id", pl.col(column))
        .drop_nulls()
        .group_by("trajectory_id")
        .agg(column)
        .collect()
    )
    texts: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    texts.update((key, tuple(found)) for key, found in rows.iter_rows())
    return texts


def _wanted(trajectories: Sequence[Trajectory]) -> pl.LazyFrame:
    ids = [trajectory.trajectory_id for trajectory in trajectories]
    return pl.LazyFrame({"trajectory_id": ids}, schema={"trajectory_id": pl.String})
