"""Rewards -> REINFORCE++ advantages, whitened over the tokens of all trajectories.

Suffixes: N trajectories, A the sampled tokens of all of them, one trajectory after the other.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from starpo_train.credit.gae import compute_returns
from starpo_train.credit.groups import Singleton, compute_baselines, zero_unscored
from starpo_train.credit.whiten import whiten_masked


def compute_reinforce_pp_advantages(
    rewards_A: Tensor, num_tokens_N: Sequence[int], *, gamma: float = 1.0
) -> Tensor:
    """Discounted rewards still to come at each token, whitened over all tokens (arXiv 2501.03262).

    Tokens that the policy did not sample are left out, so no discount is taken across them. Two
    trajectories of two tokens with rewards (0, 1) and (0, 0), gamma 1: returns (1, 1, 0, 0),
    advantages (.8660, .8660, -.8660, -.8660).
    """
    returns_A = compute_reinforce_pp_returns(rewards_A, num_tokens_N, gamma=gamma)
    return whiten_masked(returns_A, torch.ones_like(returns_A, dtype=torch.bool))


def compute_reinforce_pp_returns(
    rewards_A: Tensor, num_tokens_N: Sequence[int], *, gamma: float = 1.0
) -> Tensor:
    """The returns before whitening."""
    parts = rewards_A.split(list(num_tokens_N))
    return torch.cat([compute_returns(part, gamma=gamma) for part in parts])


def compute_reinforce_pp_baseline_advantages(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    num_tokens_N: Sequence[int],
    *,
    singleton: Singleton = "drop",
    values_N: Tensor | None = None,
) -> Tensor:
    """Reward - mean of its group at each token, whitened over all tokens -> [A] (arXiv 2501.03262).

    Equal rewards and dropped lone attempts give 0 and take no part in the whitening; verl, which lets
    them, gives them minus the mean of the others, over the deviation, and lone attempts their raw
    reward before it. Rewards (1, 0, 0) of 1, 2 and 1 tokens: .6667, -.3333, -.3333, -.3333 less their
    mean -.0833 over their deviation .5 is 1.5, -.5, -.5, -.5.
    """
    baselines = compute_baselines(rewards_N, groups_N, singleton=singleton, values_N=values_N)
    centered_N = zero_unscored(rewards_N - baselines.mean_N, baselines)
    counts_N = torch.tensor(list(num_tokens_N), dtype=torch.long)
    return whiten_masked(
        centered_N.repeat_interleave(counts_N), baselines.is_scored_N.repeat_interleave(counts_N)
    )
