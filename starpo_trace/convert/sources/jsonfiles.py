"""JSON lines, or one JSON document -> batches of spans: OTLP, or a format of `documents`."""

from collections.abc import Iterator

import orjson

from starpo_trace.convert.otlp import DecodeError
from starpo_trace.convert.otlpjson import decode_json
from starpo_trace.convert.sources.batches import SpanBatch, make_batch, make_damage
from starpo_trace.convert.sources.compression import open_spans
from starpo_trace.convert.sources.documents import read_document
from starpo_trace.convert.sources.files import SourceFile


def is_json(head: bytes) -> bool:
    """Whether bytes begin a JSON text; a protobuf message of 91 or 123 bytes also looks like one."""
    is_text = all(byte >= 0x20 or byte in b"\t\n\r" for byte in head)
    return head.lstrip()[:1] in (b"{", b"[") and is_text


def read_json_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """File of JSON lines, or of one document over several lines -> batches of spans."""
    with open_spans(file.path) as stream:
        first = stream.readline()
        try:
            batch = read_value(first, file)
        except DecodeError:
            # Either a damaged first line, or one document spread over several lines.
            if document := _read_whole(file):
                yield document
                return
            batch = make_damage(file.path, 1, "not an OTLP JSON line")
        yield batch
        for number, line in enumerate(stream, start=2):
            if not line.strip():
                continue
            try:
                yield read_value(line, file)
            except DecodeError as error:
                yield make_damage(file.path, number, str(error))


def _read_whole(file: SourceFile) -> SpanBatch | None:
    with open_spans(file.path) as stream:
        document = stream.read()
    try:
        return read_value(document, file)
    except DecodeError:
        return None


def read_value(text: bytes, file: SourceFile) -> SpanBatch:
    """JSON text of one value -> its spans.

    Raises:
        DecodeError: it is no JSON, or of no known form.
    """
    try:
        return make_batch(decode_json(text, file.source))
    except DecodeError as error:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise error from None
        batch = read_document(value, file)
        if batch is None:
            raise
        return batch
