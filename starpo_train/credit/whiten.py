"""Advantages -> mean 0, deviation 1. Suffix: A tokens (or whatever else is counted)."""

import torch
from torch import Tensor


def whiten_masked(values_A: Tensor, mask_A: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the mask, Bessel-corrected as in verl; 0 elsewhere.

    Fewer than two masked values have no deviation: they are returned unchanged. (1, 2, 3) becomes
    (-1, 0, 1).
    """
    zeros_A = torch.zeros_like(values_A)
    if int(mask_A.sum()) < 2:
        return torch.where(mask_A, values_A, zeros_A)
    chosen = values_A[mask_A]
    scaled_A = (values_A - chosen.mean()) * torch.rsqrt(chosen.var() + 1e-8)
    return torch.where(mask_A, scaled_A, zeros_A)
