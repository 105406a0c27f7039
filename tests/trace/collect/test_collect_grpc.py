"""OTLP/gRPC on a real port."""

import gzip
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from starpo_trace.collect.access import Tokens
from starpo_trace.collect.limits import DEFAULT_LIMITS

TOKEN = "0123456789abcdef-first"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


def call(port, body, method=EXPORT, compression=None, **options):
    """One call -> its answer's bytes."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", compression=compression) as channel:
        return channel.unary_unary(method)(body, timeout=30, wait_for_ready=True, **options)


def refusal_of(port, body, method=EXPORT, **options):
    """One call that is refused -> its code, its text, and what comes with it."""
    with pytest.raises(grpc.RpcError) as caught:
        call(port, body, method, **options)
    error = caught.value
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return error.code(), error.details(), status_pb2.Status.FromString(details)


@pytest.mark.parametrize("compression", [None, *grpc.Compression])
def test_spans_of_the_sdk_exporter_are_on_disk(start, helpers, compression):
    """Plain, gzip and deflate; the exporter says success when they can be read."""
    receiver = start()
    provider = TracerProvider()
    exporter = OTLPSpanExporter(
        f"http://127.0.0.1:{receiver.grpc}", insecure=True, compression=compression
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("s", attributes={"a": "b" * 99}) as span:
        span_id = span.get_span_context().span_id
    assert helpers.stored_ids(receiver.store) == [span_id]
    provider.shutdown()


def test_a_partly_invalid_request_is_answered_so(start, helpers):
    """The good span is stored, the other counted."""
    receiver = start()
    answer = call(receiver.grpc, helpers.make_request(0, 2).SerializeToString())
    partial = ExportTraceServiceResponse.FromString(answer).partial_success
    assert (partial.rejected_spans, partial.error_message) == (
        1,
        "resource_spans[0].scope_spans[0].spans[0].span_id: all zero",
    )
    assert helpers.stored_ids(receiver.store) == [2]


def test_a_malformed_request_is_refused(start):
    """With the reason, as a status that says not to send it again."""
    code, text, status = refusal_of(start().grpc, b"\xff\xff")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == status.message == "not an OTLP request: the request: broken protobuf"
    assert not status.details


def test_metrics_are_declined(start):
    """UNIMPLEMENTED, with where to send them."""
    code, text, _ = refusal_of(start().grpc, b"", METRICS)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text.startswith("this receiver stores traces and logs; send metrics")


def test_the_token_is_asked_for_before_the_message_is_read(start, helpers):
    """Even a message beyond all limits is answered with what is missing."""
    receiver = start(
        tokens=Tokens(variable=TOKEN), limits=replace(DEFAULT_LIMITS, max_body_bytes=1000)
    )
    body = helpers.make_request(1).SerializeToString()
    for metadata in (None, (("authorization", "Bearer wrong"),)):
        code, _, _ = refusal_of(receiver.grpc, body, metadata=metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED
    call(receiver.grpc, body, metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert helpers.stored_ids(receiver.store) == [1]
    assert receiver.receiver.read_stats()["requests"]["refused"] == {"unauthenticated": 2}


def test_a_bomb_is_refused_by_the_same_limits(start, helpers):
    """gRPC's own decompression would have inflated all of it first."""
    receiver = start(limits=replace(DEFAULT_LIMITS, max_decompressed_bytes=1 << 20))
    bomb = gzip.compress(bytes(4 << 20))
    zeros = bytes(4 << 20)
    for body, compression in ((bomb, None), (zeros, grpc.Compression.Gzip)):
        code, text, _ = refusal_of(receiver.grpc, body, compression=compression)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text.startswith("the body inflates beyond 1,048,576 bytes")
    assert receiver.receiver.read_stats()["requests"]["refused"] == {"too_large": 2}


def test_a_message_beyond_the_limit_is_refused(start, helpers):
    """By gRPC itself; the next one is served."""
    receiver = start(limits=replace(DEFAULT_LIMITS, max_body_bytes=1000))
    code, _, _ = refusal_of(
        receiver.grpc, helpers.make_request(1, a="x" * 2000).SerializeToString()
    )
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    call(receiver.grpc, helpers.make_request(2).SerializeToString())
    assert helpers.stored_ids(receiver.store) == [2]


def test_too_much_at_once_comes_back_later(start, helpers):
    """RESOURCE_EXHAUSTED with RetryInfo, without which an exporter would give up."""
    receiver = start(limits=replace(DEFAULT_LIMITS, max_held_bytes=500))
    body = helpers.make_request(1, a="x" * 600).SerializeToString()
    code, _, status = refusal_of(receiver.grpc, body)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.seconds == 1


def test_a_message_that_does_not_come_is_given_up(start):
    """DEADLINE_EXCEEDED by the receiver, which waits no longer than it said."""
    receiver = start(limits=replace(DEFAULT_LIMITS, body_timeout_s=0.2))

    def never():
        release.wait(30)
        yield b""

    import threading

    release = threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{receiver.grpc}") as channel:
        future = channel.stream_unary(EXPORT).future(never(), timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            future.result()
        release.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == "no whole message within 0.2 s"


def test_a_client_that_leaves_does_not_stop_the_writer(start, helpers):
    """Calls are cancelled at every moment; the next one is stored all the same."""
    receiver = start()
    body = helpers.make_request(1).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{receiver.grpc}") as channel:
        export = channel.unary_unary(EXPORT)
        for _ in range(50):
            export.future(body).cancel()
        export(helpers.make_request(2).SerializeToString(), timeout=30)
    assert 2 in helpers.stored_ids(receiver.store)
