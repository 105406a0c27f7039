"""Dataset -> its trajectories one by one, in the order of their ids, a bounded number in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from starpo_trace.convert.manifest import scan_table

Row = dict[str, Any]

_MAX_BATCH_ROWS: Final = 20_000
"""Turns and messages that are read at once, beyond those of one trajectory."""
_SORT_KEYS: Final = {
    "turns": ("turn",),
    "messages": ("depth", "node_id"),
    "states": ("step", "time_ns", "name", "hash", "value"),
    "rewards": ("time_ns", "reward_id", "span_id", "name", "value"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryRows:
    """Everything that the tables say of one trajectory."""

    row: Row
    """Its row of `trajectories`."""
    turns: list[Row]
    """Rows of `turns`, in order."""
    nodes: dict[str, Row] = field(repr=False)
    """Rows of `messages` by node, those nearer to the beginning first."""
    states: list[Row]
    """Rows of `states`, where they were asked for."""
    rewards: list[Row]
    """Rows of `rewards`, where they were asked for."""

    @property
    def id(self) -> str:
        """The trajectory's id."""
        return self.row["trajectory_id"]


def count_trajectories(dataset: Path) -> int:
    """Dataset folder -> number of its trajectories.

    Raises:
        DatasetError: there is no dataset, or its files are not those that the manifest names.
    """
    return int(scan_table(dataset, "trajectories").select(pl.len()).collect().item())


def iterate_trajectories(
    dataset: Path, *, tables: Sequence[str] = ("turns", "messages")
) -> Iterator[TrajectoryRows]:
    """Dataset folder -> trajectories sorted by id, with their rows of some tables.

    Raises:
        DatasetError: there is no dataset, or its files are not those that the manifest names.
    """
    frames = {name: scan_table(dataset, name) for name in ("trajectories", *tables)}
    sizes = (
        frames["trajectories"]
        .select("trajectory_id", size=1 + pl.col("num_turns") + pl.col("num_messages"))
        .sort("trajectory_id")
        .collect()
    )
    for first, last in _cut_batches(sizes["trajectory_id"], sizes["size"]):
        is_within = pl.col("trajectory_id").is_between(pl.lit(first), pl.lit(last))
        batch = {name: frame.filter(is_within).collect() for name, frame in frames.items()}
        yield from _split_batch(batch)


def _cut_batches(ids: pl.Series, sizes: pl.Series) -> Iterator[tuple[str, str]]:
    first = last = None
    total = 0
    for trajectory, size in zip(ids, sizes, strict=True):
        if first is not None and last is not None and total + size > _MAX_BATCH_ROWS:
            yield first, last
            first, total = None, 0
        first = trajectory if first is None else first
        last, total = trajectory, total + size
    if first is not None and last is not None:
        yield first, last


def _split_batch(batch: dict[str, pl.DataFrame]) -> Iterator[TrajectoryRows]:
    rows_of = {
        name: table.sort(_SORT_KEYS[name], nulls_last=True).partition_by(
            "trajectory_id", as_dict=True, include_key=False
        )
        for name, table in batch.items()
        if name != "trajectories"
    }
    for row in batch["trajectories"].sort("trajectory_id").iter_rows(named=True):
        own = {name: _rows(groups.get((row["trajectory_id"],))) for name, groups in rows_of.items()}
        yield TrajectoryRows(
            row=row,
            turns=own.get("turns", []),
            nodes={each["node_id"]: each for each in own.get("messages", [])},
            states=own.get("states", []),
            rewards=own.get("rewards", []),
        )


def _rows(table: pl.DataFrame | None) -> list[Row]:
    return [] if table is None else table.rows(named=True)
