"""Rewards of attempts at the same task -> how far they differ, step by step.

Suffixes: N trajectories, G groups (tasks).
"""

from collections.abc import Sequence

import numpy as np


def compute_deviations(rewards_N: np.ndarray, task_of_N: np.ndarray) -> np.ndarray:
    """Deviation of reward (ddof 1) over all attempts at each trajectory's task; nan for a lone one.

    Rewards (1, 0, 5) of tasks (0, 0, 1) give (.7071, .7071, nan).
    """
    _, group_of_N, size_G = np.unique(task_of_N, return_inverse=True, return_counts=True)
    mean_G = np.bincount(group_of_N, weights=rewards_N) / size_G
    squares_G = np.bincount(group_of_N, weights=(rewards_N - mean_G[group_of_N]) ** 2)
    variance_G = np.full(len(size_G), np.nan)
    np.divide(squares_G, size_G - 1, out=variance_G, where=size_G > 1)
    return np.sqrt(variance_G)[group_of_N]


def measure_step_deviation(
    deviations_N: np.ndarray, task_of_N: np.ndarray, trajectories: Sequence[int]
) -> float | None:
    """Mean deviation over the tasks of some trajectories, each task once; None: all are lone.

    Over all attempts at a task, those of other steps included: what a step happens to hold of a
    task says little, and advantages compare with all of them.
    """
    _, first = np.unique(task_of_N[list(trajectories)], return_index=True)
    deviations_G = deviations_N[np.asarray(trajectories)[first]]
    known = deviations_G[~np.isnan(deviations_G)]
    return float(known.mean()) if len(known) else None
