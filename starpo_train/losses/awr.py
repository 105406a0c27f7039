"""Behaviour cloning weighted by how much better than expected it went (AWR, AWAC).

Suffix: A action tokens of a pack.
"""

import math

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput
from starpo_train.losses.ratios import count

WEIGHT_MAX = 20.0


@torch.no_grad()
def compute_awr_weights(
    advantages_A: Tensor, *, beta: float, weight_max: float = WEIGHT_MAX
) -> Tensor:
    """min(exp(A / beta), weight_max), constants; of tokens, turns or trajectories alike.

    AWR (arXiv 1910.00177): A = G - V, the same for all tokens of a trajectory. AWAC (2006.09359):
    A = Q - V of each turn; the weights are the same function. beta = .5: A = (-1, 0, 1, 2) give
    (.135, 1, 7.39, 20).

    Raises:
        ValueError: `beta` or `weight_max` is not positive.
    """
    if beta <= 0.0 or weight_max <= 0.0:
        raise ValueError(
            f"AWR with beta = {beta:g} and weight_max = {weight_max:g}; give positive ones."
        )
    return (advantages_A / beta).clamp(max=math.log(weight_max)).exp()


def compute_awr_loss(
    logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    beta: float,
    weight_max: float = WEIGHT_MAX,
) -> LossOutput:
    """Sum of coefficient * -w log pi with w of `compute_awr_weights`.

    No ratio is formed, so the data need not have log-probabilities. `sums`: weight, weight_squared
    (their ESS is weight^2 / (tokens * weight_squared)) and capped (tokens at weight_max).
    """
    weights_A = compute_awr_weights(advantages_A, beta=beta, weight_max=weight_max)
    loss = -(coefficients_A * weights_A * logprobs_A).sum()
    sums = {
        "weight": weights_A.to(torch.float64).sum(),
        "weight_squared": torch.square(weights_A.to(torch.float64)).sum(),
        "capped": count(advantages_A / beta >= math.log(weight_max)),
    }
    return LossOutput(loss=loss, sums=sums)
