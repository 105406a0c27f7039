"""Logits -> sampled tokens and their log-probabilities.

Shapes: B rows, V vocabulary. Randomness comes in as one uniform number per row, so that a row's
tokens depend on its own generator alone and not on its neighbours in the batch.
"""

import torch

GREEDY_BELOW = 1e-5
"""Temperatures under this one take the likeliest token, as vLLM does."""


def sample_tokens(
    logits_BV: torch.Tensor,
    *,
    temperature_B: torch.Tensor,
    top_p_B: torch.Tensor,
    uniform_B: torch.Tensor,
) -> torch.Tensor:
    """Inverse-CDF sampling at each row's temperature and nucleus -> token ids (B).

    Top-p keeps the smallest set of likeliest tokens whose probability reaches p (Holtzman et al.
    2020, "The Curious Case of Neural Text Degeneration", eq. 2).
    """
    greedy_B = temperature_B < GREEDY_BELOW
    scaled_BV = logits_BV.double() / temperature_B.clamp_min(GREEDY_BELOW)[:, None]
    probability_BV = scaled_BV.softmax(-1)
    if bool((top_p_B < 1).any()):
        probability_BV = _keep_nucleus(probability_BV, top_p_B)
    cumulative_BV = probability_BV.cumsum(-1)
    target_B1 = (uniform_B.double() * cumulative_BV[:, -1])[:, None]
    sampled_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    sampled_B = sampled_B.clamp_max(logits_BV.shape[-1] - 1)
    return torch.where(greedy_B, logits_BV.argmax(-1), sampled_B)


def _keep_nucleus(probability_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    sorted_BV, order_BV = probability_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = sorted_BV.masked_fill(before_BV >= top_p_B[:, None], 0.0)
    return torch.zeros_like(probability_BV).scatter(-1, order_BV, kept_BV)


def token_logprobs(logits_BV: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    """Log-softmax of the raw logits at the sampled tokens (B): temperature 1, no truncation."""
    logits_BV = logits_BV.float()
    return logits_BV.gather(-1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
