"""`opentelemetry-instrument` with Starpo installed, as a person types it."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers_scripted import Answer, AnswerServer

from starpo_trace.capture.runtime import get_runtime
from starpo_trace.instrumentor import StarpoInstrumentor
from starpo_trace.testing import MemoryStore, Reply, ScriptedServer

AGENT = """
import sys
import openai
with openai.OpenAI(base_url=sys.argv[1], api_key="none") as client:
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    print(answer.choices[0].message.content)
"""


def run_instrumented(folder, server, collector, **environment):
    (folder / "app.py").write_text(AGENT)
    return subprocess.run(
        [
            Path(sys.executable).parent / "opentelemetry-instrument",
            sys.executable,
            "app.py",
            server.base_url,
        ],
        cwd=folder,
        env={
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def read_spans(collector):
    """Scope and name of the spans that arrived."""
    spans = []
    for request in collector.requests:
        packed = request.headers.get("content-encoding") == "gzip"
        body = gzip.decompress(request.body) if packed else request.body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                spans += [(scope.scope.name, span.name) for span in scope.spans]
    return spans


@pytest.fixture
def collector():
    with AnswerServer(Answer(chunks=[], content_type="application/x-protobuf")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "spans", "complaint"),
    [
        ({}, [("starpo_trace", "chat m")], ""),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "urllib3, starpo"}, [], ""),
        ({"STARPO_SAMPLE": "often"}, [("starpo_trace", "chat m")], "STARPO_SAMPLE='often'"),
    ],
)
def test_an_untouched_program_is_recorded(tmp_path, collector, environment, spans, complaint):
    """Spans reach the collector; the standard switch leaves them out, and a bad setting is one line."""
    with ScriptedServer([Reply(content="4")]) as server:
        done = run_instrumented(tmp_path, server, collector, **environment)
    assert (done.returncode, done.stdout) == (0, "4\n")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == bool(complaint)
    assert read_spans(collector) == spans


def test_the_instrumentor_switches_on_and_off():
    """By hand it takes what `instrument()` takes, and ignores what other instrumentors do."""
    store = MemoryStore()
    instrumentor = StarpoInstrumentor()
    instrumentor.instrument(tracer_provider=store.provider, history="delta", meter_provider=None)
    runtime = get_runtime()
    assert runtime is not None
    assert (runtime.config.tracer_provider, runtime.config.history) == (store.provider, "delta")
    instrumentor.uninstrument()
    assert get_runtime() is None


def test_a_bad_setting_is_one_log_line(caplog):
    """An exception would stop the other instrumentors."""
    instrumentor = StarpoInstrumentor()
    instrumentor.instrument(history="all")
    assert get_runtime() is None
    assert [record.getMessage()[:21] for record in caplog.records] == ["nothing is recorded: "]
    instrumentor.uninstrument()
