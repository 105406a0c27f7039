"""JSON lines, or one JSON document -> batches of spans: OTLP, or a format of `documents`."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import IO

from starpo_trace.convert.otlp import DecodeError
from starpo_trace.convert.otlpjson import decode_json
from starpo_trace.convert.sources.arrayfiles import read_array_batches
from starpo_trace.convert.sources.batches import SpanBatch, make_batch, make_damage
from starpo_trace.convert.sources.compression import open_text
from starpo_trace.convert.sources.documents import UnreadableDocumentError, read_document
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.jsonvalues import parse_json


def is_json(head: bytes) -> bool:
    """Whether bytes begin a JSON text; a protobuf message of 91 or 123 bytes also looks like one."""
    head = head.removeprefix(BOM_UTF8)
    is_text = all(byte >= 0x20 or byte in b"\t\n\r" for byte in head)
    return head.lstrip()[:1] in (b"{", b"[") and is_text


def read_json_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """File of JSON lines, or of one document over several lines -> batches of spans."""
    is_read = False
    for batch in read_array_batches(file):
        is_read = True
        yield batch
    if is_read:
        return
    with open_text(file.path) as stream:
        begin, first = next(
            ((number, line) for number, line in enumerate(stream, start=1) if line.strip()),
            (1, b""),
        )
        try:
            batch = read_value(first, file)
        except UnreadableDocumentError as error:
            batch = make_damage(file.path, begin, str(error), "line")
        except DecodeError:
            # Either a damaged first line, or one document spread over several lines.
            if document := _read_whole(file):
                yield document
                return
            yield from _read_lines(file, stream, begin)
            return
        yield batch
        for number, line in enumerate(stream, start=begin + 1):
            yield from _read_line(line, number, file)


def _read_lines(file: SourceFile, stream: IO[bytes], first: int) -> Iterator[SpanBatch]:
    """Lines after a damaged first one; where none can be read, all are one broken document."""
    damaged = [make_damage(file.path, first, "not an OTLP JSON line", "line")]
    for number, line in enumerate(stream, start=first + 1):
        for batch in _read_line(line, number, file):
            if damaged and batch.damaged:
                damaged.append(batch)
                continue
            yield from damaged
            damaged.clear()
            yield batch
    if len(damaged) > 1:
        reason = "neither JSON lines of a known form nor one whole JSON document"
        damaged = [make_damage(file.path, 1, reason, "line")]
    yield from damaged


def _read_line(line: bytes, number: int, file: SourceFile) -> Iterator[SpanBatch]:
    if not line.strip():
        return
    try:
        yield read_value(line, file)
    except DecodeError as error:
        yield make_damage(file.path, number, str(error), "line")


def _read_whole(file: SourceFile) -> SpanBatch | None:
    with open_text(file.path) as stream:
        document = stream.read()
    try:
        return read_value(document, file)
    except UnreadableDocumentError as error:
        return make_damage(file.path, 1, str(error), "line")
    except DecodeError:
        return _name_other(document, file)


def _name_other(document: bytes, file: SourceFile) -> SpanBatch | None:
    """Text that is one JSON document after all, of no known form, is one damage and not lines."""
    try:
        parse_json(document)
    except (ValueError, RecursionError):
        return None
    return make_damage(file.path, 1, "JSON of no known form", "line")


def read_value(text: bytes, file: SourceFile) -> SpanBatch:
    """JSON text of one value -> its spans.

    Raises:
        DecodeError: it is no JSON, or of no known form.
    """
    try:
        return make_batch(decode_json(text, file.source), text)
    except DecodeError as error:
        try:
            value = parse_json(text)
        except (ValueError, RecursionError):
            raise error from None
        batch = read_document(value, file)
        if batch is None:
            raise
        return batch
