"""One run in several processes -> one trajectory."""

import base64
import json
import os
import subprocess
import sys
import urllib.request

import msgspec
import openai
import pytest
from opentelemetry import baggage, context, propagate

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.parts import read_token
from starpo_trace.convert.dataset import build_dataset, convert_rows, scan_table
from starpo_trace.convert.otlp import decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.testing import Reply, ScriptedServer, record_spans

SERVICE = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
import openai
from opentelemetry import context, propagate
import starpo_trace

store, model_url, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
starpo_trace.instrument(store=store, **options)
client = openai.OpenAI(base_url=model_url, api_key="none", max_retries=0)

def work(messages):
    run = starpo_trace.current_trajectory()
    starpo_trace.state({"seen": len(messages)}, name="remote")
    client.chat.completions.create(model="sub", messages=messages)
    with starpo_trace.step("tool", "look") as step:
        step.result("a door")
    starpo_trace.reward(0.5, scope="step", step=step.number, name="looked")
    if run is not None:
        run.end("truncated")
    return {"run": None if run is None else run.id, "task": None if run is None else run.task_id}

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token = context.attach(propagate.extract({k.lower(): v for k, v in self.headers.items()}))
        answer = json.dumps(work(body)).encode()
        context.detach(token)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *args):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
for _ in range(int(sys.argv[4])):
    server.handle_request()
