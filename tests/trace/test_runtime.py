"""instrument(): where spans go, and that nothing about it troubles the agent."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.destination import is_set_by_user
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.config import read_config
from starpo_trace.errors import ConfigError
from starpo_trace.store.segments import list_segments
from starpo_trace.testing import MemoryStore, Reply, ScriptedServer, record_spans


class Receiver:
    """A local OTLP/HTTP receiver."""

    def __init__(self):
        self.spans = []
        self.num_requests = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(data)
                for group in request.resource_spans:
                    for scope in group.scope_spans:
                        receiver.spans.extend((scope.scope.name, span) for span in scope.spans)
                receiver.num_requests += 1
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def ask(server):
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "?"}]
        return client.chat.completions.create(model="m", messages=messages)


@pytest.fixture
def instrumented():
    """instrument() that is undone."""
    yield starpo_trace.instrument
    starpo_trace.uninstrument()


def test_spans_are_exported_to_an_otlp_endpoint(instrumented):
    """A real receiver decodes the run, with the full history, under our scope."""
    with Receiver() as receiver, ScriptedServer([Reply(content="x")]) as server:
        instrumented(endpoint=f"{receiver.url}/v1/traces")
        with starpo_trace.trajectory():
            ask(server)
        assert starpo_trace.flush()
        assert starpo_trace.stats()["acknowledged"] == 2
        scopes = {scope for scope, _ in receiver.spans}
        [call] = [span for _, span in receiver.spans if span.name == "chat m"]
        starpo_trace.uninstrument()
    assert scopes == {semconv.SCOPE_NAME}
    attributes = {item.key: item.value.string_value for item in call.attributes}
    assert attributes[semconv.HISTORY_MODE] == "full"
    assert '"content":"?"' in attributes[semconv.INPUT_MESSAGES]


def test_the_standard_variable_names_the_endpoint(instrumented, monkeypatch, tmp_path):
    """OTEL_EXPORTER_OTLP_ENDPOINT alone is enough; then nothing is written locally."""
    monkeypatch.chdir(tmp_path)
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        instrumented()
        with starpo_trace.trajectory():
            pass
        assert starpo_trace.flush()
        starpo_trace.uninstrument()
    assert len(receiver.spans) == 1
    assert list(tmp_path.iterdir()) == []


def test_large_exports_are_split(instrumented):
    """Spans of several MiB go out in requests that receivers accept, all of them."""
    with Receiver() as receiver:
        instrumented(endpoint=f"{receiver.url}/v1/traces")
        with starpo_trace.trajectory():
            for number in range(6):
                starpo_trace.state({"n": number, "text": "y" * (1 << 20)}, name=str(number))
        assert starpo_trace.flush(30)
        starpo_trace.uninstrument()
    assert len(receiver.spans) == 7
    assert receiver.num_requests >= 3


def test_the_default_is_the_local_store(instrumented, monkeypatch, tmp_path):
    """Without anything else, spans are in ./.starpo/traces, with delta history."""
    monkeypatch.chdir(tmp_path)
    instrumented()
    instrumented()  # changes nothing
    assert list(tmp_path.iterdir()) == []  # nothing is made before the first span
    with starpo_trace.trajectory():
        pass
    assert starpo_trace.flush()
    runtime = get_runtime()
    assert runtime is not None
    assert runtime.history_mode == "delta"
    assert len(list_segments(tmp_path / ".starpo" / "traces")) == 1


def test_a_provider_of_a_librarys_makers_is_not_the_programs():
    """CrewAI set a global one, which sends usage statistics to its makers."""
    theirs = TracerProvider(resource=Resource({"service.name": "crewAI-telemetry"}))
    mine = TracerProvider(resource=Resource({"service.name": "shop"}))
    assert [is_set_by_user(each) for each in (theirs, mine, object())] == [False, True, True]


PROVIDER = """
import starpo_trace
starpo_trace.instrument()
from opentelemetry import trace
from starpo_trace.testing import MemoryStore
store = MemoryStore()
trace.set_tracer_provider(store.provider)
with (
    starpo_trace.trajectory(),
    trace.get_tracer("mine").start_as_current_span("mine"),
):
    pass
starpo_trace.uninstrument()
with trace.get_tracer("mine").start_as_current_span("later"):
    pass
print([span.name for span in store.spans])
"""


@pytest.mark.slow
def test_a_provider_set_after_instrument_receives_the_spans(tmp_path):
    """The user's own provider counts until the first span, and is not shut down by us."""
    done = subprocess.run(
        [sys.executable, "-c", PROVIDER], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.stderr) == ("['mine', 'invoke_agent agent', 'later']", "")
    assert list(tmp_path.iterdir()) == []


UNREACHABLE = """
import starpo_trace, openai
starpo_trace.instrument(endpoint="http://127.0.0.1:9/v1/traces")
client = openai.OpenAI(base_url={url!r}, api_key="none")
with starpo_trace.trajectory():
    print(client.chat.completions.create(model="m", messages=[]).choices[0].message.content)
assert not starpo_trace.flush(0.1)
"""


