"""Metrics of runs, rewards and model calls: whole data points, as a reader gets them."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import starpo_trace
from starpo_trace.capture.instruments import MAX_VALUES, REWARD_BUCKETS, TOKEN_BUCKETS
from starpo_trace.capture.meters import list_pushing_readers
from starpo_trace.errors import ConfigError
from starpo_trace.testing import Reply, ScriptedServer

RUN = {
    "starpo.policy.id": "p1",
    "starpo.environment.name": "shop",
    "starpo.cohort": "refunds",
    "gen_ai.agent.name": "clerk",
}
OF_RUN = {"policy_id": "p1", "environment_name": "shop", "cohort": "refunds"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


class Meter:
    """An agent's metrics in memory."""

    def __init__(self, tmp_path):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.store = tmp_path / "traces"

    def start(self, **options):
        starpo_trace.instrument(store=self.store, metrics=self.provider, **options)

    def points(self, name):
        """Attributes and value (of a histogram count and sum) of each point."""
        assert starpo_trace.flush()
        data = self.reader.get_metrics_data()
        return [
            (
                dict(point.attributes),
                point.value if hasattr(point, "value") else (point.count, point.sum),
            )
            for group in (data.resource_metrics if data else ())
            for scope in group.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def find(self, name):
        data = self.reader.get_metrics_data()
        (found,) = [
            metric
            for group in data.resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return found


@pytest.fixture
def meter(tmp_path):
    yield Meter(tmp_path)
    starpo_trace.uninstrument()


def ask(server, times=1):
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        for _ in range(times):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])


def test_a_run(meter):
    """One run of two calls with a reward: every point of every metric."""
    meter.start()
    with ScriptedServer([Reply(content="x", usage=USAGE)]) as server:
        with starpo_trace.trajectory(
            "clerk", task_id="t1", conversation_id="c1", attempt=1, seed=3, **OF_RUN
        ):
            ask(server, 2)
            starpo_trace.reward(0.25, name="solved")
        call = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "m",
            "server.address": "127.0.0.1",
            "server.port": server.port,
        }
    judged = {**RUN, "gen_ai.evaluation.name": "solved", "starpo.reward.timing": "in_run"}
    scoped = {**judged, "starpo.reward.scope": "trajectory"}
    expected = {
        "starpo.trajectory.count": [({**RUN, "starpo.trajectory.end": "terminated"}, 1)],
        "starpo.trajectory.reward": [(judged, (1, 0.25))],
        "starpo.trajectory.steps": [(RUN, (1, 2))],
        "starpo.trajectory.tokens": [
            ({**RUN, "gen_ai.token.type": "input"}, (1, 20)),
            ({**RUN, "gen_ai.token.type": "output"}, (1, 8)),
        ],
        "starpo.evaluation.count": [(scoped, 1)],
        "starpo.evaluation.fails": [(scoped, 1)],
        "gen_ai.client.token.usage": [
            ({**call, "gen_ai.token.type": "input"}, (2, 20)),
            ({**call, "gen_ai.token.type": "output"}, (2, 8)),
        ],
    }
    assert {name: meter.points(name) for name in expected} == expected
    ((attributes, (count, _)),) = meter.points("gen_ai.client.operation.duration")
    assert (attributes, count) == (call, 2)
    ((attributes, (count, seconds)),) = meter.points("starpo.trajectory.duration")
    assert (attributes, count, 0 < seconds < 60) == (RUN, 1, True)


def test_units_and_buckets(meter):
    """The contract of docs/live.md; those of `gen_ai.*` are the conventions'."""
    meter.start()
    with ScriptedServer([Reply(content="x", usage=USAGE)]) as server, starpo_trace.trajectory():
        ask(server)
        starpo_trace.reward(1.0)
    assert starpo_trace.flush()
    bounds = {
        name: (meter.find(name).unit, tuple(meter.find(name).data.data_points[0].explicit_bounds))
        for name in (
            "starpo.trajectory.reward",
            "gen_ai.client.token.usage",
            "gen_ai.client.operation.duration",
        )
    }
    assert bounds == {
        "starpo.trajectory.reward": ("{score}", REWARD_BUCKETS),
        "gen_ai.client.token.usage": ("{token}", TOKEN_BUCKETS),
        "gen_ai.client.operation.duration": (
            "s",
            (
                0.01,
                0.02,
                0.04,
                0.08,
                0.16,
                0.32,
                0.64,
                1.28,
                2.56,
                5.12,
                10.24,
                20.48,
                40.96,
                81.92,
            ),
        ),
    }
    assert TOKEN_BUCKETS[:4] + TOKEN_BUCKETS[-1:] == (1, 4, 16, 64, 67108864)


