"""Off-policy REINFORCE whose bad trajectories fade as they become unlikely (TOPR).

Suffix: N trajectories of a step.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput


def compute_topr_loss(
    logprobs_N: Tensor, behaviour_logprobs_N: Tensor, outcomes_N: Tensor
) -> LossOutput:
    """Mean of -w R log pi; w = 1 if R >= 0, else min(1, pi / mu) of the whole trajectory.

    arXiv 2503.14286. Log-probabilities are summed over the trajectory's tokens, the ratio is taken
    in log space and is a constant; `outcomes_N` = reward - c, c the baseline. A bad trajectory's
    loss |R| w log pi and its gradient |R| w vanish with its probability, so nothing is pushed down
    without end: R = -1, log mu = -2: at log pi = -2 loss -2 and gradient 1; at -4 -.541 and .135.
    A length-normalised ratio would be another algorithm.

    Figures: positive_share = sum max(R - c, 0) / sum |R - c|, which for rewards of +-1 and p of
    them positive is the paper's p (1 - c) / (1 + (1 - 2p) c): with p = .5 and c = -.5, .75.
    negative_weight = mean w of the bad ones, when there are any.
    """
    log_ratio_N = (logprobs_N - behaviour_logprobs_N).detach()
    bad_N = outcomes_N < 0
    weights_N = torch.where(bad_N, log_ratio_N.clamp(max=0.0).exp(), 1.0).to(logprobs_N.dtype)
    # w -> 0 and log pi -> -inf: the product's limit is 0, also where log pi is no longer finite
    reached_N = torch.where(weights_N > 0, logprobs_N, torch.zeros_like(logprobs_N))
    loss = -(weights_N * outcomes_N * reached_N).sum() / max(len(outcomes_N), 1)
    wide_N = outcomes_N.detach().to(torch.float64)
    figures = {}
    if wide_N.any():
        figures["positive_share"] = wide_N.clamp(min=0.0).sum() / wide_N.abs().sum()
    if bad_N.any():
        figures["negative_weight"] = weights_N[bad_N].to(torch.float64).mean()
    return LossOutput(loss=loss, sums=figures)
