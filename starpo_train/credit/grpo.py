"""Rewards of attempts at the same task -> GRPO advantages. Suffix: N trajectories."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from starpo_train.credit.groups import Singleton, compute_baselines, zero_unscored


def compute_grpo_advantages(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    *,
    epsilon: float = 1e-6,
    ddof: int = 1,
    singleton: Singleton = "drop",
    values_N: Tensor | None = None,
) -> Tensor:
    """(r - mean of its group) / (deviation of its group + epsilon) (arXiv 2402.03300).

    The defaults are those of verl and RAGEN; epsilon 1e-4 is TRL's, ddof 0 with epsilon 0 is ART's.
    Rewards (1, 0, 0) give (1.1547, -.5774, -.5774), (1.1545, -.5773, -.5773) and (1.4142, -.7071,
    -.7071). Equal rewards give 0, lone attempts what `singleton` says (`compute_baselines`).
    """
    baselines = compute_baselines(
        rewards_N, groups_N, singleton=singleton, values_N=values_N, ddof=ddof
    )
    scaled_N = (rewards_N - baselines.mean_N) / (baselines.std_N + epsilon)
    return zero_unscored(scaled_N, baselines)
