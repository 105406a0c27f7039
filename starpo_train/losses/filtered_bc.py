"""Behaviour cloning of the trajectories that were good enough (RFT); the baseline to beat.

Suffix: A action tokens of a pack.
"""

from torch import Tensor

from starpo_train.losses.output import LossOutput


def compute_filtered_bc_loss(logprobs_A: Tensor, coefficients_A: Tensor) -> LossOutput:
    """Sum of coefficient * -log pi; the caller has left out trajectories below the threshold."""
    return LossOutput(loss=-(coefficients_A * logprobs_A).sum(), sums={})
