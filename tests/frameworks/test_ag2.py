"""AG2: what its model's server saw is what was recorded."""

import asyncio
import json
from functools import partial

import pytest
from matrix import Framework

pytest.importorskip("ag2", reason="ag2 is not installed")
pytest.importorskip("ag2.config.openai", reason="ag2[openai] is not installed")

from ag2 import Agent, Context, MemoryStream, TaskConfig, ToolResult, tool
from ag2.config import OpenAIConfig
from ag2.events import (
    ModelMessageChunk,
    ObserverAlert,
    Severity,
    ToolResultEvent,
    ToolResultsEvent,
    UsageEvent,
)
from ag2.middleware.builtin import telemetry
from ag2.observers import BaseObserver
from ag2.policies import AlertPolicy
from ag2.tools import executor
from ag2.tools.final.client_tool import ClientTool
from ag2.watch import EventWatch
from opentelemetry.sdk.trace import TracerProvider
from scenario import (
    ANSWER,
    LATE,
    QUESTION,
    TWO_TURNS,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_trainable,
    check_two_turns,
    check_wire,
    draw,
    list_tools,
    record,
    stock,
    stock_async,
)

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(name="AG2", packages=("ag2",), page="ag2")


def make_agent(base_url, *, tools=(stock,), name="shop", streaming=False, **options):
    config = OpenAIConfig(
        model="m", base_url=base_url, api_key="none", max_retries=0, streaming=streaming
    )
    return Agent(name, prompt="Be brief.", config=config, tools=list(tools), **options)


async def ask(agent):
    return (await agent.ask(QUESTION)).body


async def run(agent):
    async with agent.run(QUESTION) as turn:
        return (await turn.result()).body


async def start(agent):
    """Driven in a task of its own."""
    async with agent.run(QUESTION) as turn:
        turn.start()
        await asyncio.sleep(0)
        return (await turn.result()).body


RUNS = [ask, run, start]


def drive(program):
    """Coroutine function of a URL -> program."""
    return lambda url: asyncio.run(program(url))


def call(name, arguments="{}", *, call_id="c1"):
    return Reply(tool_calls=[ToolCall(id=call_id, name=name, arguments=arguments)])


