"""Column of numbers -> bins and counts that add up to its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import polars as pl

_MAX_VALUES: Final = 12
"""Up to so many different values each has a bin of its own."""
_NUM_RANGES: Final = 16
_TAIL: Final = 0.01
"""The outermost bins begin here and reach to the least and the greatest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Where numbers are put."""

    lows: tuple[float, ...]
    """Least value of each bin, ascending."""
    highs: tuple[float, ...]
    """Greatest value of each bin; the next bin's least where it is not reached."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Each bin in words."""
        pairs = zip(self.lows, self.highs, strict=True)
        return tuple(
            format_number(low) if low == high else f"{format_number(low)} to {format_number(high)}"
            for low, high in pairs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Numbers of a column; `sum(counts)` + `num_odd` + `num_missing` are all of its rows."""

    bins: Bins
    """Shared by all that is compared with this."""
    counts: tuple[int, ...]
    """Rows in each bin."""
    num_odd: int
    """Rows that are infinite or not a number."""
    num_missing: int
    """Rows that are null."""
    mean: float | None
    """Of the finite ones, as all that follow; None when there are none."""
    deviation: float | None
    """Standard deviation (population)."""
    low: float | None
    median: float | None
    p95: float | None
    high: float | None

    @property
    def num_counted(self) -> int:
        """Rows with a finite number."""
        return sum(self.counts)

    @property
    def num_rows(self) -> int:
        """All rows."""
        return self.num_counted + self.num_odd + self.num_missing


def choose_bins(values: pl.Series) -> Bins:
    """Numbers -> a bin for each value, or ranges of equal width where there are many values."""
    finite = _drop_noise(_keep_finite(values))
    different = finite.unique().sort()
    if different.len() <= _MAX_VALUES:
        exact = tuple(float(value) for value in different)
        return Bins(lows=exact, highs=exact)
    least, greatest = float(different[0]), float(different[-1])
    start, end = (_quantile(finite, share) for share in (_TAIL, 1 - _TAIL))
    width = (end - start) / _NUM_RANGES
    if start - least <= width:
        start = least
    if greatest - end <= width:
        end = greatest
    is_whole = not values.dtype.is_float()
    edges = _divide(start, end, is_whole=is_whole)
    lows = [least, *edges[1:]]
    unit = 1 if is_whole else 0
    highs = [low - unit for low in lows[1:]] + [greatest]
    return Bins(lows=tuple(lows), highs=tuple(highs))


def describe(values: pl.Series, bins: Bins | None = None) -> Distribution:
    """Numbers -> their distribution over `bins`, or over bins of their own."""
    bins = choose_bins(values) if bins is None else bins
    finite = _keep_finite(values)
    is_empty = finite.is_empty()
    return Distribution(
        bins=bins,
        counts=_count_bins(_drop_noise(finite), bins),
        num_odd=values.drop_nulls().len() - finite.len(),
        num_missing=values.null_count(),
        mean=None if is_empty else _quiet(finite.mean()),
        deviation=None if is_empty else _quiet(finite.std(ddof=0)),
        low=None if is_empty else _quiet(finite.min()),
        median=None if is_empty else _quantile(finite, 0.5),
        p95=None if is_empty else _quantile(finite, 0.95),
        high=None if is_empty else _quiet(finite.max()),
    )


def format_number(value: float | None) -> str:
    """A number as short as it can be read.

    >>> [format_number(x) for x in (1234567, 0.000123, 3.0, 2.5, None, float("nan"))]
    ['1,234,567', '0.000123', '3', '2.5', '—', 'nan']
    """
    if value is None:
        return "—"
    if not isfinite(value) or abs(value) >= 1e15:
        return f"{value:g}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _keep_finite(values: pl.Series) -> pl.Series:
    values = values.drop_nulls()
    return values.filter(values.is_finite()) if values.dtype.is_float() else values


def _drop_noise(finite: pl.Series) -> pl.Series:
    """0.1 + 0.2 and 0.3 are one value to a reader."""
    return finite.round_sig_figs(9) if finite.dtype.is_float() else finite


def _divide(start: float, end: float, *, is_whole: bool) -> Sequence[float]:
    if not isfinite(end - start):
        return [start]
    if is_whole:
        width = max(1, -(-int(end - start + 1) // _NUM_RANGES))
        return [float(edge) for edge in range(int(start), int(end) + 1, width)]
    return [start + (end - start) * step / _NUM_RANGES for step in range(_NUM_RANGES)]


def _count_bins(finite: pl.Series, bins: Bins) -> tuple[int, ...]:
    counts = [0] * len(bins.lows)
    if finite.is_empty():
        return tuple(counts)
    lows = pl.Series(bins.lows, dtype=pl.Float64)
    places = lows.search_sorted(finite.cast(pl.Float64), side="right") - 1
    for place, count in places.value_counts().iter_rows():
        counts[place] += count
    return tuple(counts)


def _quantile(finite: pl.Series, share: float) -> float:
    value = finite.quantile(share, interpolation="nearest")
    return 0.0 if value is None else float(value)


def _quiet(value: object) -> float | None:
    """A statistic; None where it is beyond what a float holds."""
    return float(value) if isinstance(value, int | float) and isfinite(value) else None
