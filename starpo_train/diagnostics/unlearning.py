"""Recorded runs of tasks held back -> how much likelier or unlikelier the policy now finds them.

Methods that push bad actions down may push the good ones down with them: on the data they train on that is
seen late. Runs that succeeded at tasks nothing is trained on show it.

Suffixes: N trajectories, R rows, G tasks.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from starpo_train.policy import Policy
from starpo_train.scoring import score_rows
from starpo_train.trainingdata import HeldBack

LEAST_GOOD: Final = 8
"""Fewer good trajectories are measured, but nothing is concluded from them;"""
LEAST_TASKS: Final = 4
"""nor from those of fewer tasks."""
ALLOWED_SHARE: Final = 0.5
"""Of their surprise at the start: how much more surprising good runs may become,"""
ALLOWED_AT_MOST: Final = 0.05
"""and, in nats per token, at most so much."""


def measure_logprobs(policy: Policy, held_back: HeldBack, *, tokens_per_pack: int) -> np.ndarray:
    """float64 [N]: log-probability of all that a trajectory sampled; every rank calls it."""
    owners = {r: n for n, rows in enumerate(held_back.rows_of_N) for r in rows}
    scores = score_rows(
        policy,
        held_back.rows,
        tokens_per_pack=tokens_per_pack,
        name_row=lambda row: held_back.trajectory_ids_N[owners[row]],
    )
    sums_R = [logprobs_A.sum(dtype=np.float64) for logprobs_A in scores.logprobs_R]
    return np.array([sum(sums_R[r] for r in rows) for rows in held_back.rows_of_N])


def summarize_change(
    held_back: HeldBack, before_N: np.ndarray, now_N: np.ndarray
) -> dict[str, float | int | None]:
    """Log-probabilities before the first step and now -> a record's numbers, nats per token.

    `good_change_se` is the ratio estimator's standard error over tasks, as attempts at one share
    it: with r_g the sum of change - mean change * tokens over a task's good trajectories,
    sqrt(G / (G - 1) * sum r_g^2) / all tokens. `good_lost_excess` is how far good trajectories have
    become less likely, less one standard error, beyond what is allowed: half of their surprise
    (minus log-probability) at the start, but no more than 0.05.
    """
    lengths_N = np.array(
        [sum(held_back.rows[r].num_actions for r in rows) for rows in held_back.rows_of_N]
    )
    good_N, bad_N = held_back.is_good_N, ~held_back.is_good_N
    change_N = now_N - before_N
    record: dict[str, float | int | None] = {
        "num_good": int(good_N.sum()),
        "num_bad": int(bad_N.sum()),
    }
    for name, kind_N in (("good", good_N), ("bad", bad_N)):
        num_tokens = int(lengths_N[kind_N].sum())
        record[f"{name}_logprob"] = _divide(now_N[kind_N].sum(), num_tokens)
        record[f"{name}_change"] = _divide(change_N[kind_N].sum(), num_tokens)
    tasks_G, task_of_good_N = np.unique(held_back.task_of_N[good_N], return_inverse=True)
    num_tasks = record["num_good_tasks"] = len(tasks_G)
    if good_N.sum() < LEAST_GOOD or num_tasks < LEAST_TASKS:
        return record | {"good_change_se": None, "good_lost_excess": None}
    num_tokens = lengths_N[good_N].sum()
    change = change_N[good_N].sum() / num_tokens
    residuals_N = change_N[good_N] - change * lengths_N[good_N]
    residuals_G = np.bincount(task_of_good_N, weights=residuals_N)
    error = float(np.sqrt((residuals_G**2).sum() * num_tasks / (num_tasks - 1)) / num_tokens)
    surprise = -before_N[good_N].sum() / num_tokens
    allowed = min(ALLOWED_SHARE * float(surprise), ALLOWED_AT_MOST)
    return record | {
        "good_change_se": error,
        "good_lost_excess": float(-change - error - allowed),
    }


def _divide(total: float, count: int) -> float | None:
    return float(total) / count if count else None


def describe_change(record: Mapping[str, Any]) -> str:
    """A record -> what a person is told."""
    parts = [
        f"{name} {record[f'{name}_change']:+.3g}"
        for name in ("good", "bad")
        if record[f"{name}_change"] is not None
    ]
    words = f"step {record['step']}: runs of tasks held back, nats/token since the start: "
    words += ", ".join(parts)
    if record["good_lost_excess"] is None:
        words += (
            f"; {record['num_good']} good runs of {record['num_good_tasks']} tasks are too few for "
            f"`good_runs_lost` ({LEAST_GOOD} of {LEAST_TASKS})"
        )
    return words
