"""Trajectories + a seed -> which of them each step of an epoch takes.

Suffix: N trajectories.
"""

from collections.abc import Sequence

import numpy as np


def plan_epoch(
    task_of_N: np.ndarray,
    *,
    num_steps: int,
    seed: Sequence[int],
    by_task: bool,
    whole_tasks: bool,
) -> list[list[int]]:
    """Trajectories of each step, in an order that the seed alone decides.

    `by_task`: attempts at one task together, as far as a step holds them; `whole_tasks`: all of them,
    and there may be fewer steps than `num_steps`.
    """
    order = np.random.default_rng(seed).permutation(len(task_of_N))
    if by_task or whole_tasks:
        order = gather_tasks(order, task_of_N)
    if whole_tasks:
        return split_between_tasks(order, task_of_N, num_steps)
    return [part.tolist() for part in np.array_split(order, num_steps)]


def gather_tasks(order: np.ndarray, task_of_N: np.ndarray) -> np.ndarray:
    """Trajectories in some order -> attempts at one task together, where its first one was."""
    first_of = {task: place for place, task in reversed(list(enumerate(task_of_N[order])))}
    return order[np.argsort([first_of[task] for task in task_of_N[order]], kind="stable")]


def split_between_tasks(
    order: np.ndarray, task_of_N: np.ndarray, num_steps: int
) -> list[list[int]]:
    """Tasks one after another -> steps of about one size, none of which parts a task."""
    starts = np.flatnonzero(np.diff(task_of_N[order], prepend=-1))
    middles = (starts + np.append(starts[1:], len(order))) / 2
    step_of_task = (middles * num_steps / len(order)).astype(int)
    steps: list[list[int]] = [[] for _ in range(num_steps)]
    for step, members in zip(step_of_task, np.split(order, starts[1:]), strict=True):
        steps[step] += members.tolist()
    return [step for step in steps if step]
