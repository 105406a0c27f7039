"""OTLP/HTTP on a real port: answers, limits, tokens, and a disk that refuses."""

import errno
import gzip
import http.client
import json
import os
import socket
import threading
from dataclasses import replace

import pytest
from google.rpc import status_pb2
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from starpo_trace.collect.access import Tokens
from starpo_trace.collect.limits import DEFAULT_LIMITS

TOKEN = "0123456789abcdef-first"
OTHER_TOKEN = "0123456789abcdef-second"
JSON_BODY = {
    "resourceSpans": [
        {
            "scopeSpans": [
                {
                    "spans": [
                        {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "00" * 7 + "07"},
                        {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "0" * 16},
                    ]
                }
            ]
        }
    ]
}


@pytest.mark.parametrize("compression", list(Compression))
def test_spans_of_the_sdk_exporter_are_on_disk(start, helpers, compression):
    """Plain, gzip and deflate; the exporter says success when they can be read."""
    receiver = start()
    provider = TracerProvider()
    exporter = OTLPSpanExporter(
        f"http://127.0.0.1:{receiver.http}/v1/traces", compression=compression
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("s", attributes={"a": "b" * 99}) as span:
        span_id = span.get_span_context().span_id
    assert helpers.stored_ids(receiver.store) == [span_id]
    provider.shutdown()


def test_json_is_stored_as_protobuf_and_partly_rejected(start, helpers):
    """The good span is stored; the answer counts the other and says what is wrong."""
    receiver = start()
    body = json.dumps(JSON_BODY).encode()
    answer = helpers.post(receiver.http, body, kind="application/json; charset=utf-8")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.loads(answer.body) == {
        "partialSuccess": {
            "rejectedSpans": "1",
            "errorMessage": "resourceSpans[0].scopeSpans[0].spans[1].span_id: all zero",
        }
    }
    assert helpers.stored_ids(receiver.store) == [7]


def test_protobuf_is_answered_in_protobuf(start, helpers):
    """Success is an empty message, partial success and refusal say why."""
    receiver = start()
    good = helpers.post(receiver.http, helpers.make_request(1).SerializeToString())
    assert (good.status, good.body) == (200, b"")
    partial = helpers.post(receiver.http, helpers.make_request(0, 2).SerializeToString())
    answer = ExportTraceServiceResponse.FromString(partial.body)
    assert answer.partial_success.rejected_spans == 1
    bad = helpers.post(receiver.http, b"\xff\xff")
    assert (bad.status, bad.headers["content-type"]) == (400, "application/x-protobuf")
    status = status_pb2.Status.FromString(bad.body)
    assert (status.code, status.message) == (
        3,
        "not an OTLP request: the request: broken protobuf",
    )
    assert helpers.stored_ids(receiver.store) == [1, 2]


def test_counts_add_up(start, helpers):
    """Accepted = acknowledged + rejected; what was refused is counted by reason."""
    receiver = start()
    for body in (helpers.make_request(1, 0, 2).SerializeToString(), b"\xff", b"\xff"):
        helpers.post(receiver.http, body)
    helpers.post(receiver.http, b"", path="/v1/metrics")
    stats = helpers.read_stats(receiver.http)
    assert stats["spans"] == {"accepted": 3, "acknowledged": 2, "rejected": 1}
    assert stats["requests"] == {
        "answered": 1,
        "partial": 1,
        "active": 0,
        "refused": {"malformed": 2, "not_found": 1},
    }
    assert stats["store"] == {"records": 2, "commits": 1, "trouble": ""}


@pytest.mark.parametrize(
    ("request_line", "status", "text"),
    [
        ({"path": "/v1/metrics"}, 404, "stores traces and logs; send metrics to"),
        ({"path": "/nothing"}, 404, "send spans to /v1/traces"),
        ({"method": "GET"}, 405, "send spans with POST"),
        ({"path": "/stats"}, 405, "with GET"),
        ({"kind": "text/csv"}, 415, "application/x-protobuf or application/json"),
        ({"content_encoding": "zstd"}, 415, "gzip, deflate or no compression"),
        ({"content_encoding": "gzip"}, 400, "the body is not gzip"),
    ],
)
def test_wrong_requests_are_told_what_is_right(start, helpers, request_line, status, text):
    """Each with its status, in words."""
    answer = helpers.post(start().http, b"body", **request_line)
    assert answer.status == status
    assert text in answer.body.decode("utf-8", "replace")


def test_healthz_needs_no_token_and_stats_does(start, helpers):
    """A load balancer has none; the counts are for those who may send."""
    receiver = start(tokens=Tokens(variable=TOKEN))
    health = helpers.post(receiver.http, b"", path="/healthz", method="GET")
    assert (health.status, health.body) == (200, b'{"status":"ok"}')
    assert helpers.post(receiver.http, b"", path="/stats", method="GET").status == 401


def test_only_the_right_tokens_may_send(start, helpers, tmp_path):
    """Two tokens for rotation; the file is read again when it changes."""
    file = tmp_path / "tokens"
    file.write_text(f"# first\n{TOKEN}\n\n{OTHER_TOKEN}\n")
    receiver = start(tokens=Tokens(file=file))
    body = helpers.make_request(1).SerializeToString()

    def status(authorization):
        headers = {"authorization": authorization} if authorization else {}
        return helpers.post(receiver.http, body, **headers).status

    tries = [None, "Bearer", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
    assert [status(each) for each in tries] == [401] * 6
    assert [status(f"Bearer {TOKEN}"), status(f"bearer {OTHER_TOKEN}")] == [200, 200]
    file.write_text(OTHER_TOKEN + "\n")
    assert [status(f"Bearer {TOKEN}"), status(f"Bearer {OTHER_TOKEN}")] == [401, 200]
    refused = helpers.post(receiver.http, body)
    assert refused.headers["www-authenticate"].startswith("Bearer")


def test_a_token_file_that_lost_its_tokens_lets_nobody_in(start, helpers, tmp_path):
    """Emptied, made unusable or removed, it takes its tokens back; each change is one line."""
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    lines = []
    receiver = start(tokens=Tokens(file=file, variable=OTHER_TOKEN, on_change=lines.append))
    body = helpers.make_request(1).SerializeToString()

    def statuses():
        tokens = (TOKEN, TOKEN, OTHER_TOKEN)
        return [
            helpers.post(receiver.http, body, authorization=f"Bearer {each}").status
            for each in tokens
        ]

    assert statuses() == [200, 200, 200]
    for content in (b"", b"short\n", b"\xff" * 20):
        file.write_bytes(content)
        assert statuses() == [401, 401, 200]
        file.write_text(f"{TOKEN}\n")
        assert statuses() == [200, 200, 200]
    file.unlink()
    assert statuses() == [401, 401, 200]
    file.mkdir()
    assert statuses() == [401, 401, 200]
    file.rmdir()
    file.write_text(f"{TOKEN}\n")
    assert statuses() == [200, 200, 200]
    good = f"--token-file {file}: read again; tokens that are good: 1"
    assert [line.removeprefix(f"--token-file {file}: ")[:30] for line in lines if line != good] == [
        "holds no token; write one a li",
        "a token of 5 characters can be",
        "holds characters that no heade",
        "cannot be read: No such file o",
        "cannot be read: Is a directory",
    ]
    assert lines.count(good) == 4
    assert not [line for line in lines if TOKEN in line or ("refused" not in line and line != good)]


def test_a_passing_read_error_takes_no_tokens_back(tmp_path, monkeypatch):
    """A disk that stumbles, or a process without file descriptors, is no rotation."""
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    lines = []
    tokens = Tokens(file=file, on_change=lines.append)

    def fail(*_args, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.stat", fail)
        tokens.check(f"Bearer {TOKEN}")
        tokens.check(f"Bearer {TOKEN}")
    tokens.check(f"Bearer {TOKEN}")
    assert lines == [
        f"--token-file {file}: cannot be read: Too many open files; the tokens read last stay good",
        f"--token-file {file}: read again; tokens that are good: 1",
    ]


def test_large_bodies_are_refused_before_they_are_read(start, helpers):
    """By the announced length, by what arrives, and by what it inflates to."""
    limits = replace(DEFAULT_LIMITS, max_body_bytes=1000, max_decompressed_bytes=5000)
    receiver = start(limits=limits)
    body = helpers.make_request(1, note="x" * 6000).SerializeToString()
    announced = helpers.post(receiver.http, body)
    chunked = helpers.post(receiver.http, iter([body[:600], body[600:]]))
    inflated = helpers.post(receiver.http, gzip.compress(body), content_encoding="gzip")
    assert [answer.status for answer in (announced, chunked, inflated)] == [413] * 3
    assert b"more than 1,000 bytes" in chunked.body
    assert b"inflates beyond 5,000 bytes" in inflated.body
    assert helpers.read_stats(receiver.http)["requests"]["refused"] == {"too_large": 3}


def open_upload(port: int) -> socket.socket:
    """A request whose body does not come."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    with connection:
        data = b""
        while piece := connection.recv(4096):
            data += piece
        return data


def test_a_body_that_does_not_come_is_given_up(start, helpers):
    """408, and the connection is closed."""
    receiver = start(limits=replace(DEFAULT_LIMITS, body_timeout_s=0.2))
    answer = read_all(open_upload(receiver.http))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"no whole body within 0.2 s" in answer
    assert helpers.read_stats(receiver.http)["requests"]["refused"] == {"timeout": 1}


@pytest.mark.parametrize("beginning", [b"", b"POST /v1/tra", b"POST / HTTP/1.1\r\nA: b\r\n"])
def test_headers_that_do_not_come_are_given_up(start, helpers, beginning):
    """However far they got; the connection is closed and counted."""
    receiver = start(limits=replace(DEFAULT_LIMITS, header_timeout_s=0.2))
    connection = socket.create_connection(("127.0.0.1", receiver.http), timeout=30)
    connection.sendall(beginning)
    with connection:
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b""
    assert answer == b""
    assert helpers.read_stats(receiver.http)["requests"]["refused"] == {"timeout": 1}


def test_bytes_that_are_no_http_are_refused(start, helpers):
    """Counted as malformed."""
    receiver = start()
    connection = socket.create_connection(("127.0.0.1", receiver.http), timeout=30)
    connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
    assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert helpers.read_stats(receiver.http)["requests"]["refused"] == {"malformed": 1}


def test_more_requests_than_allowed_come_back_later(start, helpers):
    """429 with Retry-After while one is being received, 200 after it left."""
    receiver = start(limits=replace(DEFAULT_LIMITS, max_requests=1))
    body = helpers.make_request(1).SerializeToString()
    with open_upload(receiver.http):
        while not helpers.read_stats(receiver.http)["requests"]["active"]:
            pass
        busy = helpers.post(receiver.http, body)
    assert (busy.status, busy.headers["retry-after"]) == (429, "1")
    while helpers.read_stats(receiver.http)["requests"]["active"]:
        pass
    assert helpers.post(receiver.http, body).status == 200


def test_more_bytes_than_allowed_come_back_later(start, helpers):
    """The bodies of all requests together have a limit."""
    receiver = start(limits=replace(DEFAULT_LIMITS, max_held_bytes=500))
    large = helpers.make_request(1, note="x" * 600).SerializeToString()
    small = helpers.make_request(2).SerializeToString()
    assert [helpers.post(receiver.http, body).status for body in (large, small)] == [429, 200]
    assert receiver.receiver.num_held_bytes == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_refuses_is_told_and_outlived(start, helpers, monkeypatch, number):
    """503 with Retry-After and nothing stored; when the disk works again, so does the receiver."""
    receiver = start()
    body = helpers.make_request(1).SerializeToString()
    assert helpers.post(receiver.http, body).status == 200
    real = os.pwrite

    def refuse(descriptor, data, offset):
        if len(data) > 20:  # half of it arrives
            return real(descriptor, data[:20], offset)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        refused = [helpers.post(receiver.http, body) for _ in range(3)]
    assert [answer.status for answer in refused] == [503] * 3
    assert {answer.headers["retry-after"] for answer in refused} == {"5"}
    status = status_pb2.Status.FromString(refused[0].body)
    assert (status.code, status.message) == (
        14,
        f"the store cannot be written now: {os.strerror(number)}",
    )
    assert str(receiver.store) not in status.message
    assert helpers.stored_ids(receiver.store) == [1]
    again = helpers.post(receiver.http, helpers.make_request(2).SerializeToString())
    assert again.status == 200
    assert helpers.stored_ids(receiver.store) == [1, 2]
    stats = helpers.read_stats(receiver.http)
    assert stats["spans"] == {"accepted": 2, "acknowledged": 2, "rejected": 0}
    assert stats["requests"]["refused"] == {"unavailable": 3}


def test_a_full_store_refuses(start, helpers):
    """Bytes of all segments count, whoever wrote them."""
    receiver = start(max_store_bytes=2000)
    body = helpers.make_request(1, note="x" * 700).SerializeToString()
    statuses = [helpers.post(receiver.http, body).status for _ in range(4)]
    assert statuses == [200, 200, 503, 503]
    trouble = helpers.read_stats(receiver.http)["store"]["trouble"]
    assert trouble == "it holds --max-store-bytes 2,000"  # no path: senders read it


def test_concurrent_requests_share_syncs_and_lose_nothing(start, helpers):
    """Forty senders at once: every acknowledged span is on disk once."""
    receiver = start()
    statuses = []

    def send(first):
        connection = http.client.HTTPConnection("127.0.0.1", receiver.http, timeout=30)
        for number in range(first, first + 5):
            body = helpers.make_request(number).SerializeToString()
            headers = {"content-type": "application/x-protobuf"}
            connection.request("POST", "/v1/traces", body, headers)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()

    threads = [threading.Thread(target=send, args=(1 + 5 * n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 200
    assert sorted(helpers.stored_ids(receiver.store)) == list(range(1, 201))


def test_a_request_may_wait_for_the_word_to_continue(start, helpers):
    """`Expect: 100-continue` is answered, and a refusal comes instead of it."""
    receiver = start()
    body = helpers.make_request(1).SerializeToString()
    answers = []
    for path in ("/v1/traces", "/v1/metrics"):
        connection = socket.create_connection(("127.0.0.1", receiver.http), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
        head += f"Content-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        first = connection.recv(12)
        if first.endswith(b"100"):
            connection.sendall(body)
        answers.append(first + read_all(connection))
    assert answers[0].startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 OK" in answers[0]
    assert answers[1].startswith(b"HTTP/1.1 404 Not Found")
    assert helpers.stored_ids(receiver.store) == [1]
