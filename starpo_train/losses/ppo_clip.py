"""PPO's clipped objective on recorded behaviour log-probabilities (StarPO's policy loss).

Suffix: A action tokens of a pack.
"""

import torch
from torch import Tensor

from starpo_train.losses.output import LossOutput
from starpo_train.losses.ratios import compute_log_ratios, count, measure_ratios


def compute_ppo_clip_loss(
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> LossOutput:
    """Sum of coefficient * max(-A rho, -A clip(rho, 1 - low, 1 + high)).

    rho = exp(log pi - log mu), the log-ratio held within +-20 (arXiv 1707.06347; unequal clips:
    DAPO, arXiv 2503.14476). With A = 1, rho = 1.5 and the default clips the term is -1.28 and has
    no gradient; with A = -1 it is 1.5 and has one. `dual_clip` = c (arXiv 1912.09729) ends that:
    where A < 0 the term is at most -A c, so with c = 3 a bad token at rho = 5 costs 3, not 5, and
    has no gradient. `sums`: clipped (tokens), dual_clipped with `dual_clip`, and `measure_ratios`.

    Raises:
        ValueError: `dual_clip` is 1 or less, which would undo ratios that have not moved.
    """
    log_ratio_A = compute_log_ratios(logprobs_A, behaviour_logprobs_A)
    ratio_A = log_ratio_A.exp()
    free_A = -advantages_A * ratio_A
    held_A = -advantages_A * ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high)
    terms_A = torch.maximum(free_A, held_A)
    sums = {"clipped": count(held_A > free_A)} | measure_ratios(log_ratio_A)
    if dual_clip is not None:
        if dual_clip <= 1.0:
            raise ValueError(
                f"dual_clip = {dual_clip:g} bounds ratios of bad tokens that have not even grown; "
                "give more than 1 (3 is usual), or leave it out."
            )
        bound_A = -advantages_A * dual_clip
        bad_A = advantages_A < 0
        sums["dual_clipped"] = count(bad_A & (terms_A > bound_A))
        terms_A = torch.where(bad_A, torch.minimum(terms_A, bound_A), terms_A)
    return LossOutput(loss=(coefficients_A * terms_A).sum(), sums=sums)
