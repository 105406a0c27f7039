"""Runs of an agent -> root spans, numbered steps, verdicts."""

import asyncio
import contextvars
import enum
import threading
import uuid

import openai
import pytest
from opentelemetry import baggage, trace
from opentelemetry.trace import StatusCode

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.episode import judge_usability
from starpo_trace.testing import Reply, ScriptedServer, ToolCall, record_spans

IDENTITY = {
    "task_id": "t1",
    "attempt": 2,
    "seed": 7,
    "environment_name": "lake",
    "environment_version": "3",
    "cohort": "easy",
    "conversation_id": "c1",
}


def client_of(server):
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def ask(client, **options):
    messages = [{"role": "user", "content": "?"}]
    return client.chat.completions.create(model="m", messages=messages, **options)


def test_the_root_span_says_whose_run_it_is():
    """Identity, end, number of steps and verdict; the id names the root span."""
    with record_spans(policy_id="step-100") as store:
        with starpo_trace.trajectory("mover", **IDENTITY) as run:
            assert starpo_trace.current_trajectory() is run
        assert starpo_trace.current_trajectory() is None
    [span] = store.spans
    context = span.get_span_context()
    assert run.id == f"{context.trace_id:032x}-{context.span_id:016x}"
    assert (span.name, span.status.status_code) == ("invoke_agent mover", StatusCode.UNSET)
    assert dict(span.attributes) == {
        semconv.SCHEMA: "1",
        semconv.RECORD: "trajectory",
        semconv.OPERATION_NAME: "invoke_agent",
        semconv.AGENT_NAME: "mover",
        semconv.TASK_ID: "t1",
        semconv.ATTEMPT: 2,
        semconv.SEED: 7,
        semconv.POLICY_ID: "step-100",
        semconv.ENVIRONMENT_NAME: "lake",
        semconv.ENVIRONMENT_VERSION: "3",
        semconv.COHORT: "easy",
        semconv.CONVERSATION_ID: "c1",
        semconv.TRAJECTORY_ID: run.id,
        semconv.TRAJECTORY_END: "terminated",
        semconv.TRAJECTORY_NUM_STEPS: 0,
        semconv.USABLE_FOR: "none",
        semconv.USABLE_FOR_REASONS: ("no_llm_call",),
    }


def test_steps_count_calls_and_tools_in_order():
    """Model calls and steps share one count; a call that asks for tools plans, the last ends."""
    tools = [{"type": "function", "function": {"name": "move"}}]
    replies = [
        Reply(tool_calls=[ToolCall(id="c1", name="move", arguments="{}")]),
        Reply(content="done"),
    ]
    with (
        ScriptedServer(replies) as server,
        client_of(server) as client,
        record_spans() as store,
        starpo_trace.trajectory() as run,
    ):
        ask(client, tools=tools)
        with starpo_trace.step("tool", "move", call_id="c1", arguments='{"d":  1}') as step:
            step.result({"at": [0, 1]})
        with starpo_trace.step("retriever", "docs"):
            pass
        with starpo_trace.step("verifier", "check"):
            pass
        starpo_trace.state({"x": 1})
        ask(client, tools=tools)
        assert run.num_steps == 5
    steps = [
        (span.name, span.attributes[semconv.STEP], span.attributes.get(semconv.STEP_KIND))
        for span in store.spans[:-1]
    ]
    assert steps == [
        ("chat m", 0, "planner"),
        ("execute_tool move", 1, "tool"),
        ("retrieval docs", 2, "retriever"),
        ("verifier check", 3, "verifier"),
        ("state state", 4, None),
        ("chat m", 4, "finalizer"),
    ]
    tool = store.spans[1].attributes
    assert tool[semconv.TOOL_CALL_ARGUMENTS] == '{"d":  1}'
    assert tool[semconv.TOOL_CALL_RESULT] == '{"at":[0,1]}'
    assert tool[semconv.TOOL_CALL_ID] == "c1"
    root = store.spans[-1]
    assert {span.parent.span_id for span in store.spans[:-1]} == {root.context.span_id}


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ValueError("mine"), "error"),
        (KeyboardInterrupt(), "abandoned"),
        (asyncio.CancelledError(), "abandoned"),
        (GeneratorExit(), "abandoned"),
    ],
)
def test_an_exception_passes_unchanged(error, end):
    """The very exception object leaves the block; the root span says how the run ended."""

    def run():
        with starpo_trace.trajectory():
            raise error

    with record_spans() as store, pytest.raises(type(error)) as caught:
        run()
    assert caught.value is error
    assert error.__cause__ is None
    [root] = store.select("trajectory")
    assert root[semconv.TRAJECTORY_END] == end
    assert store.spans[0].status.status_code is StatusCode.ERROR


