"""Dataset's test split -> rows of tokens that a run scores, to see whether it unlearns what worked."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from starpo_train.config import RunConfig
from starpo_train.credit.assign import keep_trajectories
from starpo_train.dataset import Trajectory, has_split
from starpo_train.dataset import read_trajectories as read_dataset_trajectories
from starpo_train.errors import DataError, ModelError
from starpo_train.leftout import LeftOut
from starpo_train.policy import Policy
from starpo_train.rows import tokenize_trajectories
from starpo_train.targets import number_tasks
from starpo_train.trainingdata import HeldBack

SPLIT: Final = "test"


def read_held_back(
    config: RunConfig, policy: Policy, *, threshold: float, longest: int
) -> tuple[HeldBack | None, str | None]:
    """Trajectories with a reward, good from `threshold` on, and why there are none where that is a fault.

    Those with a row longer than `longest`, which training has none of, are left out. What cannot be scored
    is no reason not to train.
    """
    samples = config.diagnostics.held_back
    if samples == 0 or config.data.split == SPLIT or not has_split(config.data.dataset, SPLIT):
        return None, None
    usable = [
        trajectory
        for trajectory in read_dataset_trajectories(config.data.dataset, split=SPLIT)
        if trajectory.reward is not None and trajectory.usable_for != "none"
    ]
    recorded = [t for t in usable if not t.lacks_ids(config.data.models)]
    usable = recorded or usable  # those that need no rendering, if there are any
    is_good = [_is_good(trajectory, threshold) for trajectory in usable]
    chosen = choose_held_back(is_good, samples=samples, seed=config.run.seed)
    try:
        tokenized = tokenize_trajectories(
            [usable[place] for place in chosen],
            config.data,
            policy,
            model_path=config.model.path,
            left_out=LeftOut(),
            findings=Counter(),
        )
    except (DataError, ModelError) as error:
        return None, str(error)
    sizes = [row.num_tokens for row in tokenized.rows]
    fits_N = [max(sizes[r] for r in rows) <= longest for rows in tokenized.rows_of_N]
    if not any(fits_N):
        return None, None
    tokenized, _ = keep_trajectories(tokenized, [], fits_N)
    held_back = HeldBack(
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        is_good_N=np.array([_is_good(t, threshold) for t in tokenized.trajectories]),
        task_of_N=number_tasks(tokenized),
    )
    return held_back, None


def choose_held_back(is_good_N: Sequence[bool], *, samples: int, seed: int) -> list[int]:
    """Up to `samples` good trajectories and as many bad ones, in their order; the same for a seed."""
    good_N = np.asarray(is_good_N, dtype=bool)
    rng = np.random.default_rng([seed, len(good_N)])
    chosen: list[int] = []
    for places in (np.flatnonzero(good_N), np.flatnonzero(~good_N)):
        chosen += rng.permutation(places)[:samples].tolist()
    return sorted(chosen)


def _is_good(trajectory: Trajectory, threshold: float) -> bool:
    return trajectory.reward is not None and trajectory.reward >= threshold
