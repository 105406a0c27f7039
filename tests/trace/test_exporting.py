"""The OTLP exporter: what an endpoint did not take yet is kept, and every span is accounted for."""

import gzip
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import TracerProvider

from starpo_trace.store.exporting import OtlpProcessor, build_otlp_processor
from starpo_trace.store.transport import (
    HttpTransport,
    parse_retry_after,
    read_http_answer,
)

MAX_REQUEST_BYTES = 4 << 20


def span_names(request):
    return [
        span.name
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


class Endpoint:
    """A local OTLP/HTTP endpoint that answers from a script of faults, then takes everything."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.names = []
        self.request_bytes = []
        self.headers = []
        self.times_s = []
        self.lock = threading.Lock()
        self.release = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.answer(self, body)

            def reply(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_):
                """A connection that breaks is part of what is tested."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def answer(self, handler, body):
        with self.lock:
            fault = self.faults.pop(0) if self.faults else None
            self.times_s.append(time.monotonic())
            self.headers.append(dict(handler.headers))
        encoding = handler.headers.get("Content-Encoding")
        if encoding:
            body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
        if fault == "hang":
            self.release.wait(30)
            handler.close_connection = True
        elif fault == "reset":
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            handler.close_connection = True
        elif callable(fault):
            fault(handler, body)
        elif fault is not None:
            handler.reply(fault)
        else:
            with self.lock:
                self.request_bytes.append(len(body))
                self.names += span_names(ExportTraceServiceRequest.FromString(body))
            handler.reply(200)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def processors():
    """Processors that are shut down, also after a failure."""
    made = []
    yield made
    for processor in made:
        processor.shutdown(timeout_s=0.1)


@pytest.fixture
def export_to(processors):
    def export(endpoint, **options):
        processor = OtlpProcessor(
            lambda: HttpTransport(endpoint.url), flush_interval_s=0.05, **options
        )
        processors.append(processor)
        return processor, tracer_of(processor)

    return export


def tracer_of(processor):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider.get_tracer("test")


def counts_of(processor, *names):
    stats = processor.read_stats()
    return tuple(stats[name] for name in names)


@pytest.mark.parametrize("fault", [408, 429, 502, 503, 504, "reset"])
def test_what_an_endpoint_does_not_take_is_kept(export_to, fault):
    """Three refusals that may pass, then success: every span arrives once, nothing is lost."""
    with Endpoint(fault, fault, fault) as endpoint:
        processor, tracer = export_to(endpoint)
        for number in range(20):
            tracer.start_span(str(number)).end()
        assert processor.force_flush(30_000)
        assert sorted(endpoint.names, key=int) == [str(number) for number in range(20)]
        assert counts_of(processor, "sent", "acknowledged", "rejected", "dropped") == (20, 20, 0, 0)


def test_an_answer_that_does_not_end_is_tried_again(export_to, monkeypatch):
    """The timeout is for the whole answer, not for each byte of it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")

    def drip(handler, _body):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    with Endpoint(drip) as endpoint:
        processor, tracer = export_to(endpoint)
        tracer.start_span("a").end()
        assert processor.force_flush(30_000)
        assert len(endpoint.times_s) == 2
        assert counts_of(processor, "sent", "acknowledged") == (1, 1)


def test_an_endpoint_that_hangs_is_tried_again(export_to, monkeypatch):
    """A request without an answer ends with the standard timeout, and its spans are sent again."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    with Endpoint("hang") as endpoint:
        processor, tracer = export_to(endpoint)
        tracer.start_span("a").end()
        assert processor.force_flush(30_000)
        assert endpoint.names == ["a"]


@pytest.mark.parametrize("status", [400, 401, 404, 500, 501, 302])
def test_a_final_refusal_is_counted(export_to, status, caplog):
    """What is refused for good is rejected, said once, and does not hold up what follows."""
    with Endpoint(status) as endpoint:
        processor, tracer = export_to(endpoint)
        tracer.start_span("refused").end()
        assert not processor.force_flush(30_000)
        tracer.start_span("taken").end()
        assert processor.force_flush(30_000)
        assert endpoint.names == ["taken"]
        assert counts_of(processor, "acknowledged", "rejected") == (1, 1)


def test_partial_success_is_counted(export_to):
    """Spans that the endpoint says it rejected are not acknowledged."""
    answer = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
    ).SerializeToString()
    with Endpoint(lambda handler, _: handler.reply(200, answer)) as endpoint:
        processor, tracer = export_to(endpoint)
        for _ in range(5):
            tracer.start_span("x").end()
        assert not processor.force_flush(30_000)
        assert counts_of(processor, "sent", "acknowledged", "rejected") == (5, 3, 2)


