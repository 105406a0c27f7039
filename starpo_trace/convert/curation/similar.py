"""Sketches -> which ones are alike: candidates by bands, then single linkage.

Sketches that agree in a whole band are candidates; each is compared with the first of its band by
trajectory id, and those at least `similarity` alike are linked. What is linked, directly or over
others, is one cluster. Nothing is drawn at random, so the order of rows plays no part.
"""

from typing import Final

import polars as pl

from starpo_trace.convert.curation.sketch import SKETCH_LENGTH

_LEAST_RECALL: Final = 0.95
"""Share of the pairs right at the similarity that become candidates."""
_FACTOR: Final = 0x9E3779B97F4A7C15


def cluster_sketches(sketches: pl.DataFrame, similarity: float) -> pl.DataFrame:
    """`trajectory_id`, `sketch` -> `trajectory_id`, `cluster`: the least id of those alike."""
    known = sketches.drop_nulls("sketch").sort("trajectory_id")
    columns = known.select("trajectory_id", *_split_sketch(pl.col("sketch")))
    keys = columns.with_columns(key=_hash_columns(range(SKETCH_LENGTH)))
    # Equal sketches first: there may be many, and they need no comparison.
    distinct = keys.unique("key", keep="first", maintain_order=True).with_row_index("node")
    edges = _link(distinct, choose_rows_per_band(similarity), similarity)
    labels = connect(distinct.height, edges)
    roots = distinct.select("key", cluster=pl.col("trajectory_id").gather(labels.cast(pl.UInt32)))
    return keys.select("trajectory_id", "key").join(roots, on="key").drop("key")


def choose_rows_per_band(similarity: float) -> int:
    """Most rows per band with which a pair right at the similarity is found 95 times of 100.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b.
    """
    found = [
        rows
        for rows in (1, 2, 4, 8, 16, 32, 64)
        if 1 - (1 - similarity**rows) ** (SKETCH_LENGTH // rows) >= _LEAST_RECALL
    ]
    return max(found, default=1)


def connect(num_nodes: int, edges: pl.DataFrame) -> pl.Series:
    """Nodes 0.. and edges `a`, `b` -> the least node of each one's component.

    Each round hooks the roots at the ends of every edge together, smaller first, and then points
    every node at its root (Shiloach and Vishkin, 1982); rounds grow with the logarithm of the
    nodes.
    """
    label = pl.int_range(num_nodes, dtype=pl.UInt32, eager=True)
    while edges.height:
        ends = edges.select(
            low=pl.min_horizontal(label.gather(edges["a"]), label.gather(edges["b"])),
            high=pl.max_horizontal(label.gather(edges["a"]), label.gather(edges["b"])),
        )
        edges = edges.filter(ends["low"] != ends["high"])
        hooks = (
            ends.filter(pl.col("low") != pl.col("high"))
            .group_by("high")
            .agg(pl.col("low").min())
            .sort("high")
        )
        if hooks.height:
            label = label.scatter(hooks["high"], hooks["low"])
        while True:
            following = label.gather(label)
            if following.equals(label):
                break
            label = following
    return label


def _split_sketch(sketch: pl.Expr) -> list[pl.Expr]:
    return [sketch.list.get(i).cast(pl.UInt64).alias(f"s{i}") for i in range(SKETCH_LENGTH)]


def _hash_columns(indices: range) -> pl.Expr:
    mixed = pl.lit(0, dtype=pl.UInt64)
    for i in indices:
        mixed = (mixed + pl.col(f"s{i}")) * pl.lit(_FACTOR, dtype=pl.UInt64)  # modulo 2^64
    return mixed


def _link(distinct: pl.DataFrame, rows: int, similarity: float) -> pl.DataFrame:
    pairs = []
    for start in range(0, SKETCH_LENGTH, rows):
        band = distinct.select("node", key=_hash_columns(range(start, start + rows)))
        first = band.group_by("key").agg(a=pl.col("node").min(), size=pl.len())
        shared = band.join(first.filter(pl.col("size") > 1), on="key")
        pairs.append(shared.filter(pl.col("node") != pl.col("a")).select("a", b="node"))
    candidates = pl.concat(pairs).unique().sort("a", "b")
    equal = pl.Series([0], dtype=pl.UInt32).new_from_index(0, candidates.height)
    for i in range(SKETCH_LENGTH):
        values = distinct[f"s{i}"]
        equal = equal + (values.gather(candidates["a"]) == values.gather(candidates["b"]))
    return candidates.filter(equal >= similarity * SKETCH_LENGTH - 1e-9)