@pytest.mark.shows("llm", "async", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("function", [stock, stock_async], ids=["in a thread", "async"])
def test_two_turns(tmp_path, run, function):
    """Parallel tools, each joined to its call, however the agent is run."""

    async def program(url):
        assert await run(make_agent(url, tools=(function,))) == ANSWER

    recorded = record(tmp_path, drive(program))
    check_two_turns(recorded)
    check_trainable(recorded)


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("run", RUNS)
def test_streamed(tmp_path, run):
    """The same where the model streams, to who watches the turn."""
    chunks = []

    async def program(url):
        agent = make_agent(url, streaming=True)

        async def watch(event: ModelMessageChunk):
            chunks.append(event.content)

        stream = MemoryStream()
        stream.where(ModelMessageChunk).subscribe(watch)
        agent.ask, agent.run = (partial(each, stream=stream) for each in (agent.ask, agent.run))
        assert await run(agent) == ANSWER

    recorded = record(tmp_path, drive(program))
    assert "".join(chunks).endswith(ANSWER)
    assert all(request["stream"] for request in recorded.requests)
    check_two_turns(recorded)


@pytest.mark.pictured
@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", RUNS)
def test_an_agent_as_a_tool(tmp_path, run):
    """Its turn is inside of the tool that it is."""
    asked = '{"objective": "A7?"}'
    script = (call("ask_inner", asked), Reply(content="Three."), Reply(content=ANSWER))

    async def program(url):
        inner = make_agent(url, tools=(), name="inner").as_tool(
            name="ask_inner", description="Asks."
        )
        assert await run(make_agent(url, tools=(inner,), variables={"shelf": 1})) == ANSWER

    recorded = record(tmp_path, drive(program), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == [("ask_inner", "c1", asked, "Three.")]
    assert draw(recorded) == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool ask_inner #c1",
        "    invoke_agent inner",
        "      state inner",
        "      chat m",
        "  chat m",
    ]


@pytest.mark.shows("sub-agents", "parallel")
def test_subtasks_at_once(tmp_path):
    """Each model call is in the subtask that made it."""
    tasks = ["A7?", "B8?", "C9?"]

    def answer(body):
        last = body["messages"][-1]
        if last["role"] == "tool":
            return Reply(content=ANSWER)
        if last["content"] == QUESTION:
            return call("run_subtasks", json.dumps({"tasks": tasks}))
        return Reply(content=f"{last['content']} 3", delay_s=0.2)

    async def program(url):
        assert await ask(make_agent(url, tools=(), tasks=TaskConfig())) == ANSWER

    recorded = record(tmp_path, drive(program), answer)
    (tool_span,) = [span for span in recorded.spans if span.name.startswith("execute_tool")]
    subtasks = {
        span.span_id
        for span in recorded.spans
        if span.parent_id == tool_span.span_id and span.name.startswith("invoke_agent subtask")
    }
    inner = [span.parent_id for span in recorded.spans if span.name == "chat m"]
    assert len(subtasks) == 3
    assert sorted(inner[1:-1]) == sorted(subtasks)
    assert recorded.trajectories[0]["num_turns"] == 5


def test_an_agent_that_asks_itself(tmp_path):
    """By a tool: it runs twice, one inside of the other."""
    script = (call("again"), Reply(content="Three."), Reply(content=ANSWER))

    async def program(url):
        async def again() -> str:
            """Asks."""
            return await ask(agent)

        agent = make_agent(url, tools=(again,))
        assert await ask(agent) == ANSWER

    recorded = record(tmp_path, drive(program), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool again #c1",
        "    invoke_agent shop",
        "      chat m",
        "  chat m",
    ]


def test_a_conversation(tmp_path):
    """A reply that is asked again is another run of the same conversation."""
    script = [Reply(content="Three."), Reply(content="Yes."), Reply(content="Sure.")]

    async def program(url):
        reply = await make_agent(url, tools=()).ask(QUESTION)
        reply = await reply.ask("Really?")
        async with reply.run("Really?") as turn:
            assert (await turn.result()).body == "Sure."

    recorded = record(tmp_path, drive(program), script)
    assert [len(request["messages"]) for request in recorded.requests] == [2, 4, 6]
    assert draw(recorded) == ["invoke_agent shop", "  chat m"] * 3
    roots = [span for span in recorded.spans if span.parent_id is None]
    assert len({span.attributes[semconv.CONVERSATION_ID] for span in roots}) == 1


@pytest.mark.shows("state")
def test_context_variables(tmp_path):
    """At the start, and where a tool changed them, also deep inside."""

    async def take(sku: str, ctx: Context) -> int:
        """Take one."""
        ctx.variables["shelf"][sku] -= 1
        return ctx.variables["shelf"][sku]

    arguments = '{"sku": "A7"}'
    script = [call("take", arguments), call("stock", arguments), Reply(content=ANSWER)]

    async def program(url):
        agent = make_agent(url, tools=(take, stock), variables={"shelf": {"A7": 3}})
        await ask(agent)

    recorded = record(tmp_path, drive(program), script)
    check_wire(recorded, script)
    assert list_tools(recorded)[1] == ("take", "c1", arguments, "2")
    assert [row["name"] for row in recorded.states] == ["shop"] * 2
    assert [json.loads(row["value"]) for row in recorded.states] == [
        {"shelf": {"A7": 3}},
        {"shelf": {"A7": 2}},
    ]
    assert draw(recorded)[:4] == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool take #c1",
    ]


def give_object(sku: str) -> ToolResult:
    """How many of an article are there."""
    return ToolResult({"sku": sku, "count": 3})


def give_parts(sku: str) -> ToolResult:
    """How many of an article are there."""
    return ToolResult(sku, 3)


def give_the_end(sku: str) -> ToolResult:
    """How many of an article are there."""
    return ToolResult(f"{sku}: 3", final=True)


