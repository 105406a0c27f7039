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
    """Delta table -> the files of its newest version, sorted; raises as `list_table_names`."""
    return [folder / name for name in list_table_names(folder, str(folder))]


def list_table_names(folder: Path, called: str) -> list[str]:
    """Delta table, and what users call it -> names in its folder of its newest version, sorted.

    Of its folder only the log needs to be there.

    Raises:
        SourceError: it cannot be read, is empty, or its files do not tell what its rows are.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise SourceError(
            f"{called}: a Delta table, for which the package deltalake is missing; "
            "pip install 'starpo[dataset]'"
        ) from None
    try:
        table = DeltaTable(folder)
        protocol = table.protocol()
        root = table.table_uri.removeprefix("file://")
        names = sorted(uri.removeprefix("file://") for uri in table.file_uris())
        partitions = table.metadata().partition_columns
    except (DeltaError, OSError, ValueError) as error:
        fault = str(error).replace(str(folder), called)
        raise SourceError(f"{called}: cannot be read as a Delta table: {fault}") from error
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if found := sorted(_UNREAD & features):
        raise SourceError(
            f"{called}: a Delta table with {', '.join(found)}, which is not read; write it anew "
            "without (REORG TABLE ... APPLY (PURGE)), or export it as Parquet"
        )
    if known := sorted(_list_known(partitions)):
        raise SourceError(
            f"{called}: a Delta table partitioned by {', '.join(known)}, which its files "
            "therefore lack; partition it by another column, or export it as Parquet"
        )
    if not names:
        raise SourceError(f"{called}: a Delta table without rows")
    # The URI's beginning is percent-encoded; what follows are the names as they are.
    return [name.removeprefix(root) for name in names]


def _list_known(partitions: list[str]) -> set[str]:
    """Columns of spans that stand in the names of folders and not in the files."""
    from starpo_trace.convert.sources.spantable import COLUMNS

    return {name for names in COLUMNS.values() for name in names}.intersection(partitions)
