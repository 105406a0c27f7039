"""Folder of a Delta table -> the Parquet files of its newest version.

Files that the table no longer has stay in its folder until they are vacuumed; they are not read.
"""

from pathlib import Path
from typing import Final

from starpo_trace.errors import SourceError

LOG: Final = "_delta_log"

_UNREAD: Final = frozenset({"deletionVectors", "columnMapping"})
"""Features by which a file does not hold what the table does: deleted rows, other names."""


def is_delta_table(path: Path) -> bool:
    """Whether a folder is a Delta table; one that cannot be looked into is none."""
    try:
        return (path / LOG).is_dir()
    except PermissionError:
        return False


def list_table_files(folder: Path) -> list[Path]:
    """Delta table -> the files of its newest version, sorted.

    Raises:
        SourceError: it cannot be read, is empty, or its files do not tell what its rows are.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise SourceError(
            f"{folder}: a Delta table, for which the package deltalake is missing; "
            "pip install 'starpo[dataset]'"
        ) from None
    try:
        table = DeltaTable(folder)
        protocol = table.protocol()
        names = sorted(table.file_uris())
        partitions = table.metadata().partition_columns
    except (DeltaError, OSError, ValueError) as error:
        raise SourceError(f"{folder}: cannot be read as a Delta table: {error}") from error
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if found := sorted(_UNREAD & features):
        raise SourceError(
            f"{folder}: a Delta table with {', '.join(found)}, which is not read; write it anew "
            "without (REORG TABLE ... APPLY (PURGE)), or export it as Parquet"
        )
    if known := sorted(_list_known(partitions)):
        raise SourceError(
            f"{folder}: a Delta table partitioned by {', '.join(known)}, which its files "
            "therefore lack; partition it by another column, or export it as Parquet"
        )
    files = [Path(name.removeprefix("file://")) for name in names]
    if not files:
        raise SourceError(f"{folder}: a Delta table without rows")
    return files


def _list_known(partitions: list[str]) -> set[str]:
    """Columns of spans that stand in the names of folders and not in the files."""
    from starpo_trace.convert.sources.spantable import COLUMNS

    return {name for names in COLUMNS.values() for name in names}.intersection(partitions)
