"""Strands Agents: what its model's server saw is what was recorded."""

import asyncio
import gc
import json
import threading

import pytest
from matrix import Framework

strands = pytest.importorskip("strands", reason="strands-agents is not installed")

from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from scenario import (  # noqa: E402
    ANSWER,
    LATE,
    QUESTION,
    RAN_PARSED,
    TWO_TURNS,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_trainable,
    check_wire,
    draw,
    list_ran,
    record,
    stock,
    stock_async,
)
from strands.agent.conversation_manager import SlidingWindowConversationManager  # noqa: E402
from strands.hooks import AfterToolCallEvent, BeforeToolCallEvent, HookRegistry  # noqa: E402
from strands.models.openai import OpenAIModel  # noqa: E402
from strands.multiagent import GraphBuilder, Swarm  # noqa: E402
from strands.multiagent.graph import Graph, GraphState  # noqa: E402
from strands.multiagent.swarm import SwarmState  # noqa: E402
from strands.telemetry import tracer as strands_tracer  # noqa: E402
from strands.tools.executors import SequentialToolExecutor, _executor  # noqa: E402

import starpo_trace  # noqa: E402
from starpo_trace import semconv  # noqa: E402
from starpo_trace.capture.runtime import get_runtime  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(name="Strands Agents", packages=("strands-agents",), page="strands")
TREE = [
    *["  chat m"] * 2,
    "  execute_tool stock #call_a",
    "  execute_tool stock #call_b",
]
"""Spans of `TWO_TURNS` below the run, in order of their names."""


async def stock_streamed(sku: str):
    """How many of an article are there."""
    yield "looking"
    yield stock(sku)


def make_model(base_url):
    client = {"base_url": base_url, "api_key": "none", "max_retries": 0}
    return OpenAIModel(client_args=client, model_id="m")


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return strands.Agent(
        model=make_model(base_url),
        system_prompt="Be brief.",
        name=name,
        callback_handler=None,
        retry_strategy=None,
        tools=[each if hasattr(each, "tool_spec") else make_tool(each) for each in tools],
        **options,
    )


def make_tool(function):
    name = function.__name__.removesuffix("_async").removesuffix("_streamed")
    return strands.tool(function, name=name)


def read(result):
    return str(result).strip()


def run(agent):
    return read(agent(QUESTION))


def run_async(agent):
    return read(asyncio.run(agent.invoke_async(QUESTION)))


def run_streamed(agent):
    async def collect():
        return [event async for event in agent.stream_async(QUESTION)]

    events = asyncio.run(collect())
    texts = [event["data"] for event in events if "data" in event]
    assert "".join(texts).endswith(ANSWER)
    return read(events[-1]["result"])


@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    ("run", "tool"),
    [
        pytest.param(run, stock, marks=pytest.mark.pictured),
        pytest.param(run_async, stock_async, marks=pytest.mark.shows("async")),
        pytest.param(run_streamed, stock, marks=pytest.mark.shows("streaming")),
        (run_streamed, stock_streamed),
    ],
    ids=["sync", "async", "streamed", "streamed tool"],
)
def test_two_turns(tmp_path, run, tool):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url, tools=(tool,)))))
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == TREE
    check_end(recorded, "terminated", "ok", "ok")


