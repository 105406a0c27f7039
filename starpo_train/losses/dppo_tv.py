"""A trust region on probabilities in place of ratios: tokens that moved too far drop out (DPPO).

Suffix: A action tokens of a pack.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput
from starpo_train.losses.ratios import compute_log_ratios, count, measure_ratios


def compute_dppo_tv_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    limit_low: float = 0.2,
    limit_high: float = 0.2,
    ratio_cap: float = 20.0,
) -> LossOutput:
    """Sum of coefficient * -m w A log pi with constants m and w = min(rho, cap).

    Binary total variation (arXiv 2602.04879), as in verl: m = 0 where A > 0 and pi - mu > high,
    or where A <= 0 and pi - mu < -low; else 1. A rare token may grow tenfold, from .01 to .1,
    where PPO stops it at .0128; a common one may not go from .5 to .71.
    `sums`: clipped (tokens left out), capped (kept tokens with rho > cap), `measure_ratios`.
    """
    log_ratio_A = compute_log_ratios(logprobs_A, behaviour_logprobs_A)
    ratio_A = log_ratio_A.detach().exp()
    moved_A = logprobs_A.detach().exp() - behaviour_logprobs_A.exp()
    kept_A = torch.where(advantages_A > 0, moved_A <= limit_high, moved_A >= -limit_low)
    weights_A = ratio_A.clamp(max=ratio_cap) * kept_A
    loss = -(coefficients_A * weights_A * advantages_A * logprobs_A).sum()
    sums = {"clipped": count(~kept_A), "capped": count(kept_A & (ratio_A > ratio_cap))}
    return LossOutput(loss=loss, sums=sums | measure_ratios(log_ratio_A))
