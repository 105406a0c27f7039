"""How token losses add up: one coefficient per token, with the whole step's denominators.

Suffixes: A action tokens of a pack, N trajectories of a step.
"""

from typing import Literal

import torch
from torch import Tensor


def compute_coefficients(
    weight_sums_N: Tensor, *, mode: Literal["traj-mean", "token-mean"]
) -> Tensor:
    """Per-trajectory factor that turns a sum over tokens into the step's mean.

    `weight_sums_N` is the summed weight of each trajectory's trained tokens over every row and
    pack of the step, so that micro-batches and branches cannot change the mean. traj-mean: each
    trajectory that has tokens weighs the same (StarPO's 1/|tau|); token-mean: each token.
    """
    weight_sums_N = weight_sums_N.to(torch.float64)
    trained_N = weight_sums_N > 0
    if mode == "token-mean":
        return trained_N / weight_sums_N.sum().clamp(min=1e-12)
    share_N = 1.0 / weight_sums_N.clamp(min=1e-12)
    return torch.where(trained_N, share_N, 0.0) / trained_N.sum().clamp(min=1)
