"""Lengths -> what a reward loses for coming close to the limit (DAPO's soft punishment).

Suffix: N trajectories.
"""

import torch
from torch import Tensor


def compute_overlong_penalty(
    lengths_N: Tensor, *, max_length: int, buffer: int, factor: float = 1.0
) -> Tensor:
    """0 up to max_length - buffer, then falling evenly to -factor at max_length and beyond.

    arXiv 2503.14476, eq. 13. Limit 100 and buffer 20: lengths (80, 90, 100, 130) give
    (0, -.5, -1, -1). Add it to the rewards before advantages are formed.

    Raises:
        ValueError: not 0 < buffer <= max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(
            f"an overlong buffer of {buffer} tokens below a limit of {max_length}; give between 1 "
            "and the limit."
        )
    excess_N = lengths_N.to(torch.float64) - (max_length - buffer)
    return -factor * (excess_N / buffer).clamp(0.0, 1.0)
