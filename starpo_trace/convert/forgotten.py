"""Who is to be forgotten -> tables of a partition without them, and with a count of their spans."""

import os
from collections.abc import Mapping
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
"""What can be named -> column of `trajectories`."""

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

    def find(self, trajectories: pl.DataFrame) -> pl.Series:
        """Trajectories -> ids of those that are forgotten."""
        if not self.ids:
            return pl.Series("trajectory_id", [], dtype=pl.String)
        is_gone = [
            any(
                row[column] is not None and self._hash(kind, row[column]) in self.ids
                for kind, column in KINDS.items()
            )
            for row in trajectories.select(*KINDS.values()).iter_rows(named=True)
        ]
        return trajectories["trajectory_id"].filter(pl.Series(is_gone, dtype=pl.Boolean))

    def _hash(self, kind: str, name: str) -> str:
        data = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
        return blake2b(data, key=bytes.fromhex(self.salt), digest_size=16).hexdigest()


def drop_forgotten(
    tables: Mapping[str, pl.DataFrame], forgotten: Forgotten
) -> dict[str, pl.DataFrame]:
    """Tables of a partition -> without who is forgotten; a row of `rejected` for each span."""
    gone = forgotten.find(tables["trajectories"])
    if not gone.len():
        return dict(tables)
    is_gone = pl.col("trajectory_id").is_in(gone.implode())
    spans = tables["spans"].filter(is_gone)
    kept = {
        name: table.filter(~is_gone) if "trajectory_id" in TABLES[name] else table
        for name, table in tables.items()
    }
    kept["rejected"] = pl.concat(
        [blank_rejected(tables["rejected"], spans["trace_id"]), reject_spans(spans)]
    )
    return kept


def reject_spans(spans: pl.DataFrame) -> pl.DataFrame:
    """Rows of the table `spans` -> rows of `rejected` that say no more than that they were there."""
    names = list(polars_schema(REJECTED))
    blank = [pl.lit("").alias(name) for name in _NAMED]
    return spans.with_columns(*blank, reason=pl.lit(FORGOTTEN)).select(names)


def blank_rejected(rejected: pl.DataFrame, trace_ids: pl.Series) -> pl.DataFrame:
    """Rows of `rejected` -> those of these traces without what was found in them."""
    is_gone = pl.col("trace_id").is_in(trace_ids.unique().implode()).fill_null(value=False)
    return rejected.with_columns(
        pl.when(is_gone).then(pl.lit("")).otherwise(pl.col(name)).alias(name) for name in _NAMED
    )
