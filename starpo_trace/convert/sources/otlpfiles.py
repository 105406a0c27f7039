"""Segments of our store and OTLP protobuf files -> batches of spans."""

from collections.abc import Iterator

from starpo_trace.convert.otlp import DecodeError
from starpo_trace.convert.otlplogs import decode_any_protobuf
from starpo_trace.convert.sources.batches import SpanBatch, make_batch, make_damage
from starpo_trace.convert.sources.compression import (
    ZSTD_MAGIC,
    decompress_message,
    open_spans,
    read_to_fault,
)
from starpo_trace.convert.sources.filenames import UNSEALED
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.jsonfiles import is_json, read_value


def read_segment_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """Segment of our store -> a batch for each record."""
    from starpo_trace.store.segments import Damage, scan_records

    with open_spans(file.path) as stream:
        data, fault = read_to_fault(stream)
    name = getattr(stream, "name", "")  # a segment may have been sealed meanwhile
    is_cut = fault is not None or str(name).endswith(UNSEALED)
    for record in scan_records(data, is_open=is_cut):
        if isinstance(record, Damage):
            if fault is None or record.reason != "torn_tail":
                yield make_damage(file.path, record.offset, record.reason)
            continue
        try:
            yield make_batch(decode_any_protobuf(record.payload, file.source), record.payload)
        except DecodeError as error:
            yield make_damage(file.path, record.offset, str(error))
    if fault is not None:
        raise fault


def read_protobuf_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """File of one OTLP message -> its batch."""
    with open_spans(file.path) as stream:
        payload = stream.read()
    try:
        yield make_batch(decode_any_protobuf(payload, file.source), payload)
    except DecodeError as error:
        yield make_damage(file.path, 0, str(error))


def read_length_prefixed_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """File of messages behind 4-byte lengths -> a batch for each."""
    offset = 0
    with open_spans(file.path) as stream:
        while prefix := stream.read(4):
            length = int.from_bytes(prefix, "big")
            payload = stream.read(length)
            if len(prefix) < 4 or len(payload) < length:
                yield make_damage(file.path, offset, "torn_tail")
                return
            try:
                yield _read_message(file, payload)
            except DecodeError as error:
                yield make_damage(file.path, offset, str(error))
            offset += 4 + length


def _read_message(file: SourceFile, payload: bytes) -> SpanBatch:
    """One message of the Collector's, which may be compressed, and JSON then.

    Raises:
        DecodeError: it is none.
        SourceError: it needs a package that is not installed.
    """
    if payload.startswith(ZSTD_MAGIC):
        payload = decompress_message(file.path, payload)
        if is_json(payload[:64]):
            return read_value(payload, file)
    return make_batch(decode_any_protobuf(payload, file.source), payload)
