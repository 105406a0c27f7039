"""Cross log-probabilities of answers under prompts -> how much the answers depend on the prompts.

RAGEN-2 (arXiv 2604.06268): a policy can keep a high entropy while its reasoning no longer depends on
what it reads (template collapse). Entropy does not show that; this does.

Suffixes: N sampled answers, U distinct prompts.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

RETRIEVAL_RANKS: Final = (1, 2, 4, 8)
STD_EPSILON: Final = 1e-3
EMA_DECAY: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Information:
    """What answers say about their prompts; log-probabilities are means over answers, in nats."""

    matched: float
    """Under the answer's own prompt."""
    marginal: float
    """Under the even mixture of all prompts."""
    marginal_std: float
    """Deviation of the latter over answers (ddof 0)."""

    @property
    def mutual(self) -> float:
        """Estimate of I(X; Z): matched - marginal, at most log U; below 0 it is noise about 0."""
        return self.matched - self.marginal


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How often an answer's own prompt is among the `rank` under which it is likeliest."""

    rank: int
    accuracy: float
    chance: float
    """rank / U: what a policy has that does not read its prompt."""


def measure_information(logprobs_NU: Tensor, prompt_of_N: Tensor) -> Information:
    """MI = mean_i [l_own(z_i) - (logsumexp_u l_u(z_i) - log U)], l_u(z) = log pi(z | x_u).

    Args:
        logprobs_NU: l_u(z_i), summed over the answer's tokens (per sequence), or their mean (per
            token: the same formula on l / length, as in RAGEN-2).
        prompt_of_N: which of U each answer was sampled under; identical prompts are one.

    Two prompts and answers of probability (.5, .1) and (.2, .4), own ones first and second: matched
    log .5 and log .4, marginals log .3 and log .3, MI = (log(5/3) + log(4/3)) / 2 = .3992.
    """
    matched_N = logprobs_NU.gather(1, prompt_of_N[:, None])[:, 0]
    marginal_N = torch.logsumexp(logprobs_NU, dim=1) - math.log(logprobs_NU.shape[1])
    return Information(
        matched=float(matched_N.mean()),
        marginal=float(marginal_N.mean()),
        marginal_std=float(marginal_N.std(correction=0)),
    )


def measure_retrieval(logprobs_NU: Tensor, prompt_of_N: Tensor, *, rank: int) -> Retrieval:
    """Share of answers whose own prompt is among the first `rank` of U by log-probability.

    Prompts that are equally likely are in random order: one of two that share the first place
    counts half. So a policy that ignores its prompt has exactly chance, not 1.
    """
    num_prompts = logprobs_NU.shape[1]
    matched_N1 = logprobs_NU.gather(1, prompt_of_N[:, None])
    num_better_N = (logprobs_NU > matched_N1).sum(1).double()
    num_equal_N = (logprobs_NU == matched_N1).sum(1).double()
    share_N = ((rank - num_better_N) / num_equal_N).clamp(0.0, 1.0)
    return Retrieval(
        rank=rank, accuracy=float(share_N.mean()), chance=min(rank, num_prompts) / num_prompts
    )


def compute_zscore(mutual: float, marginal_std: float) -> float:
    """MI in deviations of the marginal: MI / (std + 1e-3)."""
    return mutual / (marginal_std + STD_EPSILON)


def update_ema(before: float | None, value: float, *, decay: float = EMA_DECAY) -> float:
    """The mean decay * before + (1 - decay) * value; the first value is taken as it is.

    >>> round(update_ema(update_ema(None, 2.0), 1.0), 6)
    1.9
    """
    return value if before is None else decay * before + (1.0 - decay) * value
