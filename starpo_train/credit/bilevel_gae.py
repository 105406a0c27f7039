"""Turn rewards and values -> token advantages, turns first, then tokens within each turn.

Turn ends are an explicit mask: a reward of 0 is a reward, not a missing turn end.
Suffixes: K turns of one trajectory, T its sampled tokens in order.
"""

import torch
from torch import Tensor

from starpo_train.credit.gae import compute_gae


def compute_turn_advantages(
    rewards_K: Tensor,
    values_K: Tensor,
    *,
    gamma_turn: float = 0.95,
    lam: float = 1.0,
    bootstrap_value: float = 0.0,
) -> Tensor:
    """GAE from turn to turn (arXiv 2504.20073, high level), one trajectory.

    `bootstrap_value` is V after the last turn: 0 when the task ended, the critic's estimate when a
    limit cut it. Rewards (0, 0, 1), V = 0, gamma .95, lam 1 give (.9025, .95, 1).
    """
    return compute_gae(
        rewards_K, values_K, gamma=gamma_turn, lam=lam, bootstrap_value=bootstrap_value
    )[0]


def compute_bilevel_gae(
    rewards_K: Tensor,
    values_T: Tensor,
    turn_end_mask_T: Tensor,
    *,
    gamma_turn: float = 0.95,
    gamma_token: float = 1.0,
    lam: float = 1.0,
    bootstrap_value: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Both levels for one trajectory; returns (advantages_T, returns_T = advantages + values).

    High level on the values at turn ends; its return A_k + V(e_k) is the reward of the turn's
    last token; then token GAE inside each turn, which starts afresh at every turn end.

    It is token GAE where the levels coincide: with one token per turn (then gamma is gamma_turn),
    and with all of gamma_turn, gamma_token and lam 1, where both are rewards to come - V(t).

    Raises:
        ValueError: the mask does not end with a turn end, or has not one end per reward.
    """
    ends = torch.nonzero(turn_end_mask_T).flatten()
    if len(ends) != len(rewards_K) or len(ends) == 0 or ends[-1] != len(values_T) - 1:
        raise ValueError(
            f"{len(rewards_K)} turn rewards for turn ends at {ends.tolist()} of {len(values_T)} "
            "tokens; give one reward per turn end, and end the tokens with a turn end."
        )
    _, turn_returns_K = compute_gae(
        rewards_K.to(values_T.dtype),
        values_T[ends],
        gamma=gamma_turn,
        lam=lam,
        bootstrap_value=bootstrap_value,
    )
    token_rewards_T = torch.zeros_like(values_T)
    token_rewards_T[ends] = turn_returns_K
    lengths = torch.diff(ends, prepend=ends.new_tensor([-1])).tolist()
    advantages_T = torch.cat(
        [
            compute_gae(rewards, values, gamma=gamma_token, lam=lam)[0]
            for rewards, values in zip(
                token_rewards_T.split(lengths), values_T.split(lengths), strict=True
            )
        ]
    )
    return advantages_T, advantages_T + values_T
