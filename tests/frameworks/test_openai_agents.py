"""OpenAI Agents SDK: what its model's server saw is what was recorded."""

import asyncio
import sys
import threading
from dataclasses import dataclass, field

import pytest
from matrix import Framework

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from openai import AsyncOpenAI  # noqa: E402
from scenario import (  # noqa: E402
    ANSWER,
    CALLS,
    LATE,
    QUESTION,
    RAN,
    TWO_TURNS,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_put_back,
    check_trainable,
    check_two_turns,
    check_wire,
    draw,
    list_states,
    list_tools,
    record,
    stock,
)

from starpo_trace import semconv  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(name="OpenAI Agents SDK", packages=("openai-agents",), page="openai_agents")


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return agents.Agent(
        name=name,
        instructions="Be brief.",
        model=agents.OpenAIChatCompletionsModel(model="m", openai_client=client),
        tools=[
            each if hasattr(each, "params_json_schema") else agents.function_tool(each)
            for each in tools
        ],
        **options,
    )


def run_sync(agent):
    return agents.Runner.run_sync(agent, QUESTION).final_output


def run_async(agent):
    return asyncio.run(agents.Runner.run(agent, QUESTION)).final_output


def run_streamed(agent):
    async def read():
        result = agents.Runner.run_streamed(agent, QUESTION)
        async for _ in result.stream_events():
            pass
        return result.final_output

    return asyncio.run(read())


@pytest.fixture(params=[True, False], ids=["traced", "untraced"], autouse=True)
def tracing(request):
    """Its own tracing switched off must change nothing."""
    agents.set_trace_processors([])
    agents.set_tracing_disabled(not request.param)


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    "run", [run_sync, pytest.param(run_async, marks=pytest.mark.shows("async"))]
)
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))))
    assert answers == [ANSWER]
    check_two_turns(recorded)
    check_trainable(recorded)


@pytest.mark.shows("streaming")
def test_streamed(tmp_path):
    """The same from a stream."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run_streamed(make_agent(url))))
    assert answers == [ANSWER]
    assert all(request["stream"] for request in recorded.requests)
    check_wire(recorded)
    check_trainable(recorded)
    assert list_tools(recorded) == RAN
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize(
    "run", [run_sync, pytest.param(run_streamed, marks=pytest.mark.shows("streaming"))]
)
def test_an_agent_as_a_tool(tmp_path, run):
    """Its run is inside of the tool that it is."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments='{"input": "A7?"}')]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        inner = make_agent(url, tools=(), name="inner")
        tool = inner.as_tool(tool_name="ask_shop", tool_description="Asks.")
        run(make_agent(url, tools=(tool,)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool ask_shop #c1",
        "    invoke_agent inner",
        "      chat m",
        "  chat m",
    ]


HANDOFF = ToolCall(id="c1", name="transfer_to_expert", arguments="{}")
BACK = ToolCall(id="c2", name="transfer_to_shop", arguments="{}")


def make_desk(url, **options):
    """An agent that can hand off to another, which has the tool, and can hand back."""
    expert = make_agent(url, name="expert", **options)
    shop = make_agent(url, tools=(), handoffs=[expert])
    expert.handoffs.append(shop)
    return shop


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize(
    "run",
    [
        run_sync,
        pytest.param(run_async, marks=pytest.mark.shows("async")),
        pytest.param(run_streamed, marks=pytest.mark.shows("streaming")),
    ],
)
def test_a_handoff(tmp_path, run):
    """What the agent does that was handed to is in its own span, until it hands back."""
    script = [
        Reply(tool_calls=[HANDOFF]),
        Reply(tool_calls=[CALLS[0]]),
        Reply(tool_calls=[BACK]),
        Reply(content=ANSWER),
    ]
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_desk(url))), script)
    assert answers == [ANSWER]
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool transfer_to_expert #c1",
        "  invoke_agent expert",
        "    chat m",
        "    execute_tool stock #call_a",
        "    chat m",
        "    execute_tool transfer_to_shop #c2",
        "  invoke_agent shop",
        "    chat m",
    ]
    assert sorted(each[3] for each in list_tools(recorded)) == [
        "A7: 3",
        '{"assistant": "expert"}',
        '{"assistant": "shop"}',
    ]


def test_a_handoff_that_is_refused(tmp_path):
    """Of two at once the second does not happen, and is no step."""
    script = [Reply(tool_calls=[HANDOFF, BACK]), Reply(content=ANSWER)]

    def program(url):
        others = [make_agent(url, name=name) for name in ("expert", "shop")]
        run_sync(make_agent(url, name="desk", tools=(), handoffs=others))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent desk",
        "  chat m",
        "  execute_tool transfer_to_expert #c1",
        "  invoke_agent expert",
        "    chat m",
    ]