def test_tools_one_after_the_other(tmp_path):
    """The sequential executor runs the same tools."""
    recorded = record(
        tmp_path, lambda url: run(make_agent(url, tool_executor=SequentialToolExecutor()))
    )
    check_wire(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert draw(recorded)[1:] == [TREE[0], *TREE[2:], TREE[1]]


@pytest.mark.shows("sub-agents")
def test_an_agent_as_a_tool(tmp_path):
    """Its run is inside of the tool that it is."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments='{"input": "A7?"}')]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        inner = make_agent(url, tools=(), name="inner")
        outer = make_agent(url, tools=(inner.as_tool(name="ask_shop"),))
        assert run(outer) == "It has three."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_ran(recorded) == [("ask_shop", "c1", {"input": "A7?"}, "Three.\n")]
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool ask_shop #c1",
        "    invoke_agent inner",
        "      chat m",
        "  chat m",
    ]


def test_an_agent_that_a_tool_calls(tmp_path):
    """Also by its blocking call, from the tool's thread."""
    call = ToolCall(id="c1", name="ask", arguments='{"question": "A7?"}')
    script = [Reply(tool_calls=[call]), Reply(content="Three."), Reply(content="It has three.")]

    def program(url):
        def ask(question: str) -> str:
            """Ask the shop."""
            return read(make_agent(url, tools=(), name="inner")(question))

        run(make_agent(url, tools=(ask,)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded)[2:5] == [
        "  execute_tool ask #c1",
        "    invoke_agent inner",
        "      chat m",
    ]


HANDOFF = ToolCall(
    id="h1",
    name="handoff_to_agent",
    arguments='{"agent_name": "clerk", "message": "Count A7.", "context": {"shelf": 4}}',
)
SWARM = [
    Reply(content="Not mine.", tool_calls=[HANDOFF]),
    Reply(content="Handed over."),
    Reply(content=ANSWER),
]


def make_swarm(url, **options):
    nodes = [make_agent(url, tools=(), name=name) for name in ("desk", "clerk")]
    return Swarm(nodes, id="shop", **options)


async def stream_team(team):
    return [event async for event in team.stream_async(QUESTION)][-1]["result"]


@pytest.mark.shows("sub-agents", "state")
@pytest.mark.parametrize(
    "run_team",
    [
        lambda team: team(QUESTION),
        lambda team: asyncio.run(team.invoke_async(QUESTION)),
        lambda team: asyncio.run(stream_team(team)),
    ],
    ids=["sync", "async", "streamed"],
)
def test_a_swarm(tmp_path, run_team):
    """The swarm is the run; what its agents share is its state, and a handoff is a tool."""
    results = []
    recorded = record(tmp_path, lambda url: results.append(run_team(make_swarm(url))), SWARM)
    assert [node.node_id for node in results[0].node_history] == ["desk", "clerk"]
    check_wire(recorded, SWARM)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  invoke_agent desk",
        "    chat m",
        "    execute_tool handoff_to_agent #h1",
        "    chat m",
        "  state shop",
        "  invoke_agent clerk",
        "    chat m",
    ]
    assert read_states(recorded) == [("shop", {"desk": {"shelf": 4}})]
    check_end(recorded, "terminated", "ok", "ok", "ok")


def read_states(recorded):
    return [(row["name"], json.loads(row["value"])) for row in recorded.states]


def read_reason(recorded):
    return recorded.spans[0].attributes[semconv.TRAJECTORY_END_REASON]


def test_a_swarm_that_hands_over_too_often(tmp_path):
    """Its limit truncates the run."""
    recorded = record(tmp_path, lambda url: make_swarm(url, max_handoffs=1)(QUESTION), SWARM[:2])
    check_wire(recorded, SWARM[:2])
    check_end(recorded, "truncated", "ok", "ok")
    assert read_reason(recorded) == "Max handoffs reached: 1"


@pytest.mark.shows("error")
def test_a_swarm_whose_agent_fails(tmp_path):
    """No exception leaves it; the run ends with the agent's."""
    recorded = record(
        tmp_path,
        lambda url: make_swarm(url)(QUESTION),
        [Reply(status=500)],
    )
    check_end(recorded, "error", "error")


def make_graph(url, *names, **options):
    builder = GraphBuilder()
    for name in names:
        builder.add_node(make_agent(url, tools=(), name=name), name)
    builder.add_edge(names[0], names[1])
    builder.add_edge(names[0], names[2])
    builder.set_graph_id("shop")
    builder.set_max_node_executions(options.get("max_node_executions", 10))
    return builder.build()


@pytest.mark.parametrize(
    "run_team",
    [lambda team: team(QUESTION), lambda team: asyncio.run(stream_team(team))],
    ids=["sync", "streamed"],
)
def test_a_graph(tmp_path, run_team):
    """The graph is the run; its nodes are at the same time where they may be."""
    script = [Reply(content=ANSWER)] * 3

    def program(url):
        result = run_team(make_graph(url, "first", "left", "right"))
        assert result.status.value == "completed"

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    lines = draw(recorded)
    assert lines[:3] == ["invoke_agent shop", "  invoke_agent first", "    chat m"]
    names = ["  invoke_agent left", "  invoke_agent right"]
    assert sorted(lines[3:]) == ["    chat m"] * 2 + names
    check_end(recorded, "terminated", "ok", "ok", "ok")


def test_a_graph_that_stops_at_its_limit(tmp_path):
    """Its limit truncates the run."""

    def program(url):
        make_graph(url, "first", "left", "right", max_node_executions=1)(QUESTION)

    script = [Reply(content=ANSWER)]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    check_end(recorded, "truncated", "ok")
    assert read_reason(recorded) == "Max node executions reached: 1"


@pytest.mark.shows("state")
def test_states(tmp_path):
    """An agent's state at its start, and after a tool has changed it."""

    @strands.tool(context=True)
    def stock(sku: str, tool_context) -> str:
        """How many of an article are there."""
        seen = tool_context.agent.state.get("seen")
        tool_context.agent.state.set("seen", [*seen, sku])
        return f"{sku}: 3"

    call = ToolCall(id="c1", name="stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content=ANSWER)]
    recorded = record(
        tmp_path,
        lambda url: run(make_agent(url, tools=(stock,), state={"seen": [], "who": "me"})),
        script,
    )
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool stock #c1",
        "  state shop",
        "  chat m",
    ]
    assert read_states(recorded) == [
        ("shop", {"seen": [], "who": "me"}),
        ("shop", {"seen": ["A7"], "who": "me"}),
    ]


@pytest.mark.parametrize("run", [run, run_async])
def test_a_tool_that_fails(tmp_path, run):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]

    def program(url):
        assert run(make_agent(url, tools=(broken_stock,))) == "No shelf."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert "no shelf for A7" in recorded.requests[1]["messages"][-1]["content"]
    told = "Error: RuntimeError - no shelf for A7"
    assert list_ran(recorded) == [("broken_stock", "c1", {"sku": "A7"}, told)]
    assert list_errors(recorded) == ["RuntimeError"]
    check_end(recorded, "terminated", "ok", "ok")