"""


class Service:
    """A sub-agent in a process of its own, which leaves after `num_requests`."""

    def __init__(self, store, model, *, num_requests=1, **options):
        arguments = [str(store), model.base_url, json.dumps(options), str(num_requests)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "STARPO_DEBUG": "1"},
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def ask(self, messages):
        """Send messages with the headers that any OpenTelemetry propagator sends."""
        headers = {"Content-Type": "application/json"}
        propagate.inject(headers)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}", json.dumps(messages).encode(), headers
        )
        with urllib.request.urlopen(request) as response:
            return json.loads(response.read())

    def __enter__(self):
        return self

    def __exit__(self, *details):
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert self.process.wait(30) == 0


def ask(client, messages, **options):
    return client.chat.completions.create(model="m", messages=messages, **options)


def user(text):
    return {"role": "user", "content": text}


def client_of(server):
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@pytest.fixture
def model():
    ids = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5]}
    with ScriptedServer([Reply(content="x", **ids)]) as server:
        yield server


def instrument(store, **options):
    starpo_trace.instrument(store=store, **options)


def read_rows(store):
    rows = [
        row
        for path in list_segments(store)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
    ]
    return sorted(rows, key=lambda row: row.start_ns)


def read_tables(sources, tmp_path, **options):
    dataset = tmp_path / "dataset"
    build_dataset(sources, dataset, **options)
    return {name: scan_table(dataset, name).collect() for name in ("trajectories", "turns")} | {
        name: scan_table(dataset, name).collect() for name in ("rewards", "states", "rejected")
    }


@pytest.mark.slow
def test_a_service_records_into_the_run_that_called_it(tmp_path, model):
    """Real HTTP with standard headers: same id, numbers of its own, one trajectory in order."""
    with Service(tmp_path / "far", model, num_requests=2) as service, client_of(model) as client:
        instrument(tmp_path / "near", policy_id="p7")
        with starpo_trace.trajectory(task_id="t 1/ü") as run:
            ask(client, [user("go")])  # 0
            with starpo_trace.step("tool", "far"):  # 1
                answer = service.ask([user("sub")])
            ask(client, [user("go"), user("on")])  # 2
            service.ask([user("sub"), user("again")])
            ask(client, [user("done?")])  # 3
            starpo_trace.reward(1.0)
        starpo_trace.uninstrument()
    assert answer == {"run": run.id, "task": "t 1/ü"}
    far = read_rows(tmp_path / "far")
    assert {row.attributes[semconv.TRAJECTORY_ID] for row in far} == {run.id}
    [part] = {row.attributes[semconv.PART] for row in far}
    assert part.startswith("remote-")
    assert [
        (
            row.attributes[semconv.RECORD],
            row.attributes.get(semconv.STEP),
            row.attributes.get(semconv.PART_AFTER),
        )
        for row in far
    ] == [
        ("state", 2, 2),
        ("llm", 2, 2),
        ("step", 3, 2),
        ("reward", 4, 2),
        ("state", 4, 3),
        ("llm", 4, 3),
        ("step", 5, 3),
        ("reward", 6, 3),
        ("part", None, None),
    ]
    assert {row.attributes[semconv.PART_BASE] for row in far} == {2}
    assert {row.attributes[semconv.TASK_ID] for row in far} == {"t 1/ü"}
    assert {row.attributes[semconv.POLICY_ID] for row in far} == {"p7"}
    assert far[-1].attributes[semconv.TRAJECTORY_NUM_STEPS] == 6
    assert far[-1].attributes[semconv.TRAJECTORY_END] == "truncated"
    assert len({row.trace_id for row in [*far, *read_rows(tmp_path / "near")]}) == 1

    tables = read_tables([tmp_path / "near", tmp_path / "far"], tmp_path)
    [trajectory] = tables["trajectories"].to_dicts()
    assert (
        trajectory
        | {
            "trajectory_id": run.id,
            "task_id": "t 1/ü",
            "end": "terminated",
            "num_parts": 2,
            "num_turns": 5,
            "num_steps": 8,
            "usable_for": "rl",
            "reasons": [],
            "reward": 1.0,
        }
        == trajectory
    )
    turns = tables["turns"].sort("turn")
    assert turns.select("step", "model").rows() == [
        (0, "m"),
        (2, "sub"),
        (4, "m"),
        (5, "sub"),
        (7, "m"),
    ]
    assert tables["states"].select("step", "value").rows() == [
        (2, '{"seen":1}'),
        (5, '{"seen":2}'),
    ]
    rewards = tables["rewards"].filter(name="looked").sort("step")
    assert rewards.select("step", "turn").rows() == [(3, 1), (6, 3)]
    assert tables["rejected"].rows() == []


@pytest.mark.slow
def test_a_lost_span_of_a_service_is_noticed(tmp_path, model):
    """The far process says at its end how many steps it took; without that it is only open."""
    with Service(tmp_path / "far", model) as service:
        instrument(tmp_path / "near")
        with starpo_trace.trajectory():
            service.ask([user("sub")])
        starpo_trace.uninstrument()
    rows = [*read_rows(tmp_path / "near"), *read_rows(tmp_path / "far")]

    def reasons(kept):
        [found] = convert_rows(kept)["trajectories"]["reasons"].to_list()
        return set(found) & {"missing_turn", "open_part", "duplicate_step"}

    by_record = {row.attributes[semconv.RECORD]: row for row in rows}
    assert reasons(rows) == set()
    assert reasons([row for row in rows if row is not by_record["step"]]) == {"missing_turn"}
    assert reasons([row for row in rows if row is not by_record["llm"]]) == {"missing_turn"}
    assert reasons([row for row in rows if row is not by_record["part"]]) == {"open_part"}


@pytest.mark.slow
def test_a_run_goes_on_in_another_process(tmp_path, model):
    """Killed after a checkpoint, resumed elsewhere: one trajectory, numbers and history go on."""
    code = """
