"""Policy gradient with clipped importance weights: every token keeps a gradient (CISPO).

Suffix: A action tokens of a pack.
"""

from torch import Tensor

from starpo_train.losses.output import LossOutput
from starpo_train.losses.ratios import compute_log_ratios, count, measure_ratios


def compute_cispo_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> LossOutput:
    """Sum of coefficient * -w A log pi, w = rho within 1 - low and 1 + high, a constant.

    MiniMax-M1 (arXiv 2506.13585, eq. 4), as in verl. With rho = 1.5, A = 1 and the default clips
    the gradient at log pi is -1.28, where PPO's is 0. `sums`: clipped (tokens whose weight is
    held), and `measure_ratios`.
    """
    log_ratio_A = compute_log_ratios(logprobs_A, behaviour_logprobs_A)
    ratio_A = log_ratio_A.detach().exp()
    weights_A = ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high)
    return _weigh(logprobs_A, advantages_A, coefficients_A, log_ratio_A, ratio_A, weights_A)


def compute_cispo_trl_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    ratio_cap: float = 5.0,
) -> LossOutput:
    """Sum of coefficient * -w A log pi, w = min(rho, cap): TRL's form of CISPO.

    The cap is the ratio itself, not a distance from 1, and nothing holds small ratios up: TRL's
    epsilon_high = 5 is `clip_high` = 4 and `clip_low` = 1 of `compute_cispo_loss`.
    """
    log_ratio_A = compute_log_ratios(logprobs_A, behaviour_logprobs_A)
    ratio_A = log_ratio_A.detach().exp()
    weights_A = ratio_A.clamp(max=ratio_cap)
    return _weigh(logprobs_A, advantages_A, coefficients_A, log_ratio_A, ratio_A, weights_A)


def _weigh(
    logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    log_ratio_A: Tensor,
    ratio_A: Tensor,
    weights_A: Tensor,
) -> LossOutput:
    loss = -(coefficients_A * weights_A * advantages_A * logprobs_A).sum()
    sums = {"clipped": count(weights_A != ratio_A)} | measure_ratios(log_ratio_A)
    return LossOutput(loss=loss, sums=sums)
