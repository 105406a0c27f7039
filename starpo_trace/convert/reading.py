"""Source files -> chunks of staged spans on disk, with their routes."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from starpo_trace.convert.contentrefs import read_content_refs
from starpo_trace.convert.otlp import MalformedSpan
from starpo_trace.convert.routing import Routes, list_routes
from starpo_trace.convert.sources import (
    DamagedRecord,
    SourceFile,
    SourceFingerprint,
    hold_copies,
    identify_file,
    name_object,
    read_span_batches,
)
from starpo_trace.convert.staging import ChunkBuilder, write_chunk

_NAMED_DAMAGE: Final = 3
"""Damaged records of a file whose reasons are kept; there may be one for each of its lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTask:
    """Files that one worker reads."""

    number: int
    """Place among the tasks."""
    files: tuple[tuple[int, SourceFile], ...]
    """Each with its number among all files of the build."""
    folder: Path
    """Where the chunks go."""
    traces: frozenset[str] | None = None
    """Only spans of these traces; None: all."""
    content_folders: tuple[Path, ...] = ()
    """Folders that messages may be read from which spans only name, besides their sources'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReading:
    """What a file held."""

    number: int
    """Number of the file among all of the build."""
    fingerprint: SourceFingerprint
    """Identity of the file."""
    num_spans: int
    """Spans that could be read."""
    malformed: tuple[MalformedSpan, ...]
    """Spans that could not."""
    num_damaged: int
    """Records that could not be read at all."""
    damage: tuple[str, ...]
    """What was wrong with the first of them."""


@dataclass(slots=True, kw_only=True)
class Reading:
    """What the files of a task held."""

    files: list[FileReading] = field(default_factory=list)
    """One for each file."""
    chunks: list[tuple[Path, Routes]] = field(default_factory=list)
    """Folder and routes of each chunk."""


def plan_reading(
    files: Sequence[tuple[int, SourceFile]],
    folder: Path,
    *,
    traces: frozenset[str] | None = None,
    content_folders: Sequence[Path] = (),
    max_bytes: int = 64 << 20,
) -> list[ReadTask]:
    """Numbered files -> tasks of about `max_bytes`, in the order of the files."""
    groups: list[list[tuple[int, SourceFile]]] = []
    size = 0
    for number, file in files:
        if not groups or size >= max_bytes:
            groups.append([])
            size = 0
        groups[-1].append((number, file))
        size += _size_of(file)
    return [
        ReadTask(
            number=number,
            files=tuple(group),
            folder=folder,
            traces=traces,
            content_folders=tuple(content_folders),
        )
        for number, group in enumerate(groups)
    ]


def read_files(task: ReadTask) -> Reading:
    """Files of a task -> chunks on disk.

    Raises:
        SourceError: a file cannot be read or holds no spans of a known form.
    """
    reading = Reading()
    writer = _ChunkWriter(task, reading)
    numbers = [number for number, _ in task.files]
    with hold_copies([file for _, file in task.files]) as files, hold_garbage_collection():
        for number, file in zip(numbers, files, strict=True):
            with name_object(file):
                reading.files.append(_read_file(number, file, task, writer))
        writer.flush()
    return reading


def _read_file(
    number: int, file: SourceFile, task: ReadTask, writer: "_ChunkWriter"
) -> FileReading:
    fingerprint = identify_file(file)
    num_spans = 0
    damaged: list[DamagedRecord] = []
    malformed: list[MalformedSpan] = []
    for batch in read_span_batches(file):
        rows = read_content_refs(batch.rows, task.content_folders)
        num_bytes = batch.num_bytes if rows is batch.rows else None
        if task.traces is not None:
            rows = [row for row in rows if row.trace_id in task.traces]
            if num_bytes is not None and batch.rows:  # of these spans alone, about
                num_bytes = num_bytes * len(rows) // len(batch.rows)
        writer.builder.add_batch(rows, num_bytes)
        num_spans += len(batch.rows)
        malformed += batch.malformed
        damaged += batch.damaged
        writer.note(number)
    return FileReading(
        number=number,
        fingerprint=fingerprint,
        num_spans=num_spans,
        malformed=tuple(malformed),
        num_damaged=len(damaged),
        damage=tuple(each.describe() for each in damaged[:_NAMED_DAMAGE]),
    )


@contextmanager
def hold_garbage_collection() -> Iterator[None]:
    """Spans hold no cycles, and looking for some among millions of them takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _ChunkWriter:
    """Fills chunks and writes each once it is full."""

    def __init__(self, task: ReadTask, reading: Reading) -> None:
        self.builder = ChunkBuilder()
        self._task = task
        self._reading = reading
        self._files: list[tuple[int, int]] = []  # number of a file, spans up to its end

    def note(self, file: int) -> None:
        """Spans up to here are of this file."""
        self._files.append((file, self.builder.num_spans))
        if self.builder.is_full:
            self.flush()

    def flush(self) -> None:
        """Write the chunk that was gathered."""
        if not self.builder.num_spans:
            return
        chunks = self._reading.chunks
        folder = self._task.folder / f"{self._task.number:06d}-{len(chunks):06d}"
        frames = self.builder.build()
        chunks.append((folder, list_routes(frames, self._list_files(), self.builder.num_bytes)))
        write_chunk(frames, folder)
        self.builder = ChunkBuilder()
        self._files = []

    def _list_files(self) -> pl.Series:
        files: list[int] = []
        for number, end in self._files:
            files += [number] * (end - len(files))
        return pl.Series("file", files, dtype=pl.Int64)


def _size_of(file: SourceFile) -> int:
    if file.stored is not None:
        return file.stored.num_bytes
    try:
        return file.path.stat().st_size
    except OSError:
        return 0  # sealed under another name meanwhile; whoever reads it finds it