def list_errors(recorded):
    found = [span.attributes.get(semconv.ERROR_TYPE) for span in recorded.spans]
    return [each for each in found if each]


def test_a_tool_that_says_it_failed(tmp_path):
    """A result whose status is an error is one; a tool that there is not does not run."""

    def stock(sku: str) -> dict:
        """How many of an article are there."""
        return {"status": "error", "content": [{"text": f"no {sku}"}]}

    calls = [CALL, ToolCall(id="c2", name="unknown", arguments="{}")]
    script = [Reply(tool_calls=calls), Reply(content=ANSWER)]
    recorded = record(tmp_path, lambda url: run(make_agent(url, tools=(stock,))), script)
    check_wire(recorded, script)
    assert list_ran(recorded) == [("stock", "c1", {"sku": "A7"}, "no A7")]
    assert list_errors(recorded) == ["RuntimeError"]


CALL = ToolCall(id="c1", name="stock", arguments='{"sku": "A7"}')


def test_a_tool_that_is_run_again(tmp_path):
    """A hook may want another try; each is a step."""
    tries = []

    def try_again(event: AfterToolCallEvent):
        tries.append(event)
        event.retry = len(tries) < 2

    script = [Reply(tool_calls=[CALL]), Reply(content=ANSWER)]
    recorded = record(tmp_path, lambda url: run(make_agent(url, hooks=[try_again])), script)
    check_wire(recorded, script)
    assert list_ran(recorded) == [("stock", "c1", {"sku": "A7"}, "A7: 3")] * 2


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(make_agent(url).invoke_async(QUESTION))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("cancel")
def test_cancelled_by_the_program(tmp_path):
    """The agent's own `cancel`, which raises nothing."""

    def stock(sku: str) -> str:
        """How many of an article are there."""
        agents[0].cancel()
        return f"{sku}: 3"

    agents = []

    def program(url):
        agents.append(make_agent(url, tools=(stock,)))
        assert agents[0](QUESTION).stop_reason == "cancelled"

    script = [Reply(tool_calls=[CALL])]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    check_end(recorded, "abandoned", "ok")


