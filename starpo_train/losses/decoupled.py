"""PPO held near a recent policy, on data of an older one (decoupled PPO).

Suffix: A action tokens of a pack.
"""

from torch import Tensor

from starpo_train.losses.correction import correct_ratios
from starpo_train.losses.output import LossOutput
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.ratios import count


def compute_decoupled_loss(  # noqa: PLR0913  three policies, two limits
    logprobs_A: Tensor,
    behaviour_logprobs_A: Tensor,
    advantages_A: Tensor,
    coefficients_A: Tensor,
    *,
    proximal_logprobs_A: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    cap: float = 2.0,
    masked: bool = False,
) -> LossOutput:
    """Sum of coefficient * w * PPO's clipped term of pi / pi_prox, w = pi_prox / mu.

    arXiv 2505.24298, eq. 5. w is a constant, held at `cap` or, `masked`, 0 above it; coefficients
    keep the denominators of all tokens, kept or not. pi_prox / mu = 3 and pi / pi_prox = 1.1 with
    A = 1 give -2.2 held at 2, and 0 masked. `sums` are PPO's, about pi / pi_prox, and `corrected`:
    tokens whose w is held or masked.
    """
    log_weights_A = (proximal_logprobs_A - behaviour_logprobs_A).detach()
    weights_A = correct_ratios(log_weights_A, cap=cap, masked=masked)
    output = compute_ppo_clip_loss(
        logprobs_A,
        proximal_logprobs_A.detach(),
        advantages_A,
        coefficients_A * weights_A,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    corrected = count(log_weights_A.exp() > cap)
    return LossOutput(loss=output.loss, sums=output.sums | {"corrected": corrected})