import os, sys
import openai, starpo_trace
starpo_trace.instrument(store=sys.argv[1])
client = openai.OpenAI(base_url=sys.argv[2], api_key="none")
with starpo_trace.trajectory("mover", task_id="t1", attempt=2, cohort="easy") as run:
    starpo_trace.state({"at": 1})
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "long " * 99}])
    with starpo_trace.step("tool", "move"):
        pass
    print(run.checkpoint(), flush=True)
    starpo_trace.flush()
    os._exit(9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a"), model.base_url],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 9
    token = json.loads(json.dumps(done.stdout.strip()))
    assert len(token) < 1000
    instrument(tmp_path / "b")
    with client_of(model) as client, starpo_trace.trajectory(resume=token) as run:
        assert (run.num_steps, run.task_id) == (2, "t1")
        starpo_trace.state({"at": 2})
        answer = {"role": "assistant", "content": "x"}
        ask(client, [user("long " * 99), answer, user("and now?")])
        starpo_trace.reward(1)
        run.end("truncated")
    starpo_trace.uninstrument()
    root, call = (
        next(row for row in read_rows(tmp_path / "b") if row.attributes[semconv.RECORD] == record)
        for record in ("trajectory", "llm")
    )
    first = next(iter(read_rows(tmp_path / "a")))
    assert (root.name, root.attributes[semconv.AGENT_NAME]) == ("invoke_agent mover", "mover")
    assert root.attributes[semconv.TRAJECTORY_ID] == run.id
    assert "-".join(root.links[0]) == run.id
    assert root.links[0][0] == first.trace_id != root.trace_id
    assert root.attributes[semconv.PART].startswith("resume-")
    assert root.attributes[semconv.PART_BASE] == 2
    assert root.attributes[semconv.TRAJECTORY_NUM_STEPS] == 3
    assert call.attributes[semconv.STEP] == 2
    assert call.attributes[semconv.HISTORY_BASE_LENGTH] == 2
    assert json.loads(call.attributes[semconv.INPUT_MESSAGES]) == [
        {"role": "user", "parts": [{"type": "text", "content": "and now?"}]}
    ]
    tables = read_tables([tmp_path / "b", tmp_path / "a"], tmp_path)
    [trajectory] = tables["trajectories"].to_dicts()
    assert (
        trajectory
        | {
            "task_id": "t1",
            "attempt": 2,
            "cohort": "easy",
            "agent_name": "mover",
            "end": "truncated",
            "num_parts": 2,
            "num_turns": 2,
            "num_branches": 1,
            "usable_for": "rl",
            "reasons": [],
            "reward": 1.0,
        }
        == trajectory
    )
    assert tables["turns"].sort("turn")["step"].to_list() == [0, 2]
    assert tables["states"]["value"].to_list() == ['{"at":1}', '{"at":2}']


def test_parts_that_went_on_at_once_are_one_trajectory(tmp_path, model):
    """A token used twice, and the run itself going on: numbers repeat, the dataset tells apart."""
    instrument(tmp_path / "a")
    with client_of(model) as client:
        with starpo_trace.trajectory() as run:
            ask(client, [user("a")])
            token = run.checkpoint()
            ask(client, [user("a"), user("b")])
        for text in ("c", "d"):
            with starpo_trace.trajectory(resume=token) as resumed:
                assert resumed.id == run.id
                ask(client, [user("a"), user(text)])
                ask(client, [user("a"), user(text), user("more")])
        starpo_trace.uninstrument()
    tables = read_tables([tmp_path / "a"], tmp_path)
    [trajectory] = tables["trajectories"].to_dicts()
    assert (trajectory["num_turns"], trajectory["num_parts"]) == (6, 3)
    assert set(trajectory["reasons"]) == {"no_reward"}
    assert tables["turns"].sort("turn")["step"].to_list() == [0, 1, 2, 3, 4, 5]
    spans = [row for row in read_rows(tmp_path / "a") if row.attributes[semconv.RECORD] == "llm"]
    assert [row.attributes[semconv.STEP] for row in spans] == [0, 1, 1, 2, 1, 2]


def test_a_run_whose_last_part_was_lost_has_no_end(tmp_path, model):
    """The first part ended well; what resumed it was killed."""
    instrument(tmp_path / "a")
    with client_of(model) as client:
        with starpo_trace.trajectory() as run:
            ask(client, [user("a")])
        with starpo_trace.trajectory(resume=run.checkpoint()):
            ask(client, [user("b")])
        starpo_trace.uninstrument()
    rows = read_rows(tmp_path / "a")
    assert convert_rows(rows)["trajectories"]["end"].to_list() == ["terminated"]
    kept = [
        row
        for row in rows
        if row.attributes[semconv.RECORD] != "trajectory" or semconv.PART not in row.attributes
    ]
    [trajectory] = convert_rows(kept)["trajectories"].to_dicts()
    assert trajectory["end"] == "unknown"
    assert "unended" in trajectory["reasons"]


def test_a_token_says_what_was(monkeypatch):
    """What is given beside it replaces what it says; a bad one begins a run anew."""
    with record_spans(policy_id="p1") as store:
        with starpo_trace.trajectory("mover", task_id="t1", seed=3) as run:
            token = run.checkpoint()
        with starpo_trace.trajectory(resume=token, policy_id="p2"):
            pass
        assert read_token(token).identity == {
            semconv.AGENT_NAME: "mover",
            semconv.TASK_ID: "t1",
            semconv.SEED: 3,
            semconv.POLICY_ID: "p1",
        }
        for bad in (token[:-9], "hello", "", 7, "starpo1." + "A" * 40):
            with (
                pytest.raises(ValueError, match="resume token"),
                starpo_trace.trajectory(resume=bad),
            ):
                pass
        monkeypatch.setenv("STARPO_DEBUG", "0")
        with starpo_trace.trajectory(resume="hello") as anew:
            pass
    resumed, new = store.select("trajectory")[1:]
    assert (resumed[semconv.POLICY_ID], resumed[semconv.TASK_ID]) == ("p2", "t1")
    assert new[semconv.TRAJECTORY_ID] == anew.id != run.id
    assert semconv.PART not in new


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (7, [["zz" * 16, 1, None]]),
        (7, ["abc"]),
        (7, [[1, 2, 3]]),
        (7, [["aa" * 16, -1, None]]),
        (4, 10**30),
        (4, float("inf")),
        (4, True),
    ],
)
def test_a_damaged_token_begins_a_run_anew(field, value, monkeypatch):
    """Whatever part of it is damaged: the run has a root, and its calls belong to it."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    with record_spans() as store:
        with starpo_trace.trajectory() as run:
            token = run.checkpoint()
        head, _, text = token.partition(".")
        fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        fields[field] = value
        damaged = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
        with starpo_trace.trajectory(resume=f"{head}.{damaged}") as anew:
            pass
    _, new = store.select("trajectory")
    assert new[semconv.TRAJECTORY_ID] == anew.id != run.id
    assert new[semconv.TRAJECTORY_END] == "terminated"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_forked_child_is_a_part(tmp_path, model):
    """Both go on numbering at the fork; the root span is the parent's alone."""
    code = """
import os, sys, warnings
import openai, starpo_trace
warnings.simplefilter("ignore")
starpo_trace.instrument(store=sys.argv[1])
client = openai.OpenAI(base_url=sys.argv[2], api_key="none")
def ask(text):
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
with starpo_trace.trajectory() as run:
    ask("a")
    child = os.fork()
    with starpo_trace.step("tool", "child" if child == 0 else "parent"):
        pass
    if child:
        assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a"), model.base_url], check=True)
    rows = read_rows(tmp_path / "a")
    assert sorted(row.attributes[semconv.RECORD] for row in rows) == [
        "llm",
        "part",
        "step",
        "step",
        "trajectory",
    ]
    steps = [row for row in rows if row.attributes[semconv.RECORD] == "step"]
    assert [row.attributes[semconv.STEP] for row in steps] == [1, 1]
    tables = read_tables([tmp_path / "a"], tmp_path)
    [trajectory] = tables["trajectories"].to_dicts()
    assert (trajectory["num_steps"], trajectory["num_parts"]) == (3, 2)
    assert set(trajectory["reasons"]) == {"no_reward"}


def test_baggage_counts_steps_when_it_is_sent():
    """Standard propagators write it; ids with spaces and letters beyond ASCII survive."""
    with record_spans(policy_id="p 1") as store:
        with (
            starpo_trace.trajectory(task_id="ü,;=", trajectory_id="my run"),
            starpo_trace.step("tool", "a"),
        ):
            headers: dict[str, str] = {}
            propagate.inject(headers)
        token = context.attach(propagate.extract(headers))
        joined = starpo_trace.current_trajectory()
        assert joined is not None
        assert starpo_trace.current_trajectory() is joined
        assert (joined.id, joined.task_id, joined.num_steps) == ("my run", "ü,;=", 1)
        starpo_trace.reward(1)
        context.detach(token)
    reward = store.select("reward")[0]
    assert reward[semconv.TRAJECTORY_ID] == "my run"
    assert reward[semconv.TASK_ID] == "ü,;="


@pytest.mark.parametrize("count", ["", "-1", "1e9", "9" * 30, "٣", "x"])
def test_senseless_baggage_harms_nobody(count):
    """Anybody can send a header."""
    sent = baggage.set_baggage(semconv.TRAJECTORY_ID, "t", context.Context())
    sent = baggage.set_baggage(semconv.TRAJECTORY_NUM_STEPS, count, sent)
    with record_spans() as store:
        token = context.attach(sent)
        with starpo_trace.step("tool", "a"):
            pass
        context.detach(token)
    [step] = store.select("step")
    assert step[semconv.STEP] == 0


def test_a_request_to_the_same_process_joins_the_run_itself():
    """A server thread that got the headers of a run of this process has the very run."""
    with record_spans(), starpo_trace.trajectory() as run:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        token = context.attach(propagate.extract(headers, context.Context()))
        assert starpo_trace.current_trajectory() is run
        context.detach(token)


def test_causes_order_the_steps_of_processes_whose_clocks_disagree(spans):
    """The service's clock is an hour slow; its steps still come after what caused them."""
    hour = 3600 * 10**9
    question = {"role": "user", "content": "go"}
    root = spans.root(num_steps=3)
    first = spans.call(root, 0, [question], {"role": "assistant", "content": "x"})
    tool = spans.row(
        {semconv.RECORD: "step", semconv.TRAJECTORY_ID: "t1", semconv.STEP: 1}, parent=root
    )
    far = {
        semconv.PART: "remote-1",
        semconv.PART_BASE: 2,
        semconv.PART_AFTER: 2,
        semconv.REQUEST_MODEL: "far",
    }
    sub = {"role": "user", "content": "sub"}
    remote = spans.call(
        tool,
        2,
        [sub],
        {"role": "assistant", "content": "y"},
        attributes=far,
        start_ns=10**9,
        end_ns=10**9 + 1,
    )
    last = spans.call(root, 2, [question, sub], {"role": "assistant", "content": "z"})
    rows = [
        msgspec.structs.replace(row, start_ns=row.start_ns + hour, end_ns=row.end_ns + hour)
        for row in (root, first, tool, last)
    ]
    tables = convert_rows([*rows, remote])
    turns = tables["turns"].sort("turn")
    assert turns.select("step", "model").rows() == [(0, "tiny"), (2, "far"), (3, "tiny")]
    [reasons] = tables["trajectories"]["reasons"].to_list()
    assert "skewed_clock" in reasons
    assert not {"missing_turn", "duplicate_step"} & set(reasons)


