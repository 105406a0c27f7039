"""Dataset + evaluators -> one row for each run and evaluator, or each step."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from starpo_train.errors import DataError
from starpo_train.evals.case import build_case
from starpo_train.evals.evaluator import Evaluator, build_evaluator
from starpo_train.evals.path import MalformedPathError
from starpo_train.evals.result import EvaluationResult
from starpo_train.evals.runs import IDENTITY, read_recorded_runs, read_references
from starpo_train.stats import pass_hat_k

DEFAULT_EVALUATORS: Final = ("TrajectoryScore", "TaskCompletion", "ToolSelectionAccuracy")

_IDENTITY_SCHEMA: Final = {name: pl.Int64 if name == "attempt" else pl.String for name in IDENTITY}
_RUN_SCHEMA: Final = {
    **_IDENTITY_SCHEMA,
    "evaluator": pl.String,
    "score": pl.Float64,
    "reason": pl.String,
    "flags": pl.List(pl.String),
    "details": pl.String,
}
_STEP_SCHEMA: Final = {
    **_IDENTITY_SCHEMA,
    "evaluator": pl.String,
    "step": pl.Int64,
    "score": pl.Float64,
    "reason": pl.String,
    "calls": pl.List(pl.String),
}


def evaluate_dataset(
    path: Path | str,
    evaluators: Sequence[str | Evaluator] = DEFAULT_EVALUATORS,
    *,
    split: str | None = None,
    references: Mapping[str, Mapping[str, Any]] | Path | str | None = None,
    level: Literal["trajectory", "step"] = "trajectory",
) -> pl.DataFrame:
    """Every evaluator on every run of a dataset; scores are null where nothing can be said.

    Args:
        path: the dataset's folder, or `FOLDER@DIGEST`.
        evaluators: names, or evaluators.
        split: of it; None: all runs, also those that a recipe keeps from training.
        references: task -> what is expected there (`Reference`), or a file of JSON lines.
        level: a row for each run and evaluator, with `details` as JSON; or for each step that an
            evaluator says something of.

    Raises:
        ConfigError: no evaluator of that name.
        DataError: no dataset, an empty split, an unusable file of references, none that fits, or two
            evaluators of one name.
    """
    if level not in {"trajectory", "step"}:
        raise ValueError(f"level {level!r}: must be trajectory or step")
    chosen = [build_evaluator(each) if isinstance(each, str) else each for each in evaluators]
    names = [each.name for each in chosen]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise DataError(f"two evaluators are named {double!r}; give one another name.")
    given = (
        read_references(Path(references))
        if isinstance(references, Path | str)
        else references or {}
    )
    rows, num_fitting = [], 0
    for run in read_recorded_runs(Path(path), split=split):
        reference = given.get(run.identity["task_id"], {})
        num_fitting += bool(reference)
        for result in evaluate_facts(chosen, {**run.facts, **reference}):
            rows += list(_list_rows(run.identity, result, level))
    if given and not num_fitting:
        task = next(iter(given))
        raise DataError(f"{path}: no run is of a task that has a reference, such as {task!r}.")
    schema = _RUN_SCHEMA if level == "trajectory" else _STEP_SCHEMA
    return pl.DataFrame(rows, schema=schema, orient="row")


def evaluate_facts(
    evaluators: Sequence[Evaluator], facts: Mapping[str, Any]
) -> list[EvaluationResult]:
    """Several evaluators on one run, read once."""
    try:
        case = build_case(facts)
    except MalformedPathError as error:
        reason = f"malformed: {error}"
        return [each.say(None, reason, flags=("malformed",)) for each in evaluators]
    return [each.evaluate_case(case) for each in evaluators]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassHatK:
    """How reliably tasks are done."""

    value: float | None
    """Chance that k fresh attempts all succeed; None when any task has fewer than k scores."""
    num_tasks: int
    fewest_attempts: int
    """Scores of the task that has fewest."""
    num_without_score: int
    """Runs that count neither as success nor as failure."""


def compute_pass_hat_k(scores: pl.DataFrame, k: int, *, threshold: float = 1.0) -> PassHatK:
    """Rows of one evaluator and policy -> pass^k: mean over tasks of C(c, k) / C(n, k), unbiased.

    `threshold`: a score from here on is a success.
    """
    if scores["evaluator"].n_unique() > 1:
        raise ValueError("scores of several evaluators; filter for one")
    if scores["policy_id"].n_unique() > 1:
        raise ValueError("runs of several policies; filter for one")
    tasks = (
        scores.filter(pl.col("task_id").is_not_null())
        .group_by("task_id")
        .agg(
            c=(pl.col("score") >= threshold).sum(),
            n=pl.col("score").is_not_null().sum(),
        )
        .sort("task_id")
    )
    attempts = tasks["n"].to_list()
    return PassHatK(
        value=pass_hat_k(tasks["c"].to_list(), attempts, k),
        num_tasks=tasks.height,
        fewest_attempts=min(attempts, default=0),
        num_without_score=scores["score"].null_count(),
    )


def _list_rows(identity: Mapping[str, Any], result: EvaluationResult, level: str) -> Any:
    whose = [identity[name] for name in IDENTITY]
    if level == "trajectory":
        details = json.dumps(_make_plain(result.details), sort_keys=True, allow_nan=False)
        yield (*whose, result.name, result.score, result.reason, list(result.flags), details)
        return
    for each in result.steps:
        yield (*whose, result.name, each.step, each.score, each.reason, list(each.calls))


def _make_plain(value: Any) -> Any:
    """A value of a user's evaluator as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_make_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
