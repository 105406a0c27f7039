r"""OTLP payloads <-> segment files of the local trace store.

A segment is the magic `STARPO1\n` and then records; a record is

    SPR1 | payload bytes: u32 | CRC-32 of the payload: u32 | number of spans: u32 | payload

with little-endian numbers, the payload being one OTLP `ExportTraceServiceRequest`, never empty. A
segment in use has the suffix `.open`, which it loses when it is sealed; after a crash it keeps it,
and all whole records in it stay readable. A damaged record is skipped by looking for the next
marker whose checksum fits, so its neighbours stay readable too.
"""

import errno
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starpo_trace.store.files import REAL_FILES, Files

MAGIC: Final = b"STARPO1\n"
MARKER: Final = b"SPR1"
SUFFIX: Final = ".otlp"
OPEN_SUFFIX: Final = ".otlp.open"
_HEADER: Final = struct.Struct("<4sIII")
_SEARCHES: Final = 16
_MIN_SEARCH_BYTES: Final = 64 << 20
"""Checksums over so many bytes, and over the file so many times, are spent on damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One intact record."""

    payload: bytes
    """`ExportTraceServiceRequest` protobuf bytes."""
    num_spans: int
    """Number of spans in the payload, as the writer counted them."""
    offset: int
    """Where the record begins in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes of a segment that hold no readable record."""

    offset: int
    """Where they begin in the file."""
    length: int
    """How many there are."""
    reason: str
    """bad_magic | torn_tail (an unsealed segment was cut off) | damaged_record."""


def read_segment(path: str | os.PathLike[str]) -> Iterator[Record | Damage]:
    """Segment file -> its records in order, and the damage between them.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    yield from scan_records(path.read_bytes(), is_open=path.name.endswith(OPEN_SUFFIX))


def scan_records(data: bytes, *, is_open: bool) -> Iterator[Record | Damage]:
    """Bytes of a segment -> its records in order, and the damage between them.

    Damage that is full of markers, as if somebody had made it so, is looked through only in part:
    each marker may cost a checksum over all that follows.
    """
    search = _Search(data)
    if data.startswith(MAGIC):
        offset = len(MAGIC)
    elif is_open and MAGIC.startswith(data):  # killed before the first write was whole
        if data:
            yield Damage(offset=0, length=len(data), reason="torn_tail")
        return
    else:
        offset = search.find_record(0)
        yield Damage(offset=0, length=offset, reason="bad_magic")
    while offset < len(data):
        record = _record_at(data, offset)
        if record is not None:
            yield record
            offset += _HEADER.size + len(record.payload)
            continue
        following = search.find_record(offset + 1)
        is_tail = following == len(data) and is_open
        reason = "torn_tail" if is_tail else "damaged_record"
        yield Damage(offset=offset, length=following - offset, reason=reason)
        offset = following


def frame_record(payload: bytes, num_spans: int) -> bytes:
    """Payload -> the bytes of its record."""
    return _HEADER.pack(MARKER, len(payload), zlib.crc32(payload), num_spans) + payload


def list_segments(directory: Path) -> list[Path]:
    """Segment files of a store, oldest first, unsealed ones included."""
    return sorted(
        path for path in directory.glob("*.otlp*") if path.name.endswith((SUFFIX, OPEN_SUFFIX))
    )


def _record_at(data: bytes, offset: int) -> Record | None:
    start = offset + _HEADER.size
    if start > len(data):
        return None
    marker, length, checksum, num_spans = _HEADER.unpack_from(data, offset)
    if marker != MARKER or not length or start + length > len(data):
        return None  # without a payload: text that ends in the marker, before a hole of zeros
    payload = data[start : start + length]
    if zlib.crc32(payload) != checksum:
        return None
    return Record(payload=payload, num_spans=num_spans, offset=offset)


class _Search:
    """Looks for records amid damage, for as long as that is worth it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._bytes_left = _MIN_SEARCH_BYTES + _SEARCHES * len(data)

    def find_record(self, start: int) -> int:
        """Offset of the first intact record at or after `start`; the file's end without one."""
        data = self._data
        while self._bytes_left > 0 and (start := data.find(MARKER, start)) >= 0:
            if start + _HEADER.size <= len(data):
                length = _HEADER.unpack_from(data, start)[1]
                if start + _HEADER.size + length <= len(data):
                    self._bytes_left -= length
            if _record_at(data, start) is not None:
                return start
            start += 1
        return len(data)


class SegmentWriter:
    """One open segment file. Not thread-safe: it belongs to its sink's writer thread."""

    def __init__(self, directory: Path, *, files: Files = REAL_FILES) -> None:
        """Create the file; the folder must be there.

        Raises:
            OSError: the file cannot be made or written.
        """
        self._files = files
        stem = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = directory / (stem + OPEN_SUFFIX)
        self.created_s = time.monotonic()
        self.num_bytes = 0
        """Bytes up to the end of the last record known to be on disk."""
        self._descriptor = files.create(self.path)
        try:
            self._write(MAGIC)
            files.sync_directory(directory)
        except OSError:
            self.seal()
            raise

    @property
    def is_empty(self) -> bool:
        """Whether it holds no record yet."""
        return self.num_bytes <= len(MAGIC)

    def append(self, record: bytes) -> None:
        """Write one record; on return it is on disk.

        After an error the writer must be sealed and the record written to a new segment: a sync
        that failed once may say it succeeded the next time while the data is lost.

        Raises:
            OSError: it could not be written; the file then ends after the record before it.
        """
        try:
            self._write(record)
        except OSError:
            self._truncate()
            raise

    def seal(self) -> None:
        """Close and rename the file for good; one without records is removed.

        Raises:
            OSError: that failed; the file stays readable under the name it has.
        """
        self._files.close(self._descriptor)
        if self.is_empty:
            self._files.remove(self.path)
            return
        sealed = self.path.with_name(self.path.name.removesuffix(".open"))
        self._files.rename(self.path, sealed)
        self.path = sealed
        self._files.sync_directory(sealed.parent)

    def abandon(self) -> None:
        """Close the file and touch nothing: it belongs to the process we were forked from."""
        self._files.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        offset = self.num_bytes
        while view:
            num_written = self._files.write_at(self._descriptor, view, offset)
            offset += num_written
            view = view[num_written:]
        self._files.sync_data(self._descriptor)
        if self._files.is_deleted(self._descriptor):  # somebody removed it under us
            raise FileNotFoundError(errno.ENOENT, "trace segment was deleted", str(self.path))
        self.num_bytes = offset

    def _truncate(self) -> None:
        try:
            self._files.truncate(self._descriptor, self.num_bytes)
        except OSError:
            # Readers skip a partial record by its checksum, and a whole one that is written
            # again elsewhere by its span ids.
            return
