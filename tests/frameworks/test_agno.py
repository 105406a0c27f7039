"""Agno: what its model's server saw is what was recorded."""

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("agno", reason="agno is not installed")
pytest.importorskip("agno.models.openai", reason="agno's OpenAI models are not installed")

from agno.agent import Agent
from agno.models.openai import OpenAIChat
from agno.run import RunContext
from agno.team import Team
from agno.tools.function import FunctionCall
from matrix import Framework
from scenario import (
    ANSWER,
    LATE,
    QUESTION,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_put_back,
    check_trainable,
    check_wire,
    draw,
    list_states,
    list_tools,
    record,
    stock,
)

from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(name="Agno", packages=("agno",), page="agno")
TOOLS_RAN = [
    ("stock", "call_a", '{"sku":"A7"}', "A7: 3"),
    ("stock", "call_b", '{"sku":"B8"}', "B8: 3"),
]
"""What `list_tools` gives; Agno reads the arguments before a tool has them."""


async def async_stock(sku: str) -> str:
    """How many of an article are there."""
    await asyncio.sleep(0)
    return f"{sku}: 3"


def stock_in_pieces(sku: str) -> Iterator[str]:
    """How many of an article are there."""
    yield f"{sku}: "
    yield "3"


async_stock.__name__ = stock_in_pieces.__name__ = "stock"


def make_model(base_url):
    return OpenAIChat(id="m", base_url=base_url, api_key="none", max_retries=0)


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return Agent(
        name=name, model=make_model(base_url), tools=list(tools), telemetry=False, **options
    )


def make_team(base_url, **options):
    member = make_agent(base_url, name="inner", id="inner", tools=())
    return Team(
        name="shop", members=[member], model=make_model(base_url), telemetry=False, **options
    )


def run_sync(agent):
    return agent.run(QUESTION).content


def run_streamed(agent):
    return "".join(list_contents(agent.run(QUESTION, stream=True)))


def run_async(agent):
    async def run():
        return (await agent.arun(QUESTION)).content

    return asyncio.run(run())


def run_async_streamed(agent):
    async def read():
        return [event async for event in agent.arun(QUESTION, stream=True)]

    return "".join(list_contents(asyncio.run(read())))


def list_contents(events):
    return [event.content for event in events if event.event == "RunContent" and event.content]


ASYNC = pytest.mark.shows("async")
STREAMING = pytest.mark.shows("streaming")
RUNS = [
    run_sync,
    pytest.param(run_streamed, marks=STREAMING),
    pytest.param(run_async, marks=ASYNC),
    pytest.param(run_async_streamed, marks=(ASYNC, STREAMING)),
]


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("tool", [stock, stock_in_pieces])
def test_two_turns(tmp_path, run, tool):
    """Two tool calls, each joined to its step, however the agent is run and its tool answers."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url, tools=[tool]))))
    assert answers[0].endswith(ANSWER)
    check_wire(recorded)
    check_trainable(recorded)
    assert list_tools(recorded) == TOOLS_RAN
    assert draw(recorded)[:2] == ["invoke_agent shop", "  chat m"]
    assert sorted(draw(recorded)[2:4]) == [
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert draw(recorded)[4:] == ["  chat m"]
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.parametrize("run", [run_async, run_async_streamed])
def test_an_async_tool(tmp_path, run):
    """It is a step as any other; in a sync run, Agno has none."""
    recorded = record(tmp_path, lambda url: run(make_agent(url, tools=[async_stock])))
    check_wire(recorded)
    assert list_tools(recorded) == TOOLS_RAN


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", RUNS)
def test_a_team(tmp_path, run):
    """A member's run is inside of the tool call with which the leader asked for it."""
    asked = '{"member_id": "inner", "task": "A7?"}'
    call = ToolCall(id="c1", name="delegate_task_to_member", arguments=asked)
    script = [Reply(tool_calls=[call]), Reply(content="Three."), Reply(content="It has three.")]
    recorded = record(tmp_path, lambda url: run(make_team(url)), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool delegate_task_to_member #c1",
        "    invoke_agent inner",
        "      chat m",
        "  chat m",
    ]
    assert [result for *_, result in list_tools(recorded)] == ["Three."]


@pytest.mark.parametrize("run", RUNS)
def test_a_tool_that_fails(tmp_path, run):
    """The step has the error, the model is told, and the run goes on."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]
    recorded = record(tmp_path, lambda url: run(make_agent(url, tools=[broken_stock])), script)
    check_wire(recorded, script)
    failed = next(span for span in recorded.spans if span.name == "execute_tool broken_stock")
    assert failed.attributes["error.type"] == "agno.exceptions.AgnoError"
    assert recorded.requests[1]["messages"][-1]["content"] == "no shelf for A7"
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("make", [make_agent, make_team])
def test_a_server_that_fails(tmp_path, run, make):
    """Agno raises nothing; the run is an error nevertheless."""
    recorded = record(tmp_path, lambda url: run(make(url)), [Reply(status=500)])
    check_end(recorded, "error", "error")


@pytest.mark.shows("cancel")
def test_cancelled_task(tmp_path):
    """A run whose task is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(make_agent(url).arun(QUESTION))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("cancel")
def test_cancelled_run(tmp_path):
    """So is one that Agno itself was asked to cancel, though nothing is raised."""

    async def cancel(agent):
        task = asyncio.ensure_future(agent.arun(QUESTION, run_id="r1"))
        await asyncio.sleep(0.5)
        await agent.acancel_run("r1")
        assert (await task).status == "CANCELLED"

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel(make_agent(url))),
        [Reply(content="late", delay_s=1.0)],
    )
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, with its session as its conversation."""

    async def run_three(url):
        agents = [make_agent(url, name=f"a{i}", session_id=f"s{i}") for i in range(3)]
        outputs = await asyncio.gather(*(agent.arun(QUESTION) for agent in agents))
        assert [output.content.endswith(ANSWER) for output in outputs] == [True] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    roots = [span for span in recorded.spans if span.parent_id is None]
    assert sorted((s.name, s.attributes["gen_ai.conversation.id"]) for s in roots) == [
        (f"invoke_agent a{i}", f"s{i}") for i in range(3)
    ]


def put(run_context: RunContext, sku: str) -> str:
    """Puts an article into the cart."""
    run_context.session_state["cart"].append(sku)
    return "Put."


@pytest.mark.shows("state")
@pytest.mark.parametrize("run", RUNS)
def test_the_state_of_a_session(tmp_path, run):
    """Recorded at the start of a run and where a tool changed it, without ids of the run."""
    call = ToolCall(id="c1", name="put", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content=ANSWER)]

    def program(url):
        run(make_agent(url, tools=(put,), session_state={"cart": ["B8"]}))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_states(recorded) == [
        ("session_state", {"cart": ["B8"]}),
        ("session_state", {"cart": ["B8", "A7"]}),
    ]


def test_put_back():
    """Afterwards the methods and functions are the ones that were there."""
    from agno.agent import _run as agent_runs
    from agno.team import _run as team_runs

    names = ("_run", "_run_stream", "_arun", "_arun_stream")
    check_put_back(
        *((home, name) for home in (agent_runs, team_runs) for name in names),
        (FunctionCall, "execute"),
        (FunctionCall, "aexecute"),
    )
