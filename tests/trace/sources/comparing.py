"""Two conversions of the same spans -> where their tables differ."""

from pathlib import Path

import polars as pl

from starpo_trace.convert.dataset import convert_sources

NOT_COMPARED = {"source", "sources"}
"""Where the spans were read."""


def convert(*paths: Path) -> dict[str, pl.DataFrame]:
    """Files -> tables; the accounting must close."""
    conversion = convert_sources(list(paths))
    assert conversion.accounting.is_closed
    return conversion.tables


def list_differences(direct: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> set[str]:
    """Tables -> `table.column` of each column that is not the same, and `table` for other rows."""
    differences = set()
    for name, table in direct.items():
        if table.height != other[name].height:
            differences.add(name)
            continue
        differences |= {
            f"{name}.{column}"
            for column in table.columns
            if column not in NOT_COMPARED
            and table[column].to_list() != other[name][column].to_list()
        }
    return differences


def list_arguments(tables: dict[str, pl.DataFrame]) -> list[str]:
    """The argument texts of all tool calls, sorted."""
    turns = tables["turns"]["tool_calls"].to_list()
    return sorted(call["arguments"] for calls in turns for call in calls or ())
