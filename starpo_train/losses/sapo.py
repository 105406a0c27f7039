"""PPO with a soft gate in place of the clip (SAPO).

Suffix: A action tokens of a pack.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput
from starpo_train.losses.ratios import compute_log_ratios, measure_ratios


def compute_sapo_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> LossOutput:
    """Sum of coefficient * -A sigmoid(tau (rho - 1)) 4 / tau, tau by the sign of A.

    arXiv 2511.20347; A = 0 counts as negative. At rho = 1 the value is -2 A / tau and the gradient
    at log pi is PPO's, -A; it fades smoothly as rho leaves 1 on either side. `sums`:
    `measure_ratios`.

    Raises:
        ValueError: a temperature is not positive.
    """
    if min(tau_positive, tau_negative) <= 0.0:
        raise ValueError(
            f"SAPO's temperatures are {tau_positive:g} and {tau_negative:g}; give positive ones "
            "(1 and 1.05 are the paper's)."
        )
    log_ratio_A = compute_log_ratios(logprobs_A, behaviour_logprobs_A)
    tau_A = torch.full_like(advantages_A, tau_negative).masked_fill(advantages_A > 0, tau_positive)
    gate_A = torch.sigmoid(tau_A * (log_ratio_A.exp() - 1.0)) * 4.0 / tau_A
    loss = -(coefficients_A * gate_A * advantages_A).sum()
    return LossOutput(loss=loss, sums=measure_ratios(log_ratio_A))
