"""Rewards of single trajectories -> a least-squares loss on log-ratios (DRO), in its two forms.

They are different losses: the square of a sum is not the sum of squares.
Suffixes: A action tokens of a pack, N trajectories of a step.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput


def compute_dro_loss(
    logprobs_N: Tensor, reference_logprobs_N: Tensor, outcomes_N: Tensor, *, tau: float
) -> LossOutput:
    """Mean of 1/2 (G - V - tau h)^2, h = log pi - log pi_ref summed over the trajectory's tokens.

    DRO (arXiv 2405.19107), the policy's part: `outcomes_N` = G - V(x) with the value as a constant,
    so the gradient at log pi of a trajectory is -tau (G - V - tau h) / N. G - V = 1, tau = .5 and
    h = 1: loss .125, gradient -.25; at h = 2 it is reached and both are 0.
    Figures: residual, the root mean square of G - V - tau h.
    """
    residuals_N = outcomes_N - tau * (logprobs_N - reference_logprobs_N)
    mean_square = torch.square(residuals_N).sum() / max(len(residuals_N), 1)
    residual = mean_square.detach().to(torch.float64).sqrt()
    return LossOutput(loss=0.5 * mean_square, sums={"residual": residual})


def compute_dro_token_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    beta: float,
) -> LossOutput:
    """Sum of coefficient * -(A log pi - beta/2 (log pi - log mu)^2), verl's and Tinker's `dro`.

    Each token is pulled back to the behaviour policy, so log-probabilities must be recorded. For a
    trajectory of one token it is `compute_dro_loss` over tau, up to constants, with mu as the
    reference and beta = tau. A = 1, beta = .5, log pi = -1, log mu = -2: 1 + .25 = 1.25, gradient -.5.
    `sums`: drift_squared.
    """
    log_ratio_A = logprobs_A - behaviour_logprobs_A
    terms_A = advantages_A * logprobs_A - 0.5 * beta * torch.square(log_ratio_A)
    drift_squared = torch.square(log_ratio_A.detach().to(torch.float64)).sum()
    return LossOutput(loss=-(coefficients_A * terms_A).sum(), sums={"drift_squared": drift_squared})