def test_a_handoff_inside_of_a_tool(tmp_path):
    """It is part of the agent that is the tool."""
    script = [
        Reply(tool_calls=[ToolCall(id="c0", name="ask", arguments='{"input": "A7?"}')]),
        Reply(tool_calls=[HANDOFF]),
        Reply(content="Three."),
        Reply(content=ANSWER),
    ]

    def program(url):
        tool = make_desk(url).as_tool(tool_name="ask", tool_description="Asks.")
        run_sync(make_agent(url, name="outer", tools=(tool,)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent outer",
        "  chat m",
        "  execute_tool ask #c0",
        "    invoke_agent shop",
        "      chat m",
        "      execute_tool transfer_to_expert #c1",
        "      invoke_agent expert",
        "        chat m",
        "  chat m",
    ]


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [run_sync, run_streamed])
def test_a_server_that_fails_after_a_handoff(tmp_path, run):
    """The agent that was handed to has the error, and so has the run."""
    script = [Reply(tool_calls=[HANDOFF]), Reply(status=500)]
    recorded = record(tmp_path, lambda url: run(make_desk(url)), script, raises=Exception)
    check_end(recorded, "error", "ok", "error")
    failed = [span.name for span in recorded.spans if semconv.ERROR_TYPE in span.attributes]
    assert failed == ["invoke_agent shop", "invoke_agent expert", "chat m"]


@dataclass
class Cart:
    """What a run's tools share."""

    skus: list[str] = field(default_factory=list)


@dataclass
class Till(Cart):
    """The same with something that is no data."""

    lock: object = field(default_factory=threading.Lock)


def put(context: agents.RunContextWrapper[Cart], sku: str) -> str:
    """Puts an article into the cart."""
    context.context.skus.append(sku)
    return "Put."


@pytest.mark.shows("state")
@pytest.mark.parametrize("streams", [False, True])
def test_the_context_of_a_run(tmp_path, streams):
    """Recorded at its start and where a tool changed it; one that is no data is not."""
    call = ToolCall(id="c1", name="put", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call, CALLS[0]]), Reply(content=ANSWER)] * 2

    async def run_both(url):
        agent = make_agent(url, tools=(put, stock))
        for cart in (Cart(skus=["B8"]), Till()):
            if streams:
                result = agents.Runner.run_streamed(agent, QUESTION, context=cart)
                async for _ in result.stream_events():
                    pass
            else:
                await agents.Runner.run(agent, QUESTION, context=cart)

    recorded = record(tmp_path, lambda url: asyncio.run(run_both(url)), script)
    check_wire(recorded, script, num_trajectories=2)
    assert list_states(recorded) == [
        ("context", {"skus": ["B8"]}),
        ("context", {"skus": ["B8", "A7"]}),
    ]


def test_a_tool_that_fails(tmp_path):
    """The model is told what the framework tells it, and so is the step."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]
    recorded = record(
        tmp_path, lambda url: run_sync(make_agent(url, tools=(broken_stock,))), script
    )
    assert [turn["outcome"] for turn in recorded.turns] == ["ok", "ok"]
    assert list_tools(recorded)[0][3].startswith("An error occurred while running the tool")


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(agents.Runner.run(make_agent(url), QUESTION))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("error")
def test_a_server_that_fails(tmp_path):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path, lambda url: run_sync(make_agent(url)), [Reply(status=500)], raises=Exception
    )
    check_end(recorded, "error", "error")


@pytest.mark.parametrize("run", [run_sync, run_async, run_streamed])
def test_too_many_turns(tmp_path, run):
    """A limit on turns cuts the run short; the program gets its exception."""

    def limit(function):
        return lambda *args, **kwargs: function(*args, max_turns=1, **kwargs)

    def program(url):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("run", "run_sync", "run_streamed"):
                patch.setattr(agents.Runner, name, limit(getattr(agents.Runner, name)))
            run(make_agent(url))

    recorded = record(tmp_path, program, TWO_TURNS[:1], raises=agents.MaxTurnsExceeded)
    check_end(recorded, "truncated", "ok")


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own."""

    async def run_three(url):
        results = await asyncio.gather(
            *(agents.Runner.run(make_agent(url, name=f"a{i}"), QUESTION) for i in range(3))
        )
        assert [each.final_output for each in results] == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


def test_put_back():
    """Afterwards the methods and functions are the ones that were there."""
    runner, home = agents.run.AgentRunner, sys.modules.get("agents.run_internal.run_loop")
    places = [(runner, "run"), (runner, "run_streamed")]
    if home is None:  # older versions
        places += [(runner, "_run_single_turn"), (agents._run_impl.RunImpl, "execute_handoffs")]
    else:
        places += [(home, "run_single_turn"), (agents.run, "run_single_turn")]
    check_put_back(*places)
