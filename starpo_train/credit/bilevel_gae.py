"""Turn rewards and values -> token advantages, turns first, then tokens within each turn.

Turn ends are an explicit mask: a reward of 0 is a reward, not a missing turn end.
Suffixes: K turns of one trajectory, T its sampled tokens in order.
"""

import torch
from torch import Tensor


def compute_turn_advantages(
    rewards_K: Tensor,
    values_K: Tensor,
    *,
    gamma_turn: float = 0.95,
    lam: float = 1.0,
    bootstrap_value: float = 0.0,
) -> Tensor:
    """GAE from turn to turn (arXiv 2504.20073, high level), one trajectory.

    delta_k = r_k + gamma V_{k+1} - V_k;  A_k = delta_k + gamma lam A_{k+1}. `bootstrap_value`
    is V after the last turn: 0 when the task ended, the critic's estimate when a limit cut it.
    Rewards (0, 0, 1), V = 0, gamma .95, lam 1 give (.9025, .95, 1).
    """
    advantages_K = torch.zeros_like(values_K)
    next_value: Tensor | float = bootstrap_value
    advantage: Tensor | float = 0.0
    for k in range(len(rewards_K) - 1, -1, -1):
        delta = rewards_K[k] + gamma_turn * next_value - values_K[k]
        advantage = delta + gamma_turn * lam * advantage
        advantages_K[k] = advantage
        next_value = values_K[k]
    return advantages_K


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

    Raises:
        ValueError: the mask does not end with a turn end, or has not one end per reward.
    """
    ends = torch.nonzero(turn_end_mask_T).flatten()
    if len(ends) != len(rewards_K) or len(ends) == 0 or ends[-1] != len(values_T) - 1:
        raise ValueError(
            f"{len(rewards_K)} turn rewards for turn ends at {ends.tolist()} of {len(values_T)} "
            "tokens; give one reward per turn end, and end the tokens with a turn end."
        )
    values_K = values_T[ends]
    turn_advantages_K = compute_turn_advantages(
        rewards_K, values_K, gamma_turn=gamma_turn, lam=lam, bootstrap_value=bootstrap_value
    )
    turn_returns_K = turn_advantages_K + values_K
    advantages_T = torch.zeros_like(values_T)
    start = 0
    for k, end in enumerate(ends.tolist()):
        advantage = turn_returns_K[k] - values_T[end]
        advantages_T[end] = advantage
        for t in range(end - 1, start - 1, -1):
            delta = gamma_token * values_T[t + 1] - values_T[t]
            advantage = delta + gamma_token * lam * advantage
            advantages_T[t] = advantage
        start = end + 1
    return advantages_T, advantages_T + values_T


def whiten_masked(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the mask, Bessel-corrected as in verl; 0 elsewhere.

    Fewer than two masked tokens have no deviation: they are returned unchanged.
    """
    count = int(mask_T.sum())
    if count < 2:
        return torch.where(mask_T, values_T, torch.zeros_like(values_T))
    chosen = values_T[mask_T]
    scaled_T = (values_T - chosen.mean()) * torch.rsqrt(chosen.var() + 1e-8)
    return torch.where(mask_T, scaled_T, torch.zeros_like(values_T))
