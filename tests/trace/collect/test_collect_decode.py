"""Bodies -> what is stored of them: both formats, faults by name, limits before memory."""

import gzip
import json
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from starpo_trace.collect.decode import JSON, PROTOBUF, decode_body, decode_request
from starpo_trace.collect.inflate import check_encoding, inflate_body, sniff_encoding
from starpo_trace.collect.limits import DEFAULT_LIMITS, MAX_NESTING
from starpo_trace.collect.protobufrequest import has_more_fields
from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.convert.otlp import SpanRow, decode_protobuf

TRACE = "5b8efff798038103d269b633813fc60c"
SPAN = "eee19b7ec3c1b174"


def document(*spans, resource=None):
    group = {"scopeSpans": [{"scope": {"name": "s"}, "spans": list(spans)}]}
    if resource is not None:
        group["resource"] = resource
    return {"resourceSpans": [group]}


def span(**fields):
    return {"traceId": TRACE, "spanId": SPAN, "name": "x", **fields}


def decode_json(content, limits=DEFAULT_LIMITS):
    return decode_request(json.dumps(content).encode(), JSON, limits)


def refusal_of(body, kind=PROTOBUF, limits=DEFAULT_LIMITS):
    with pytest.raises(RefusedError) as caught:
        decode_request(body, kind, limits)
    return caught.value.reason, str(caught.value)


def spans_of(decoded):
    request = ExportTraceServiceRequest.FromString(decoded.payload)
    return [s for g in request.resource_spans for c in g.scope_spans for s in c.spans]


def nested(depth):
    value = AnyValue(int_value=1)
    for level in range(depth):
        outer = AnyValue()
        if level % 2:
            outer.array_value.values.append(value)
        else:
            outer.kvlist_value.values.add(key="k").value.CopyFrom(value)
        value = outer
    return value


def nested_json(depth):
    value = {"intValue": "1"}
    for level in range(depth):
        if level % 2:
            value = {"arrayValue": {"values": [value]}}
        else:
            value = {"kvlistValue": {"values": [{"key": "k", "value": value}]}}
    return value


def test_good_protobuf_is_stored_as_it_came(helpers):
    """Not a byte differs, fields that this version does not know included."""
    body = helpers.make_request(1, 2).SerializeToString() + b"\x7a\x03new"
    decoded = decode_request(body, PROTOBUF, DEFAULT_LIMITS)
    assert (decoded.payload, decoded.num_records, decoded.num_rejected) == (body, 2, 0)


