"""Values with a time, a cell and a cluster -> did they move within cells? Pure numpy and scipy.

Suffixes: N observations, G clusters.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A line through what is left after each cell's mean is taken off."""

    change: float
    """Of the value from the first time to the last."""
    p_value: float
    """Two-sided, by t with one degree of freedom less than there are clusters."""
    num_clusters: int
    """Clusters in which both time and cell vary, so that they say something."""


def estimate_trend(
    values_N: npt.ArrayLike,
    times_N: npt.ArrayLike,
    cells_N: Sequence[Hashable],
    clusters_N: Sequence[Hashable],
) -> Trend | None:
    """Slope within cells, with errors clustered (CR1: Liang and Zeger 1986, times G / (G - 1)).

    b = sum x y / sum x^2 with x, y less their cell's mean; Var b = G / (G - 1) *
    sum_g (sum_{i in g} x_i e_i)^2 / (sum x^2)^2. None where fewer than two clusters say anything.
    Values (0, 1, 0, 1, 0, 1) at times (0, 1, 0, 1, 0, 1) in cells (a, a, b, b, c, c): change 1,
    p 0.
    """
    cell_N, cluster_N = _number(cells_N), _number(clusters_N)
    x_N, y_N = _center(times_N, cell_N), _center(values_N, cell_N)
    squares = float(x_N @ x_N)
    num_clusters = len(np.unique(cluster_N[np.abs(x_N) > 0]))
    if num_clusters < 2 or squares == 0:
        return None
    slope = float(x_N @ y_N) / squares
    scores_G = np.bincount(cluster_N, weights=x_N * (y_N - slope * x_N))
    error = sqrt(float(scores_G @ scores_G) * num_clusters / (num_clusters - 1)) / squares
    # an exact fit leaves rounding, which is no deviation
    is_exact = error <= 1e-12 * abs(slope) or (slope == 0 and error == 0)
    p_value = 0.0 if is_exact and slope != 0 else 1.0
    if not is_exact:
        p_value = float(2 * stats.t.sf(abs(slope / error), num_clusters - 1))
    span = float(np.ptp(np.asarray(times_N, dtype=np.float64)))
    return Trend(change=slope * span, p_value=p_value, num_clusters=num_clusters)


def _center(values: npt.ArrayLike, cell_N: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    data_N = np.asarray(values, dtype=np.float64)
    mean_C = np.bincount(cell_N, weights=data_N) / np.bincount(cell_N)
    centered_N = data_N - mean_C[cell_N]
    # of equal values in a cell only rounding is left
    scale = np.abs(data_N).max(initial=0.0)
    return np.where(np.abs(centered_N) <= 1e-12 * scale, 0.0, centered_N)


def _number(keys: Sequence[Hashable]) -> npt.NDArray[np.intp]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)
