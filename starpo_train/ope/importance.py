"""Turn ratios and rewards -> importance-sampling estimates of the policy's value.

An action is a whole assistant turn: rho_k = pi(a_k|h_k) / mu(a_k|h_k), P_k = prod_{j<=k} rho_j. All
products are sums of logarithms, shifted before they are exponentiated. A trajectory that has ended
earns nothing more and its P stays what it was.

Every estimator here, and the doubly robust one, is a sum of ratios of sums over trajectories,

    value = exp(log_scale) sum_f sum_i numerators_if / sum_i denominators_if,

and is handed on as these terms: one bootstrap serves them all (bootstrap.py).
Suffixes: N trajectories, K turns (padded), F ratios of an estimator.
Sources: Precup, Sutton, Singh 2000 (IS, WIS, PDIS); Thomas 2015, "Safe reinforcement learning" (SN-PDIS).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOG = 600.0
"""Estimates saturate at e^600, about 1e260: nothing that large is one, but it is a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorTerms:
    """An estimator as sums over trajectories."""

    numerators_NF: Tensor
    denominators_NF: Tensor
    log_scale: float = 0.0
    """Logarithm of a factor taken out of the numerators."""

    @property
    def scale(self) -> float:
        """The factor, held within what a float can hold."""
        return math.exp(min(self.log_scale, LARGEST_LOG))

    def compute_value(self) -> float:
        """The estimate; nan without overlap, where every weight is 0.

        Where all weights are equal it is the plain mean, to the last bit.
        """
        totals_F = self.denominators_NF.sum(0)
        num_trajectories = len(self.numerators_NF)
        # a number over a tensor is the number times its reciprocal, which is not exact
        shares_F = torch.full_like(totals_F, num_trajectories) / totals_F
        parts_N = sum_turns(self.numerators_NF * shares_F)
        return math.fsum(parts_N.tolist()) / num_trajectories * self.scale


def accumulate_log_ratios(log_ratios_NK: Tensor, mask_NK: Tensor) -> Tensor:
    """Log P_k of every turn; after a trajectory's end it stays what it was.

    Log ratios (a, b) of two turns give (a, a + b, a + b, ...). A ratio of 0 is -inf.

    Raises:
        ValueError: a ratio that is infinite or no number, or a trajectory with a gap.
    """
    if bool((mask_NK[:, 1:] & ~mask_NK[:, :-1]).any()):
        raise ValueError(
            "mask_NK has a gap: the turns of a trajectory must come before its padding"
        )
    used_NK = torch.where(mask_NK, log_ratios_NK, 0.0)
    wrong_NK = used_NK.isnan() | (used_NK == torch.inf)
    if bool(wrong_NK.any()):
        n, k = wrong_NK.nonzero()[0].tolist()
        raise ValueError(
            f"log ratio {float(used_NK[n, k])} at trajectory {n}, turn {k}: the behaviour policy "
            "must have been able to act as it did; leave the trajectory out"
        )
    return used_NK.cumsum(1)


def compute_returns(rewards_NK: Tensor, mask_NK: Tensor, *, gamma: float = 1.0) -> Tensor:
    """G_i = sum_k gamma^k r_k of each trajectory; their mean is the behaviour policy's value."""
    return sum_turns(_discount(rewards_NK, gamma) * mask_NK)


def sum_turns(values_NK: Tensor) -> Tensor:
    """Sums over turns, added from the first to the last: equal numbers have equal sums."""
    return values_NK.cumsum(1)[:, -1]


def build_is_terms(
    log_ratios_NK: Tensor, rewards_NK: Tensor, mask_NK: Tensor, *, gamma: float = 1.0
) -> EstimatorTerms:
    """IS: (1/n) sum_i P_{T-1} G_i. Unbiased; its variance grows with the product.

    Ratios (2, 1/2) with returns (1, 0) give (2 * 1 + 0) / 2 = 1.
    """
    log_weights_N = accumulate_log_ratios(log_ratios_NK, mask_NK)[:, -1]
    shift = _find_shift(log_weights_N)
    returns_N = compute_returns(rewards_NK, mask_NK, gamma=gamma)
    weighted_N1 = ((log_weights_N - shift).exp() * returns_N)[:, None]
    return EstimatorTerms(
        numerators_NF=weighted_N1, denominators_NF=torch.ones_like(weighted_N1), log_scale=shift
    )


