"""Log-probabilities now and then -> ratios that stay finite, and what is logged of them.

Suffix: A action tokens of a pack.
"""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +-20: e^20 is 485 million, and further out nothing is learnt."""


def compute_log_ratios(logprobs_A: Tensor, behaviour_logprobs_A: Tensor) -> Tensor:
    """Log pi - log mu, held within +-`LOG_RATIO_LIMIT`; no gradient where it is held."""
    return (logprobs_A - behaviour_logprobs_A).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


@torch.no_grad()
def measure_ratios(log_ratio_A: Tensor) -> dict[str, Tensor]:
    """Sums over tokens: `kl` (k3), `ratio`, `ratio_squared` and `drift` (|log ratio|).

    ess_fraction is ratio^2 / (tokens * ratio_squared).
    """
    log_ratio_A = log_ratio_A.detach().to(torch.float64)
    ratio_A = log_ratio_A.exp()
    return {
        # k3 on samples of mu: unbiased for KL(mu | pi), never negative
        "kl": (ratio_A - 1.0 - log_ratio_A).sum(),
        "ratio": ratio_A.sum(),
        "ratio_squared": (ratio_A**2).sum(),
        "drift": log_ratio_A.abs().sum(),
    }


def count(chosen: Tensor) -> Tensor:
    """How many are set, as a sum that adds up with the others."""
    return chosen.detach().sum().to(torch.float64)