@pytest.mark.parametrize(
    ("function", "result"),
    [(give_object, '{"sku":"A7","count":3}'), (give_parts, '["A7",3]'), (give_the_end, "A7: 3")],
)
def test_results(tmp_path, function, result):
    """A result is what the model is told, or would be where it ends the turn."""
    script = [call(function.__name__, '{"sku": "A7"}')]
    if function is not give_the_end:
        script.append(Reply(content=ANSWER))

    async def program(url):
        await ask(make_agent(url, tools=(function,)))

    recorded = record(tmp_path, drive(program), script)
    check_wire(recorded, script)
    assert list_tools(recorded)[0][3] == result
    assert recorded.trajectories[0]["end"] == "terminated"


def test_a_tool_that_somebody_else_runs(tmp_path):
    """A call that is left to a client is no step; what goes on with its result is a run."""
    schema = {"type": "function", "function": {"name": "look", "description": "Looks."}}
    script = [call("look"), Reply(content=ANSWER)]

    async def program(url):
        agent = make_agent(url, tools=(ClientTool(schema),))
        reply = await agent.ask(QUESTION)
        (asked,) = reply.response.tool_calls.calls
        assert asked.name == "look"
        events = await reply.history.get_events()
        results = ToolResultsEvent([ToolResultEvent.from_call(asked, "three")])
        assert (await agent.resume(*events, results)).body == ANSWER

    recorded = record(tmp_path, drive(program), script)
    assert recorded.requests[1]["messages"][-1]["content"] == "three"
    assert draw(recorded) == ["invoke_agent shop", "  chat m"] * 2
    assert recorded.rejected == []


async def broken_async(sku: str) -> str:
    """How many of an article are there."""
    raise LookupError(sku)


def deny(call_next, event, context):
    """A middleware of a tool's."""
    raise PermissionError(event.name)


@pytest.mark.parametrize(
    ("function", "name", "arguments", "error"),
    [
        (broken_stock, "broken_stock", '{"sku": "A7"}', "RuntimeError"),
        (broken_async, "broken_async", '{"sku": "A7"}', "LookupError"),
        (stock, "stock", '{"sku": ', "json.decoder.JSONDecodeError"),
        (stock, "other", "{}", "ag2.exceptions.ToolNotFoundError"),
        (tool(stock, middleware=[deny]), "stock", '{"sku": "A7"}', "PermissionError"),
    ],
    ids=["in a thread", "async", "no JSON", "unknown", "denied"],
)
def test_a_tool_that_fails(tmp_path, function, name, arguments, error):
    """The model is told, the step has the exception, and the run goes on."""
    script = [call(name, arguments), Reply(content="No shelf.")]

    async def program(url):
        assert await ask(make_agent(url, tools=(function,))) == "No shelf."

    if error == "json.decoder.JSONDecodeError":  # AG2 sends the call back as JSON, and cannot
        recorded = record(tmp_path, drive(program), script, raises=Exception)
    else:
        recorded = record(tmp_path, drive(program), script)
        check_wire(recorded, script)
        assert recorded.trajectories[0]["end"] == "terminated"
    assert list_tools(recorded) == [(name, "c1", arguments, None)]
    (step,) = [span for span in recorded.spans if span.name.startswith("execute_tool")]
    assert step.attributes[semconv.ERROR_TYPE] == error


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("run", RUNS)
def test_cancelled(tmp_path, run):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(run(make_agent(url)))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("cancel")
def test_left(tmp_path):
    """So is a turn whose block is left before its end."""

    async def program(url):
        async with make_agent(url).run(QUESTION) as turn:
            turn.start()
            await asyncio.sleep(0.5)

    check_end(record(tmp_path, drive(program), LATE), "abandoned", "cancelled")


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_fails(tmp_path, run):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(run(make_agent(url))),
        [Reply(status=500)],
        raises=Exception,
    )
    check_end(recorded, "error", "error")
    root = recorded.spans[0].attributes
    assert root[semconv.ERROR_TYPE] == "openai.InternalServerError"


