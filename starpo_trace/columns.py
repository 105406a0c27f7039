"""Column types named as text (`starpo_trace.schema`) -> Polars schemas and frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

_SCALARS: dict[str, type[pl.DataType]] = {
    "str": pl.String,
    "i64": pl.Int64,
    "i32": pl.Int32,
    "f64": pl.Float64,
    "bool": pl.Boolean,
}


def polars_schema(columns: Mapping[str, str]) -> pl.Schema:
    """Column name -> type name, as a Polars schema.

    Example:
        >>> polars_schema({"ids": "list[i32]"})
        Schema({'ids': List(Int32)})
    """
    return pl.Schema({name: _polars_type(kind) for name, kind in columns.items()})


def build_frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pl.DataFrame:
    """Row mappings (a missing key is null) -> frame with exactly these columns."""
    schema = polars_schema(columns)
    return pl.DataFrame(
        [
            pl.Series(name, [row.get(name) for row in rows], dtype=kind, strict=True)
            for name, kind in schema.items()
        ]
    )


def _polars_type(kind: str) -> pl.DataType:
    if kind.startswith("list["):
        return pl.List(_polars_type(kind[5:-1]))
    if kind.startswith("struct["):
        fields = (field.split(":") for field in kind[7:-1].split(","))
        return pl.Struct({name: _polars_type(inner) for name, inner in fields})
    return _SCALARS[kind]()
