"""A share of trajectories -> whole ones, in every process."""

import json
import logging
import random

import openai
import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import starpo_trace
from starpo_trace import semconv
from starpo_trace.config import read_config
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.otlp import decode_protobuf
from starpo_trace.errors import ConfigError
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.testing import MemoryStore, Reply, ScriptedServer, record_spans


def read_rows(store):
    return [
        row
        for path in list_segments(store)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
    ]


def records_of(rows):
    found = {}
    for row in rows:
        key = row.attributes.get(semconv.TRAJECTORY_ID)
        found.setdefault(key, []).append(row.attributes[semconv.RECORD])
    return {key: sorted(records) for key, records in found.items()}


def play(client):
    """A run with every kind of record, left and gone on with, called from and rewarded late."""
    with starpo_trace.trajectory(task_id="t") as run:
        client.chat.completions.create(model="m", messages=[])
        with starpo_trace.step("tool", "a"):
            headers: dict[str, str] = {}
            propagate.inject(headers)
        starpo_trace.state({"a": 1})
        starpo_trace.observe([])
        starpo_trace.reward(1)
    token = context.attach(propagate.extract(headers, context.Context()))
    client.chat.completions.create(model="far", messages=[])
    context.detach(token)
    with starpo_trace.trajectory(resume=run.checkpoint()):
        client.chat.completions.create(model="m", messages=[])
    return run.id


WHOLE = [
    *["llm", "llm", "llm", "observation", "part"],
    *["reward", "state", "step", "trajectory", "trajectory"],
]


@pytest.fixture
def client():
    with (
        ScriptedServer([Reply(content="x")]) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
    ):
        yield client


def test_our_own_provider_decides_by_the_root_s_trace_id(tmp_path, client):
    """As `TraceIdRatioBased`; of a run everything is there or nothing."""
    starpo_trace.instrument(store=tmp_path, sample=0.5)
    runs = [play(client) for _ in range(12)]
    starpo_trace.uninstrument()
    bound = TraceIdRatioBased(0.5).bound
    kept = [run for run in runs if int(run[:32], 16) & (2**64 - 1) < bound]
    assert len(set(runs)) == 12
    assert records_of(read_rows(tmp_path)) == dict.fromkeys(kept, WHOLE)


@pytest.mark.parametrize("name", ["always_off", "traceidratio", "parentbased_always_off"])
def test_the_environment_s_sampler_drops_no_late_reward(tmp_path, client, monkeypatch, name):
    """It decides about runs, and rewards within them; one that comes later is recorded."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    starpo_trace.instrument(store=tmp_path)
    run = play(client)
    starpo_trace.reward(1.0, trajectory_id=run)
    starpo_trace.uninstrument()
    assert records_of(read_rows(tmp_path)) == {run: ["reward"]}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_provider_of_the_user_s_keeps_its_own_spans(client, share):
    """Only ours are left out; the user's spans around and within the run are as without us."""
    store = MemoryStore()
    tracer = store.provider.get_tracer("mine")
    starpo_trace.instrument(tracer_provider=store.provider, sample=share)
    with tracer.start_as_current_span("request"):
        run = play(client)
        with starpo_trace.trajectory(), tracer.start_as_current_span("query"):
            pass
    starpo_trace.uninstrument()
    mine = [span for span in store.spans if span.instrumentation_scope.name == "mine"]
    assert [span.name for span in mine] == ["query", "request"]
    ours = [dict(span.attributes) for span in store.spans if span not in mine]
    found = sorted(each[semconv.RECORD] for each in ours if each.get(semconv.TRAJECTORY_ID) == run)
    assert found == (WHOLE if share else [])
    assert bool(ours) == bool(share)
    if not share:
        assert mine[0].parent.span_id == mine[1].context.span_id


def test_a_share_of_a_user_s_provider_is_of_whole_runs(client, monkeypatch):
    """Without a trace around it the root decides by chance, and all parts follow."""
    monkeypatch.setattr(random, "random", iter([0.2, 0.8] * 6).__next__)
    store = MemoryStore()
    starpo_trace.instrument(tracer_provider=store.provider, sample=0.5)
    runs = [play(client) for _ in range(12)]
    starpo_trace.uninstrument()
    found: dict[str, list[str]] = {}
    for span in store.spans:
        attributes = dict(span.attributes)
        found.setdefault(attributes[semconv.TRAJECTORY_ID], []).append(attributes[semconv.RECORD])
    assert {run: sorted(records) for run, records in found.items()} == dict.fromkeys(
        runs[::2], WHOLE
    )