@pytest.mark.slow
def test_an_unreachable_endpoint_is_not_the_agents_problem(tmp_path):
    """The agent runs to its end with exit code 0; flush says that nothing arrived."""
    with ScriptedServer([Reply(content="fine")]) as server:
        done = subprocess.run(
            [sys.executable, "-c", UNREACHABLE.format(url=server.base_url)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=180,
        )
    assert (done.returncode, done.stdout.strip()) == (0, "fine")


EXIT = """
import sys, openai, starpo_trace
starpo_trace.instrument(store={store!r})
client = openai.OpenAI(base_url={url!r}, api_key="none")
scope = starpo_trace.trajectory()
scope.__enter__()
stream = client.chat.completions.create(model="m", messages=[], stream=True)
next(stream)
sys.exit(3)
"""


@pytest.mark.slow
def test_a_process_that_exits_leaves_nothing_unended(tmp_path):
    """At exit the open stream and the open run are ended and written; the exit code is kept."""
    from starpo_trace.convert.otlp import decode_protobuf
    from starpo_trace.store.segments import Record, read_segment

    with ScriptedServer([Reply(content="one two")]) as server:
        done = subprocess.run(
            [sys.executable, "-c", EXIT.format(store=str(tmp_path), url=server.base_url)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (3, "")
    rows = [
        row
        for path in list_segments(tmp_path)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, "")
    ]
    assert [
        row.attributes.get(semconv.STREAM_OUTCOME) or row.attributes.get(semconv.TRAJECTORY_END)
        for row in rows
    ] == ["dropped", "abandoned"]


def test_telemetry_that_fails_never_reaches_the_agent(monkeypatch, caplog):
    """A bug of ours in the middle of a call is logged once; every answer still arrives."""

    def explode(*_args, **_kwargs):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setenv("STARPO_DEBUG", "0")
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    monkeypatch.setattr("starpo_trace.capture.patches.openai_chat.read_all_usage", explode)
    with ScriptedServer([Reply(content="fine")]) as server, record_spans() as store:
        answers = [ask(server).choices[0].message.content for _ in range(3)]
    assert answers == ["fine"] * 3
    assert len(store.select("llm")) == 3
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


@pytest.mark.parametrize(
    ("value", "history", "expected"),
    [
        (None, None, None),
        (None, "full", "full"),
        ("NO_CONTENT", None, "off"),
        ("false", "full", "off"),
        ("SPAN_ONLY", None, None),
        ("true", "delta", "delta"),
    ],
)
def test_the_content_switch_is_honoured(value, history, expected):
    """The standard variable switches content off, whatever the program asks for."""
    environment = (
        {} if value is None else {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": value}
    )
    config = read_config(
        store=None,
        endpoint=None,
        tracer_provider=None,
        history=history,
        policy_id=None,
        environment=environment,
    )
    assert config.history == expected


def test_wrong_arguments_are_refused():
    """A setting that cannot be used is an error at once, naming the value."""
    with pytest.raises(ConfigError, match="'some'"):
        starpo_trace.instrument(history="some")
    with pytest.raises(ConfigError, match="'collector:4318'"):
        starpo_trace.instrument(endpoint="collector:4318")
    with pytest.raises(ConfigError, match="store=5"):
        starpo_trace.instrument(store=5)
    assert get_runtime() is None


def test_a_given_provider_is_used_and_left_open():
    """tracer_provider= receives the spans, and still works after uninstrument()."""
    store = MemoryStore()
    starpo_trace.instrument(tracer_provider=store.provider)
    with starpo_trace.trajectory():
        pass
    starpo_trace.uninstrument()
    store.provider.get_tracer("x").start_span("later").end()
    assert [span.name for span in store.spans] == ["invoke_agent agent", "later"]


def run_python(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_calls_without_instrument_are_warned_of_once(tmp_path):
    """Nothing is recorded and nothing raised, but it is said, for a late reward by its run."""
    code = """
import starpo_trace
for _ in range(2):
    with starpo_trace.trajectory(), starpo_trace.step("tool", "x"):
        starpo_trace.state({})
    starpo_trace.reward(1.0, trajectory_id="t-1")
"""
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (
        0,
        [
            "trajectory(): nothing is recorded in this process; "
            "call `starpo_trace.instrument()` before it",
            "reward(): the reward 'reward' for t-1 is not recorded; "
            "call `starpo_trace.instrument()` before it",
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["store='file/store'", "endpoint='http://127.0.0.1:9/v1/traces'"])
def test_lost_spans_are_counted_at_exit(tmp_path, where):
    """A store that cannot be written, an endpoint that is not there: one line says how many."""
    (tmp_path / "file").write_text("")
    code = f"""
import starpo_trace
starpo_trace.instrument({where})
for _ in range(3):
    with starpo_trace.trajectory():
        pass
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if line.startswith("starpo_trace lost")]
    assert len(said) == 1
    assert said[0].startswith("starpo_trace lost 3 of 3 spans: ")
