"""Dataset's test split -> rows of tokens that a run scores, to see whether it unlearns what worked."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from starpo_train.config import RunConfig
from starpo_train.dataset import Trajectory, has_split
from starpo_train.dataset import read_trajectories as read_dataset_trajectories
from starpo_train.leftout import LeftOut
from starpo_train.policy import Policy
from starpo_train.rows import tokenize_trajectories
from starpo_train.trainingdata import HeldBack

SPLIT: Final = "test"


def read_held_back(config: RunConfig, policy: Policy, *, threshold: float) -> HeldBack | None:
    """Trajectories with a reward, good from `threshold` on; None where there are none to be had.

    Raises:
        DataError: an id is outside the model's vocabulary.
        ModelError: messages must be rendered and the model has no chat template.
    """
    samples = config.diagnostics.held_back
    if samples == 0 or config.data.split == SPLIT or not has_split(config.data.dataset, SPLIT):
        return None
    usable = [
        trajectory
        for trajectory in read_dataset_trajectories(config.data.dataset, split=SPLIT)
        if trajectory.reward is not None and trajectory.usable_for != "none"
    ]
    is_good = [_is_good(trajectory, threshold) for trajectory in usable]
    chosen = choose_held_back(is_good, samples=samples, seed=config.run.seed)
    tokenized = tokenize_trajectories(
        [usable[place] for place in chosen],
        config.data,
        policy,
        model_path=config.model.path,
        left_out=LeftOut(),
        findings=Counter(),
    )
    if not tokenized.rows:
        return None
    return HeldBack(
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        is_good_N=np.array([_is_good(t, threshold) for t in tokenized.trajectories]),
    )


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
