"""Evaluated policies -> steps of the longest runs, and how tokens per trace are spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import polars as pl
from markupsafe import Markup

from starpo_train.report import svg
from starpo_train.report.inputs import Role
from starpo_train.report.policies import EvaluatedPolicy, find_quantile

MOST_BINS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One policy's runs along an axis that all policies share."""

    name: str
    role: Role
    num_runs: int
    num_missing: int
    """Runs that did not record it."""
    mean: float
    median: float
    p95: float
    p99: float
    largest: float
    num_beyond_p99: int
    """Runs that p99 rests on: the longest hundredth of them, at least one."""
    picture: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadChart:
    """Every policy along one axis."""

    title: str
    first: float
    """Value at the left end."""
    last: float
    rows: tuple[Spread, ...]


def view_lengths(policies: Sequence[EvaluatedPolicy]) -> list[SpreadChart]:
    """Steps, then tokens; an axis that no run recorded is left out."""
    tokens = (pl.col("input_tokens") + pl.col("output_tokens")).cast(pl.Float64)
    charts = [
        _build_chart("Steps", policies, pl.col("num_steps").cast(pl.Float64)),
        _build_chart("Tokens per trace", policies, tokens),
    ]
    return [chart for chart in charts if chart is not None]


def _build_chart(
    title: str, policies: Sequence[EvaluatedPolicy], value: pl.Expr
) -> SpreadChart | None:
    columns = {policy.name: policy.rows.select(x=value)["x"] for policy in policies}
    known = {name: column.drop_nulls().to_numpy() for name, column in columns.items()}
    everything = np.concatenate([np.zeros(0), *known.values()])
    if not len(everything):
        return None
    edges = choose_edges(everything)
    counts = {name: np.histogram(values, edges)[0] for name, values in known.items()}
    tallest = max(
        float(count.max() / len(known[name])) for name, count in counts.items() if len(known[name])
    )
    rows = []
    for policy in policies:
        values = known[policy.name]
        if not len(values):
            continue
        quantiles = [find_quantile(values.tolist(), level) or 0.0 for level in (0.5, 0.95, 0.99)]
        shares = (counts[policy.name] / len(values) / tallest).tolist()
        scale = svg.Scale(low=float(edges[0]), high=float(edges[-1]))
        rows.append(
            Spread(
                name=policy.name,
                role=policy.role,
                num_runs=len(values),
                num_missing=columns[policy.name].null_count(),
                mean=float(values.mean()),
                median=quantiles[0],
                p95=quantiles[1],
                p99=quantiles[2],
                largest=float(values.max()),
                num_beyond_p99=ceil(len(values) / 100),
                picture=svg.draw_spread(
                    shares,
                    marks=[
                        (scale.place(quantiles[0]), "median"),
                        (scale.place(quantiles[1]), "p95"),
                    ],
                    css=policy.role,
                    label=f"{title} of {policy.name}: median {quantiles[0]:,.0f}, "
                    f"95th percentile {quantiles[1]:,.0f}, 99th {quantiles[2]:,.0f}",
                ),
            )
        )
    return SpreadChart(
        title=title,
        first=ceil(edges[0]),
        last=floor(edges[-1]),
        rows=tuple(rows),
    )


def choose_edges(values: np.ndarray) -> np.ndarray:
    """Values -> edges of at most MOST_BINS bins of whole, equal width.

    >>> choose_edges(np.array([1.0, 2.0, 4.0])).tolist()
    [0.5, 1.5, 2.5, 3.5, 4.5]
    """
    low, high = float(np.floor(values.min())), float(np.ceil(values.max()))
    if high - low < MOST_BINS:
        return np.arange(low - 0.5, high + 1.0)
    width = ceil((high - low) / MOST_BINS)
    return low + width * np.arange(ceil((high - low) / width) + 1)