def test_ends_also_of_runs_that_are_not_recorded(meter):
    """With sample=0 no span is kept, and all four ends, tokens and rewards are counted."""
    meter.start(sample=0.0)
    with ScriptedServer([Reply(content="x", usage=USAGE)]) as server:
        for end in ("terminated", "truncated", "abandoned"):
            with starpo_trace.trajectory() as run:
                ask(server)
                run.end(end)
                starpo_trace.reward(1.0)
        with pytest.raises(KeyError), starpo_trace.trajectory():
            raise KeyError("x")
    counted = {a["starpo.trajectory.end"]: n for a, n in meter.points("starpo.trajectory.count")}
    assert counted == {"terminated": 1, "truncated": 1, "abandoned": 1, "error": 1}
    tokens = {a["gen_ai.token.type"]: n for a, n in meter.points("starpo.trajectory.tokens")}
    assert tokens == {"input": (3, 30), "output": (3, 12)}
    assert [n for _, n in meter.points("starpo.trajectory.reward")] == [(3, 3.0)]
    assert starpo_trace.stats()["sent"] == 0


def test_tokens_of_a_run_whose_call_does_not_say(meter):
    """Nothing is counted for it, rather than too little; a call that failed used nothing."""
    meter.start()
    replies = [Reply(content="x", usage=USAGE), Reply(content="x")]
    with ScriptedServer(replies) as server, starpo_trace.trajectory():
        ask(server, 2)
    assert meter.points("starpo.trajectory.tokens") == []
    replies = [Reply(content="x", usage=USAGE), Reply(status=500)]
    with ScriptedServer(replies) as server, starpo_trace.trajectory():
        ask(server)
        with pytest.raises(openai.InternalServerError):
            ask(server)
    assert [n for _, n in meter.points("starpo.trajectory.tokens")] == [(1, 10), (1, 4)]
    errors = [a.get("error.type") for a, _ in meter.points("gen_ai.client.operation.duration")]
    assert sorted(map(str, errors)) == ["None", "None", "openai.InternalServerError"]


def test_a_reward_counts_once(meter):
    """The last value while the run goes on; later the first, however often it is sent."""
    meter.start()
    with starpo_trace.trajectory("clerk", **OF_RUN) as run:
        starpo_trace.reward(0.0)
        starpo_trace.reward(1.0)
    for _ in range(2):
        starpo_trace.reward(0.0, name="liked", trajectory_id=run.id)
        starpo_trace.reward(0.5, name="liked", trajectory_id="of another process")
    points = meter.points("starpo.trajectory.reward")
    late = {"gen_ai.evaluation.name": "liked", "starpo.reward.timing": "late"}
    assert points == [
        ({**RUN, "gen_ai.evaluation.name": "reward", "starpo.reward.timing": "in_run"}, (1, 1.0)),
        ({**RUN, **late}, (1, 0.0)),
        (late, (1, 0.5)),
    ]