def test_every_json_field_reaches_its_protobuf_field():
    """A span with every field of OTLP, compared with the message written by hand."""
    values = [
        {"key": "s", "value": {"stringValue": "é"}},
        {"key": "b", "value": {"boolValue": False}},
        {"key": "i", "value": {"intValue": "-9223372036854775808"}},
        {"key": "n", "value": {"intValue": 7}},
        {"key": "d", "value": {"doubleValue": 1.5}},
        {"key": "nan", "value": {"doubleValue": "Infinity"}},
        {"key": "y", "value": {"bytesValue": "AP8"}},
        {"key": "l", "value": {"arrayValue": {"values": [{"intValue": 1}, None, {}]}}},
        {"key": "m", "value": {"kvlistValue": {"values": [{"key": "a"}]}}},
        {"key": "z", "value": None},
    ]
    content = document(
        span(
            parentSpanId="EEE19B7EC3C1B173",
            traceState="a=b",
            flags=257,
            kind="SPAN_KIND_CLIENT",
            startTimeUnixNano="1544712660000000000",
            endTimeUnixNano=18446744073709551615,
            attributes=values,
            droppedAttributesCount=1,
            events=[{"timeUnixNano": 5, "name": "e", "attributes": values[:1]}],
            droppedEventsCount=2,
            links=[{"traceId": TRACE, "spanId": SPAN, "traceState": "l", "flags": 1}],
            droppedLinksCount=3,
            status={"message": "bad", "code": 2},
            newField={"any": "thing"},
        ),
        resource={"attributes": values[:1], "droppedAttributesCount": 4},
    )
    content["resourceSpans"][0]["schemaUrl"] = "https://r"
    content["resourceSpans"][0]["scopeSpans"][0] |= {
        "scope": {"name": "s", "version": "1", "attributes": values[:1]},
        "schemaUrl": "https://s",
    }
    expected = ExportTraceServiceRequest()
    group = expected.resource_spans.add(schema_url="https://r")
    group.resource.attributes.add(key="s").value.string_value = "é"
    group.resource.dropped_attributes_count = 4
    scope = group.scope_spans.add(schema_url="https://s")
    scope.scope.name, scope.scope.version = "s", "1"
    scope.scope.attributes.add(key="s").value.string_value = "é"
    one = scope.spans.add(
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex(SPAN),
        parent_span_id=bytes.fromhex("eee19b7ec3c1b173"),
        trace_state="a=b",
        flags=257,
        name="x",
        kind=3,
        start_time_unix_nano=1544712660000000000,
        end_time_unix_nano=18446744073709551615,
        dropped_attributes_count=1,
        dropped_events_count=2,
        dropped_links_count=3,
    )
    one.status.message, one.status.code = "bad", 2
    for key, value in (
        ("s", AnyValue(string_value="é")),
        ("b", AnyValue(bool_value=False)),
        ("i", AnyValue(int_value=-(2**63))),
        ("n", AnyValue(int_value=7)),
        ("d", AnyValue(double_value=1.5)),
        ("nan", AnyValue(double_value=float("inf"))),
        ("y", AnyValue(bytes_value=b"\x00\xff")),
    ):
        one.attributes.add(key=key).value.CopyFrom(value)
    items = one.attributes.add(key="l").value.array_value.values
    items.add().int_value = 1
    items.add()
    items.add()
    one.attributes.add(key="m").value.kvlist_value.values.add(key="a")
    one.attributes.add(key="z")
    event = one.events.add(name="e", time_unix_nano=5)
    event.attributes.add(key="s").value.string_value = "é"
    link = one.links.add(trace_state="l", flags=1)
    link.trace_id, link.span_id = one.trace_id, one.span_id
    decoded = decode_json(content)
    assert ExportTraceServiceRequest.FromString(decoded.payload) == expected


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"traceId": "abc"}, "traceId: 'abc' is not 32 hexadecimal digits"),
        ({"traceId": "rc2S" * 8}, f"traceId: '{'rc2S' * 8}' is not 32 hexadecimal digits"),
        ({"traceId": "0" * 32}, "trace_id: all zero"),
        ({"spanId": None}, "span_id: 0 bytes, must be 8"),
        ({"parentSpanId": "12"}, "parentSpanId: '12' is not 16 hexadecimal digits"),
        ({"name": 5}, "name: 5 is not text"),
        ({"kind": "SPAN_KIND_X"}, "kind: 'SPAN_KIND_X' is not a whole number"),
        ({"startTimeUnixNano": "1_0"}, "startTimeUnixNano: '1_0' is not a whole number"),
        ({"startTimeUnixNano": -1}, "startTimeUnixNano: -1 is not between 0 and"),
        ({"startTimeUnixNano": 1.5}, "startTimeUnixNano: 1.5 is not a whole number"),
        ({"flags": 2**32}, "flags: 4294967296 is not between 0 and 4294967295"),
        ({"attributes": {"a": 1}}, "attributes: an object is not a list"),
        ({"attributes": [5]}, "attributes[0]: 5 is not an object"),
        ({"attributes": [{"key": 5}]}, "attributes[0].key: 5 is not text"),
        ({"attributes": [{"key": "a", "value": "x"}]}, "attributes[0].value: 'x' is not an object"),
        (
            {"attributes": [{}, {"key": "a", "value": {"intValue": True}}]},
            "attributes[1].value.intValue: true is not a whole number",
        ),
        (
            {"attributes": [{"key": "a", "value": {"intValue": 1, "boolValue": True}}]},
            "attributes[0].value: holds two values",
        ),
        (
            {"attributes": [{"key": "a", "value": {"bytesValue": "%"}}]},
            "attributes[0].value.bytesValue: '%' is not base64",
        ),
        (
            {"attributes": [{"key": "a", "value": {"arrayValue": {"values": [{"boolValue": 1}]}}}]},
            "attributes[0].value.arrayValue.values[0].boolValue: 1 is not true or false",
        ),
        ({"events": [{"name": []}]}, "events[0].name: a list is not text"),
        ({"links": [{"traceId": "x"}]}, "links[0].traceId: 'x' is not 32 hexadecimal digits"),
        ({"status": []}, "status: a list is not an object"),
    ],
)
def test_a_bad_field_is_named_and_costs_its_span(fields, fault):
    """The neighbour is stored, and the answer says where the fault is."""
    decoded = decode_json(document(span(**fields), span()))
    assert (decoded.num_records, decoded.num_rejected) == (1, 1)
    assert decoded.message.startswith(f"resourceSpans[0].scopeSpans[0].spans[0].{fault}")
    assert len(spans_of(decoded)) == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "not JSON: "),
        (b'{"a": "\xff"}', "not JSON: "),
        (b"[" * 2000 + b"]" * 2000, "not JSON: "),
        (b"[]", "a list is not an object"),
        (b'{"resourceSpans": 5}', "resourceSpans: 5 is not a list"),
        (b'{"resource_spans": []}', "resource_spans: OTLP JSON spells it resourceSpans"),
        (b'{"resourceSpans": [{"scopeSpans": {}}]}', "resourceSpans[0].scopeSpans: an object is"),
        (
            b'{"resourceSpans": [{"resource": {"attributes": [{"key": 1}]}}]}',
            "resourceSpans[0].resource.attributes[0].key: 1 is not text",
        ),
    ],
)
def test_json_that_is_no_request_is_refused_by_name(body, problem):
    """A fault outside of spans leaves nothing to store."""
    reason, text = refusal_of(body, JSON)
    assert reason is Reason.MALFORMED
    assert text.startswith(problem)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"trace_id": b"ab"}, "trace_id: 2 bytes, must be 16"),
        ({"trace_id": bytes(16)}, "trace_id: all zero"),
        ({"span_id": bytes(8)}, "span_id: all zero"),
        ({"parent_span_id": b"a"}, "parent_span_id: 1 bytes, must be 8"),
    ],
)
def test_a_bad_protobuf_span_is_left_out(helpers, change, fault):
    """The good ones around it are stored with their resource and scope."""
    request = helpers.make_request(1, 2, 3)
    for name, value in change.items():
        setattr(request.resource_spans[0].scope_spans[0].spans[1], name, value)
    decoded = decode_request(request.SerializeToString(), PROTOBUF, DEFAULT_LIMITS)
    assert decoded.message == f"resource_spans[0].scope_spans[0].spans[1].{fault}"
    expected = helpers.make_request(1, 3)
    assert ExportTraceServiceRequest.FromString(decoded.payload) == expected


