"""Runs of an oracle and of a null agent -> tasks that cannot tell good from bad.

An oracle plays the known solution and must solve every task; a null agent does nothing and must
solve none. A task that fails either measures its environment or its grader, not the policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from starpo_train.errors import DataError
from starpo_train.gate.pairing import NEEDED_COLUMNS, find_obstacles, summarize_tasks

AGENTS = ("oracle", "null")
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What an oracle or a null agent did on the tasks of the comparison."""

    agent: str
    """oracle | null."""
    num_tasks: int
    """Tasks that it had to play."""
    wrong: tuple[str, ...]
    """Tasks on which an attempt did not come out as it must."""
    unplayed: tuple[str, ...]
    """Tasks without an attempt, or with one that has no reward."""
    elsewhere: str | None = None
    """It played in another environment than the candidate: how they differ."""

    def describe_faults(self) -> list[str]:
        """Each fault as a sentence; none: the tasks can be used."""
        must = "solve every task" if self.agent == "oracle" else "solve none"
        fault = "does not solve" if self.agent == "oracle" else "solves"
        said = []
        if self.wrong:
            said.append(
                f"Preflight: the {self.agent} agent must {must}, but {fault} {len(self.wrong)} of "
                f"{self.num_tasks}: {_name(self.wrong)}; repair or leave out these tasks."
            )
        if self.unplayed:
            said.append(
                f"Preflight: the {self.agent} agent has no rewarded attempt, or not only those, at "
                f"{len(self.unplayed)} of {self.num_tasks} tasks: {_name(self.unplayed)}; play them."
            )
        if self.elsewhere:
            said.append(f"Preflight of the {self.agent} agent: {self.elsewhere}")
        return said


def check_preflight(
    task_ids: Sequence[str],
    runs: Mapping[str, pl.DataFrame],
    candidate: pl.DataFrame,
    *,
    success_threshold: float,
) -> list[Preflight]:
    """Rows of the `trajectories` table by agent ("oracle", "null") -> what each did on the tasks.

    Raises:
        DataError: an agent of another name, or a column is missing.
    """
    found = []
    for agent, rows in runs.items():
        if agent not in AGENTS:
            raise DataError(f"preflight agent {agent!r}: use one of {', '.join(AGENTS)}")
        missing = [column for column in NEEDED_COLUMNS if column not in rows.columns]
        if missing:
            raise DataError(f"{agent} has no column {missing[0]!r}; pass trajectories")
        tasks = {
            row["task_id"]: row
            for row in summarize_tasks(rows, success_threshold).iter_rows(named=True)
        }
        unplayed = [
            task
            for task in task_ids
            if task not in tasks or tasks[task]["num_rewarded"] < tasks[task]["num_trajectories"]
        ]
        wrong = [
            task
            for task in task_ids
            if task in tasks
            and tasks[task]["num_successes"]
            != (tasks[task]["num_rewarded"] if agent == "oracle" else 0)
        ]
        found.append(
            Preflight(
                agent=agent,
                num_tasks=len(task_ids),
                wrong=tuple(wrong),
                unplayed=tuple(unplayed),
                elsewhere=next(iter(find_obstacles(candidate, rows, other=agent)), None),
            )
        )
    return found


def _name(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:_MOST_NAMED]) + (", ..." if len(tasks) > _MOST_NAMED else "")