@pytest.mark.shows("error")
def test_a_failure_that_nobody_awaits(tmp_path):
    """AG2 hides it; the run is an error nevertheless."""

    async def program(url):
        async with make_agent(url).run(QUESTION) as turn:
            turn.start()
            await asyncio.sleep(0.5)

    check_end(record(tmp_path, drive(program), [Reply(status=500)]), "error", "error")


def test_a_prompt_that_fails(tmp_path):
    """What fails before the turn is the run's error too."""

    async def fail(ctx: Context) -> str:
        raise LookupError

    async def program(url):
        agent = make_agent(url)
        agent.prompt(fail)
        await ask(agent)

    recorded = record(tmp_path, drive(program), [], raises=LookupError)
    check_end(recorded, "error")
    assert draw(recorded) == ["invoke_agent shop"]


class Stop(BaseObserver):
    """Raises a fatal alert at the first use of tokens."""

    def __init__(self):
        super().__init__("stop", watch=EventWatch(UsageEvent))

    async def process(self, events, ctx):
        return ObserverAlert(source="stop", severity=Severity.FATAL, message="enough")


@pytest.mark.parametrize("is_named", [False, True])
def test_a_fatal_alert(tmp_path, is_named):
    """It truncates the run, if the turn is that."""
    script = TWO_TURNS[:1]

    async def program(url):
        agent = make_agent(url, assembly=[AlertPolicy()], observers=[Stop()])
        if is_named:
            with starpo_trace.trajectory("mine"):
                assert await ask(agent) == "HALTED: FATAL: enough"
        else:
            assert await ask(agent) == "HALTED: FATAL: enough"

    recorded = record(tmp_path, drive(program), script)
    check_end(recorded, "terminated" if is_named else "truncated", "ok")
    reason = recorded.spans[0].attributes.get(semconv.TRAJECTORY_END_REASON)
    assert reason == (None if is_named else "FATAL: enough")


def test_own_spans_change_no_row(tmp_path):
    """Spans that it writes, to another store or between ours, change no row and double nothing."""

    def write_here():
        processor = get_runtime().get_tracer().span_processor
        return TracerProvider(active_span_processor=processor, shutdown_on_exit=False)

    def make_program(make_provider):
        async def program(url):
            options = {}
            if make_provider is not None:
                provider = make_provider()
                options["middleware"] = [telemetry.TelemetryMiddleware(tracer_provider=provider)]
            assert await ask(make_agent(url, **options)) == ANSWER

        return program

    def describe(recorded):
        names = ("end", "num_turns", "num_steps", "num_tool_calls", "num_messages", "usable_for")
        wire = ("text", "reasoning", "tool_calls", "tool_definitions", "input_node")
        return [
            *({name: row[name] for name in names} for row in recorded.trajectories),
            *({name: row[name] for name in wire} for row in recorded.turns),
        ]

    alone, apart, here = (
        record(tmp_path / str(number), drive(make_program(make_provider)))
        for number, make_provider in enumerate((None, TracerProvider, write_here))
    )
    check_two_turns(alone)
    check_two_turns(here)
    assert describe(apart) == describe(alone)


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, of one agent too, and in one task."""

    async def program(url):
        agent = make_agent(url)
        assert await asyncio.gather(*(ask(agent) for _ in range(2))) == [ANSWER] * 2
        async with agent.run(QUESTION) as one, agent.run(QUESTION) as other:
            replies = await asyncio.gather(one.result(), other.result())
            assert [reply.body for reply in replies] == [ANSWER] * 2

    recorded = record(tmp_path, drive(program), answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2] * 4
    assert [row["num_tool_calls"] for row in recorded.trajectories] == [2] * 4
    assert len({span.trace_id for span in recorded.spans}) == 4


def test_put_back():
    """Afterwards the methods and functions are the ones that were there."""
    places = [
        (Agent, "_turn_scope"),
        (ClientTool, "register"),
        (executor, "_execute_call"),
        *((telemetry._TelemetryMiddlewareInstance, f"on_{name}") for name in ("turn", "llm_call")),
        (telemetry._TelemetryMiddlewareInstance, "on_tool_execution"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