def test_retry_after_is_honoured(export_to):
    """The endpoint's wish for a pause is kept, also by a flush; then the spans arrive."""
    with Endpoint(lambda handler, _: handler.reply(503, Retry_After="1")) as endpoint:
        processor, tracer = export_to(endpoint)
        tracer.start_span("a").end()
        assert processor.force_flush(30_000)
        first_s, second_s = endpoint.times_s
        assert second_s - first_s >= 0.99


def test_retry_after_as_seconds_or_date():
    """Both forms are read, bounded; nonsense is no pause."""
    assert parse_retry_after("2.5") == 2.5
    assert parse_retry_after("-1") == 0.0
    assert parse_retry_after("1e12") == 300.0
    assert parse_retry_after("nan") is None
    assert parse_retry_after("soon") is None
    assert parse_retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_requests_stay_below_four_mebibytes(export_to, compression, monkeypatch):
    """Before compression, whatever the text: three bytes per character here."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    with Endpoint() as endpoint:
        processor, tracer = export_to(endpoint)
        for number in range(8):
            tracer.start_span(str(number), attributes={"text": "語" * 400_000}).end()
        assert processor.force_flush(60_000)
        assert sorted(endpoint.names) == [str(number) for number in range(8)]
        assert max(endpoint.request_bytes) < MAX_REQUEST_BYTES
        assert len(endpoint.request_bytes) >= 3


def test_a_batch_that_is_larger_than_estimated_is_split(export_to):
    """Bytes that the estimate does not see (long names) are found when the request is made."""
    with Endpoint() as endpoint:
        processor, tracer = export_to(endpoint)
        for number in range(6):
            tracer.start_span(f"{number}" * 1_000_000).end()
        assert processor.force_flush(60_000)
        assert [name[0] for name in endpoint.names] == ["0", "1", "2", "3", "4", "5"]
        assert max(endpoint.request_bytes) < MAX_REQUEST_BYTES


@pytest.mark.parametrize("status", [None, 413])
def test_a_span_beyond_the_limit_is_rejected_not_retried(export_to, status):
    """One span of more than 4 MiB, by our count or the endpoint's, costs itself only."""
    num_characters = 5_000_000 if status is None else 10
    faults = [] if status is None else [413, 413, 413]
    with Endpoint(*faults) as endpoint:
        processor, tracer = export_to(endpoint)
        tracer.start_span("large", attributes={"text": "y" * num_characters}).end()
        tracer.start_span("large too", attributes={"text": "y" * num_characters}).end()
        assert not processor.force_flush(30_000)
        tracer.start_span("small").end()
        assert processor.force_flush(30_000)
        assert endpoint.names == ["small"]
        assert counts_of(processor, "acknowledged", "rejected", "waiting") == (1, 2, 0)


def test_a_span_that_cannot_be_encoded_costs_itself_only(export_to, monkeypatch):
    """Text that is no UTF-8 is rejected and counted; the spans beside it arrive."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    with Endpoint() as endpoint:
        processor, tracer = export_to(endpoint)
        for name in ("a", "\ud800", "b"):
            tracer.start_span(name).end()
        assert not processor.force_flush(30_000)
        assert endpoint.names == ["a", "b"]
        assert counts_of(processor, "sent", "acknowledged", "rejected") == (3, 2, 1)


def test_beyond_the_cap_whole_trajectories_are_dropped(export_to):
    """A dead endpoint: memory is bounded, what does not fit is dropped with its trajectory."""
    with Endpoint("hang") as endpoint:
        processor, tracer = export_to(endpoint, max_queue_spans=10)
        for number in range(8):
            attributes = {"starpo.trajectory.id": "a" if number % 2 else "b"}
            tracer.start_span(str(number), attributes=attributes).end()
        for name in ("c1", "c2", "c3"):
            tracer.start_span(name, attributes={"starpo.trajectory.id": "c"}).end()
        tracer.start_span("b again", attributes={"starpo.trajectory.id": "b"}).end()
        stats = processor.read_stats()
        assert stats["sent"] == 12 == stats["accepted"] + stats["rejected"] + stats["dropped"]
        assert stats["dropped"] == 3  # all of c; then there was room
        endpoint.release.set()
        assert not processor.force_flush(30_000)
        assert sorted(endpoint.names) == ["0", "1", "2", "3", "4", "5", "6", "7", "b again"]


def test_headers_come_from_the_standard_variables(export_to, monkeypatch):
    """OTEL_EXPORTER_OTLP_HEADERS are sent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t")
    with Endpoint() as endpoint:
        processor, tracer = export_to(endpoint)
        tracer.start_span("a").end()
        assert processor.force_flush(30_000)
        headers = {name.lower(): value for name, value in endpoint.headers[0].items()}
        assert headers["authorization"] == "Bearer t"


def test_answers_are_read():
    """Empty, JSON and damaged bodies of a success are successes."""
    for body in (b"", b'{"partialSuccess": {}}', b"\xff\xff"):
        assert read_http_answer(200, {}, body).kind == "taken"
    assert read_http_answer(503, {"Retry-After": "3"}, b"busy").pause_s == 3.0


