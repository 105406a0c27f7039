"""Log-probabilities under two policies -> an estimate per token of how far apart they are.

Suffix: A action tokens of a pack.
"""

from typing import Literal

import torch
from torch import Tensor

from starpo_train.losses.ratios import LOG_RATIO_LIMIT

KlEstimator = Literal["k1", "k2", "k3", "k1+", "k3+"]
K3_LIMIT = 10.0
"""k3 is held at 10, as in verl; a token held there has no gradient."""


def compute_kl(
    logprobs_A: Tensor, reference_logprobs_A: Tensor, *, estimator: KlEstimator = "k3"
) -> Tensor:
    """Per-token estimate of KL(pi | pi_ref), d = log pi_ref - log pi (joschu.net/blog/kl-approx).

    k1 = -d; k2 = d^2 / 2; k3 = e^d - d - 1 with d within +-20 and the value at most 10. On samples
    of pi the values of k1 and k3 are unbiased but their gradients are not: k1's is 0 on average.
    k2's gradient is that of the divergence, and `k1+`, `k3+` have it beside their own value.
    log pi = -1, log pi_ref = -1.5: k1 = .5, k2 = .125, k3 = .1065; gradients 1, .5, .3935.
    """
    log_ratio_A = logprobs_A - reference_logprobs_A
    if estimator == "k2":
        return _k2(log_ratio_A)
    if estimator in ("k1", "k1+"):
        values_A = log_ratio_A
    elif estimator in ("k3", "k3+"):
        back_A = (-log_ratio_A).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        values_A = (back_A.exp() - back_A - 1.0).clamp(-K3_LIMIT, K3_LIMIT)
    else:
        raise ValueError(f"KL estimator {estimator!r} is none of k1, k2, k3, k1+ and k3+.")
    if not estimator.endswith("+"):
        return values_A
    slope_A = _k2(log_ratio_A)
    return values_A.detach() + (slope_A - slope_A.detach())


def _k2(log_ratio_A: Tensor) -> Tensor:
    return 0.5 * torch.square(log_ratio_A)