def test_another_process_follows_the_run_and_not_its_own_share(tmp_path, client):
    """A service that samples nothing records what it is called for by a recorded run."""
    headers: dict[str, str] = {}
    with record_spans(), starpo_trace.trajectory() as run:
        propagate.inject(headers)
    for share in (0.0, None):
        for sent in ({**headers}, {**headers, "baggage": headers["baggage"] + f",{OFF}=0"}):
            store = tmp_path / f"{share}{len(sent['baggage'])}"
            starpo_trace.instrument(store=store, sample=share)
            token = context.attach(propagate.extract(sent, context.Context()))
            client.chat.completions.create(model="m", messages=[])
            starpo_trace.state({})
            context.detach(token)
            starpo_trace.flush()
            starpo_trace.uninstrument()
            is_sampled = OFF not in sent["baggage"]
            expected = {run.id: ["llm", "part", "state"]} if is_sampled else {}
            assert records_of(read_rows(store)) == expected


OFF = semconv.SAMPLED


def test_a_callers_trace_that_is_no_run_does_not_raise_the_share(tmp_path):
    """A gateway that samples everything does not make us record everything."""
    starpo_trace.instrument(store=tmp_path, sample=0.0)
    gateway = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(gateway)))
    with starpo_trace.trajectory():
        pass
    context.detach(token)
    starpo_trace.uninstrument()
    assert read_rows(tmp_path) == []


@pytest.mark.parametrize("own", [True, False])
def test_a_late_reward_is_always_recorded(tmp_path, own):
    """Whether its run was sampled is not known where it comes from; if not, it is rejected."""
    store = MemoryStore()
    options = {"store": tmp_path} if own else {"tracer_provider": store.provider}
    starpo_trace.instrument(**options, sample=0.0)
    with starpo_trace.trajectory() as run:
        pass
    starpo_trace.reward(1, trajectory_id=run.id)
    starpo_trace.uninstrument()
    if not own:
        assert [each[semconv.TRAJECTORY_ID] for each in store.select("reward")] == [run.id]
        return
    rows = read_rows(tmp_path)
    assert records_of(rows) == {run.id: ["reward"]}
    tables = convert_rows(rows)
    assert tables["trajectories"].height == 0
    assert tables["rejected"].select("reason", "detail").rows() == [
        ("reward_target_missing", f"trajectory {run.id}")
    ]


@pytest.mark.parametrize("own", [True, False])
def test_outside_of_runs_the_share_is_of_traces(tmp_path, client, own):
    """A tool step and the call within it are recorded together."""
    store = MemoryStore()
    options = {"store": tmp_path} if own else {"tracer_provider": store.provider}
    starpo_trace.instrument(**options, sample=0.5)
    for _ in range(20):
        with starpo_trace.step("tool", "a"):
            client.chat.completions.create(model="m", messages=[])
    starpo_trace.uninstrument()
    if own:
        spans = [(row.trace_id, row.attributes[semconv.RECORD]) for row in read_rows(tmp_path)]
    else:
        spans = [(s.context.trace_id, s.attributes[semconv.RECORD]) for s in store.spans]
    traces: dict[object, list[str]] = {}
    for trace_id, record in spans:
        traces.setdefault(trace_id, []).append(record)
    assert all(sorted(records) == ["llm", "step"] for records in traces.values())
    assert 0 < len(traces) < 20


def test_a_user_s_sampler_decides_for_whole_runs_too(client):
    """Of a run whose root the user's sampler dropped, nothing is recorded."""
    store = MemoryStore()
    provider = TracerProvider(sampler=TraceIdRatioBased(0.0), shutdown_on_exit=False)
    provider.add_span_processor(store)
    starpo_trace.instrument(tracer_provider=provider)
    run = play(client)
    starpo_trace.uninstrument()
    assert store.spans == []
    assert run


