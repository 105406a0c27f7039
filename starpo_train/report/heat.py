"""Credit of turns -> mean credit by kind of step, or by tool, and place in the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from starpo_train.dataset import scan_table
from starpo_train.report.cohorts import read_table
from starpo_train.report.inputs import Role
from starpo_train.report.policies import EvaluatedPolicy

KINDS = ("planner", "tool", "retriever", "verifier", "finalizer", "other", "step")
MOST_ROWS = 10
FEWEST = 5
"""Steps that a cell needs to have a colour."""
NO_CALL = "no call"

_COLUMNS = ("trajectory_id", "turn", "kind", "estimator", "advantage")
_PLACES = ((0, "1"), (1, "2"), (2, "3"), (3, "4"), (4, "5-6"), (6, "7-8"), (8, "9-12"), (12, "13+"))
"""(first turn, from 0; as the page says it, from 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Steps of one kind at one place."""

    mean: float
    count: int
    css: str
    """heat-n4 (lost most) .. heat-z .. heat-p4 (earned most); heat-few: too few to colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatTable:
    """One policy."""

    name: str
    role: Role
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    """(kind or tool, a cell for each column; None where nothing is)."""
    num_without: int
    """Steps that have no credit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Every policy, with one colour scale."""

    title: str
    estimators: tuple[str, ...]
    largest: float
    """Credit that has the deepest colour."""
    tables: tuple[HeatTable, ...]


def read_credit(path: Path, policy: EvaluatedPolicy) -> pl.DataFrame:
    """What `starpo-train credit` wrote of a policy's dataset, with the tool each turn called first.

    Raises:
        DataError: it cannot be read, has other columns, or is about other runs.
    """
    rows = read_table(path, _COLUMNS, policy, command="credit")
    tools = (
        scan_table(policy.dataset, "turns")
        .select(
            "trajectory_id",
            "turn",
            tool=pl.col("tool_calls").list.first().struct.field("name").fill_null(NO_CALL),
        )
        .collect()
    )
    return rows.join(tools, on=["trajectory_id", "turn"], how="left")


def build_heatmaps(
    policies: Sequence[EvaluatedPolicy], credit: Mapping[str, pl.DataFrame]
) -> list[Heatmap]:
    """By kind of step; by tool as well where there are several."""
    shown = [policy for policy in policies if policy.name in credit]
    if not shown:
        return []
    calls = {name: rows.filter(pl.col("kind") != "step") for name, rows in credit.items()}
    tools = {tool for rows in calls.values() for tool in rows["tool"].drop_nulls().unique()}
    heatmaps = [_build_heatmap("By kind of step", "kind", shown, credit)]
    if len(tools - {NO_CALL}) > 1:
        heatmaps.append(_build_heatmap("By tool that was called", "tool", shown, calls))
    return heatmaps


def colour_credit(mean: float, largest: float) -> str:
    """Credit -> one of nine classes, the middle one for what is about nothing.

    >>> [colour_credit(x, 1.0) for x in (-1.0, 0.0, 0.1, 0.5)]
    ['heat-n4', 'heat-z', 'heat-z', 'heat-p2']
    """
    level = 0 if largest <= 0 else round(4 * min(1.0, abs(mean) / largest))
    return "heat-z" if level == 0 else f"heat-{'p' if mean > 0 else 'n'}{level}"


def _build_heatmap(
    title: str, by: str, policies: Sequence[EvaluatedPolicy], credit: Mapping[str, pl.DataFrame]
) -> Heatmap:
    starts = [start for start, _ in _PLACES]
    place = pl.sum_horizontal([(pl.col("turn") >= start).cast(pl.Int64) for start in starts]) - 1
    means = {
        policy.name: credit[policy.name]
        .with_columns(name=pl.col(by).fill_null("other"), place=place)
        .filter(pl.col("advantage").is_finite())
        .group_by("name", "place")
        .agg(mean=pl.col("advantage").mean(), count=pl.len())
        for policy in policies
    }
    everything = pl.concat(means.values())
    coloured = everything.filter(pl.col("count") >= FEWEST)
    largest = float(coloured.select(pl.col("mean").abs().max()).item() or 0.0)
    totals = everything.group_by("name").agg(pl.col("count").sum()).sort("count", "name")
    often = totals["name"].to_list()[::-1][:MOST_ROWS]
    names = sorted(often, key=lambda name: (KINDS.index(name), "") if name in KINDS else (99, name))
    last = max([int(place) for place in everything["place"]], default=0)
    return Heatmap(
        title=title,
        estimators=tuple(
            sorted({str(e) for p in policies for e in credit[p.name]["estimator"].unique()})
        ),
        largest=largest,
        tables=tuple(
            HeatTable(
                name=policy.name,
                role=policy.role,
                columns=tuple(words for _, words in _PLACES[: last + 1]),
                rows=tuple(
                    (name, _list_cells(means[policy.name], name, last + 1, largest))
                    for name in names
                ),
                num_without=credit[policy.name]["advantage"].null_count(),
            )
            for policy in policies
        ),
    )


def _list_cells(
    means: pl.DataFrame, name: str, num_places: int, largest: float
) -> tuple[Cell | None, ...]:
    known = {
        place: Cell(
            mean=mean,
            count=count,
            css=colour_credit(mean, largest) if count >= FEWEST else "heat-few",
        )
        for place, mean, count in means.filter(pl.col("name") == name)
        .select("place", "mean", "count")
        .iter_rows()
    }
    return tuple(known.get(place) for place in range(num_places))
