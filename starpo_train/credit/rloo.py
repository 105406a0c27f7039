"""Rewards of attempts at the same task -> leave-one-out advantages. Suffix: N trajectories."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from starpo_train.credit.groups import Singleton, compute_baselines, zero_unscored


def compute_rloo_advantages(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    *,
    singleton: Singleton = "drop",
    values_N: Tensor | None = None,
) -> Tensor:
    """Reward - mean of the others in its group: (r - mean) n / (n - 1) (arXiv 2402.14740).

    Rewards (1, 0, 0) give (1, -.5, -.5). Equal rewards give 0, lone attempts what `singleton` says
    (`compute_baselines`): with `global_baseline` the others are all other trajectories.
    """
    baselines = compute_baselines(rewards_N, groups_N, singleton=singleton, values_N=values_N)
    size_N = baselines.size_N.to(rewards_N.dtype)
    # a critic's value holds no reward of the trajectory itself, so nothing has to be left out
    factor_N = torch.where(size_N > 1, size_N / (size_N - 1).clamp(min=1), torch.ones_like(size_N))
    return zero_unscored((rewards_N - baselines.mean_N) * factor_N, baselines)