def test_end_is_what_the_program_says():
    """`end` wins over how the block is left, and keeps its reason."""
    with record_spans() as store, starpo_trace.trajectory() as run:
        run.end("truncated", reason="16 moves")
    [root] = store.select("trajectory")
    assert root[semconv.TRAJECTORY_END] == "truncated"
    assert root[semconv.TRAJECTORY_END_REASON] == "16 moves"


@pytest.mark.parametrize("reason", [TimeoutError("16 moves"), 16, ("16", "moves")])
def test_any_reason_is_a_text(reason):
    """What is no text is recorded as the text that Python makes of it."""
    with record_spans() as store, starpo_trace.trajectory() as run:
        run.end("truncated", reason=reason)
    [root] = store.select("trajectory")
    assert root[semconv.TRAJECTORY_END] == "truncated"
    assert root[semconv.TRAJECTORY_END_REASON] == str(reason)


def test_a_root_span_ends_whatever_fails(monkeypatch):
    """A reason without a text costs the reason, a verdict that fails the verdict, not the run."""
    monkeypatch.setenv("STARPO_DEBUG", "0")

    class Odd:
        def __str__(self):
            raise RuntimeError("odd")

    def fail(*_details):
        raise RuntimeError("broken")

    with record_spans() as store:
        with starpo_trace.trajectory("a", task_id="t") as run:
            run.end("truncated", reason=Odd())
        monkeypatch.setattr("starpo_trace.capture.episode.judge_usability", fail)
        with starpo_trace.trajectory("b", task_id="t") as run:
            run.end("truncated")
    roots = store.select("trajectory")
    assert [(r[semconv.AGENT_NAME], r[semconv.TRAJECTORY_END]) for r in roots] == [
        ("a", "truncated"),
        ("b", "truncated"),
    ]


def test_whatever_names_a_run_is_a_text(caplog, monkeypatch):
    """Numbers, UUIDs and members of enumerations; the same in a resumed run."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())

    class Task(enum.StrEnum):
        A = "ta"

    class OldTask(str, enum.Enum):  # noqa: UP042 (as older programs have them)
        A = "tb"

    made = uuid.UUID(int=7)
    with record_spans() as store:
        for task_id in (7, made, Task.A, OldTask.A):
            with starpo_trace.trajectory(task_id=task_id, cohort=Task.A) as run:
                token = run.checkpoint()
            with starpo_trace.trajectory(resume=token) as resumed:
                assert (resumed.id, resumed.task_id) == (run.id, run.task_id)
    roots = store.select("trajectory")
    assert [root[semconv.TASK_ID] for root in roots[::2]] == ["7", str(made), "ta", "tb"]
    assert [root[semconv.TASK_ID] for root in roots[1::2]] == ["7", str(made), "ta", "tb"]
    assert {type(root[semconv.COHORT]) for root in roots} == {str}
    assert caplog.records == []


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, "a", 1.5])
def test_a_seed_that_no_span_can_hold_is_warned_of(seed, caplog, monkeypatch):
    """The warning names it; the run is recorded without it."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    with record_spans() as store, starpo_trace.trajectory(seed=seed, attempt=2**62):
        pass
    [root] = store.select("trajectory")
    assert (root.get(semconv.SEED), root[semconv.ATTEMPT]) == (None, 2**62)
    [record] = caplog.records
    assert record.getMessage().startswith(f"seed={seed!r} of trajectory() is not recorded")


