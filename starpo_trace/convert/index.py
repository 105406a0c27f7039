"""What a build remembers for the next one: which trace came from which file and went where.

Parquet files in the dataset's folder `index`, named in the manifest. Nobody but the builder reads
them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.manifest import INDEX_FOLDER
from starpo_trace.errors import DatasetError
from starpo_trace.schema import REJECTED

_SCHEMAS: Final = {
    "traces": {
        "trace_id": pl.String,
        "shard": pl.String,
        "num_spans": pl.Int64,
        "num_duplicates": pl.Int64,
    },
    "routes": {"trace_id": pl.String, "file": pl.String},
    "keys": {"trace_id": pl.String, "key": pl.String},
    "names": {
        "trace_id": pl.String,
        "trajectory_id": pl.String,
        "kind": pl.String,
        "name": pl.String,
    },
    "contents": {
        "trajectory_id": pl.String,
        "table": pl.String,
        "shard": pl.String,
        "hash": pl.UInt64,
    },
    "malformed": {"file": pl.String, **polars_schema(REJECTED)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Traces of a dataset."""

    traces: pl.DataFrame
    """`trace_id`, `shard` it is in, `num_spans` and `num_duplicates` of it."""
    routes: pl.DataFrame
    """`trace_id`, `file` (path of a source) that holds spans of it."""
    keys: pl.DataFrame
    """`trace_id`, `key`: what it names besides itself; hashes once anybody was forgotten."""
    names: pl.DataFrame
    """`trace_id`, `trajectory_id`, `kind`, `name`: users, conversations and trajectories."""
    contents: pl.DataFrame
    """`trajectory_id`, `table`, the `shard` that holds its rows, and `hash` (their sum)."""
    malformed: pl.DataFrame
    """`file` and the row of `rejected` of each span that could not be read."""


def empty_index() -> Index:
    """The index of no spans."""
    return Index(**{name: pl.DataFrame(schema=schema) for name, schema in _SCHEMAS.items()})


def write_index(dataset: Path, index: Index, name: str) -> dict[str, str]:
    """Index -> its files; the manifest's entry, path by kind."""
    folder = dataset / INDEX_FOLDER
    folder.mkdir(exist_ok=True)
    entry = {}
    for kind, schema in _SCHEMAS.items():
        path = folder / f"{kind}-{name}.parquet"
        frame: pl.DataFrame = getattr(index, kind)
        frame.select(pl.col(column).cast(dtype) for column, dtype in schema.items()).write_parquet(
            path, compression="zstd", compression_level=1
        )
        entry[kind] = f"{INDEX_FOLDER}/{path.name}"
    return entry


def read_index(dataset: Path, entry: dict[str, str]) -> Index:
    """Manifest's entry -> index.

    Raises:
        DatasetError: a file is missing or cannot be read.
    """
    try:
        return Index(
            **{kind: pl.read_parquet(dataset / entry[kind], glob=False) for kind in _SCHEMAS}
        )
    except (OSError, KeyError, pl.exceptions.PolarsError) as error:
        raise DatasetError(
            f"{dataset / INDEX_FOLDER}: cannot be read ({error}); export again with --full"
        ) from error


def remove_old_index(dataset: Path, entry: dict[str, str]) -> None:
    """Delete the files of earlier builds; only the manifest's own count."""
    for path in (dataset / INDEX_FOLDER).glob("*.parquet"):
        if f"{INDEX_FOLDER}/{path.name}" not in entry.values():
            path.unlink(missing_ok=True)
