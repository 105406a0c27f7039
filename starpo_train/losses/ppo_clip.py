"""PPO's clipped objective on recorded behaviour log-probabilities (StarPO's policy loss).

Suffix: A action tokens of a pack.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput

LOG_RATIO_LIMIT = 20.0


def compute_ppo_clip_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> LossOutput:
    """Sum of coefficient * max(-A rho, -A clip(rho, 1 - low, 1 + high)).

    rho = exp(log pi - log mu), the log-ratio held within +-20. With A = 1, rho = 1.5 and the
    default clips the term is -1.28 and has no gradient; with A = -1 it is 1.5 and has one.
    """
    log_ratio_A = (logprobs_A - behaviour_logprobs_A).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_A = log_ratio_A.exp()
    free_A = -advantages_A * ratio_A
    held_A = -advantages_A * ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = (coefficients_A * torch.maximum(free_A, held_A)).sum()
    return LossOutput(loss=loss, sums=_measure(log_ratio_A, free_A, held_A))


@torch.no_grad()
def _measure(log_ratio_A: Tensor, free_A: Tensor, held_A: Tensor) -> dict[str, Tensor]:
    log_ratio_A = log_ratio_A.detach().to(torch.float64)
    ratio_A = log_ratio_A.exp()
    return {
        "clipped": (held_A > free_A).sum().to(torch.float64),
        # k3 on samples of mu: unbiased for KL(mu | pi), never negative
        "kl": (ratio_A - 1.0 - log_ratio_A).sum(),
        "ratio": ratio_A.sum(),
        "ratio_squared": (ratio_A**2).sum(),
        "drift": log_ratio_A.abs().sum(),
    }
