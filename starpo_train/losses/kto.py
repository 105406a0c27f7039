"""Good and bad trajectories, not in pairs -> a loss against the model the run began with (KTO).

Suffix: N trajectories of a step.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput


def compute_kto_loss(
    logprobs_N: Tensor,
    reference_logprobs_N: Tensor,
    desirable_N: Tensor,
    *,
    divergence: float | Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Mean of 1 - sigmoid(beta (h - z)) of good ones and 1 - sigmoid(beta (z - h)) of bad ones.

    arXiv 2402.01306, eq. 7, and TRL's `kto`. h = log pi - log pi_ref, summed over the trajectory's
    tokens; `desirable_N` bool; z = max(`divergence`, 0) is a constant, the batch's mean h of
    trajectories on prompts they do not belong to. beta = 1, z = 0: h = 1 is worth .269 if good and
    .731 if bad. Figures: divergence, and implicit_reward_good and _bad, the means of beta h.
    """
    ratio_N = logprobs_N - reference_logprobs_N
    anchor = torch.as_tensor(divergence, dtype=ratio_N.dtype, device=ratio_N.device).detach()
    anchor = anchor.clamp(min=0.0)
    # not `where` on two floats: that is float32, whatever the rest is
    sign_N = torch.full_like(ratio_N, -1.0).masked_fill(desirable_N, 1.0)
    weight_N = torch.full_like(ratio_N, undesirable_weight).masked_fill(
        desirable_N, desirable_weight
    )
    terms_N = weight_N * torch.sigmoid(-beta * sign_N * (ratio_N - anchor))
    figures = {"divergence": anchor.to(torch.float64)}
    rewards_N = beta * ratio_N.detach().to(torch.float64)
    for name, chosen_N in (("good", desirable_N), ("bad", ~desirable_N)):
        if chosen_N.any():
            figures[f"implicit_reward_{name}"] = rewards_N[chosen_N].mean()
    return LossOutput(loss=terms_N.sum() / max(len(terms_N), 1), sums=figures)
