"""Names of files in a folder, or of objects in a bucket -> which of them hold spans."""

from collections.abc import Collection
from pathlib import PurePath
from typing import Final

SPAN_FILE_SUFFIXES: Final = frozenset(
    {".otlp", ".open", ".json", ".jsonl", ".ndjson", ".pb", ".binpb", ".proto", ".bin"}
    | {".parquet", ".traj", ".eval"}
)
UNSEALED: Final = ".otlp.open"

_COMPRESSED_SUFFIXES: Final = frozenset({".gz", ".zst", ".zstd"})
_RUN_SUFFIXES: Final = (".traj", ".traj.json", ".eval")
_RUN_NAMES: Final = frozenset({"report.json"})


def is_span_file(name: str) -> bool:
    """Whether a file in a folder that somebody named is read."""
    file = PurePath(name)
    if file.suffix in _COMPRESSED_SUFFIXES:
        file = file.with_suffix("")
    return file.suffix in SPAN_FILE_SUFFIXES and name != "manifest.json"


def is_run_file(name: str) -> bool:
    """Whether a file is read at any depth below that folder, for nothing else has such a name."""
    return name.endswith(_RUN_SUFFIXES) or name in _RUN_NAMES


def is_part_folder(name: str) -> bool:
    """Whether a folder is only a part of the one it is in, as in `year=2026/month=05/`."""
    return "=" in name[1:]


def is_sealed_meanwhile(name: str, names: Collection[str]) -> bool:
    """Whether a name is that of a segment which is among the others under its sealed name."""
    return name.endswith(UNSEALED) and name.removesuffix(".open") in names