def test_a_tool_that_ends_the_run(tmp_path):
    """An agent that a tool has stop after the tools is done."""

    @strands.tool(context=True)
    def stock(sku: str, tool_context) -> str:
        """How many of an article are there."""
        tool_context.agent.cancel(message="Enough.", after_current_tools=True)
        return f"{sku}: 3"

    def program(url):
        assert run(make_agent(url, tools=(stock,))) == "Enough."

    script = [Reply(tool_calls=[CALL])]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    check_end(recorded, "terminated", "ok")


def test_a_limit(tmp_path):
    """A run that may take no more turns is truncated."""

    def program(url):
        assert make_agent(url)(QUESTION, limits={"turns": 1}).stop_reason == "limit_turns"

    recorded = record(tmp_path, program, TWO_TURNS[:1])
    check_wire(recorded, TWO_TURNS[:1])
    check_end(recorded, "truncated", "ok")
    assert read_reason(recorded) == "limit_turns"


@pytest.mark.parametrize("is_one_run", [False, True])
def test_an_interrupt(tmp_path, is_one_run):
    """It truncates the run; what resumes it is another of the same conversation."""

    def approve(event: BeforeToolCallEvent):
        if event.interrupt("approve") != "yes":
            event.cancel_tool = "no"

    def ask(url):
        agent = make_agent(url, hooks=[approve])
        result = agent(QUESTION)
        assert result.stop_reason == "interrupt"
        answers = [
            {"interruptResponse": {"interruptId": each.id, "response": "yes"}}
            for each in result.interrupts
        ]
        assert read(agent(answers)) == ANSWER

    def program(url):
        if is_one_run:
            with starpo_trace.trajectory("mine"):
                ask(url)
        else:
            ask(url)

    script = [Reply(tool_calls=[CALL]), Reply(content=ANSWER)]
    recorded = record(tmp_path, program, script)
    assert list_ran(recorded) == [("stock", "c1", {"sku": "A7"}, "A7: 3")]
    ends = [row["end"] for row in sorted(recorded.trajectories, key=lambda r: r["started_ns"])]
    if is_one_run:
        check_wire(recorded, script)
        assert ends == ["terminated"]
    else:
        assert [row["num_turns"] for row in recorded.trajectories] == [1, 1]
        assert recorded.rejected == []
        assert ends == ["truncated", "terminated"]
        assert len({row["conversation_id"] for row in recorded.trajectories}) == 1


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [run, run_async, run_streamed])
def test_a_server_that_fails(tmp_path, run):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path, lambda url: run(make_agent(url)), [Reply(status=500)], raises=Exception
    )
    check_end(recorded, "error", "error")


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_that_is_not_read_to_its_end(tmp_path, how):
    """The run ends where the program has seen enough."""

    async def read_some(url):
        stream = make_agent(url).stream_async(QUESTION)
        async for event in stream:
            if "data" in event:
                break
        if how == "closed":
            await stream.aclose()
        del stream
        gc.collect()
        await asyncio.sleep(0.1)
        assert starpo_trace.current_trajectory() is None

    recorded = record(tmp_path, lambda url: asyncio.run(read_some(url)), TWO_TURNS[:1])
    assert len(recorded.trajectories) == 1
    assert recorded.trajectories[0]["end"] == "terminated"


