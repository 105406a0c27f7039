"""Paths (trace stores, segment files, OTLP files) -> batches of span rows.

Read are our own store (`*.otlp` and unsealed `*.otlp.open` segments) and what the OpenTelemetry
Collector's file exporter writes: JSON lines, and protobuf messages each behind a 4-byte big-endian
length; also a single OTLP JSON document and a single protobuf message. The Collector compresses each
message (zstd, behind its length); whole files may be compressed too, by gzip or zstd. What a file
is, is decided from its first bytes, not from its name. A damaged record is counted and its
neighbours are read.

Agents may write meanwhile: a segment that is sealed is read on under its new name.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final, cast

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
_COMPRESSED_SUFFIXES: Final = frozenset({".gz", ".zst", ".zstd"})
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_MESSAGE_BYTES: Final = 1 << 30
_PIECE_BYTES: Final = 1 << 16
_ZSTD_PIECE_BYTES: Final = 1 << 10
"""What a piece becomes is in memory at once, and lost where the piece is damaged."""
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
        SourceError: the file is empty, unreadable or holds no OTLP.
    """
    reader = _detect_reader(file.path)
    return _read_to_damage(file.path, reader(file.path, file.source))


def _read_to_damage(path: Path, batches: Iterator[SpanBatch]) -> Iterator[SpanBatch]:
    """Batches up to where compressed data cannot be read on."""
    try:
        yield from batches
    except _list_faults() as error:
        yield _damage(path, 0, f"compressed data is damaged or cut: {error}")


def _list_faults() -> tuple[type[Exception], ...]:
    """What reading compressed data may raise."""
    faults: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    try:
        from zstandard import ZstdError
    except ImportError:
        return faults
    return (*faults, ZstdError)


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
        if _plain_name(file).suffix in SPAN_FILE_SUFFIXES
        and file.name != "manifest.json"
        and (file.is_file() or (file.name.endswith(_UNSEALED) and not file.exists()))
    )
    if not files:
        raise SourceError(
            f"{path}: no span files in this folder (looked for "
            f"{', '.join(sorted(SPAN_FILE_SUFFIXES))}); has the agent run with tracing on?"
        )
    return files


def _plain_name(file: Path) -> Path:
    """`a.json.gz` -> `a.json`."""
    return file.with_suffix("") if file.suffix in _COMPRESSED_SUFFIXES else file


def _open_spans(path: Path) -> IO[bytes]:
    """File -> stream of what it holds, decompressed.

    Raises:
        SourceError: it cannot be read, or needs a package that is not installed.
    """
    stream = _open_source(path)
    head = stream.peek(4)[:4]
    if head.startswith(_GZIP_MAGIC):
        stream.close()
        return cast("IO[bytes]", gzip.open(stream.name))
    if head == _ZSTD_MAGIC:
        return io.BufferedReader(_ZstdStream(stream, _make_decompressor(path)))
    return stream


class _ZstdStream(io.RawIOBase):
    """Frames of zstd, one after the other; unlike the package's reader it tells where one is cut."""

    def __init__(self, stream: IO[bytes], decompressor: Any) -> None:
        self._stream = stream
        self._decompressor = decompressor
        self._frame: Any = None
        self._left = memoryview(b"")
        self._fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            if self._fault is not None:
                raise self._fault
            piece = self._stream.read(_ZSTD_PIECE_BYTES)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._left = memoryview(self._decompress(piece))
        length = min(len(buffer), len(self._left))
        buffer[:length] = self._left[:length]
        self._left = self._left[length:]
        return length

    def _decompress(self, piece: bytes) -> bytes:
        """What a piece holds up to where it is damaged; that is raised when the rest was read."""
        data = b""
        try:
            while piece:
                if self._frame is None:
                    self._frame = self._decompressor.decompressobj()
                data += self._frame.decompress(piece)
                piece = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
        except _list_faults() as error:
            self._fault = error
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