def test_the_range_of_a_reward(meter, caplog, monkeypatch):
    """Scaled by min and max; outside of them nothing; negative without them only counted."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    meter.start()
    with starpo_trace.trajectory():
        starpo_trace.reward(-0.5, name="scaled", min=-1.0, max=1.0)
        starpo_trace.reward(7.0, name="outside", min=0.0, max=1.0)
        starpo_trace.reward(-3.0, name="negative")
        starpo_trace.reward(0.5, name="step", scope="step", step=0)
    rewards = {a["gen_ai.evaluation.name"]: n for a, n in meter.points("starpo.trajectory.reward")}
    fails = {
        (a["gen_ai.evaluation.name"], a["starpo.reward.scope"]): n
        for a, n in meter.points("starpo.evaluation.fails")
    }
    assert rewards == {"scaled": (1, 0.25)}
    assert fails == {
        ("scaled", "trajectory"): 1,
        ("negative", "trajectory"): 1,
        ("step", "step"): 0,
    }
    assert "'negative' is negative and has no range" in caplog.text


def test_the_threshold(meter, monkeypatch):
    """STARPO_METRICS_FAIL_BELOW; equal to it is no fail."""
    monkeypatch.setenv("STARPO_METRICS_FAIL_BELOW", "0.8")
    meter.start()
    with starpo_trace.trajectory():
        for name, value in (("a", 0.79), ("b", 0.8)):
            starpo_trace.reward(value, name=name)
    fails = {a["gen_ai.evaluation.name"]: n for a, n in meter.points("starpo.evaluation.fails")}
    assert fails == {"a": 1, "b": 0}


def test_an_attribute_has_few_values(meter, caplog):
    """The first 64 policies are told apart, the others are one; no id of a run is anywhere."""
    meter.start()
    for number in range(MAX_VALUES + 6):
        with starpo_trace.trajectory(policy_id=f"p{number}", task_id=f"t{number}"):
            pass
    points = meter.points("starpo.trajectory.count")
    assert len(points) == MAX_VALUES + 1
    assert [n for a, n in points if a["starpo.policy.id"] == "other"] == [6]
    assert {key for a, _ in points for key in a} == {
        "starpo.policy.id",
        "gen_ai.agent.name",
        "starpo.trajectory.end",
    }
    assert "starpo.policy.id has had 64 values" in caplog.text


def test_secrets_are_masked(meter):
    """In what is not recorded too: a model's name that holds a key."""
    key = "sk-proj-" + "a1B2c3D4" * 6
    meter.start(sample=0.0)
    with (
        ScriptedServer([Reply(content="x")]) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
    ):
        client.chat.completions.create(model=key, messages=[{"role": "user", "content": "?"}])
    ((attributes, _),) = meter.points("gen_ai.client.operation.duration")
    assert key not in str(attributes)
    assert attributes["gen_ai.request.model"]


def test_what_another_instrumentation_measures_is_left_to_it(meter):
    """It has made the conventions' histogram of tokens in the same provider; durations are ours."""
    meter.provider.get_meter("other").create_histogram("gen_ai.client.token.usage")
    meter.start()
    with ScriptedServer([Reply(content="x", usage=USAGE)]) as server:
        ask(server)
    assert meter.points("gen_ai.client.token.usage") == []
    assert len(meter.points("gen_ai.client.operation.duration")) == 1


def test_readers_that_are_asked_are_not_flushed():
    """Prometheus' reader would keep what it collected for the next scrape, a second time."""
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        PeriodicExportingMetricReader,
    )

    pushing = PeriodicExportingMetricReader(ConsoleMetricExporter(), float("inf"))
    provider = MeterProvider([InMemoryMetricReader(), pushing], shutdown_on_exit=False)
    assert list_pushing_readers(provider) == [pushing]


class Broken(MeterProvider):
    def get_meter(self, *_args, **_options):
        raise RuntimeError("no meters here")


def test_a_provider_that_fails_does_not_reach_the_agent(tmp_path, monkeypatch, caplog):
    """It is said once, and the run is recorded."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    starpo_trace.instrument(store=tmp_path, metrics=Broken())
    for _ in range(2):
        with starpo_trace.trajectory():
            starpo_trace.reward(1.0)
    assert starpo_trace.flush()
    assert starpo_trace.stats()["acknowledged"] == 4
    starpo_trace.uninstrument()
    assert caplog.text.count("RuntimeError: no meters here") == 1


def test_arguments_and_variables(tmp_path, monkeypatch):
    """What is no provider is refused; the operator's switch wins."""
    with pytest.raises(ConfigError, match="metrics='http://x'"):
        starpo_trace.instrument(metrics="http://x")
    monkeypatch.setenv("STARPO_METRICS", "off")
    meter = Meter(tmp_path)
    meter.start()
    with starpo_trace.trajectory():
        pass
    assert meter.points("starpo.trajectory.count") == []
    starpo_trace.uninstrument()