@pytest.mark.parametrize("value", [-0.1, 1.5, "x", float("nan")])
def test_a_share_that_is_none_is_refused(value):
    """With the value in the message."""
    options = {
        "store": None,
        "endpoint": None,
        "tracer_provider": None,
        "history": None,
        "policy_id": None,
    }
    with pytest.raises(ConfigError, match=r"sample=.*between 0 and 1"):
        read_config(**options, sample=value)
    config = read_config(
        **options, environment={"STARPO_SAMPLE": "0.25", "STARPO_MAX_CONTENT_BYTES": "5000"}
    )
    assert (config.sample, config.max_content_bytes) == (0.25, 5000)
    with pytest.raises(ConfigError, match="max_content_bytes=10 in"):
        read_config(**options, max_content_bytes=10)


def test_suppressed_code_runs_and_is_not_recorded(client):
    """`suppress_instrumentation` reaches everything of ours; the agent's own code runs."""
    done = []
    with record_spans() as store:
        with suppress_instrumentation(), starpo_trace.trajectory(task_id="t") as run:
            headers: dict[str, str] = {}
            propagate.inject(headers)
            with starpo_trace.step("tool", "a") as step:
                step.result(1)
                done.append(step.number)
            starpo_trace.state({"a": 1})
            starpo_trace.observe([])
            starpo_trace.reward(1)
            client.chat.completions.create(model="m", messages=[])
            done.append(run.num_steps)
        with starpo_trace.trajectory() as around:
            with suppress_instrumentation(), starpo_trace.step("tool", "b"):
                starpo_trace.state({"a": 1})
            assert around.num_steps == 0
    assert done == [None, 0]
    assert headers == {}
    assert [span.attributes[semconv.RECORD] for span in store.spans] == ["trajectory"]


def test_messages_over_the_limit_keep_their_place(tmp_path):
    """The cut call is a turn of its trajectory, the next one continues it, and none is trained."""
    ids = {"prompt_token_ids": [1] * 2000, "token_ids": [2], "logprobs": [-0.5]}
    starpo_trace.instrument(store=tmp_path, max_content_bytes=600)
    with (
        ScriptedServer([Reply(content="x", **ids)]) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        starpo_trace.trajectory() as run,
    ):
        messages = [{"role": "user", "content": "a" * 900}, {"role": "user", "content": "b"}]
        client.chat.completions.create(model="m", messages=messages)
        messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "c"}]
        client.chat.completions.create(model="m", messages=messages)
    starpo_trace.uninstrument()
    tables = convert_rows(read_rows(tmp_path))
    assert tables["rejected"].rows() == []
    [trajectory] = tables["trajectories"].to_dicts()
    assert (trajectory["num_turns"], trajectory["num_branches"]) == (2, 1)
    assert (trajectory["usable_for"], trajectory["trajectory_id"]) == ("none", run.id)
    assert "content_truncated" in trajectory["reasons"]
    assert tables["turns"]["token_provenance"].to_list() == ["exact", "exact"]
    assert read_rows(tmp_path)[-1].attributes[semconv.USABLE_FOR] == "none"


def test_content_over_the_limit_stays_json(caplog):
    """Arguments, results and states; the next state is whole, and the verdict says it."""
    caplog.set_level(logging.WARNING)
    store = MemoryStore()
    starpo_trace.instrument(tracer_provider=store.provider, max_content_bytes=400)
    with starpo_trace.trajectory():
        with starpo_trace.step("tool", "a", arguments={"text": "a" * 1000, "n": 1}) as step:
            step.result("plain " * 200)
        starpo_trace.state({"page": "p" * 1000, "row": 1})
        starpo_trace.state({"page": "p" * 1000, "row": 2})
        starpo_trace.state({"row": 3})
        starpo_trace.state({"row": 3, "note": "short"})
    starpo_trace.uninstrument()
    [step] = store.select("step")
    arguments = json.loads(step[semconv.TOOL_CALL_ARGUMENTS])
    assert arguments["n"] == 1
    assert arguments["text"].startswith("[starpo:cut 1000 bytes, blake2b ")
    assert step[semconv.TOOL_CALL_RESULT].startswith("[starpo:cut 1200 bytes, blake2b ")
    states = store.select("state")
    assert [json.loads(state[semconv.STATE_VALUE])["row"] for state in states[:3]] == [1, 2, 3]
    assert states[3][semconv.STATE_DIFF] == '{"note":"short"}'
    [root] = store.select("trajectory")
    assert root[semconv.USABLE_FOR] == "none"
    assert "content_truncated" in root[semconv.USABLE_FOR_REASONS]
    assert caplog.records == []
