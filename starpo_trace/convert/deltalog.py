"""Parquet files -> the next version of a Delta table."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.shards import ShardFile
from starpo_trace.schema import TABLES


def commit_table(
    folder: Path, name: str, added: Sequence[ShardFile], kept: Mapping[str, str]
) -> dict[str, Any]:
    """Move `added` into the table and make a version of these and of the files `kept`.

    Args:
        folder: the table's folder, new or a Delta table.
        name: the table, one of `starpo_trace.schema.TABLES`.
        added: files of the build.
        kept: hashes of the files of the last version that stay, by name.

    Returns:
        The table's entry in the manifest: `path`, `version`, `files` (hash of each by name).
    """
    from deltalake import DeltaTable
    from deltalake.transaction import create_table_with_add_actions

    folder.mkdir(parents=True, exist_ok=True)
    for file in added:
        file.path.replace(folder / file.path.name)
    _sync_folder(folder)
    files = {**kept, **{file.path.name: file.blake2b for file in added}}
    schema: Any = polars_schema(TABLES[name])
    new = [_make_add_action(file) for file in added]
    if not DeltaTable.is_deltatable(str(folder)):
        create_table_with_add_actions(str(folder), _delta_schema(schema), new, mode="error")
        table = DeltaTable(str(folder))
    else:
        table = DeltaTable(str(folder))
        current = _list_current(table)
        gone = [each for each in current if each["path"] not in files]
        # A build that was killed may have left a version without files that still count.
        lost = kept.keys() - {each["path"] for each in current}
        new += [_make_add_action(_describe_file(folder / name, kept[name])) for name in lost]
        if new or gone:
            actions = [*map(_make_remove_action, gone), *new]
            table.create_write_transaction(actions, mode="append", schema=schema)
            table = DeltaTable(str(folder))
    return {"path": name, "version": table.version(), "files": dict(sorted(files.items()))}


def _delta_schema(schema: Any) -> Any:
    from deltalake import Schema

    return Schema.from_arrow(schema)


def _list_current(table: Any) -> list[dict[str, Any]]:
    """`path` and `size_bytes` of the files of a table's last version."""
    return pl.DataFrame(table.get_add_actions()).select("path", "size_bytes").to_dicts()


def _describe_file(path: Path, blake2b: str) -> ShardFile:
    num_rows = int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    return ShardFile(path=path, num_rows=num_rows, num_bytes=path.stat().st_size, blake2b=blake2b)


def _make_add_action(file: ShardFile) -> Any:
    from deltalake.transaction import AddAction

    return AddAction(
        path=file.path.name,
        size=file.num_bytes,
        partition_values={},
        modification_time=time.time_ns() // 1_000_000,
        data_change=True,
        stats=json.dumps({"numRecords": file.num_rows}),
    )


def _make_remove_action(current: Mapping[str, Any]) -> Any:
    from deltalake.transaction import RemoveAction

    return RemoveAction(
        path=current["path"],
        data_change=True,
        deletion_timestamp=time.time_ns() // 1_000_000,
        size=current["size_bytes"],
        partition_values={},
    )


def _sync_folder(folder: Path) -> None:
    """Make sure that the files' names are on disk before a log names them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