def _make_decompressor(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise SourceError(
            f"{path}: zstd data, for which the package zstandard is missing; "
            "pip install 'starpo[dataset]'"
        ) from None
    return zstandard.ZstdDecompressor()


def _detect_reader(path: Path) -> Callable[[Path, str], Iterator[SpanBatch]]:
    try:
        with _open_spans(path) as stream:
            head = stream.read(64)
    except _list_faults() as error:
        raise SourceError(f"{path}: compressed data is damaged or cut: {error}") from error
    if head.startswith(SEGMENT_MAGIC) or path.name.endswith((".otlp", ".otlp.open")):
        return _read_segment_batches
    if not head:
        raise SourceError(f"{path}: the file is empty")
    if head.lstrip()[:1] == b"{":
        return _read_json_batches
    if head.startswith(_PROTOBUF_FIRST_BYTE):
        return _read_protobuf_batches
    if head[4:5] == _PROTOBUF_FIRST_BYTE or head[4:8] == _ZSTD_MAGIC:
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

    with _open_spans(path) as stream:
        data, fault = _read_to_fault(stream)
    name = getattr(stream, "name", "")  # a segment may have been sealed meanwhile
    is_cut = fault is not None or str(name).endswith(_UNSEALED)
    for record in scan_records(data, is_open=is_cut):
        if isinstance(record, Damage):
            if fault is None or record.reason != "torn_tail":
                yield _damage(path, record.offset, record.reason)
            continue
        try:
            yield _batch(decode_protobuf(record.payload, source))
        except DecodeError as error:
            yield _damage(path, record.offset, str(error))
    if fault is not None:
        raise fault


def _read_to_fault(stream: IO[bytes]) -> tuple[bytes, Exception | None]:
    """All of a stream, or all up to where compressed data is damaged, and how."""
    pieces: list[bytes] = []
    try:
        # `read1` hands over what it has before it raises.
        while piece := cast("io.BufferedReader", stream).read1(_PIECE_BYTES):
            pieces.append(piece)
    except _list_faults() as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def _read_json_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    with _open_spans(path) as stream:
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
    with _open_spans(path) as stream:
        document = stream.read()
    try:
        return _batch(decode_json(document, source))
    except DecodeError:
        return None


def _read_protobuf_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    with _open_spans(path) as stream:
        payload = stream.read()
    try:
        yield _batch(decode_protobuf(payload, source))
    except DecodeError as error:
        yield _damage(path, 0, str(error))


def _read_length_prefixed_batches(path: Path, source: str) -> Iterator[SpanBatch]:
    offset = 0
    with _open_spans(path) as stream:
        while prefix := stream.read(4):
            length = int.from_bytes(prefix, "big")
            payload = stream.read(length)
            if len(prefix) < 4 or len(payload) < length:
                yield _damage(path, offset, "torn_tail")
                return
            try:
                yield _read_message(path, payload, source)
            except DecodeError as error:
                yield _damage(path, offset, str(error))
            offset += 4 + length


def _read_message(path: Path, payload: bytes, source: str) -> SpanBatch:
    """One message of the Collector's, which may be compressed, and JSON then.

    Raises:
        DecodeError: it is none.
        SourceError: it needs a package that is not installed.
    """
    if payload.startswith(_ZSTD_MAGIC):
        payload = _decompress(path, payload)
        if payload.lstrip()[:1] == b"{":
            return _batch(decode_json(payload, source))
    return _batch(decode_protobuf(payload, source))


def _decompress(path: Path, payload: bytes) -> bytes:
    stream = _ZstdStream(io.BytesIO(payload), _make_decompressor(path))
    try:
        data = io.BufferedReader(stream).read(_MAX_MESSAGE_BYTES + 1)
    except _list_faults() as error:
        raise DecodeError(f"zstd data is damaged or cut: {error}") from error
    if len(data) > _MAX_MESSAGE_BYTES:
        raise DecodeError(f"a message of more than {_MAX_MESSAGE_BYTES:,} bytes")
    return data
