"""Estimator terms + clusters -> a confidence interval.

Attempts at one task (or for one user) are alike, so whole clusters are drawn. Estimators are
functions of sums over clusters, so that a resample is a matrix product. The interval is
studentized (bootstrap-t, Efron and Tibshirani 1993, ch. 12.5): weights are skewed to the right, and
percentiles of the resampled values are then too short on the side that matters (docs/ope.md has the
coverage of both).

Suffixes: N trajectories, F ratios of an estimator, C clusters, B resamples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starpo_train.ope.importance import EstimatorTerms

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
_MOST_LOST = 0.01
"""Share of resamples that may be without overlap; with more, nothing is bounded."""
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Bounds of an estimate; infinite where the data cannot bound it."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether a value is within, bounds included."""
        return self.low <= value <= self.high


UNBOUNDED = Interval(low=-math.inf, high=math.inf)


def draw_clusters(
    num_clusters: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Tensor:
    """How often each cluster is in each resample, [B, C] float64, rows summing to C."""
    shares = np.full(num_clusters, 1 / num_clusters)
    counts_BC = np.random.default_rng(seed).multinomial(num_clusters, shares, size=num_resamples)
    return torch.from_numpy(counts_BC).to(torch.float64)


def sum_clusters(values_NF: Tensor, cluster_of_N: Tensor, num_clusters: int) -> Tensor:
    """Sums over the trajectories of each cluster, [C, ...]."""
    sums_CF = values_NF.new_zeros((num_clusters, *values_NF.shape[1:]))
    return sums_CF.index_add_(0, cluster_of_N, values_NF)


def bootstrap_terms(
    terms: EstimatorTerms,
    cluster_of_N: Tensor,
    counts_BC: Tensor,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Studentized interval of an estimate.

    value = sum_f a_f / b_f over cluster sums; a cluster moves it by
    psi_c = sum_f (a_cf - b_cf a_f / b_f) / b_f, and its standard error is sqrt(sum_c psi_c^2).
    The bounds are value - se * quantiles of (value* - value) / se*. One cluster bounds nothing.
    """
    num_clusters = counts_BC.shape[1]
    if num_clusters < 2:
        return UNBOUNDED
    counts_BC = counts_BC.to(terms.numerators_NF.dtype)
    tops_CF = sum_clusters(terms.numerators_NF, cluster_of_N, num_clusters)
    bottoms_CF = sum_clusters(terms.denominators_NF, cluster_of_N, num_clusters)
    value_1, error_1 = _estimate(torch.ones_like(counts_BC[:1]), tops_CF, bottoms_CF)
    if not bool(value_1.isfinite().all()):
        return UNBOUNDED
    pivots = []
    for part_BC in _split(counts_BC):
        value_B, error_B = _estimate(part_BC, tops_CF, bottoms_CF)
        moved_B = value_B - value_1
        # of a resample without spread nothing is known, unless nothing has moved either
        pivots.append(torch.where(moved_B == 0, 0.0, moved_B / error_B))
    low, high = find_bounds(torch.cat(pivots), confidence=confidence)
    if math.isinf(low) or math.isinf(high):
        return UNBOUNDED
    value, error = float(value_1), float(error_1)
    scale = terms.scale
    return Interval(low=(value - high * error) * scale, high=(value - low * error) * scale)


def subtract_mean(terms: EstimatorTerms, returns_N: Tensor) -> EstimatorTerms:
    """The estimate less the behaviour policy's mean, both of the same trajectories."""
    scaled_N1 = returns_N[:, None] * math.exp(-terms.log_scale)
    return EstimatorTerms(
        numerators_NF=torch.cat([terms.numerators_NF, -scaled_N1], dim=1),
        denominators_NF=torch.cat([terms.denominators_NF, torch.ones_like(scaled_N1)], dim=1),
        log_scale=terms.log_scale,
    )


def find_bounds(values_B: Tensor, *, confidence: float) -> tuple[float, float]:
    """Order statistics at the two ends, infinite ones included; unbounded if too many are none."""
    known_B = values_B[~values_B.isnan()].sort().values
    lost = len(values_B) - len(known_B)
    if lost > _MOST_LOST * len(values_B):
        return -math.inf, math.inf
    tail = (1 - confidence) / 2
    below = math.floor(tail * (len(known_B) - 1))
    above = math.ceil((1 - tail) * (len(known_B) - 1))
    return float(known_B[below]), float(known_B[above])


def _estimate(counts_BC: Tensor, tops_CF: Tensor, bottoms_CF: Tensor) -> tuple[Tensor, Tensor]:
    """Value and standard error of each resample, [B]."""
    top_BF, bottom_BF = counts_BC @ tops_CF, counts_BC @ bottoms_CF
    ratio_BF = top_BF / bottom_BF
    psi_BC = (1 / bottom_BF) @ tops_CF.T - (ratio_BF / bottom_BF) @ bottoms_CF.T
    return ratio_BF.sum(1), (counts_BC * psi_BC**2).sum(1).sqrt()


def _split(counts_BC: Tensor) -> Iterator[Tensor]:
    return iter(counts_BC.split(max(1, _CHUNK_CELLS // counts_BC.shape[1])))
