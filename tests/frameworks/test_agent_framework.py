"""Microsoft Agent Framework: what its model's server saw is what was recorded."""

import asyncio
import gc

import pytest

pytest.importorskip("agent_framework", reason="agent-framework-core is not installed")
pytest.importorskip("agent_framework_openai", reason="agent-framework-openai is not installed")

from agent_framework import (
    Agent,
    Executor,
    FunctionInvocationContext,
    RawAgent,
    Workflow,
    WorkflowBuilder,
    WorkflowContext,
    handler,
    tool,
)
from agent_framework.observability import disable_instrumentation, enable_instrumentation
from agent_framework_openai import OpenAIChatCompletionClient
from matrix import Framework
from openai import AsyncOpenAI
from scenario import (
    ANSWER,
    LATE,
    QUESTION,
    RAN_PARSED,
    TWO_TURNS,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_put_back,
    check_trainable,
    check_wire,
    draw,
    list_ran,
    list_states,
    record,
    stock,
)

from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(
    name="Microsoft Agent Framework",
    packages=("agent-framework-core", "agent-framework-openai"),
    page="agent_framework",
)
TREE = [
    *["  chat m"] * 2,
    "  execute_tool stock #call_a",
    "  execute_tool stock #call_b",
]
"""Spans of `TWO_TURNS` below the run, in order of their names."""


def make_agent(base_url, *, tools=(stock,), name="shop"):
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return Agent(
        OpenAIChatCompletionClient(model="m", async_client=client),
        "Be brief.",
        name=name,
        tools=[each if hasattr(each, "invoke") else tool(each) for each in tools],
    )


@pytest.fixture(params=[True, False], ids=["traced", "untraced"], autouse=True)
def telemetry(request):
    """Its own telemetry switched off must change nothing."""
    if not request.param:
        disable_instrumentation()
    yield
    enable_instrumentation(force=True)


def run(agent):
    async def ask():
        return (await agent.run(QUESTION)).text

    return asyncio.run(ask())


def run_streamed(agent):
    async def read():
        return "".join([update.text async for update in agent.run(QUESTION, stream=True)])

    return asyncio.run(read())


def run_to_the_end(agent):
    async def read():
        return (await agent.run(QUESTION, stream=True).get_final_response()).text

    return asyncio.run(read())


RUNS = [
    run,
    pytest.param(run_streamed, marks=pytest.mark.shows("streaming")),
    pytest.param(run_to_the_end, marks=pytest.mark.shows("streaming")),
]


