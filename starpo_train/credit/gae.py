"""Rewards and values along one trajectory -> generalised advantages.

Suffix: T steps in order: the sampled tokens of a trajectory without the tool's and user's tokens
between them, or its turns.
"""

import torch
from torch import Tensor


def compute_gae(
    rewards_T: Tensor,
    values_T: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap_value: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns = advantages + values, before whitening (arXiv 1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1}. `bootstrap_value` is V
    after the last step: 0 when the task ended, a critic's estimate when a limit cut it off.
    Tokens that the policy did not sample are no steps: they are left out, as verl skips them.

    r = (.2, -.1, 1), V = (.5, .6, .7), gamma .95, lam .9 give A = (.45938, .2215, .3).

    Raises:
        ValueError: not one value per reward.
    """
    if rewards_T.shape != values_T.shape:
        raise ValueError(f"{len(rewards_T)} rewards and {len(values_T)} values; give one per step.")
    advantages = []
    advantage, next_value = 0.0, bootstrap_value
    # plain numbers: a tensor operation per token is a hundred times slower
    steps = zip(reversed(rewards_T.tolist()), reversed(values_T.tolist()), strict=True)
    for reward, value in steps:
        advantage = reward + gamma * next_value - value + gamma * lam * advantage
        advantages.append(advantage)
        next_value = value
    advantages_T = torch.tensor(advantages[::-1], dtype=values_T.dtype)
    return advantages_T, advantages_T + values_T


def compute_returns(rewards_T: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Discounted reward still to come at each step: G_t = r_t + gamma G_{t+1}.

    Rewards (0, 0, 1) at gamma .95 return (.9025, .95, 1).
    """
    return compute_gae(rewards_T, torch.zeros_like(rewards_T), gamma=gamma)[0]
