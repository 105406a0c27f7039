"""How token losses add up: one coefficient per token, with the whole step's denominators.

A trajectory may have several rows (branches); `seq` in a mode's name is a row, `traj` a trajectory.
Suffixes: A action tokens of a pack, N trajectories of a step, R their rows.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from starpo_train.config import Aggregation


def compute_coefficients(
    weight_sums_N: Tensor, *, mode: Literal["traj-mean", "token-mean", "token-sum"]
) -> Tensor:
    """Per-trajectory factor that turns a sum over weighted tokens into the step's mean.

    `weight_sums_N` is the summed weight of each trajectory's trained tokens over every row and
    pack of the step, so that micro-batches and branches cannot change the mean. traj-mean: each
    trajectory that has tokens weighs the same (StarPO's 1/|tau|); token-mean: each token;
    token-sum: no mean at all. Sums of 2 and 8: (1/4, 1/16), (1/10, 1/10) and (1, 1).

    Raises:
        ValueError: the mode counts rows; use `compute_row_coefficients`.
    """
    weight_sums_N = weight_sums_N.to(torch.float64)
    trained_N = weight_sums_N > 0
    if mode == "traj-mean":
        share_N = 1.0 / weight_sums_N.clamp(min=1e-12)
        return torch.where(trained_N, share_N, 0.0) / trained_N.sum().clamp(min=1)
    if mode == "token-mean":
        return trained_N / weight_sums_N.sum().clamp(min=1e-12)
    if mode == "token-sum":
        return trained_N.to(torch.float64)
    raise ValueError(f"aggregation {mode!r} counts rows; use compute_row_coefficients.")


def compute_row_coefficients(
    num_tokens_R: Tensor,
    weights_R: Tensor,
    trajectory_of_R: Tensor,
    *,
    mode: Aggregation,
    horizon: float | None = None,
) -> Tensor:
    """Per-row factor that turns a sum over weighted tokens into the step's mean, in every mode.

    `num_tokens_R` trained tokens of each row, `weights_R` the row's weight, by which each of its
    token's coefficient is multiplied afterwards. T tokens, w weight, sums over the step's rows:

    ========================  ========================================================
    traj-mean                 1 / (trajectories * sum of w T over the trajectory's rows)
    token-mean                1 / sum w T
    token-sum                 1
    seq-mean-token-mean       1 / (T sum w)                              (GRPO)
    seq-mean-token-sum        1 / sum w
    seq-mean-token-sum-norm   1 / (horizon sum w), the same horizon in every step (Dr.GRPO)
    ========================  ========================================================

    As in verl's `agg_loss`, rows and trajectories without a trained token are in no denominator;
    TRL and SkyRL count them. Rows of 2, 8 and 0 tokens with weight 1, seq-mean-token-mean:
    (1/4, 1/16, 0), where TRL has (1/6, 1/24, 0).

    Raises:
        ValueError: an unknown mode, or seq-mean-token-sum-norm without a positive horizon.
    """
    num_tokens_R = num_tokens_R.to(torch.float64)
    weights_R = torch.where(num_tokens_R > 0, weights_R.to(torch.float64), 0.0)
    sums_R = weights_R * num_tokens_R
    num_rows = weights_R.sum().clamp(min=1e-12)
    if mode == "traj-mean":
        num_trajectories = int(trajectory_of_R.max()) + 1 if len(trajectory_of_R) else 0
        sums_N = sums_R.new_zeros(num_trajectories).index_add_(0, trajectory_of_R, sums_R)
        factors_R = compute_coefficients(sums_N, mode="traj-mean")[trajectory_of_R]
    elif mode in ("token-mean", "token-sum"):
        factors_R = compute_coefficients(sums_R, mode=mode)
    elif mode == "seq-mean-token-mean":
        factors_R = 1.0 / (num_rows * num_tokens_R.clamp(min=1))
    elif mode == "seq-mean-token-sum":
        factors_R = (1.0 / num_rows).expand_as(sums_R)
    elif mode == "seq-mean-token-sum-norm":
        if horizon is None or horizon <= 0:
            raise ValueError(
                f"aggregation {mode!r} divides by a constant horizon, which is {horizon}; give the "
                "longest row's number of tokens, the same for every step."
            )
        factors_R = (1.0 / (num_rows * horizon)).expand_as(sums_R)
    else:
        raise ValueError(f"aggregation {mode!r} is none of {', '.join(get_args(Aggregation))}.")
    return torch.where(sums_R > 0, factors_R, 0.0)