DEAD = """
import starpo_trace
starpo_trace.instrument(endpoint={url!r})
for _ in range(100):
    with starpo_trace.trajectory():
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", 503, "closed"])
def test_a_process_leaves_a_dead_endpoint_soon(fault):
    """The process leaves by itself, with its own exit code; what is lost is said in one line."""
    with Endpoint(*[fault] * 100) as endpoint:
        url = "http://127.0.0.1:9/v1/traces" if fault == "closed" else endpoint.url
        done = subprocess.run(
            [sys.executable, "-c", DEAD.format(url=url)],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    assert done.returncode == 0
    lost = [line for line in done.stderr.splitlines() if line.startswith("starpo_trace lost")]
    assert len(lost) == 1
    assert lost[0].startswith("starpo_trace lost 100 of 100 spans: 100 were never stored")


class GrpcEndpoint(TraceServiceServicer):
    """A local OTLP/gRPC endpoint that answers from a script of faults."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.names = []
        self.request_bytes = []
        self.times_s = []
        self.metadata = {}
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def Export(self, request, context):  # noqa: N802 (gRPC's name)
        self.times_s.append(time.monotonic())
        self.metadata = dict(context.invocation_metadata())
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, ExportTraceServiceResponse):
            return fault
        if fault == "throttle":
            status = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
            status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=1)))
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down")
        if fault is not None:
            context.abort(fault, "scripted")
        self.names += span_names(request)
        self.request_bytes.append(request.ByteSize())
        return ExportTraceServiceResponse()

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait()


@pytest.fixture
def export_by_grpc(processors, monkeypatch):
    def export(endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{endpoint.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t")

        processor = build_otlp_processor(None)
        processors.append(processor)
        return processor, tracer_of(processor)

    return export


@pytest.mark.slow
def test_grpc_keeps_what_is_not_taken(export_by_grpc):
    """Unavailable, then aborted, then success: every span arrives once, with the headers."""
    with GrpcEndpoint(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED) as endpoint:
        processor, tracer = export_by_grpc(endpoint)
        for number in range(20):
            tracer.start_span(str(number)).end()
        assert processor.force_flush(30_000)
        assert sorted(endpoint.names, key=int) == [str(number) for number in range(20)]
        assert endpoint.metadata["authorization"] == "Bearer t"


@pytest.mark.slow
def test_grpc_refusals_and_partial_success_are_counted(export_by_grpc):
    """An invalid argument is final; a partial success counts."""
    partial = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=1)
    )
    with GrpcEndpoint(grpc.StatusCode.INVALID_ARGUMENT, partial) as endpoint:
        processor, tracer = export_by_grpc(endpoint)
        tracer.start_span("refused").end()
        assert not processor.force_flush(30_000)
        for _ in range(3):
            tracer.start_span("partly").end()
        assert not processor.force_flush(30_000)
        assert counts_of(processor, "sent", "acknowledged", "rejected") == (4, 2, 2)


@pytest.mark.slow
def test_grpc_throttling_is_honoured(export_by_grpc):
    """RetryInfo among the status details is a pause to keep."""
    with GrpcEndpoint("throttle") as endpoint:
        processor, tracer = export_by_grpc(endpoint)
        tracer.start_span("a").end()
        assert processor.force_flush(30_000)
        first_s, second_s = endpoint.times_s
        assert second_s - first_s >= 0.99
        assert endpoint.names == ["a"]


@pytest.mark.slow
def test_grpc_requests_are_split(export_by_grpc):
    """The receiver's own limit of 4 MiB is never reached."""
    with GrpcEndpoint() as endpoint:
        processor, tracer = export_by_grpc(endpoint)
        for number in range(8):
            tracer.start_span(str(number), attributes={"text": "y" * 1_000_000}).end()
        assert processor.force_flush(60_000)
        assert sorted(endpoint.names) == [str(number) for number in range(8)]
        assert max(endpoint.request_bytes) < MAX_REQUEST_BYTES


NO_IMPORTS = """
import os, sys
os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = {protocol!r}
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:{port}"
from opentelemetry.sdk.trace import TracerProvider
from starpo_trace.store.exporting import build_otlp_processor

processor = build_otlp_processor(None)
provider = TracerProvider()
provider.add_span_processor(processor)
tracer = provider.get_tracer("test")
before = set(sys.modules)
tracer.start_span("a").end()
assert processor.force_flush(30_000)
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_delivering_thread_imports_nothing(protocol):
    """A fork in the middle of an import would leave the child with half a module."""
    with Endpoint() as endpoint, GrpcEndpoint() as grpc_endpoint:
        port = grpc_endpoint.port if protocol == "grpc" else endpoint.server.server_port
        done = subprocess.run(
            [sys.executable, "-c", NO_IMPORTS.format(protocol=protocol, port=port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert (done.stdout, done.stderr) == ("[]\n", "")
