"""Rewards of attempts at the same task -> MaxRL advantages. Suffix: N trajectories."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from starpo_train.credit.groups import Singleton, compute_baselines, zero_unscored


def compute_maxrl_advantages(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    *,
    singleton: Singleton = "drop",
    values_N: Tensor | None = None,
) -> Tensor:
    """(r - mean of its group) / mean of its group; 0 where the mean is not above 0 (prime-rl).

    Hard tasks weigh more: rewards (1, 0, 0) give (2, -1, -1), (1, 1, 0) give (.5, .5, -1). Meant for
    rewards of 0 and above. Equal rewards give 0, lone attempts what `singleton` says
    (`compute_baselines`).
    """
    baselines = compute_baselines(rewards_N, groups_N, singleton=singleton, values_N=values_N)
    is_positive_N = baselines.mean_N > 0
    mean_N = torch.where(is_positive_N, baselines.mean_N, torch.ones_like(rewards_N))
    scaled_N = (rewards_N - mean_N) / mean_N
    return zero_unscored(
        torch.where(is_positive_N, scaled_N, torch.zeros_like(scaled_N)), baselines
    )