@pytest.mark.pictured
@pytest.mark.shows("llm", "async", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", RUNS)
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call; awaited or streamed."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))))
    assert answers[0].endswith(ANSWER)
    check_wire(recorded)
    check_trainable(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == TREE
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", RUNS)
def test_an_agent_as_a_tool(tmp_path, run):
    """Its run is inside of the tool that it is."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments='{"task": "A7?"}')]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        inner = make_agent(url, tools=(), name="inner")
        outer = make_agent(url, tools=(inner.as_tool(name="ask_shop"),))
        assert run(outer) == "It has three."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_ran(recorded) == [("ask_shop", "c1", {"task": "A7?"}, "Three.")]
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool ask_shop #c1",
        "    invoke_agent inner",
        "      chat m",
        "  chat m",
    ]


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("streams", [False, True])
def test_a_workflow(tmp_path, streams):
    """A workflow that has agents is the run, and they are inside of it."""
    script = [Reply(content="Three."), Reply(content="Checked.")]

    async def work(url):
        first, second = (make_agent(url, tools=(), name=name) for name in ("first", "second"))
        builder = WorkflowBuilder(name="desk", start_executor=first)
        workflow = builder.add_edge(first, second).build()
        if not streams:
            await workflow.run(QUESTION)
            return
        async for _ in workflow.run(QUESTION, stream=True):
            pass

    recorded = record(tmp_path, lambda url: asyncio.run(work(url)), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent desk",
        "  invoke_agent first",
        "    chat m",
        "  invoke_agent second",
        "    chat m",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"


def test_a_session(tmp_path):
    """Two runs of a session are two trajectories of one conversation."""
    script = [Reply(content="Three."), Reply(content="Yes.")]

    async def talk(url):
        agent = make_agent(url, tools=())
        session = agent.create_session(session_id="thread-1")
        await agent.run(QUESTION, session=session)
        await agent.run("Sure?", session=session)

    recorded = record(tmp_path, lambda url: asyncio.run(talk(url)), script)
    assert len(recorded.requests[1]["messages"]) == 4
    assert [span.name for span in recorded.spans] == ["invoke_agent shop", "chat m"] * 2
    runs = [span for span in recorded.spans if span.parent_id is None]
    assert [run.attributes["gen_ai.conversation.id"] for run in runs] == ["thread-1"] * 2


def test_a_tool_that_fails(tmp_path):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]
    recorded = record(tmp_path, lambda url: run(make_agent(url, tools=(broken_stock,))), script)
    check_wire(recorded, script)
    assert list_ran(recorded) == [("broken_stock", "c1", {"sku": "A7"}, None)]
    (step,) = [span for span in recorded.spans if span.name == "execute_tool broken_stock"]
    assert step.attributes["error.type"] == "RuntimeError"
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("streams", [False, True])
def test_cancelled(tmp_path, streams):
    """A run that is cancelled while its model answers is abandoned."""

    async def ask(agent):
        if not streams:
            await agent.run(QUESTION)
            return
        async for _ in agent.run(QUESTION, stream=True):
            pass

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(ask(make_agent(url)))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_fails(tmp_path, run):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path, lambda url: run(make_agent(url)), [Reply(status=500)], raises=Exception
    )
    check_end(recorded, "error", "error")


def test_a_stream_that_is_closed(tmp_path):
    """Who has seen enough and closes the stream ends the run; what follows is no part of it."""

    async def peek(url):
        async with make_agent(url).run(QUESTION, stream=True) as stream:
            async for _ in stream:
                break
        await make_agent(url, tools=(), name="next").run(QUESTION)

    script = [TWO_TURNS[0], Reply(content="Three.")]
    recorded = record(tmp_path, lambda url: asyncio.run(peek(url)), script)
    assert [line for line in draw(recorded) if "agent" in line] == [
        "invoke_agent shop",
        "invoke_agent next",
    ]
    assert len(recorded.trajectories) == 2


@pytest.mark.parametrize("pulls", [0, 1])
def test_a_stream_that_is_dropped(tmp_path, pulls):
    """A stream that nobody has any more has ended."""

    async def peek(url):
        stream = make_agent(url).run(QUESTION, stream=True)
        for _ in range(pulls):
            await anext(stream)
        del stream
        gc.collect()
        await make_agent(url, tools=(), name="next").run(QUESTION)

    script = [*TWO_TURNS[:pulls], Reply(content="Three.")]
    recorded = record(tmp_path, lambda url: asyncio.run(peek(url)), script)
    assert [line for line in draw(recorded) if "agent" in line] == [
        "invoke_agent shop",
        "invoke_agent next",
    ]
    first, _ = [span for span in recorded.spans if span.parent_id is None]
    assert first.end_ns < max(span.end_ns for span in recorded.spans)


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, of one agent too."""

    async def run_three(url):
        agent = make_agent(url)
        results = await asyncio.gather(*(agent.run(QUESTION) for _ in range(3)))
        assert [each.messages[-1].text for each in results] == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


@pytest.mark.shows("state")
@pytest.mark.parametrize("streams", [False, True])
def test_the_state_of_a_session(tmp_path, streams):
    """Recorded at the start of a run and where a tool changed it, without the messages."""
    call = ToolCall(id="c1", name="put", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content=ANSWER)]

    async def talk(url):
        def put(ctx: FunctionInvocationContext, sku: str) -> str:
            """Puts an article into the cart."""
            ctx.session.state["cart"].append(sku)
            return "Put."

        agent = make_agent(url, tools=(put,))
        session = agent.create_session()
        session.state["cart"] = ["B8"]
        if not streams:
            await agent.run(QUESTION, session=session)
            return
        async for _ in agent.run(QUESTION, session=session, stream=True):
            pass

    recorded = record(tmp_path, lambda url: asyncio.run(talk(url)), script)
    check_wire(recorded, script)
    assert list_states(recorded) == [
        ("session", {"cart": ["B8"]}),
        ("session", {"cart": ["B8", "A7"]}),
    ]


@pytest.mark.shows("state")
def test_the_state_that_a_workflow_shares(tmp_path):
    """Recorded as the next of its executors see it, where one has changed it."""

    class Counter(Executor):
        @handler
        async def count(self, asked: str, ctx: WorkflowContext[str]) -> None:
            ctx.set_state("asked", [asked])
            await ctx.send_message(asked)

    async def work(url):
        counter = Counter(id="counter")
        shop = make_agent(url, tools=())
        builder = WorkflowBuilder(name="desk", start_executor=counter)
        await builder.add_edge(counter, shop).build().run(QUESTION)

    script = [Reply(content="Three.")]
    recorded = record(tmp_path, lambda url: asyncio.run(work(url)), script)
    check_wire(recorded, script)
    assert list_states(recorded) == [("shared", {"asked": [QUESTION]})]


def test_put_back():
    """Afterwards the methods are the ones that were there."""
    owners = [(Agent, "run"), (RawAgent, "run"), (Workflow, "run"), (type(tool(stock)), "invoke")]
    check_put_back(*owners)
