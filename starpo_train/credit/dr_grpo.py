"""Rewards of attempts at the same task -> Dr.GRPO advantages. Suffix: N trajectories."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from starpo_train.credit.groups import Singleton, compute_baselines, zero_unscored


def compute_dr_grpo_advantages(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    *,
    singleton: Singleton = "drop",
    values_N: Tensor | None = None,
) -> Tensor:
    """Reward - mean of its group, not divided by the deviation (arXiv 2503.20783).

    Rewards (1, 0, 0) give (.6667, -.3333, -.3333). Equal rewards give 0, lone attempts what
    `singleton` says (`compute_baselines`).
    """
    baselines = compute_baselines(rewards_N, groups_N, singleton=singleton, values_N=values_N)
    return zero_unscored(rewards_N - baselines.mean_N, baselines)
