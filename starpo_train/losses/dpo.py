"""Pairs of attempts at the same task -> a loss that prefers the better one (DPO).

Suffixes: N trajectories of a step, P pairs of them.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from starpo_train.losses.output import LossOutput


def compute_dpo_loss(
    logprobs_N: Tensor, reference_logprobs_N: Tensor, pairs_P2: Tensor, *, beta: float = 0.1
) -> LossOutput:
    """Mean over pairs of -log sigmoid(beta (h_better - h_worse)), h = log pi - log pi_ref.

    arXiv 2305.18290, eq. 7. `pairs_P2` holds indices into N, the better attempt first; both began
    in the same state. Sums are over agent tokens only, so what the environment answered does not
    count; its normaliser does not cancel in general over several turns, unlike in the paper.
    beta = 1, h = (1, 0) and the pair (0, 1): -log sigmoid(1) = .3133. No pairs: 0.
    Figures: pair_accuracy (h_better > h_worse) and pair_margin, the mean of beta (h_b - h_w).
    """
    ratio_N = logprobs_N - reference_logprobs_N
    margins_P = beta * (ratio_N[pairs_P2[:, 0]] - ratio_N[pairs_P2[:, 1]])
    num_pairs = max(len(margins_P), 1)
    found_P = margins_P.detach().to(torch.float64)
    figures = {
        "pair_accuracy": (found_P > 0).sum().to(torch.float64) / num_pairs,
        "pair_margin": found_P.sum() / num_pairs,
    }
    return LossOutput(loss=-logsigmoid(margins_P).sum() / num_pairs, sums=figures)
