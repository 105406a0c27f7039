"""Clipping by one ratio per trajectory, the geometric mean of its tokens' (GSPO).

Suffixes: A action tokens of a step, N its trajectories.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput

LOG_RATIO_MAX = 10.0
"""Mean log-ratios are held at 10, as in verl."""


def compute_gspo_loss(
    log_ratio_means_N: Tensor,
    advantages_A: Tensor,
    trajectory_of_A: Tensor,
    coefficients_A: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> LossOutput:
    """Sum of coefficient * max(-A s, -A clip(s, 1 - low, 1 + high)), s of the token's trajectory.

    s = exp(mean over the trajectory's tokens of log pi - log mu) (arXiv 2507.18071, eq. 5 and 7);
    the paper's clips are far narrower, 3e-4 and 4e-4. `log_ratio_means_N` is the leaf: its gradient
    is the paper's. verl gives a token the gradient of its own advantage instead (GSPO-token), which
    is the same where A is constant within the trajectory.
    Two tokens with log-ratios 0 and ln 1.21: s = 1.1; A = 1 and coefficients 1/2 give -1.1.
    Figures: clip_fraction (trajectories with a clipped token) and sequence_ratio, their mean s.
    """
    ratio_N = log_ratio_means_N.clamp(max=LOG_RATIO_MAX).exp()
    ratio_A = ratio_N[trajectory_of_A]
    free_A = -advantages_A * ratio_A
    held_A = -advantages_A * ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = (coefficients_A * torch.maximum(free_A, held_A)).sum()
    clipped_N = torch.zeros_like(ratio_N.detach(), dtype=torch.float64)
    clipped_N.index_add_(0, trajectory_of_A, (held_A > free_A).detach().to(torch.float64))
    num = max(len(ratio_N), 1)
    figures = {
        "clip_fraction": (clipped_N > 0).sum().to(torch.float64) / num,
        "sequence_ratio": ratio_N.detach().to(torch.float64).sum() / num,
    }
    return LossOutput(loss=loss, sums=figures)
