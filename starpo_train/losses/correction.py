"""Ratios between two policies -> one constant weight per token, to multiply coefficients with.

The denominators stay those of all tokens: a token of weight 0 still counts. Weights of a whole
sequence come from the same functions, given the sequence's log-ratio at each of its tokens:
`correct_ratios(log_ratio_sums_N[trajectory_of_A], ...)`.
Suffixes: A action tokens of a pack, N trajectories of a step.
"""

import torch
from torch import Tensor

from starpo_train.losses.ratios import LOG_RATIO_LIMIT


@torch.no_grad()
def correct_ratios(
    log_ratios_A: Tensor, *, cap: float = 2.0, floor: float = 0.0, masked: bool = False
) -> Tensor:
    """Ratio of each token, held at `cap`, or 0 where `masked` and it is not within floor..cap.

    Held: truncated importance sampling (TIS), min(w, C). Masked: IcePop, w outside [lo, hi] -> 0.
    Both as in verl's rollout correction; per token, or the product over the sequence when its
    summed log-ratio is given. Log-ratios are held within +-20. cap = 2: ratios (.5, 1.5, 3) give
    (.5, 1.5, 2) held and (.5, 1.5, 0) masked; with floor = .8 also the first is 0.

    Raises:
        ValueError: `floor` without `masked`, or not 0 <= floor < cap.
    """
    if not 0.0 <= floor < cap or (floor > 0.0 and not masked):
        raise ValueError(
            f"cap = {cap:g}, floor = {floor:g}, masked = {masked}: give 0 <= floor < cap, and a "
            "floor only with masked=True."
        )
    ratios_A = log_ratios_A.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if not masked:
        return ratios_A.clamp(max=cap)
    kept_A = (ratios_A >= floor) & (ratios_A <= cap)
    return torch.where(kept_A, ratios_A, torch.zeros_like(ratios_A))


@torch.no_grad()
def mask_off_policy_sequences(
    log_ratio_means_N: Tensor,
    advantages_A: Tensor,
    trajectory_of_A: Tensor,
    *,
    threshold: float,
) -> Tensor:
    """1 where a token counts, 0 where it is bad and its trajectory has drifted too far.

    DeepSeek-V3.2's off-policy sequence mask, as in TRL: a token is kept if A >= 0, or if
    mean_t(log mu - log pi) <= threshold over its trajectory. `log_ratio_means_N` is the mean of
    log pi - log mu. Means (-.5, .1), A = -1 in both and threshold .3: the first is left out.
    """
    near_N = -log_ratio_means_N <= threshold
    kept_A = (advantages_A >= 0) | near_N[trajectory_of_A]
    return kept_A.to(advantages_A.dtype)
