"""A critic's loss with PPO's clip on how far its values move.

Suffix: A action tokens of a pack.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput
from starpo_train.losses.ratios import count


def compute_value_loss(
    values_A: Tensor,
    old_values_A: Tensor,
    returns_A: Tensor,
    coefficients_A: Tensor,
    *,
    clip: float | None = 0.5,
) -> LossOutput:
    """Sum of coefficient * 1/2 max((V - R)^2, (V held within V_old +- clip - R)^2).

    As in verl; `clip` None is the plain squared error. V = 1, V_old = 0, R = 2 and clip .5:
    max(1, 2.25) / 2 = 1.125 without gradient, since V has come as far as it may.
    `sums`: value_clipped (tokens) and value_error, the squared error.
    """
    errors_A = torch.square(values_A - returns_A)
    terms_A = errors_A
    if clip is not None:
        held_A = torch.minimum(torch.maximum(values_A, old_values_A - clip), old_values_A + clip)
        terms_A = torch.maximum(errors_A, torch.square(held_A - returns_A))
    sums = {
        "value_clipped": count(terms_A > errors_A),
        "value_error": errors_A.detach().to(torch.float64).sum(),
    }
    return LossOutput(loss=0.5 * (coefficients_A * terms_A).sum(), sums=sums)
