"""Objects of a bucket -> local copies, for as long as they are read.

Readers see files. A task's objects are fetched side by side, read, and removed, so that the disk
holds those of the tasks at work and no more.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from starpo_trace.convert.sources.filenames import is_run_file
from starpo_trace.convert.sources.files import SourceFile, SourceFingerprint, fingerprint_file
from starpo_trace.convert.sources.objectstores import StoredObject, fetch_object, open_store
from starpo_trace.errors import SourceError

_AT_A_TIME: Final = 8


def note_runs(files: Sequence[SourceFile]) -> None:
    """Give the copies of runs their names beforehand: reports are about runs that lie near them."""
    for file in files:
        if file.stored is not None and is_run_file(file.path.name):
            file.path.parent.mkdir(parents=True, exist_ok=True)
            file.path.touch()


@contextmanager
def hold_copies(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files, of which some are objects -> the same, whose copies are there until the end.

    Raises:
        SourceError: an object is gone, may not be read, or does not arrive.
    """
    objects = [(file.stored, file.path) for file in files if file.stored is not None]
    if not objects:
        yield list(files)
        return
    found: dict[str, StoredObject] = {}
    try:
        with (
            open_store(objects[0][0].url) as client,
            ThreadPoolExecutor(_AT_A_TIME) as threads,
        ):
            for stored in threads.map(lambda each: fetch_object(client, *each), objects):
                found[stored.url] = stored
        yield [
            file if file.stored is None else replace(file, stored=found[file.stored.url])
            for file in files
        ]
    finally:
        for _, path in objects:
            if is_run_file(path.name) and path.exists():
                path.write_bytes(b"")
            else:
                path.unlink(missing_ok=True)


def identify_file(file: SourceFile) -> SourceFingerprint:
    """File whose copy is there -> its identity, which is the object's for an object.

    Raises:
        SourceError: the file cannot be read.
    """
    found = fingerprint_file(file.path)
    if file.stored is None:
        return found
    stored = file.stored
    return replace(found, path=stored.url, changed_ns=stored.changed_ns, etag=stored.etag)


@contextmanager
def name_object(file: SourceFile) -> Iterator[None]:
    """Errors that name the copy -> errors that name the object."""
    try:
        yield
    except SourceError as error:
        if file.stored is None:
            raise
        raise SourceError(str(error).replace(str(file.path), file.name)) from error
