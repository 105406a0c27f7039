"""Partition of staged chunks -> Parquet files of each table, and what they hold.

The files lie in a folder of the build until all partitions are built; then they are moved into the
tables and named in their logs.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Final

import polars as pl

from starpo_trace.convert.forgotten import Forgotten, drop_forgotten
from starpo_trace.convert.partition import build_partition
from starpo_trace.convert.reading import hold_garbage_collection
from starpo_trace.convert.recipe import Recipe
from starpo_trace.convert.rewards import Trust
from starpo_trace.convert.routing import PartitionPlan
from starpo_trace.convert.staging import read_chunk

SORT_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "trajectories": ("trajectory_id",),
    "turns": ("trajectory_id", "turn"),
    "messages": ("trajectory_id", "depth", "node_id"),
    "states": ("trajectory_id", "step", "time_ns", "name", "hash", "value"),
    "rewards": ("trajectory_id", "time_ns", "reward_id", "span_id", "name", "value"),
    "spans": ("trajectory_id", "step", "trace_id", "span_id"),
    "rejected": ("trace_id", "span_id", "name", "reason", "detail", "scope", "source"),
}
CONTENT: Final = ("turns", "messages", "states", "rewards")
"""Tables that a trajectory's digest is made of."""
OF_TRAJECTORIES: Final = (*CONTENT, "spans")
"""Tables whose rows each belong to a trajectory."""
_SEEDS: Final = (0x5747, 0x41524F)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTask:
    """A partition to build."""

    plan: PartitionPlan
    """Its spans."""
    trust: Trust
    """Which rewards count."""
    forgotten: Forgotten
    """Who is left out."""
    recipe: Recipe
    """What rewards make, and how turns are shaped."""
    folder: Path
    """Where its files go, a folder for each table."""
    name: str
    """What its files are called, without their ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A Parquet file of a table."""

    path: Path
    """Where it lies."""
    num_rows: int
    """Its rows."""
    num_bytes: int
    """Its size."""
    blake2b: str
    """Hash of its bytes, 16 bytes as hexadecimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Rows of `rejected`, in short."""

    by_reason: dict[str, int]
    """Spans by reason."""
    digest: int
    """Sum of the hashes of the rows, without where they were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What became of a partition."""

    files: dict[str, ShardFile]
    """Its file of each table that has rows of it."""
    name: str
    """Name of the shard, and of its files without their ending."""
    traces: pl.DataFrame
    """`trace_id`, `num_spans`, `num_duplicates` of the traces that it holds."""
    names: pl.DataFrame
    """`trace_id`, `trajectory_id`, `kind`, `name`: whom its trajectories name."""
    contents: pl.DataFrame
    """`trajectory_id`, `table`, `hash` (sum over the rows there)."""
    rejected: Rejected
    """What is known of its rows of `rejected`."""


def build_shard(task: PartitionTask) -> Shard:
    """Partition -> its files on disk."""
    with hold_garbage_collection():
        chunks = [read_chunk(folder, traces) for folder, traces in task.plan.parts]
        partition = build_partition(chunks, trust=task.trust, recipe=task.recipe)
    tables, names = drop_forgotten(partition.tables, partition.names, task.forgotten)
    tables = sort_tables(tables)
    contents = hash_contents(tables)
    tables["trajectories"] = add_digests(tables["trajectories"], contents)
    files = {
        name: write_shard_file(table, task.folder / name / f"{task.name}.parquet")
        for name, table in tables.items()
        if table.height
    }
    return Shard(
        files=files,
        name=task.name,
        traces=partition.traces,
        names=names,
        contents=contents.select("trajectory_id", "table", hash=f"hash_{_SEEDS[0]}"),
        rejected=describe_rejected(tables["rejected"]),
    )


def describe_rejected(rejected: pl.DataFrame) -> Rejected:
    """Rows of the table `rejected` -> their counts and digest."""
    return Rejected(
        by_reason=dict(Counter(rejected["reason"].to_list())),
        digest=sum_hashes(rejected.drop("source")),
    )


def sort_tables(tables: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Tables of a partition -> each in its order."""
    return {name: table.sort(SORT_KEYS[name], nulls_last=True) for name, table in tables.items()}


def write_shard_file(table: pl.DataFrame, path: Path) -> ShardFile:
    """Table -> Parquet file, and what identifies it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path, compression="zstd", compression_level=1)
    with path.open("rb") as stream:
        digest = file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()
    return ShardFile(
        path=path, num_rows=table.height, num_bytes=path.stat().st_size, blake2b=digest
    )


def sum_hashes(table: pl.DataFrame, seed: int = 0) -> int:
    """Rows in any order -> sum of their hashes, 64 bits."""
    return int(table.hash_rows(seed).cast(pl.UInt64).sum() or 0) if table.height else 0


def hash_contents(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Tables -> `trajectory_id`, `table`, and per seed the sum of the hashes of its rows there.

    The hashes are those of Polars, so that digests compare builds made with one version of it.
    """
    return pl.concat(
        [
            tables[name]
            .select(
                "trajectory_id", *(tables[name].hash_rows(s).alias(f"hash_{s}") for s in _SEEDS)
            )
            .group_by("trajectory_id")
            .agg(pl.exclude("trajectory_id").sum())
            .select("trajectory_id", pl.lit(name).alias("table"), pl.col("^hash_.*$"))
            for name in OF_TRAJECTORIES
        ]
    )


def add_digests(trajectories: pl.DataFrame, contents: pl.DataFrame) -> pl.DataFrame:
    """Trajectories and the hashes of their rows -> with `digest`, 32 hexadecimal digits."""
    salted = contents.filter(pl.col("table").is_in(CONTENT)).with_columns(
        pl.col(f"hash_{seed}") ^ pl.col("table").hash(seed) for seed in _SEEDS
    )
    sums = salted.group_by("trajectory_id").agg(pl.col("^hash_.*$").sum())
    digest = pl.concat_str(
        [_to_hexadecimal(pl.col(f"hash_{seed}").fill_null(0)) for seed in _SEEDS]
    )
    return (
        trajectories.join(sums, on="trajectory_id", how="left", maintain_order="left")
        .with_columns(digest=digest)
        .select(trajectories.columns)
    )


def _to_hexadecimal(number: pl.Expr) -> pl.Expr:
    return number.map_batches(
        lambda values: pl.Series([f"{value:016x}" for value in values], dtype=pl.String),
        return_dtype=pl.String,
    )
