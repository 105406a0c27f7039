"""Log weights -> how much of the data stands behind an estimate.

Suffixes: N trajectories, K turns (padded).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFacts:
    """What the weights of some trajectories look like."""

    ess: float
    """Effective sample size; 0 when every weight is 0."""
    largest_share: float
    """Weight of the heaviest trajectory, of all weight."""


def describe_weights(log_weights_N: Tensor) -> WeightFacts:
    """ESS = (sum w)^2 / sum w^2 (Kish 1965), and the largest w / sum w.

    Weights (3, 1) give 16 / 10 = 1.6 and .75; equal ones give their number.
    """
    highest = log_weights_N.max()
    if not bool(highest.isfinite()):
        return WeightFacts(ess=0.0, largest_share=1.0)
    weights_N = (log_weights_N - highest).exp()
    total = weights_N.sum()
    return WeightFacts(
        ess=float(total**2 / (weights_N**2).sum()), largest_share=float(weights_N.max() / total)
    )


def compute_ess_per_turn(log_weights_NK: Tensor) -> Tensor:
    """ESS of P_k at every turn, over all trajectories, ended ones with the weight they ended with."""
    return torch.tensor(
        [describe_weights(log_weights_N).ess for log_weights_N in log_weights_NK.unbind(1)],
        dtype=log_weights_NK.dtype,
    )