class Receiver:
    """An OTLP/HTTP endpoint that keeps the metrics it takes, by process."""

    def __init__(self, status=200):
        self.runs = {}
        self.num_metric_requests = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_metrics = self.path == "/v1/metrics"
                if is_metrics:
                    receiver.num_metric_requests += 1
                    if status == 200:
                        receiver.take(ExportMetricsServiceRequest.FromString(body))
                self.send_response(status if is_metrics else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def take(self, request):
        for group in request.resource_metrics:
            resource = {each.key: each.value.string_value for each in group.resource.attributes}
            for scope in group.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "starpo.trajectory.count":
                        number = sum(point.as_int for point in metric.sum.data_points)
                        self.runs[resource["service.instance.id"]] = number

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def run_program(code, tmp_path, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "STARPO_"))}
    done = subprocess.run(
        [sys.executable, "-c", "import starpo_trace as s\n" + code],
        cwd=tmp_path,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


ONE_RUN = "s.instrument()\nwith s.trajectory(): pass\n"


def test_the_standard_endpoint_gets_the_last_metrics_at_exit(tmp_path):
    """The program flushes nothing."""
    with Receiver() as receiver:
        run_program(ONE_RUN, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert list(receiver.runs.values()) == [1]


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_METRICS_EXPORTER": "none"},
        {"STARPO_METRICS": "off"},
        {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_switches(tmp_path, variables):
    """Each leaves the endpoint without metrics."""
    with Receiver() as receiver:
        run_program(ONE_RUN, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **variables)
    assert receiver.num_metric_requests == 0


def test_a_backend_of_traces_is_asked_once(tmp_path):
    """It answers 404 to metrics; that is said once, and the flush is about spans."""
    with Receiver(status=404) as receiver:
        done = run_program(
            ONE_RUN + "assert s.flush() and s.flush()",
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        )
    assert receiver.num_metric_requests == 1
    assert done.stderr.count("takes no metrics (HTTP 404)") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_children_count_by_themselves(tmp_path):
    """Two runs in the parent, one in each way of forking: each under its own name, none twice."""
    code = ONE_RUN + (
        "import multiprocessing, os\n"
        "assert s.flush()\n"
        "def work():\n"
        "    with s.trajectory(): pass\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    work(); s.flush(); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "process = multiprocessing.get_context('fork').Process(target=work)\n"
        "process.start(); process.join()\n"
        "with s.trajectory(): pass\n"
    )
    with Receiver() as receiver:
        run_program(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert sorted(receiver.runs.values()) == [1, 1, 2]


def test_sigterm_delivers_the_metrics(tmp_path):
    """The run that was open is counted as abandoned."""
    code = (
        "import os, signal, time\n"
        "s.instrument()\n"
        "if os.fork() == 0:\n"
        "    with s.trajectory():\n"
        "        os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGTERM\n"
    )
    with Receiver() as receiver:
        run_program(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert list(receiver.runs.values()) == [1]


def test_the_global_provider_is_found_when_it_is_set_later(tmp_path):
    """After instrument(), before the first run; the endpoint of the variables gets nothing then."""
    code = (
        "from opentelemetry import metrics\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
        "s.instrument(store='traces')\n"
        "reader = InMemoryMetricReader()\n"
        "metrics.set_meter_provider(MeterProvider([reader]))\n"
        "with s.trajectory(): pass\n"
        "s.flush()\n"
        "print('starpo.trajectory.count' in reader.get_metrics_data().to_json())\n"
    )
    with Receiver() as receiver:
        done = run_program(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert done.stdout == "True\n"
    assert receiver.num_metric_requests == 0


def test_without_a_destination_nothing_is_loaded(tmp_path):
    """No metrics SDK and no thread, and the run costs what it did."""
    code = (
        ONE_RUN + "import sys, threading\n"
        "print('opentelemetry.sdk.metrics' in sys.modules)\n"
        "print('starpo-metrics' in {t.name for t in threading.enumerate()})\n"
    )
    assert run_program(code, tmp_path).stdout == "False\nFalse\n"
