"""Column types named as text (`starpo_trace.schema`) -> Polars schemas and frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import polars as pl

_SCALARS: dict[str, type[pl.DataType]] = {
    "str": pl.String,
    "i64": pl.Int64,
    "i32": pl.Int32,
    "f64": pl.Float64,
    "bool": pl.Boolean,
    "bytes": pl.Binary,
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
    return columns_to_frame({name: [row.get(name) for row in rows] for name in columns}, columns)


def columns_to_frame(
    values: Mapping[str, Sequence[Any]], columns: Mapping[str, str]
) -> pl.DataFrame:
    """Column name -> values -> frame with exactly these columns."""
    schema = polars_schema(columns)
    return pl.DataFrame([_build_series(name, values[name], kind) for name, kind in schema.items()])


def _build_series(name: str, values: Sequence[Any], kind: pl.DataType) -> pl.Series:
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
        # Polars builds lists of structs from Python one row at a time; from JSON all at once.
        texts = [None if value is None else orjson.dumps(value).decode() for value in values]
        return pl.Series(name, texts, dtype=pl.String).str.json_decode(kind)
    return pl.Series(name, values, dtype=kind, strict=True)


def _polars_type(kind: str) -> pl.DataType:
    if kind.startswith("list["):
        return pl.List(_polars_type(kind[5:-1]))
    if kind.startswith("struct["):
        fields = (field.split(":") for field in kind[7:-1].split(","))
        return pl.Struct({name: _polars_type(inner) for name, inner in fields})
    return _SCALARS[kind]()
