"""Several rewards per trajectory -> GDPO advantages. Suffixes: N trajectories, M reward kinds."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from starpo_train.credit.groups import Singleton, compute_baselines, zero_unscored
from starpo_train.credit.whiten import whiten_masked


def compute_gdpo_advantages(
    rewards_NM: Tensor,
    groups_N: Sequence[Hashable | None],
    weights_M: Tensor,
    *,
    epsilon: float = 1e-6,
    singleton: Singleton = "drop",
) -> Tensor:
    """GRPO of each reward by itself, their weighted sum, whitened (arXiv 2601.05242).

    Rewards are brought to one scale before they are added up, so that none drowns another. The sum
    is whitened over trajectories, as in the paper and TRL; verl whitens over tokens, so that a longer
    trajectory counts more: for that whiten `compute_gdpo_scores` by token. Trajectories with nothing
    to compare stay exactly 0 and take no part in the mean and deviation of the others.

    Two tasks of two attempts, rewards (1, 0), (0, 0), (1, 1), (0, 1) and weights (1, 1): scores
    .7071, -.7071, .7071, -.7071 (the second reward is equal within each task), whitened
    .8660, -.8660, .8660, -.8660.
    """
    scores_N, is_scored_N = compute_gdpo_scores(
        rewards_NM, groups_N, weights_M, epsilon=epsilon, singleton=singleton
    )
    return whiten_masked(scores_N, is_scored_N)


def compute_gdpo_scores(
    rewards_NM: Tensor,
    groups_N: Sequence[Hashable | None],
    weights_M: Tensor,
    *,
    epsilon: float = 1e-6,
    singleton: Singleton = "drop",
) -> tuple[Tensor, Tensor]:
    """The sum before whitening; bool [N]: which trajectories differ from others in any reward.

    Raises:
        ValueError: not one weight per reward, or `learned_value`, of which there is one for the sum.
    """
    if rewards_NM.shape[1] != len(weights_M):
        raise ValueError(
            f"{len(weights_M)} weights for {rewards_NM.shape[1]} rewards; give one for each."
        )
    if singleton == "learned_value":
        raise ValueError(
            "singleton = 'learned_value' with GDPO: a critic values the sum of the rewards, not each; "
            "use 'drop' or 'global_baseline'."
        )
    scores_N = rewards_NM.new_zeros(len(rewards_NM))
    is_scored_N = torch.zeros(len(rewards_NM), dtype=torch.bool)
    for rewards_N, weight in zip(rewards_NM.unbind(1), weights_M, strict=True):
        baselines = compute_baselines(rewards_N, groups_N, singleton=singleton)
        scaled_N = (rewards_N - baselines.mean_N) / (baselines.std_N + epsilon)
        scores_N = scores_N + weight * zero_unscored(scaled_N, baselines)
        is_scored_N = is_scored_N | (baselines.is_scored_N & (weight != 0))
    return scores_N, is_scored_N