def test_a_span_that_is_no_protobuf_is_left_out(helpers):
    """Text that is no UTF-8 in one span costs that span alone."""
    broken = helpers.make_request(1, 2, note="marker").SerializeToString()
    broken = broken.replace(b"marker", b"mark\xff\xfe", 1)
    decoded = decode_request(broken, PROTOBUF, DEFAULT_LIMITS)
    assert decoded.message == ("resource_spans[0].scope_spans[0].spans[0]: text that is not UTF-8")
    assert [one.span_id[-1] for one in spans_of(decoded)] == [2]


def test_a_request_without_a_good_span_is_refused(helpers):
    """There is nothing to acknowledge; the first faults are named."""
    body = helpers.make_request(0, 0).SerializeToString()
    reason, text = refusal_of(body)
    assert reason is Reason.MALFORMED
    assert text.startswith("no span can be used: resource_spans[0].scope_spans[0].spans[0].span_id")


@pytest.mark.parametrize(("body", "kind"), [(b"", PROTOBUF), (b"{}", JSON)])
def test_an_empty_request_stores_nothing(body, kind):
    """OTLP allows it."""
    decoded = decode_request(body, kind, DEFAULT_LIMITS)
    assert (decoded.payload, decoded.num_records) == (b"", 0)


@pytest.mark.parametrize(
    "body", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x04\x12\x02\x12\x09", b"\x0b" * 200]
)
def test_bytes_that_are_no_protobuf_are_refused(body):
    """Whatever protobuf says of them, it is a refusal."""
    reason, text = refusal_of(body)
    assert reason is Reason.MALFORMED
    assert text.startswith("not an OTLP request")


@pytest.mark.parametrize("where", ["attributes", "events", "links"])
def test_nesting_has_one_limit_in_both_formats(helpers, where):
    """At the limit a value is stored and readable, one beyond it costs its span."""
    for depth, num_good in ((MAX_NESTING, 2), (MAX_NESTING + 1, 1)):
        request = helpers.make_request(1, 2)
        first = request.resource_spans[0].scope_spans[0].spans[0]
        target = first if where == "attributes" else getattr(first, where).add()
        target.attributes.add(key="deep").value.CopyFrom(nested(depth))
        pairs = [{"key": "deep", "value": nested_json(depth)}]
        content = (
            {"attributes": pairs} if where == "attributes" else {where: [{"attributes": pairs}]}
        )
        for decoded in (
            decode_request(request.SerializeToString(), PROTOBUF, DEFAULT_LIMITS),
            decode_json(document(span(**content), span())),
        ):
            assert decoded.num_records == num_good
            rows = list(decode_protobuf(decoded.payload, "test"))
            assert [type(row) for row in rows] == [SpanRow] * num_good


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ({"max_spans": 2}, "more than 2 spans in a request"),
        ({"max_values": 3}, "more than 3 attribute values in a request"),
    ],
)
def test_a_request_with_too_much_is_refused(helpers, limit, problem):
    """In both formats, before its spans are made."""
    limits = replace(DEFAULT_LIMITS, **limit)
    body = helpers.make_request(1, 2, 3, a="b").SerializeToString()
    pair = {"key": "a", "value": {"stringValue": "b"}}
    text = json.dumps(document(*[span(attributes=[pair, pair])] * 3)).encode()
    for content, kind in ((body, PROTOBUF), (text, JSON)):
        reason, message = refusal_of(content, kind, limits)
        assert reason is Reason.TOO_LARGE
        assert message.startswith(problem)


