"""Traces of all chunks, and the keys they name -> which of them belong together, in partitions.

Spans of one trajectory may stand in several traces: a resumed run, a conversation, a reward that
came days later. Whatever one trace names (a trajectory, a conversation) or links to ties it to the
others that name the same, and all of them are built together. Partitions follow the order in which
runs began, so that a build of new spans touches few of the old ones.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from starpo_trace.convert.staging import CHUNK_BYTES, CHUNK_SPANS, Frames

SPAN_KEY = "span:"
"""Beginning of a key that is a span's id."""
_GENERATED = r"^[0-9a-f]{32}-[0-9a-f]{16}$"
"""A trajectory id that was made of a trace and a span."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """What a chunk says about where its spans belong."""

    traces: pl.DataFrame
    """`trace_id`, `file` (number of the source file), `num_spans`, `first` (position in the chunk),
    `weight` (spans, or more where they are long)."""
    keys: pl.DataFrame
    """`trace_id`, `key`: what a trace names besides itself; `SPAN_KEY` and an id where it names a
    span and not the span's trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan:
    """Spans that are built together."""

    number: int
    """Place among the partitions, by the time their runs began."""
    parts: list[tuple[Path, pl.DataFrame]]
    """Folder of a chunk, and the traces (`trace_id`) of it that belong here."""


def list_routes(frames: Frames, files: pl.Series, num_bytes: int) -> Routes:
    """Chunk, the source file of each of its spans, and its size -> its routes."""
    spans = frames["spans"]
    weight = max(1.0, num_bytes / CHUNK_BYTES * CHUNK_SPANS / max(1, spans.height))
    traces = (
        spans.select("trace_id", file=files)
        .with_row_index("first")
        .group_by("trace_id", "file")
        .agg(num_spans=pl.len().cast(pl.Int64), first=pl.col("first").min().cast(pl.Int64))
        .select("trace_id", "file", "num_spans", "first", weight=pl.col("num_spans") * weight)
    )
    named = [
        pl.col("trajectory_id"),
        pl.when(pl.col("trajectory_id").is_null()).then("conversation_id"),
        # Feedback that a backend kept may name a span without its trace.
        pl.when(pl.col("link_trace_id") != "")
        .then("link_trace_id")
        .when(pl.col("link_span_id") != "")
        .then(pl.lit(SPAN_KEY) + pl.col("link_span_id")),
    ]
    keys = (
        pl.concat([spans.lazy().select("trace_id", key=key).drop_nulls().unique() for key in named])
        .with_columns(
            key=pl.when(pl.col("key").str.contains(_GENERATED))
            .then(pl.col("key").str.head(32))
            .otherwise("key")
        )
        .filter(pl.col("key") != pl.col("trace_id"))
        .unique()
        .collect()
    )
    return Routes(traces=traces, keys=keys)


def find_named_spans(
    chunks: Sequence[Path], keys: Iterable[pl.DataFrame], last_spans: pl.LazyFrame | None
) -> pl.DataFrame:
    """Keys that are spans' ids -> `trace_id`, `key` of the traces that hold these spans.

    Args:
        chunks: folders of the chunks to look in.
        keys: keys of all chunks, and of the last build.
        last_spans: `trace_id`, `span_id` of the last build's spans, if there was one.
    """
    named = [frame.filter(pl.col("key").str.starts_with(SPAN_KEY))["key"] for frame in keys]
    wanted = pl.concat([pl.Series("key", [], dtype=pl.String), *named]).unique()
    if not wanted.len():
        return pl.DataFrame(schema={"trace_id": pl.String, "key": pl.String})
    tables = [pl.scan_ipc(folder / "spans.arrow", glob=False) for folder in chunks]
    tables += [last_spans] if last_spans is not None else []
    return (
        pl.concat(
            [
                table.select("trace_id", key=pl.lit(SPAN_KEY) + pl.col("span_id")).filter(
                    pl.col("key").is_in(wanted.implode())
                )
                for table in tables
            ]
        )
        .unique()
        .collect()
    )


def find_components(keys: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Keys of all chunks -> `trace_id`, `component` of the traces that are not alone by name."""
    above: dict[str, str] = {}

    def find_top(node: str) -> str:
        path = []
        while (up := above.setdefault(node, node)) != node:
            path.append(node)
            node = up
        for each in path:
            above[each] = node
        return node

    for frame in keys:
        for trace_id, key in frame.iter_rows():
            first, second = sorted((find_top(trace_id), find_top(key)))
            above[second] = first
    nodes = list(above)
    return pl.DataFrame(
        {"trace_id": nodes, "component": [find_top(node) for node in nodes]},
        schema={"trace_id": pl.String, "component": pl.String},
    )


def plan_partitions(
    chunks: Sequence[tuple[Path, Routes]],
    more_keys: Sequence[pl.DataFrame] = (),
    *,
    max_spans: int = CHUNK_SPANS,
) -> list[PartitionPlan]:
    """Chunks, their routes and further keys -> partitions of about `max_spans`, none cut through."""
    traces = pl.concat(
        [
            routes.traces.lazy().select("trace_id", "weight", "first", chunk=pl.lit(number))
            for number, (_, routes) in enumerate(chunks)
        ]
    )
    components = find_components([*(routes.keys for _, routes in chunks), *more_keys])
    placed = traces.join(components.lazy(), on="trace_id", how="left").with_columns(
        component=pl.coalesce("component", "trace_id")
    )
    numbers = (
        placed.group_by("component")
        .agg(
            (pl.col("chunk").cast(pl.Int64) * 2**40 + pl.col("first")).min().alias("begin"),
            pl.col("weight").sum(),
        )
        .sort("begin")
        .with_columns(before=pl.col("weight").cum_sum() - pl.col("weight"))
        .select("component", partition=(pl.col("before") // max_spans).cast(pl.Int64))
    )
    parts = (
        placed.join(numbers, on="component")
        .select("partition", "chunk", "trace_id")
        .unique()
        .sort("partition", "chunk", "trace_id")
        .collect()
    )
    plans: dict[int, list[tuple[Path, pl.DataFrame]]] = defaultdict(list)
    for (partition, chunk), part in parts.group_by(["partition", "chunk"], maintain_order=True):
        plans[int(partition)].append((chunks[int(chunk)][0], part.select("trace_id")))
    return [
        PartitionPlan(number=number, parts=parts)
        for number, (_, parts) in enumerate(sorted(plans.items()))
    ]
