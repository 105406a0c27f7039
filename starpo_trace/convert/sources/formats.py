"""File -> batches of spans, by the reader that its first bytes ask for.

Read are our own store (`*.otlp` and unsealed `*.otlp.open` segments) and what the OpenTelemetry
Collector's file exporter writes: JSON lines, and protobuf messages each behind a 4-byte big-endian
length; also a single OTLP JSON document and a single protobuf message. The Collector compresses each
message (zstd, behind its length); whole files may be compressed too, by gzip or zstd. Other JSON is
read by `documents`, Parquet and CSV by `tables`. What a file is, is decided from its first bytes, not from its name. A damaged
record is counted and its neighbours are read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from starpo_trace.convert.sources.batches import ForeignFileError, SpanBatch, make_damage
from starpo_trace.convert.sources.compression import ZSTD_MAGIC, list_faults, open_spans
from starpo_trace.convert.sources.delta import is_delta_table
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.inspect_logs import ZIP_MAGIC, read_zip_batches
from starpo_trace.convert.sources.jsonfiles import is_json, read_json_batches
from starpo_trace.convert.sources.otlpfiles import (
    read_length_prefixed_batches,
    read_protobuf_batches,
    read_segment_batches,
)
from starpo_trace.convert.sources.tables import (
    PARQUET_MAGIC,
    is_csv_head,
    read_csv_batches,
    read_parquet_batches,
)
from starpo_trace.errors import SourceError

Reader = Callable[[SourceFile], Iterator[SpanBatch]]

_EMPTY: Final = "the file is empty"
_SEGMENT_MAGIC: Final = b"STARPO1\n"
_PROTOBUF_FIRST_BYTE: Final = b"\x0a"  # field 1, length-delimited: `resource_spans`
_READER_OF_MAGIC: Final[dict[bytes, Reader]] = {
    _SEGMENT_MAGIC: read_segment_batches,
    PARQUET_MAGIC: read_parquet_batches,
    ZIP_MAGIC: read_zip_batches,
}
"""Reader by the bytes that a file of the kind begins with."""


def read_span_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """File -> batches of spans.

    A file that was found in a folder, and not named, is damage where it is none of ours: its
    neighbours are read. An empty one there has only just been begun.

    Raises:
        SourceError: the file is unreadable; or it was named, and is empty or holds no spans.
    """
    try:
        reader = _detect_reader(file.path)
    except ForeignFileError as error:
        return iter(_refuse(file, error))
    return _read_to_damage(file, reader(file))


def _refuse(file: SourceFile, error: ForeignFileError) -> list[SpanBatch]:
    if file.is_named or is_delta_table(Path(file.source)):
        raise SourceError(f"{file.path}: {error}") from error
    return [make_damage(file.path, 0, str(error))] if str(error) != _EMPTY else []


def _read_to_damage(file: SourceFile, batches: Iterator[SpanBatch]) -> Iterator[SpanBatch]:
    """Batches up to where compressed data cannot be read on."""
    try:
        yield from batches
    except ForeignFileError as error:
        yield from _refuse(file, error)
    except list_faults() as error:
        yield make_damage(file.path, 0, f"compressed data is damaged or cut: {error}")


def _detect_reader(path: Path) -> Reader:
    try:
        with open_spans(path) as stream:
            head = stream.read(64)
    except list_faults() as error:
        raise ForeignFileError(f"compressed data is damaged or cut: {error}") from error
    for magic, reader in _READER_OF_MAGIC.items():
        if head.startswith(magic):
            return reader
    if is_json(head):
        return read_json_batches
    if path.name.endswith((".otlp", ".otlp.open")):  # a segment whose first bytes are damaged
        return read_segment_batches
    if not head:
        raise ForeignFileError(_EMPTY)
    if head.startswith(_PROTOBUF_FIRST_BYTE):
        return read_protobuf_batches
    if head[4:5] == _PROTOBUF_FIRST_BYTE or head[4:8] == ZSTD_MAGIC:
        return read_length_prefixed_batches
    if ".csv" in path.suffixes or is_csv_head(path):
        return read_csv_batches
    raise ForeignFileError(
        f"{_describe_head(path, head)}: neither a trace store segment nor OTLP JSON "
        "lines nor OTLP protobuf; name the agent's trace store or the Collector's output"
    )


def _describe_head(path: Path, head: bytes) -> str:
    """What a foreign file is, without any of its bytes: it may be a key file, named by mistake."""
    text = head.decode("utf-8", errors="ignore")  # the last character may be cut
    is_text = len(text.encode()) > len(head) - 4 and "\0" not in text
    return f"{'text' if is_text else 'binary data'}, {path.stat().st_size:,} bytes"
