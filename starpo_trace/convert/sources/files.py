"""Paths (folders, files) -> the files that hold spans; their bytes and fingerprints.

Agents may write meanwhile: a segment that is sealed is read on under its new name.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Final

from starpo_trace.convert.sources.delta import is_delta_table, list_table_files
from starpo_trace.convert.sources.nestedfiles import list_nested_runs
from starpo_trace.errors import SourceError

SPAN_FILE_SUFFIXES: Final = frozenset(
    {".otlp", ".open", ".json", ".jsonl", ".ndjson", ".pb", ".binpb", ".proto", ".bin"}
    | {".parquet", ".traj", ".eval"}
)
UNSEALED: Final = ".otlp.open"

_BUFFER_BYTES: Final = 1 << 20
"""Records are long lines, and a small buffer costs a copy for every piece of one."""
_COMPRESSED_SUFFIXES: Final = frozenset({".gz", ".zst", ".zstd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file that holds spans."""

    path: Path
    """The file."""
    source: str
    """What the caller named: the file itself, or the folder that holds it."""

    @property
    def is_named(self) -> bool:
        """Whether the caller named the file itself."""
        return str(self.path) == self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFingerprint:
    """Identity of a file at the moment it was read."""

    path: str
    """The file."""
    num_bytes: int
    """Its size."""
    sha256: str
    """Hash of its bytes, as hexadecimal digits."""
    changed_ns: int
    """When it was last changed, Unix time."""


def find_source_files(paths: Sequence[Path]) -> list[SourceFile]:
    """Stores, folders and files that a user named -> the files that hold spans, each once.

    Raises:
        SourceError: a path does not exist, or a folder holds no span file.
    """
    if not paths:
        raise SourceError("no source given: name a trace store folder or an OTLP file")
    files: dict[Path, SourceFile] = {}
    for path in paths:
        for file in _files_of(path):
            try:
                found = file.resolve()
            except (OSError, RuntimeError) as error:  # RuntimeError: a loop, until Python 3.13
                raise SourceError(f"{file}: cannot be read: {error}") from error
            files.setdefault(found, SourceFile(path=file, source=str(path)))
    return list(files.values())


def fingerprint_file(path: Path) -> SourceFingerprint:
    """File -> size and hash of what it holds now.

    Raises:
        SourceError: the file cannot be read.
    """
    digest = sha256()
    num_bytes = 0
    with open_source(path) as stream:
        changed_ns = os.fstat(stream.fileno()).st_mtime_ns
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            num_bytes += len(chunk)
    return SourceFingerprint(
        path=stream.name, num_bytes=num_bytes, sha256=digest.hexdigest(), changed_ns=changed_ns
    )


def open_source(path: Path) -> BufferedReader:
    """File -> stream; `name` of the stream is where it was found, for a segment may be sealed."""
    names = [str(path)]
    if path.name.endswith(UNSEALED):
        names.append(str(path).removesuffix(".open"))
    for name in names:
        try:
            return io.BufferedReader(io.FileIO(name), _BUFFER_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if path.is_symlink():
        raise SourceError(f"{path}: is a link to a file that is not there; remove the link")
    raise SourceError(f"{path}: was removed meanwhile; run it again on what is there now")


def _list_folder(folder: Path) -> set[Path]:
    """Files of a folder, whose unsealed segments may become sealed ones while they are listed.

    A file that is renamed during a listing may be in it under neither name. It is in the next.
    """
    try:
        found = set(folder.iterdir()) | set(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read: {error.strerror or error}") from error
    is_sealed = {
        file for file in found if file.name.endswith(UNSEALED) and file.with_suffix("") in found
    }
    return found - is_sealed


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if is_delta_table(path):
        return list_table_files(path)
    if not path.is_dir():
        if path.exists():  # a pipe, as of the shell's `<(...)`
            raise SourceError(f"{path}: is neither a file nor a folder; save it as a file first")
        raise SourceError(f"{path}: no such file or folder; name a trace store or an OTLP file")
    files = sorted(
        file
        for file in _list_folder(path)
        if _plain_name(file).suffix in SPAN_FILE_SUFFIXES
        and file.name != "manifest.json"
        and (file.is_file() or (file.name.endswith(UNSEALED) and not file.exists()))
    )
    files += list_nested_runs(path, files)
    if not files and (path / "manifest.json").is_file() and (path / "trajectories").is_dir():
        raise SourceError(f"{path}: is a dataset; export what it was made of, or `show` it")
    if not files:
        raise SourceError(
            f"{path}: no span files in this folder (looked for "
            f"{', '.join(sorted(SPAN_FILE_SUFFIXES))}); {_advise(path)}"
        )
    return files


def _advise(folder: Path) -> str:
    """What to do about a folder without span files."""
    below = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if below:
        return f"name the folders in it that hold spans, as {folder / below[0]}"
    if any(folder.iterdir()):
        return "name the files that hold spans"
    return "has the agent run with tracing on?"


def _plain_name(file: Path) -> Path:
    """`a.json.gz` -> `a.json`."""
    return file.with_suffix("") if file.suffix in _COMPRESSED_SUFFIXES else file