def test_decorated_functions_are_runs():
    """Each call of a decorated function, sync or async, is one run; its result passes through."""

    @starpo_trace.trajectory("sync", task_id="a")
    def run(x):
        assert starpo_trace.current_trajectory() is not None
        return x + 1

    @starpo_trace.trajectory("async", task_id="b")
    async def run_async(x):
        await asyncio.sleep(0)
        assert starpo_trace.current_trajectory() is not None
        return x + 2

    async def run_two():
        return await asyncio.gather(run_async(1), run_async(2))

    with record_spans() as store:
        assert (run(1), run(2)) == (2, 3)
        assert asyncio.run(run_two()) == [3, 4]
    roots = store.select("trajectory")
    assert [root[semconv.AGENT_NAME] for root in roots] == ["sync", "sync", "async", "async"]
    assert len({root[semconv.TRAJECTORY_ID] for root in roots}) == 4
    with pytest.raises(TypeError, match="generator"):
        starpo_trace.trajectory()(lambda: (yield))


def test_concurrent_runs_do_not_mix():
    """Tasks and threads with their own runs number their own steps."""

    async def play(client, task_id):
        with starpo_trace.trajectory(task_id=task_id):
            for _ in range(3):
                await client.chat.completions.create(model="m", messages=[])

    async def play_all(server):
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            await asyncio.gather(*(play(client, str(n)) for n in range(4)))

    with ScriptedServer([Reply(content="x", delay_s=0.01)]) as server, record_spans() as store:
        asyncio.run(play_all(server))
    steps: dict[str, list[int]] = {}
    for call in store.select("llm"):
        steps.setdefault(call[semconv.TRAJECTORY_ID], []).append(call[semconv.STEP])
    assert [sorted(numbers) for numbers in steps.values()] == [[0, 1, 2]] * 4


def test_a_thread_with_the_callers_context_belongs_to_its_run():
    """Tools in threads that copy their context join the run, as children of the root."""
    with record_spans() as store, starpo_trace.trajectory() as run:

        def work():
            with starpo_trace.step("tool", "t"):
                pass

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    steps = store.select("step")
    assert sorted(step[semconv.STEP] for step in steps) == list(range(8))
    assert {step[semconv.TRAJECTORY_ID] for step in steps} == {run.id}


def test_identity_crosses_processes_in_baggage():
    """Another service that got our baggage marks its calls with the run's id."""
    with (
        ScriptedServer([Reply(content="x")]) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        with starpo_trace.trajectory() as run:
            received = dict(baggage.get_all())
        from opentelemetry import context

        remote = context.Context()
        for key, value in received.items():
            remote = baggage.set_baggage(key, value, remote)
        token = context.attach(remote)
        ask(client)
        context.detach(token)
    assert [call[semconv.TRAJECTORY_ID] for call in store.select("llm")] == [run.id]


def test_a_block_left_in_another_context_harms_nobody(caplog, monkeypatch):
    """A generator that holds a run open and is closed elsewhere ends it with one warning."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())

    def agent():
        with starpo_trace.trajectory():
            yield 1
            yield 2

    with record_spans() as store:
        generator = agent()
        contextvars.copy_context().run(next, generator)
        contextvars.copy_context().run(generator.close)
    assert [root[semconv.TRAJECTORY_END] for root in store.select("trajectory")] == ["abandoned"]
    assert ["was left while" in record.getMessage() for record in caplog.records] == [True]


def test_without_instrument_everything_is_a_no_op():
    """An agent that never calls instrument() runs as before."""
    with starpo_trace.trajectory() as run:
        with starpo_trace.step("tool", "t") as step:
            step.result(1)
        starpo_trace.state({})
        starpo_trace.observe([])
        starpo_trace.reward(1.0)
        run.end("truncated")
    assert run.id
    assert starpo_trace.flush()
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    ("num_calls", "mode", "reasons", "expected"),
    [
        (1, "delta", set(), ("rl", [])),
        (1, "full", {"call_error"}, ("rl", ["call_error"])),
        (1, "delta", {"token_ids_missing"}, ("sft", ["token_ids_missing"])),
        (2, "delta", {"stream_incomplete"}, ("sft", ["stream_incomplete"])),
        (0, "delta", set(), ("none", ["no_llm_call"])),
        (1, "off", {"call_error"}, ("none", ["call_error", "history_off"])),
    ],
)
def test_verdict(num_calls, mode, reasons, expected):
    """What a recording is good for follows from what it lacks."""
    assert judge_usability(num_calls, mode, reasons) == expected
