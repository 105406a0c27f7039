"""Tokenized trajectories + the starting policy -> the critic's value of every turn start.

Suffixes: N trajectories, R rows, K turns (in row order), T trained tokens of one trajectory in the
order of time, S turn starts of a pack, H hidden.
"""

from typing import Literal

import torch
from torch import Tensor

from starpo_train.config import RunConfig
from starpo_train.credit.critic import TurnValues, fit_turn_values
from starpo_train.credit.gae import compute_returns
from starpo_train.credit.groups import number_groups
from starpo_train.credit.turns import (
    TokenizedTrajectories,
    TurnLayout,
    compute_turn_rewards,
    read_reward,
)
from starpo_train.memory import explain_out_of_memory
from starpo_train.pack import pack_all
from starpo_train.policy import Policy

Target = Literal["turns", "tokens", "outcome"]
"""What a value predicts: rewards still to come, discounted by turn or by token; or the outcome."""


def fit_critic(
    tokenized: TokenizedTrajectories,
    layout: TurnLayout,
    config: RunConfig,
    policy: Policy,
    *,
    target: Target,
) -> TurnValues:
    """Values of all turn starts."""
    features_KH = _compute_features(tokenized, config, policy)
    returns_K = torch.zeros(len(layout.turn_K), dtype=torch.float64)
    usable_K = torch.zeros(len(layout.turn_K), dtype=torch.bool)
    for n, trajectory in enumerate(tokenized.trajectories):
        places = layout.places_N[n]
        returns_K[places] = compute_targets(tokenized, layout, n, config, target)
        usable_K[places] = trajectory.end != "truncated"
    group_of_N = number_groups([t.task_id for t in tokenized.trajectories])
    return fit_turn_values(features_KH, returns_K, group_of_N[layout.trajectory_of_K], usable_K)


def compute_targets(
    tokenized: TokenizedTrajectories, layout: TurnLayout, n: int, config: RunConfig, target: Target
) -> Tensor:
    """What the critic is fitted to at the turns of one trajectory, in the order of time."""
    trajectory, places = tokenized.trajectories[n], layout.places_N[n]
    if target == "outcome":
        return torch.full((len(places),), read_reward(trajectory), dtype=torch.float64)
    rewards = compute_turn_rewards(trajectory, layout.list_turns(n), config.algorithm)
    rewards_K = torch.tensor(rewards, dtype=torch.float64)
    if target == "turns":
        return compute_returns(rewards_K, gamma=config.algorithm.gamma_turn)
    counts = layout.num_tokens_K[places]
    returns_T = compute_returns(
        spread_rewards(rewards_K, counts), gamma=config.algorithm.gamma_token
    )
    return returns_T[counts.cumsum(0) - counts]


def spread_rewards(rewards_K: Tensor, num_tokens_K: Tensor) -> Tensor:
    """Turns' rewards at the last token of each turn, 0 elsewhere -> [T]; turns in order of time."""
    rewards_T = rewards_K.new_zeros(int(num_tokens_K.sum()))
    rewards_T[num_tokens_K.cumsum(0) - 1] = rewards_K
    return rewards_T


def _compute_features(
    tokenized: TokenizedTrajectories, config: RunConfig, policy: Policy
) -> Tensor:
    """Hidden states at every turn start; each rank computes some, and has all in the end."""
    features_R: list[Tensor] = [torch.empty(0)] * len(tokenized.rows)
    counts_R = [int(row.turn_start_mask_T.sum()) for row in tokenized.rows]
    num_hidden = 0
    for chosen, batch in pack_all(
        tokenized.rows,
        range(len(tokenized.rows)),
        tokens_per_pack=policy.limit_pack(config.train.tokens_per_pack),
        shared_up_to=policy.shared_up_to,
        ranks=policy.ranks,
    ):
        with explain_out_of_memory(batch, tokenized.name_row):
            features_SH = policy.compute_state_features(batch).cpu()
        num_hidden = features_SH.shape[1]
        counts = [counts_R[r] for r in chosen]
        for r, features in zip(chosen, features_SH.split(counts) if counts else (), strict=True):
            features_R[r] = features
    if policy.ranks.size == 1:
        return torch.cat(features_R)
    zeros_R = [torch.zeros(count, num_hidden) for count in counts_R]
    own_R = [f if len(f) else zeros for f, zeros in zip(features_R, zeros_R, strict=True)]
    return policy.ranks.sum_tensor(torch.cat(own_R))
