"""Secrets through every way into a span; then all that was written, sent and logged is searched."""

import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sentinel_agent import work
from sentinels import Sentinels
from servers_scripted import Answer, AnswerServer

from starpo_trace import (
    Redaction,
    Rule,
    flush,
    guard,
    instrument,
    reward,
    semconv,
    step,
    trajectory,
    uninstrument,
)
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.testing import record_spans

NEVER_RECORDED = {
    *("userinfo", "api key", "header", "query", "anthropic key", "gemini key"),  # of clients
    *("log: resume", "log: state"),  # why a token cannot be read, a value not shown
}
"""What is in no span and no log, also with redaction off."""


def walk_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk_texts([key, item] if key != "token" else item)
    elif isinstance(value, list):
        for item in value:
            yield from walk_texts(item)


def join_pieces(attributes: dict[str, Any]) -> Iterator[str]:
    """JSON attributes -> their texts in one, so that a secret in pieces shows."""
    for value in attributes.values():
        if isinstance(value, str) and value[:1] in {"[", "{"}:
            texts = list(walk_texts(json.loads(value)))
            yield "".join(text for text in texts if text not in {"tokenId", "logProbability"})


def unzip(body: bytes) -> bytes:
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def record_agent(tmp_path, *, redaction: Redaction | bool, **options: Any) -> dict[str, bytes]:
    """Run the agent -> what was sent, what is in the store, and the texts of its spans."""
    sentinels = Sentinels()
    store = tmp_path / "store"
    with AnswerServer(Answer(chunks=[], content_type="application/x-protobuf")) as receiver:
        endpoint = f"{receiver.url}/v1/traces"
        instrument(store=store, endpoint=endpoint, redaction=redaction, **options)
        try:
            work(sentinels)
            assert flush(30.0)
        finally:
            uninstrument()
        sent = b"".join(unzip(each.body) for each in receiver.requests)
        num_sent = sum(count_spans(unzip(each.body)) for each in receiver.requests)
    files = [path for path in sorted(store.rglob("*")) if path.is_file()]
    rows = [
        row
        for file in find_source_files([store])
        for batch in read_span_batches(file)
        for row in batch.rows
    ]
    assert num_sent == len(rows) > 30
    return {
        "sent": sent,
        "stored": b"".join(str(path).encode() + path.read_bytes() for path in files),
        "joined": "\n".join(text for row in rows for text in join_pieces(row.attributes)).encode(),
    }


def count_spans(body: bytes) -> int:
    request = ExportTraceServiceRequest.FromString(body)
    return sum(len(scope.spans) for each in request.resource_spans for scope in each.scope_spans)


@pytest.fixture
def sentinels(monkeypatch, caplog) -> Sentinels:
    """Sentinels of every channel, gathered by an agent that nothing records."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("STARPO_DEBUG", "0")  # mistakes are logged, as in production
    gathered = Sentinels()
    work(gathered)
    monkeypatch.setattr(guard, "_reported", set())
    caplog.set_level(logging.DEBUG, logger="starpo_trace")
    caplog.clear()
    return gathered


def read_logs(caplog, capfd) -> bytes:
    out, err = capfd.readouterr()
    formatter = logging.Formatter("%(message)s")
    return "\n".join([out, err, *map(formatter.format, caplog.records)]).encode()


def make_redaction(sentinels: Sentinels) -> Redaction:
    badge = Rule(name="badge", pattern=r"EMP-[0-9]{6}", hints=["EMP-"])
    return Redaction(deny=sentinels.deny, rules=[badge])


@pytest.mark.parametrize(
    "options",
    [{}, {"history": "delta", "max_content_bytes": 2000}, {"history": "off", "sample": 1.0}],
    ids=["full", "delta", "off"],
)
def test_no_secret_leaves_the_process_or_is_kept(sentinels, tmp_path, caplog, capfd, options):
    """Not one, in any form, in what is sent, in the store's bytes, or in what is logged."""
    places = record_agent(tmp_path, redaction=make_redaction(sentinels), **options)
    places["logged"] = read_logs(caplog, capfd)
    assert {place: sentinels.find(data) for place, data in places.items()} == {
        place: set() for place in places
    }
    assert b"[REDACTED:github_token]" in places["sent"]
    assert b"[REDACTED:github_token]" in places["logged"]


def test_no_secret_that_a_backend_quotes_is_logged(sentinels, caplog, capfd):
    """What an OTLP endpoint gives as its reason is searched too."""
    text = sentinels.text("log: backend").encode()
    with AnswerServer(Answer(chunks=[text], status=400, content_type="text/plain")) as backend:
        instrument(endpoint=f"{backend.url}/v1/traces", redaction=make_redaction(sentinels))
        try:
            with step("tool", "t"):
                pass
            assert not flush(30.0)
        finally:
            uninstrument()
    logged = read_logs(caplog, capfd)
    assert (sentinels.find(logged), b"refused 1 spans" in logged) == (set(), True)


def test_the_search_finds_them_without_redaction(sentinels, tmp_path, caplog, capfd):
    """The same agent, recorded as it is: every channel shows, so the search above can fail."""
    places = record_agent(tmp_path, redaction=False)
    logged = sentinels.find(read_logs(caplog, capfd))
    for place in ("sent", "stored"):
        expected = sentinels.values.keys() - NEVER_RECORDED
        assert expected - sentinels.find(places[place]) - logged == set()
        assert sentinels.find(places[place]) & NEVER_RECORDED == set()
    assert sentinels.find(places["joined"]) >= {"chat: answer", "gemini: answer"}


def test_masked_ids_still_join(monkeypatch, caplog):
    """A run, its steps and a late reward have the same id and task, and the log warns once."""
    monkeypatch.setattr(guard, "_reported", set())
    secret = Sentinels().token("run")
    with record_spans() as store:
        with (
            trajectory(trajectory_id=f"run {secret}", task_id=f"task {secret}") as run,
            step("tool", "t"),
        ):
            pass
        reward(1.0, trajectory_id=f"run {secret}", task_id=f"task {secret}")
    masked = "run [REDACTED:github_token]"
    ids = [span.attributes[semconv.TRAJECTORY_ID] for span in store.spans]
    assert ([masked] * 3, masked) == (ids, run.id)
    tasks = [span.attributes.get(semconv.TASK_ID) for span in store.spans]
    assert tasks == [None, *["task [REDACTED:github_token]"] * 2]
    assert [masked in record.getMessage() for record in caplog.records] == [True]
