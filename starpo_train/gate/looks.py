"""Earlier looks at an evaluation -> what they had seen, in a file that grows.

The file keeps, for every task, the numbers of the first look that had it: a task counts once, with
what it was when it was first seen, however it is run again and whether or not later data still has
it. So neither repeating unlucky tasks nor leaving them out can change what has been seen.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from starpo_train.errors import ConfigError, DataError
from starpo_train.gate.margins import GateConfig
from starpo_train.gate.pairing import PairedTasks, PolicyTasks
from starpo_train.stats import Floats
from starpo_train.wholefile import write_atomically

SCHEMA_VERSION = "1"
_NUMBERS = ("success", "success_low", "success_high", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What was looked at before."""

    evaluation: dict[str, Any]
    """Who was compared, and where."""
    alpha: float
    """Error that all looks together may make."""
    success_threshold: float | None = None
    """From which reward on they counted a run as a success; None: it was not recorded."""
    looks: tuple[dict[str, Any], ...] = ()
    """When, at which data, with how many tasks and what verdict."""
    tasks: tuple[dict[str, Any], ...] = ()
    """Numbers of every task as first seen."""

    @property
    def number(self) -> int:
        """Of the next look, from 1."""
        return len(self.looks) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulated:
    """The tasks of all looks up to this one."""

    paired: PairedTasks
    notes: tuple[str, ...] = field(default=())


def identify_evaluation(candidate: pl.DataFrame, baseline: pl.DataFrame) -> dict[str, Any]:
    """Rows of both policies -> what makes a later look one at the same evaluation."""
    return {
        role: {
            column: sorted(map(str, frame[column].drop_nulls().unique()))
            for column in ("policy_id", "environment_name", "environment_version")
        }
        for role, frame in (("candidate", candidate), ("baseline", baseline))
    }


def read_looks(path: Path) -> Looks | None:
    """The file -> Looks; None when there is none yet.

    Raises:
        DataError: it cannot be read. It is not started anew: earlier looks would be forgotten.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']!r}")  # noqa: TRY301
        looks = Looks(
            evaluation=record["evaluation"],
            alpha=float(record["alpha"]),
            success_threshold=record.get("success_threshold"),
            looks=tuple(record["looks"]),
            tasks=tuple(record["tasks"]),
        )
        for task in looks.tasks:
            _ = str(task["task_id"]), task["cohort"]
            for role in ("candidate", "baseline"):
                _read_side([task[role]])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a record of looks ({error!r}); restore it, or evaluate new tasks"
        ) from None
    return looks


def write_looks(path: Path, looks: Looks) -> None:
    """Looks -> the file, in one piece."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "evaluation": looks.evaluation,
        "alpha": looks.alpha,
        "success_threshold": looks.success_threshold,
        "looks": list(looks.looks),
        "tasks": list(looks.tasks),
    }
    write_atomically(path, json.dumps(record, allow_nan=False) + "\n")


def require_same_evaluation(
    looks: Looks, evaluation: dict[str, Any], config: GateConfig, path: Path
) -> None:
    """Refuse a file that is about other policies, or that began with other settings.

    Raises:
        ConfigError: it is.
    """
    if looks.evaluation != evaluation:
        was, now = (
            f"{value['candidate']['policy_id']} against {value['baseline']['policy_id']}"
            for value in (looks.evaluation, evaluation)
        )
        raise ConfigError(
            f"--looks {path}: it records looks at {was}, this one is at {now} (or another "
            "environment); give each evaluation a file of its own."
        )
    for name in ("alpha", "success_threshold"):
        began, now = getattr(looks, name), getattr(config, name)
        if began not in (None, now):
            raise ConfigError(
                f"--looks {path}: its looks began with gate.{name} = {began:g}, not {now:g}; it cannot "
                "change between looks."
            )


def accumulate_tasks(paired: PairedTasks, recorded: Sequence[dict[str, Any]]) -> Accumulated:
    """Tasks of this look and those recorded before; the recorded numbers of a task count."""
    if not recorded:
        return Accumulated(paired=paired)
    known = {task["task_id"]: task for task in recorded}
    rows = {task["task_id"]: task for task in record_tasks(paired)}
    num_changed = sum(rows[name] != known[name] for name in rows.keys() & known.keys())
    num_gone = len(known.keys() - rows.keys())
    merged = [task for _, task in sorted((rows | known).items())]
    total = PairedTasks(
        task_ids=tuple(task["task_id"] for task in merged),
        cohorts=tuple(task["cohort"] for task in merged),
        candidate=_read_side([task["candidate"] for task in merged]),
        baseline=_read_side([task["baseline"] for task in merged]),
        only_candidate=tuple(task for task in paired.only_candidate if task not in known),
        only_baseline=tuple(task for task in paired.only_baseline if task not in known),
        num_without_task=paired.num_without_task,
    )
    notes = []
    if num_changed:
        notes.append(
            f"{num_changed} tasks have other numbers than at an earlier look; those seen first count."
        )
    if num_gone:
        notes.append(f"{num_gone} tasks of earlier looks are not in this data; they still count.")
    return Accumulated(paired=total, notes=tuple(notes))


def record_tasks(paired: PairedTasks) -> list[dict[str, Any]]:
    """Tasks -> JSON-ready rows."""
    return [
        {
            "task_id": task,
            "cohort": paired.cohorts[row],
            "candidate": _write_side(paired.candidate, row),
            "baseline": _write_side(paired.baseline, row),
        }
        for row, task in enumerate(paired.task_ids)
    ]


def _write_side(side: PolicyTasks, row: int) -> dict[str, Any]:
    numbers = {name: float(getattr(side, f"{name}_T")[row]) for name in _NUMBERS}
    return {
        **{name: value if np.isfinite(value) else None for name, value in numbers.items()},
        "steps": side.steps[row].tolist(),
        "attempts": int(side.attempts_T[row]),
        "rewarded": int(side.rewarded_T[row]),
    }


def _read_side(rows: Sequence[dict[str, Any]]) -> PolicyTasks:
    def read(name: str) -> Floats:
        values = [row[name] for row in rows]
        return np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)

    return PolicyTasks(
        success_T=read("success"),
        success_low_T=read("success_low"),
        success_high_T=read("success_high"),
        tokens_T=read("tokens"),
        steps=tuple(np.asarray(row["steps"], dtype=np.float64) for row in rows),
        attempts_T=read("attempts"),
        rewarded_T=read("rewarded"),
    )
