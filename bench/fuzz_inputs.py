"""Seed -> malformed OTLP bodies, made by damaging real ones."""

import base64
import copy
import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from starpo_trace.collect.decode import JSON, PROTOBUF

ODD_VALUES = [
    *[None, True, False, 0, -1, 1.5, 2**63, 2**64 - 1, -(2**63), 1e308, "", "x", "NaN", "-1"],
    *["18446744073709551616", "1_0", " 1", "\u0660", "00" * 16, "zz" * 16, "é" * 16, [], {}, [[]]],
    *[[None], {"values": 1}, {"key": 1}, {"stringValue": 1}, {"arrayValue": {"values": [1]}}],
    *[{"kvlistValue": {"values": [{"key": "k", "value": {"bytesValue": "%%"}}]}}, "SPAN_KIND_X"],
]
TOKENS = [b"[", b"{", b"]", b"}", b",", b":", b'"', b"null", b"1e999", b"-", b"\\ud800", b"\\u00"]
ODD_BYTES = [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"9" * 5000]
VARINTS = [b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\x80" * 10 + b"\x01", b"\xff" * 12]


def varint(number: int) -> bytes:
    """Number -> protobuf's variable-length bytes."""
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def wrap(tag: int, data: bytes) -> bytes:
    """Content -> field."""
    return bytes([tag]) + varint(len(data)) + data


def build_requests(chance: random.Random) -> list[ExportTraceServiceRequest]:
    """Requests as agents send them: several kinds of attributes, events, links, two scopes."""
    requests = []
    for num_spans in (1, 2, 3, 5):
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.41.0")
        group.resource.attributes.add(key="service.name").value.string_value = "agent"
        for scope_name in ("starpo_trace", "openinference.instrumentation.openai"):
            scope = group.scope_spans.add()
            scope.scope.name = scope_name
            trace_id = chance.randbytes(16)
            for number in range(num_spans):
                add_span(scope.spans.add(), trace_id, number, chance)
        requests.append(request)
    return requests


def add_span(span: Any, trace_id: bytes, number: int, chance: random.Random) -> None:
    """Fill one span."""
    span.trace_id, span.span_id = trace_id, chance.randbytes(8)
    span.parent_span_id = chance.randbytes(8) if number else b""
    span.name, span.kind, span.flags = "chat tiny", 3, 257
    span.start_time_unix_nano = 1_790_000_000_000_000_000 + number
    span.end_time_unix_nano = span.start_time_unix_nano + 12_345
    span.status.code, span.status.message = 2, "timed out ✗"
    values: dict[str, Any] = {
        "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"hé, {go}"}]}]',
        "gen_ai.usage.input_tokens": 1234,
        "gen_ai.request.temperature": 0.7,
        "agent.trajectory.step": number,
        "starpo.flag": True,
        "starpo.raw": b"\x00\xff\x01",
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "starpo.map": {"a": [1, 2.5, {"b": "c"}], "d": None},
    }
    for key, value in values.items():
        set_value(span.attributes.add(key=key).value, value)
    event = span.events.add(name="gen_ai.evaluation.result", time_unix_nano=5)
    set_value(event.attributes.add(key="gen_ai.evaluation.score.value").value, 0.5)
    link = span.links.add(trace_id=trace_id, span_id=chance.randbytes(8))
    set_value(link.attributes.add(key="why").value, "reward")


def set_value(target: AnyValue, value: Any) -> None:
    """Python value -> `AnyValue`."""
    match value:
        case bool():
            target.bool_value = value
        case int():
            target.int_value = value
        case float():
            target.double_value = value
        case str():
            target.string_value = value
        case bytes():
            target.bytes_value = value
        case list():
            target.array_value.SetInParent()
            for item in value:
                set_value(target.array_value.values.add(), item)
        case dict():
            target.kvlist_value.SetInParent()
            for key, item in value.items():
                set_value(target.kvlist_value.values.add(key=key).value, item)


def to_json(request: ExportTraceServiceRequest) -> Any:
    """Request -> OTLP JSON document, which has its ids in hexadecimal."""

    def fix(value: Any) -> Any:
        if isinstance(value, list):
            return [fix(item) for item in value]
        if not isinstance(value, dict):
            return value
        ids = {"traceId", "spanId", "parentSpanId"}
        return {key: to_hex(item) if key in ids else fix(item) for key, item in value.items()}

    return fix(MessageToDict(request, use_integers_for_enums=True))


def to_hex(text: str) -> str:
    """Base64 -> hexadecimal."""
    return base64.b64decode(text).hex()


class Maker:
    """Makes the inputs of one worker."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        requests = build_requests(random.Random(0))
        self.protobuf = [request.SerializeToString() for request in requests]
        self.documents = [orjson.dumps(to_json(request)) for request in requests]
        self.shared: list[tuple[str, Callable[[bytes], bytes]]] = [
            ("bit_flips", self.flip_bits),
            ("truncated", self.truncate),
            ("overwritten", self.overwrite),
            ("piece_repeated", self.repeat_piece),
            ("piece_removed", self.remove_piece),
            ("bytes_inserted", self.insert_bytes),
            (
                "random_bytes",
                lambda body: self.chance.randbytes(self.chance.randrange(2 * len(body))),
            ),
        ]
        self.only_protobuf = [
            *self.shared,
            ("huge_lengths", self.insert_varint),
            ("deep_nesting", self.nest_protobuf),
            ("deep_groups", self.nest_groups),
            ("empty_messages", self.flood),
            ("odd_ids", self.break_ids),
            ("bad_utf8", self.break_text),
            ("merged", lambda body: body + self.flip_bits(self.chance.choice(self.protobuf))),
        ]
        self.only_json = [
            *self.shared,
            ("odd_values", self.replace_value),
            ("odd_tokens", self.insert_token),
            ("deep_nesting", self.nest_json),
            ("keys_renamed", self.rename_key),
            ("bad_utf8", self.insert_odd_bytes),
        ]

    def make(self) -> tuple[str, bytes, str, str]:
        """One input: its kind, body, encoding and content type."""
        is_json = self.chance.random() < 0.5
        bases, makers = (
            (self.documents, self.only_json) if is_json else (self.protobuf, self.only_protobuf)
        )
        kind, mutate = self.chance.choice(makers)
        body = mutate(self.chance.choice(bases))
        encoding = "identity"
        if self.chance.random() < 0.06:
            encoding = self.chance.choice(["gzip", "deflate"])
            packed = gzip.compress(body, 1) if encoding == "gzip" else zlib.compress(body, 1)
            kind, body = f"{encoding}_{kind}", packed
            if self.chance.random() < 0.7:
                body = self.chance.choice(self.shared[:6])[1](packed)
        return (
            f"{'json' if is_json else 'protobuf'}_{kind}",
            body,
            encoding,
            JSON if is_json else PROTOBUF,
        )

    def flip_bits(self, body: bytes) -> bytes:
        data = bytearray(body)
        for _ in range(self.chance.randint(1, 8)):
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        return bytes(data)

    def truncate(self, body: bytes) -> bytes:
        return body[: self.chance.randrange(len(body))]

    def overwrite(self, body: bytes) -> bytes:
        start = self.chance.randrange(len(body))
        new = self.chance.randbytes(self.chance.randint(1, 12))
        return body[:start] + new + body[start + len(new) :]

    def cut(self, body: bytes) -> tuple[int, int]:
        start = self.chance.randrange(len(body))
        return start, min(len(body), start + self.chance.randint(1, 200))

    def repeat_piece(self, body: bytes) -> bytes:
        start, end = self.cut(body)
        return body[:end] + body[start:end] * self.chance.randint(1, 20) + body[end:]

    def remove_piece(self, body: bytes) -> bytes:
        start, end = self.cut(body)
        return body[:start] + body[end:]

    def insert(self, body: bytes, piece: bytes) -> bytes:
        start = self.chance.randrange(len(body) + 1)
        return body[:start] + piece + body[start:]

    def insert_bytes(self, body: bytes) -> bytes:
        return self.insert(body, self.chance.randbytes(self.chance.randint(1, 40)))

    def insert_varint(self, body: bytes) -> bytes:
        start = self.chance.randrange(len(body))
        return body[:start] + self.chance.choice(VARINTS) + body[start + 1 :]

    def insert_token(self, body: bytes) -> bytes:
        for _ in range(self.chance.randint(1, 4)):
            body = self.insert(body, self.chance.choice(TOKENS))
        return body

    def insert_odd_bytes(self, body: bytes) -> bytes:
        return self.insert(body, self.chance.choice(ODD_BYTES))

    def break_text(self, body: bytes) -> bytes:
        piece = self.chance.choice([b"agent", b"chat", b"user", b"gen_ai", b"timed", b"starpo"])
        odd = (self.chance.choice(ODD_BYTES[:4]) * len(piece))[: len(piece)]
        return body.replace(piece, odd, self.chance.randint(1, 3))

    def nest_protobuf(self, body: bytes) -> bytes:
        # Written as bytes: protobuf itself refuses to write what it would not read.
        data = b"\x18\x01"
        for _ in range(self.chance.choice([5, 29, 30, 31, 33, 46, 47, 48, 60, 100, 500, 2000])):
            if self.chance.random() < 0.7:
                data = wrap(0x2A, wrap(0x0A, data))  # a list
            else:
                data = wrap(0x32, wrap(0x0A, b"\x0a\x01k" + wrap(0x12, data)))  # a map
        attribute = b"\x0a\x01a" + wrap(0x12, data)
        where = self.chance.choice(["span", "event", "link", "resource", "scope"])
        ids = wrap(0x0A, b"\x01" * 16) + wrap(0x12, b"\x02" * 8)
        if where == "resource":
            return body + wrap(0x0A, wrap(0x0A, wrap(0x0A, attribute)))
        if where == "scope":
            return body + wrap(0x0A, wrap(0x12, wrap(0x0A, wrap(0x1A, attribute))))
        attributes = {
            "span": wrap(0x4A, attribute),
            "event": wrap(0x5A, wrap(0x1A, attribute)),
            "link": wrap(0x6A, ids + wrap(0x22, attribute)),
        }
        return body + wrap(0x0A, wrap(0x12, wrap(0x12, ids + attributes[where])))

    def nest_groups(self, body: bytes) -> bytes:
        depth = self.chance.choice([10, 97, 98, 99, 100, 101, 1000, 10_000])
        piece = b"\x7b" * depth + b"\x7c" * self.chance.choice([depth, depth - 1, 0])
        return self.chance.choice([body + piece, piece + body, self.insert(body, piece)])

    def flood(self, body: bytes) -> bytes:
        piece = self.chance.choice([b"\x0a\x00", b"\x12\x00", b"\x4a\x00", b"\x5a\x00"])
        data = piece * self.chance.randint(1, 3000)
        for tag in self.chance.choice([b"", b"\x0a", b"\x12\x0a", b"\x12\x12\x0a"]):
            data = wrap(tag, data)
        return body + data

    def break_ids(self, body: bytes) -> bytes:
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    if self.chance.random() < 0.5:
                        name = self.chance.choice(["trace_id", "span_id", "parent_span_id"])
                        length = self.chance.choice([0, 1, 7, 8, 9, 15, 16, 17, 32])
                        zero = self.chance.random() < 0.3
                        setattr(
                            span, name, bytes(length) if zero else self.chance.randbytes(length)
                        )
        return request.SerializeToString()

    def pick(self, document: Any) -> Iterator[tuple[Any, Any]]:
        """A way down the document: (container, key) of each level, from the root."""
        while isinstance(document, (dict, list)) and document:
            key = (
                self.chance.choice(list(document))
                if isinstance(document, dict)
                else self.chance.randrange(len(document))
            )
            yield document, key
            document = document[key]

    def replace_value(self, body: bytes) -> bytes:
        document = orjson.loads(body)
        for _ in range(self.chance.randint(1, 3)):
            container, key = self.chance.choice(list(self.pick(document)))
            container[key] = copy.deepcopy(self.chance.choice(ODD_VALUES))
            if not isinstance(document, dict) or not document.get("resourceSpans"):
                break
        return orjson.dumps(document)

    def rename_key(self, body: bytes) -> bytes:
        document = orjson.loads(body)
        container, key = self.chance.choice(list(self.pick(document)))
        if isinstance(container, dict):
            name = self.chance.choice([key.upper(), "", "resource_spans", "stringValue", "spans"])
            container[name] = container.pop(key)
        else:
            container.insert(key, copy.deepcopy(self.chance.choice(ODD_VALUES)))
        return orjson.dumps(document)

    def nest_json(self, body: bytes) -> bytes:
        depth = self.chance.choice([5, 29, 30, 31, 100, 254, 1000, 1100, 20_000])
        opening, closing = self.chance.choice(
            [
                ('{"arrayValue":{"values":[', "]}}"),
                ('{"kvlistValue":{"values":[{"key":"k","value":', "}]}}"),
                ("[", "]"),
                ('{"a":', "}"),
            ]
        )
        core = '{"intValue":"1"}'
        value = opening * depth + core + closing * self.chance.choice([depth, depth, depth - 1])
        place = self.chance.choice(['"value":', '"attributes":', '"spans":', '"name":'])
        return body.replace(place.encode(), (place + value + ',"x":').encode(), 1)