def test_a_large_attribute_costs_its_span(helpers):
    """The limit counts the encoded attribute."""
    limits = replace(DEFAULT_LIMITS, max_attribute_bytes=100)
    request = helpers.make_request(1, 2)
    spans = request.resource_spans[0].scope_spans[0].spans
    spans[0].attributes.add(key="a").value.string_value = "x" * 101
    decoded = decode_request(request.SerializeToString(), PROTOBUF, limits)
    assert decoded.message.endswith("spans[0].attributes[0]: more than 100 bytes")
    assert decoded.num_records == 1


def test_fields_are_counted_without_looking_into_them():
    """By hand: text, varint, fixed32, fixed64; what is cut off has no more fields."""
    message = b"\x0a\x02ab" + b"\x10\x96\x01" + b"\x1d1234" + b"\x2112345678"
    assert [has_more_fields(message, limit) for limit in (3, 4)] == [True, False]
    assert not has_more_fields(b"\x0a", 0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw", "members"])
def test_compressed_bodies_are_inflated(encoding):
    """gzip, also of several members, and deflate with and without its header."""
    body = b"abc" * 1000
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "raw": raw.compress(body) + raw.flush(),
        "members": gzip.compress(body[:1000]) + gzip.compress(body[1000:]),
    }[encoding]
    name = {"raw": "deflate", "members": "gzip"}.get(encoding, encoding)
    assert inflate_body(packed, name, DEFAULT_LIMITS) == body


def test_a_bomb_is_not_inflated_beyond_the_limits():
    """By size, by ratio, and in small members."""
    limits = replace(DEFAULT_LIMITS, max_decompressed_bytes=5 << 20)
    zeros = gzip.compress(bytes(20 << 20))
    for packed, bounds, problem in (
        (zeros, limits, "inflates beyond 5,242,880 bytes"),
        (zeros, DEFAULT_LIMITS, "inflates more than 500 times"),
        (gzip.compress(bytes(1 << 20)) * 6, limits, "inflates beyond 5,242,880 bytes"),
    ):
        with pytest.raises(RefusedError, match=problem) as caught:
            inflate_body(packed, "gzip", bounds)
        assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_broken_compression_is_refused(encoding):
    """Cut off, damaged, followed by something, or something else altogether."""
    packed = gzip.compress(b"abc" * 99) if encoding == "gzip" else zlib.compress(b"abc" * 99)
    for body in (
        packed[:-3],
        packed[:12] + b"\x00\x00" + packed[14:],
        packed + b"x",
        b"plain text",
    ):
        with pytest.raises(RefusedError) as caught:
            inflate_body(body, encoding, DEFAULT_LIMITS)
        assert caught.value.reason is Reason.MALFORMED


def test_unknown_encodings_are_refused():
    """Also a list of them."""
    assert [check_encoding(name) for name in ("", " GZIP ")] == ["identity", "gzip"]
    for name in ("zstd", "gzip, gzip"):
        with pytest.raises(RefusedError, match="send gzip, deflate or no compression"):
            check_encoding(name)


def test_grpc_compression_is_recognised(helpers):
    """An OTLP request cannot be mistaken for a compressed one."""
    body = helpers.make_request(1).SerializeToString()
    encodings = [sniff_encoding(b) for b in (body, gzip.compress(body), zlib.compress(body), b"")]
    assert encodings == ["identity", "gzip", "deflate", "identity"]


@given(
    body=st.binary(max_size=400),
    cut=st.integers(0, 200),
    kind=st.sampled_from([PROTOBUF, JSON]),
    encoding=st.sampled_from(["identity", "gzip", "deflate"]),
)
def test_any_bytes_are_decoded_or_refused(body, cut, kind, encoding):
    """And what is accepted can be read from the store."""
    whole = json.dumps(document(span(attributes=[{"key": "k", "value": {"intValue": 1}}]))).encode()
    base = decode_request(whole, JSON, DEFAULT_LIMITS).payload if kind == PROTOBUF else whole
    try:
        decoded = decode_body(base[:cut] + body + base[cut:], encoding, kind, DEFAULT_LIMITS)
    except RefusedError:
        return
    rows = list(decode_protobuf(decoded.payload, "test"))
    assert [type(row) for row in rows] == [SpanRow] * decoded.num_records