def build_weight_terms(log_ratios_NK: Tensor, mask_NK: Tensor) -> EstimatorTerms:
    """Mean of P_{T-1}, which is 1 in expectation. Clearly below 1, heavy runs were never recorded."""
    log_weights_N = accumulate_log_ratios(log_ratios_NK, mask_NK)[:, -1]
    shift = _find_shift(log_weights_N)
    weights_N1 = (log_weights_N - shift).exp()[:, None]
    return EstimatorTerms(
        numerators_NF=weights_N1, denominators_NF=torch.ones_like(weights_N1), log_scale=shift
    )


def build_wis_terms(
    log_ratios_NK: Tensor, rewards_NK: Tensor, mask_NK: Tensor, *, gamma: float = 1.0
) -> EstimatorTerms:
    """WIS: sum_i P_i G_i / sum_i P_i, which never leaves the range of the returns.

    Ratios (2, 1/2) with returns (1, 0) give 2 / 2.5 = .8.
    """
    log_weights_N = accumulate_log_ratios(log_ratios_NK, mask_NK)[:, -1]
    weights_N1 = (log_weights_N - _find_shift(log_weights_N)).exp()[:, None]
    returns_N = compute_returns(rewards_NK, mask_NK, gamma=gamma)
    return EstimatorTerms(numerators_NF=weights_N1 * returns_N[:, None], denominators_NF=weights_N1)


def build_pdis_terms(
    log_ratios_NK: Tensor, rewards_NK: Tensor, mask_NK: Tensor, *, gamma: float = 1.0
) -> EstimatorTerms:
    """PDIS: (1/n) sum_i sum_k gamma^k P_k r_k: a reward is weighted by what led to it only.

    One trajectory, ratios (2, 3), rewards (1, 1): 2 + 6 = 8, where IS gives 12.
    """
    log_weights_NK = accumulate_log_ratios(log_ratios_NK, mask_NK)
    shift = _find_shift(log_weights_NK)
    earned_NK = (log_weights_NK - shift).exp() * _discount(rewards_NK, gamma) * mask_NK
    numerators_N1 = sum_turns(earned_NK)[:, None]
    return EstimatorTerms(
        numerators_NF=numerators_N1,
        denominators_NF=torch.ones_like(numerators_N1),
        log_scale=shift,
    )


def build_sn_pdis_terms(
    log_ratios_NK: Tensor, rewards_NK: Tensor, mask_NK: Tensor, *, gamma: float = 1.0
) -> EstimatorTerms:
    """SN-PDIS: sum_k gamma^k (sum_i P_k r_k / sum_i P_k), trajectories that have ended included.

    Ratios (2, 1/2) of one turn each, rewards (1, 0): 2 / 2.5 = .8, as WIS.
    """
    log_weights_NK = accumulate_log_ratios(log_ratios_NK, mask_NK)
    highest_K = log_weights_NK.amax(0)
    weights_NK = (log_weights_NK - torch.where(highest_K.isfinite(), highest_K, 0.0)).exp()
    return EstimatorTerms(
        numerators_NF=weights_NK * _discount(rewards_NK, gamma) * mask_NK,
        denominators_NF=weights_NK,
    )


def _find_shift(log_weights: Tensor) -> float:
    """The largest log weight, or 0 where all are -inf."""
    highest = float(log_weights.max())
    return highest if math.isfinite(highest) else 0.0


def _discount(rewards_NK: Tensor, gamma: float) -> Tensor:
    if gamma == 1.0:
        return rewards_NK
    turns_K = torch.arange(rewards_NK.shape[1], dtype=rewards_NK.dtype)
    return rewards_NK * gamma**turns_K
