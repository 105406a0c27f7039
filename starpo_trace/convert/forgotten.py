"""Who is to be forgotten -> tables of a partition without them, and with a count of their spans."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import polars as pl

from starpo_trace.convert.columns import polars_schema
from starpo_trace.schema import REJECTED, TABLES

FORGOTTEN: Final = "forgotten"
"""Reason of spans that were deleted on request; their rows keep ids, nothing else."""
KINDS: Final[Mapping[str, str]] = {
    "user": "user_id",
    "conversation": "conversation_id",
    "trajectory": "trajectory_id",
}
"""What can be named -> column of spans and `trajectories`."""

_HIDDEN: Final = "hidden:"
_SHOWN: Final = r"^([0-9a-f]{32}$|span:|hidden:)"
"""Keys by which traces belong together that name nobody: ids of traces and spans, hashes."""
_NAMED: Final = ("name", "scope", "detail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Ids that no build may bring back, as salted hashes."""

    salt: str = ""
    """Key of the hashes, hexadecimal digits; of one dataset."""
    ids: frozenset[str] = frozenset()
    """Hashes of kind and id."""

    def as_entry(self) -> dict[str, object]:
        """What the manifest keeps."""
        return {"salt": self.salt, "ids": sorted(self.ids)} if self.ids else {}

    def add(self, kind: str, name: str) -> "Forgotten":
        """One more."""
        salted = self if self.salt else Forgotten(salt=os.urandom(16).hex())
        return Forgotten(salt=salted.salt, ids=salted.ids | {salted._hash(kind, name)})

    def find(self, names: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
        """Whom trajectories name -> ids of those that are forgotten, and of all their traces."""
        pairs = names.select("kind", "name").unique() if self.ids else names.clear()
        hit = [self._hash(*pair) in self.ids for pair in pairs.select("kind", "name").iter_rows()]
        of_hit = names.join(
            pairs.filter(pl.Series(hit, dtype=pl.Boolean)), on=["kind", "name"], how="semi"
        )
        gone = of_hit["trajectory_id"].unique()
        traces = names.filter(pl.col("trajectory_id").is_in(gone.implode()))["trace_id"]
        return gone, traces.unique()

    def hide(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Keys of traces (`key`) -> hashes in place of what is named, once anybody is forgotten."""
        if not self.ids:
            return keys
        shown = keys["key"].unique()
        shown = shown.filter(~shown.str.contains(_SHOWN))
        hidden = {key: _HIDDEN + self._hash("key", key) for key in shown}
        return keys.with_columns(pl.col("key").replace(hidden))

    def _hash(self, kind: str, name: str) -> str:
        data = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
        return blake2b(data, key=bytes.fromhex(self.salt), digest_size=16).hexdigest()


def list_names(spans: pl.DataFrame, trajectory_ids: Sequence[str | None]) -> pl.DataFrame:
    """Spans and the trajectory of each -> `trace_id`, `trajectory_id`, `kind`, `name`, each once.

    Of several users or conversations of a trajectory each is named, rejected spans' too; and what
    links to one of its spans names the trajectory.
    """
    placed = spans.with_columns(pl.Series("trajectory_id", trajectory_ids, dtype=pl.String))
    targets = placed.select("trajectory_id", link_trace_id="trace_id", link_span_id="span_id")
    links = placed.select("trace_id", "link_trace_id", "link_span_id").drop_nulls()
    linked = links.join(targets, on=["link_trace_id", "link_span_id"])
    columns = ("trace_id", "trajectory_id")
    return (
        pl.concat(
            [
                linked.select(*columns, kind=pl.lit("trajectory"), name="trajectory_id"),
                *(
                    placed.select(*columns, kind=pl.lit(kind), name=column)
                    for kind, column in KINDS.items()
                ),
            ]
        )
        .drop_nulls()
        .unique()
    )


def drop_forgotten(
    tables: Mapping[str, pl.DataFrame], names: pl.DataFrame, forgotten: Forgotten
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Tables of a partition and whom they name -> without who is forgotten.

    `rejected` has a row for each of their spans.
    """
    gone, traces = forgotten.find(names)
    if not gone.len():
        return dict(tables), names
    is_gone = pl.col("trajectory_id").is_in(gone.implode())
    kept = {
        name: table.filter(~is_gone) if "trajectory_id" in TABLES[name] else table
        for name, table in tables.items()
    }
    spans = tables["spans"].filter(is_gone)
    kept["rejected"] = pl.concat([blank_rejected(tables["rejected"], traces), reject_spans(spans)])
    return kept, names.filter(~is_gone)


def reject_spans(spans: pl.DataFrame) -> pl.DataFrame:
    """Rows of the table `spans` -> rows of `rejected` that say no more than that they were there."""
    names = list(polars_schema(REJECTED))
    blank = [pl.lit("").alias(name) for name in _NAMED]
    return spans.with_columns(*blank, reason=pl.lit(FORGOTTEN)).select(names)


def blank_rejected(rejected: pl.DataFrame, trace_ids: pl.Series) -> pl.DataFrame:
    """Rows of `rejected` -> those of these traces without what was found in them."""
    is_gone = pl.col("trace_id").is_in(trace_ids.implode()).fill_null(value=False)
    return rejected.with_columns(
        pl.when(is_gone).then(pl.lit("")).otherwise(pl.col(name)).alias(name) for name in _NAMED
    )