def test_structured_output(tmp_path):
    """The model that the answer must fit is a tool of the framework's."""
    from pydantic import BaseModel

    class Shelf(BaseModel):
        """A shelf."""

        sku: str

    call = ToolCall(id="c1", name="Shelf", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call])]

    def program(url):
        result = make_agent(url, tools=())(QUESTION, structured_output_model=Shelf)
        assert result.structured_output == Shelf(sku="A7")

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert [tool[:2] for tool in list_ran(recorded)] == [("Shelf", "c1")]
    check_end(recorded, "terminated", "ok")


def test_a_window_of_messages(tmp_path):
    """A conversation manager that forgets: each prompt is what the server saw."""
    script = [Reply(content=f"{number}.") for number in range(4)]

    def program(url):
        manager = SlidingWindowConversationManager(window_size=2)
        agent = make_agent(url, tools=(), conversation_manager=manager)
        for _ in range(4):
            agent(QUESTION)

    def named(url):
        with starpo_trace.trajectory("mine"):
            program(url)

    recorded = record(tmp_path, named, script)
    check_wire(recorded, script)
    assert len(recorded.requests[-1]["messages"]) < 2 * len(script)


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own."""

    async def run_three(url):
        results = await asyncio.gather(
            *(make_agent(url, name=f"a{i}").invoke_async(QUESTION) for i in range(3))
        )
        assert [read(each) for each in results] == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


def test_threads(tmp_path):
    """Each thread's run is a trajectory of its own."""

    def program(url):
        threads = [
            threading.Thread(target=run, args=(make_agent(url, name=f"a{i}"),)) for i in range(3)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    recorded = record(tmp_path, program, answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


KEPT = ("num_turns", "num_steps", "num_tool_calls", "end", "usable_for", "text", "input_node")


def test_own_spans_change_no_row(tmp_path, monkeypatch):
    """Spans that it writes between ours, to another store or to the same one, change no row."""

    def write_apart():
        return TracerProvider()

    def write_here():
        processor = get_runtime().get_tracer().span_processor
        return TracerProvider(active_span_processor=processor, shutdown_on_exit=False)

    def make_program(make_provider):
        def program(url):
            if make_provider is not None:
                own = strands_tracer.Tracer()
                own.tracer = make_provider().get_tracer("strands.telemetry.tracer")
                monkeypatch.setattr(strands_tracer, "_tracer_instance", own)
            agent = make_agent(url)
            assert run(agent) == ANSWER
            assert strands_tracer.get_tracer() is agent.tracer

        return program

    def describe(recorded):
        return [
            {key: value for key, value in row.items() if key in KEPT}
            for row in (*recorded.trajectories, *recorded.turns)
        ]

    alone, apart, here = (
        record(tmp_path / str(number), make_program(make_provider))
        for number, make_provider in enumerate((None, write_apart, write_here))
    )
    check_wire(alone)
    assert describe(apart) == describe(alone)
    assert describe(here) == describe(alone)
    assert len({span.trace_id for span in here.spans}) == 1
    assert len({span.trace_id for span in apart.spans}) == 1
    assert list_ran(here) == RAN_PARSED
    assert "execute_event_loop_cycle" in {span.name for span in here.spans}
    reasons = sorted(row["reason"] for row in here.rejected)
    assert reasons == ["container"] * 2 + ["duplicate_llm_call"] * 2


def test_put_back():
    """Afterwards the classes and functions are the ones that were there."""
    places = [
        (strands.Agent, "stream_async"),
        (strands.Agent, "structured_output_async"),
        (Swarm, "stream_async"),
        (SwarmState, "should_continue"),
        (Graph, "stream_async"),
        (GraphState, "should_continue"),
        (HookRegistry, "invoke_callbacks_async"),
        (_executor, "_run_tool"),
        (strands_tracer.Tracer, "start_tool_call_span"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