def test_prompt_ids_after_a_base_in_another_part_s_numbers_are_found(spans):
    """A base step is meant in its own part's numbers, whatever the trajectory's are."""
    question = {"role": "user", "content": "go"}
    root = spans.root(num_steps=2)
    calls = []
    for part in ({}, {semconv.PART: "remote-1", semconv.PART_BASE: 0}):
        ids = [10, 11] if part else [20, 21]
        for step, base in ((0, None), (1, 0)):
            calls.append(
                spans.call(
                    root,
                    step,
                    [question],
                    {"role": "assistant", "content": "x"},
                    attributes={
                        **part,
                        semconv.PROMPT_TOKEN_IDS: json.dumps(ids if base is None else [7]),
                        semconv.PROMPT_TOKEN_IDS_BASE_STEP: base,
                        semconv.PROMPT_TOKEN_IDS_BASE_LENGTH: None if base is None else 2,
                        semconv.RESPONSE_TOKEN_IDS: "[9]",
                    },
                )
            )
    turns = convert_rows([root, *calls])["turns"].sort("turn")
    columns = ("step", "prompt_base_turn", "prompt_base_length", "prompt_token_ids")
    assert turns.select(columns).rows() == [
        (0, None, 0, [20, 21]),
        (1, 0, 2, [7]),
        (2, None, 0, [10, 11]),
        (3, 2, 2, [7]),
    ]
