"""Sources (folders, files, buckets) -> the files that hold spans; their bytes and fingerprints.

Agents may write meanwhile: a segment that is sealed is read on under its new name.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Final

from starpo_trace.convert.sources.delta import is_delta_table, list_table_files
from starpo_trace.convert.sources.filenames import (
    SPAN_FILE_SUFFIXES,
    UNSEALED,
    is_part_folder,
    is_sealed_meanwhile,
    is_span_file,
)
from starpo_trace.convert.sources.nestedfiles import list_nested_runs
from starpo_trace.convert.sources.objectfiles import find_span_objects, place_copies
from starpo_trace.convert.sources.objectstores import (
    StoredObject,
    is_collapsed_url,
    is_object_url,
)
from starpo_trace.errors import SourceError

_BUFFER_BYTES: Final = 1 << 20
"""Records are long lines, and a small buffer costs a copy for every piece of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file that holds spans."""

    path: Path
    """The file; of an object, its copy, which is there while it is read (`spool`)."""
    source: str
    """What the caller named: the file itself, or the folder or bucket that holds it."""
    stored: StoredObject | None = None
    """The object in a bucket that it is a copy of."""

    @property
    def name(self) -> str:
        """What people call it: its path, or the URL of the object."""
        return str(self.path) if self.stored is None else self.stored.url

    @property
    def is_named(self) -> bool:
        """Whether the caller named the file itself."""
        return self.name == self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFingerprint:
    """Identity of a file at the moment it was read."""

    path: str
    """The file, or the URL of the object."""
    num_bytes: int
    """Its size."""
    sha256: str
    """Hash of its bytes, as hexadecimal digits."""
    changed_ns: int
    """When it was last changed, Unix time."""
    etag: str | None = None
    """What a bucket calls this content; None for a file."""


def find_source_files(
    sources: Sequence[Path | str], *, spool: Path | None = None
) -> list[SourceFile]:
    """Stores, folders, files, buckets that a user named -> the files that hold spans, each once.

    Args:
        sources: paths, and URLs of objects or of what is below a prefix (`s3://bucket/traces`).
        spool: folder for the copies of objects, which is made when they are fetched.

    Raises:
        SourceError: a source does not exist, cannot be read, or holds no span file.
    """
    if not sources:
        raise SourceError("no source given: name a trace store folder or an OTLP file")
    files: dict[Path | str, SourceFile] = {}
    for source in sources:
        if is_object_url(source):
            if spool is None:
                raise ValueError(f"{source}: no folder was given for copies of objects")
            for stored in find_span_objects(str(source)):
                file = SourceFile(path=spool, source=str(source), stored=stored)
                files.setdefault(stored.url, file)
            continue
        for path in _files_of(Path(source)):
            try:
                found = path.resolve()
            except (OSError, RuntimeError) as error:  # RuntimeError: a loop, until Python 3.13
                raise SourceError(f"{path}: cannot be read: {error}") from error
            files.setdefault(found, SourceFile(path=path, source=str(source)))
    return _place_objects(list(files.values()), spool)


def _place_objects(files: list[SourceFile], spool: Path | None) -> list[SourceFile]:
    """Files -> the same, where each object has a path of its own for its copy."""
    objects = [file.stored for file in files if file.stored is not None]
    if not objects or spool is None:
        return files
    copies = place_copies(objects, spool)
    return [
        file if file.stored is None else replace(file, path=copies[file.stored.url])
        for file in files
    ]


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
    names = {file.name for file in found}
    return {file for file in found if not is_sealed_meanwhile(file.name, names)}


def _list_span_files(folder: Path) -> list[Path]:
    """Span files of a folder and of the folders that are only its parts."""
    files = []
    for file in _list_folder(folder):
        if is_part_folder(file.name) and file.is_dir() and not file.is_symlink():
            files += _list_span_files(file)
        elif is_span_file(file.name) and (
            file.is_file() or (file.name.endswith(UNSEALED) and not file.exists())
        ):
            files.append(file)
    return sorted(files)


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if is_delta_table(path):
        return list_table_files(path)
    if not path.is_dir():
        if path.exists():  # a pipe, as of the shell's `<(...)`
            raise SourceError(f"{path}: is neither a file nor a folder; save it as a file first")
        if is_collapsed_url(path):
            raise SourceError(
                f"{path}: a path that was made of a URL; `starpo-trace export` reads URLs, and in "
                "Python they are given as text"
            )
        raise SourceError(f"{path}: no such file or folder; name a trace store or an OTLP file")
    files = _list_span_files(path)
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
