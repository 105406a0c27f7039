"""Paths (trace stores, segment files, OTLP files) -> batches of span rows.

Read are our own store (`*.otlp` and unsealed `*.otlp.open` segments) and what the OpenTelemetry
Collector's file exporter writes: JSON lines, and protobuf messages each behind a 4-byte big-endian
length; also a single OTLP JSON document and a single protobuf message. What a file is, is decided
from its first bytes, not from its name. A damaged record is counted and its neighbours are read.

Agents may write meanwhile: a segment that is sealed is read on under its new name.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path

from starpo_trace.convert.otlp import (
    DecodeError,
    MalformedSpan,
    SpanRow,
    decode_json,
    decode_protobuf,
)
from starpo_trace.errors import SourceError

SEGMENT_MAGIC = b"STARPO1\n"
SPAN_FILE_SUFFIXES = frozenset(
    {".otlp", ".open", ".json", ".jsonl", ".ndjson", ".pb", ".binpb", ".proto", ".bin"}
)

_UNSEALED = ".otlp.open"
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_PROTOBUF_FIRST_BYTE = b"\x0a"  # field 1, length-delimited: `resource_spans`


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file that holds spans."""

    path: Path
    """The file."""
    source: str
    """What the caller named: the file itself, or the folder that holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRecord:
    """A piece of a file that holds no readable spans."""

    path: str
    """The file."""
    offset: int
    """Byte offset in the file (line number for JSON lines)."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """What one record of a file held."""

    rows: tuple[SpanRow, ...] = ()
    """Spans, in the order of the file."""
    malformed: tuple[MalformedSpan, ...] = ()
    """Spans without valid ids or with impossible values."""
    damaged: tuple[DamagedRecord, ...] = ()
    """Records that could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFingerprint:
    """Identity of a file at the moment it was read."""

    path: str
    """The file."""
    num_bytes: int
    """Its size."""
    blake2b: str
    """Hash of its bytes, 16 bytes as hexadecimal digits."""


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


def read_span_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """File -> batches of spans.

    Raises:
        SourceError: the file is empty, compressed, unreadable or holds no OTLP.
    """
    reader = _detect_reader(file.path)
    return reader(file.path, file.source)


def fingerprint_file(path: Path) -> SourceFingerprint:
    """File -> size and hash of what it holds now.

    Raises:
        SourceError: the file cannot be read.
    """
    digest = blake2b(digest_size=16)
    num_bytes = 0
    with _open_source(path) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            num_bytes += len(chunk)
    return SourceFingerprint(path=stream.name, num_bytes=num_bytes, blake2b=digest.hexdigest())


def _open_source(path: Path) -> BufferedReader:
    """File -> stream; `name` of the stream is where it was found, for a segment may be sealed."""
    names = [str(path)]
    if path.name.endswith(_UNSEALED):
        names.append(str(path).removesuffix(".open"))
    for name in names:
        try:
            return open(name, "rb")  # noqa: PTH123 (a stream's name is a text then)
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
        file for file in found if file.name.endswith(_UNSEALED) and file.with_suffix("") in found
    }
    return found - is_sealed


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or folder; name a trace store or an OTLP file")
    files = sorted(
        file
        for file in _list_folder(path)
        if file.suffix in SPAN_FILE_SUFFIXES
        and file.name != "manifest.json"
        and (file.is_file() or (file.name.endswith(_UNSEALED) and not file.exists()))
    )
    if not files:
        raise SourceError(
            f"{path}: no span files in this folder (looked for "
            f"{', '.join(sorted(SPAN_FILE_SUFFIXES))}); has the agent run with tracing on?"
        )
    return files


def _detect_reader(path: Path) -> Callable[[Path, str], Iterator[SpanBatch]]:
    with _open_source(path) as stream:
        head = stream.read(64)
    if head.startswith(SEGMENT_MAGIC) or path.name.endswith((".otlp", ".otlp.open")):
        return _read_segment_batches
    if not head:
        raise SourceError(f"{path}: the file is empty")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic) or head[4:].startswith(magic):
            raise SourceError(
                f"{path}: {name} data; decompress it first, or leave `compression` out of the "
                "Collector's file exporter"
            )
    if head.lstrip()[:1] == b"{":
        return _read_json_batches
    if head.startswith(_PROTOBUF_FIRST_BYTE):
        return _read_protobuf_batches
    if head[4:5] == _PROTOBUF_FIRST_BYTE:
        return _read_length_prefixed_batches
    raise SourceError(
        f"{path}: {_describe_head(path, head)}: neither a trace store segment nor OTLP JSON "
        "lines nor OTLP protobuf; name the agent's trace store or the Collector's output"
    )


def _describe_head(path: Path, head: bytes) -> str:
    """What a foreign file is, without any of its bytes: it may be a key file, named by mistake."""
    text = head.decode("utf-8", errors="ignore")  # the last character may be cut
    is_text = len(text.encode()) > len(head) - 4 and "\0" not in text
    return f"{'text' if is_text else 'binary data'}, {path.stat().st_size:,} bytes"


def _batch(spans: Iterator[SpanRow | MalformedSpan]) -> SpanBatch:
    rows: list[SpanRow] = []
    malformed: list[MalformedSpan] = []
    for span in spans:
        if isinstance(span, SpanRow):
            rows.append(span)
        else:
            malformed.append(span)
    return SpanBatch(rows=tuple(rows), malformed=tuple(malformed))


def _damage(path: Path, offset: int, reason: str) -> SpanBatch:
    return SpanBatch(damaged=(DamagedRecord(path=str(path), offset=offset, reason=reason),))


def _read_segment_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    from starpo_trace.store.segments import Damage, scan_records

    with _open_source(path) as stream:
        data = stream.read()
    for record in scan_records(data, is_open=stream.name.endswith(_UNSEALED)):
        if isinstance(record, Damage):
            yield _damage(path, record.offset, record.reason)
            continue
        try:
            yield _batch(decode_protobuf(record.payload, source))
        except DecodeError as error:
            yield _damage(path, record.offset, str(error))


def _read_json_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    with _open_source(path) as stream:
        first = stream.readline()
        try:
            batch = _batch(decode_json(first, source))
        except DecodeError:
            # Either a damaged first line, or one document spread over several lines.
            if document := _read_json_document(path, source):
                yield document
                return
            batch = _damage(path, 1, "not an OTLP JSON line")
        yield batch
        for number, line in enumerate(stream, start=2):
            if not line.strip():
                continue
            try:
                yield _batch(decode_json(line, source))
            except DecodeError as error:
                yield _damage(path, number, str(error))


def _read_json_document(path: Path, source: str) -> SpanBatch | None:
    with _open_source(path) as stream:
        document = stream.read()
    try:
        return _batch(decode_json(document, source))
    except DecodeError:
        return None


def _read_protobuf_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    with _open_source(path) as stream:
        payload = stream.read()
    try:
        yield _batch(decode_protobuf(payload, source))
    except DecodeError as error:
        yield _damage(path, 0, str(error))


def _read_length_prefixed_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    offset = 0
    with _open_source(path) as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        while prefix := stream.read(4):
            length = int.from_bytes(prefix, "big")
            if len(prefix) < 4 or offset + 4 + length > num_bytes:
                yield _damage(path, offset, "torn_tail")
                return
            payload = stream.read(length)
            try:
                yield _batch(decode_protobuf(payload, source))
            except DecodeError as error:
                yield _damage(path, offset, str(error))
            offset += 4 + length
