"""Haystack: what its model's server saw is what was recorded."""

import asyncio
import json

import pytest

pytest.importorskip("haystack", reason="haystack-ai is not installed")

from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import AgentTool, ComponentTool, Tool, create_tool_from_function
from haystack.utils import Secret
from matrix import Framework
from scenario import (
    ANSWER,
    LATE,
    QUESTION,
    RAN_PARSED,
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
    stock_async,
)

import starpo_trace
from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(name="Haystack", packages=("haystack-ai",), page="haystack")
TREE = [
    *["  chat m"] * 2,
    "  execute_tool stock #call_a",
    "  execute_tool stock #call_b",
]
"""Spans of `TWO_TURNS` below the run, in order of their names."""


def make_tool(function):
    if function is stock_async:
        sync = create_tool_from_function(stock)
        return Tool(
            name="stock",
            description=sync.description,
            parameters=sync.parameters,
            async_function=stock_async,
        )
    return create_tool_from_function(function)


def make_generator(base_url, **options):
    return OpenAIChatGenerator(
        model="m",
        api_base_url=base_url,
        api_key=Secret.from_token("none"),
        max_retries=0,
        **options,
    )


def make_agent(base_url, *, tools=(stock,), **options):
    return Agent(
        chat_generator=make_generator(base_url),
        system_prompt="Be brief.",
        tools=[each if isinstance(each, Tool) else make_tool(each) for each in tools],
        **options,
    )


def ask():
    return [ChatMessage.from_user(QUESTION)]


def run(agent, **options):
    return agent.run(messages=ask(), **options)["last_message"].text


def run_async(agent, **options):
    return asyncio.run(agent.run_async(messages=ask(), **options))["last_message"].text


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    ("run", "tool"),
    [
        (run, stock),
        pytest.param(run_async, stock, marks=pytest.mark.shows("async")),
        pytest.param(run_async, stock_async, marks=pytest.mark.shows("async")),
    ],
    ids=["sync", "async", "async tool"],
)
def test_two_turns(tmp_path, run, tool):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url, tools=(tool,)))))
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert draw(recorded)[0] == "invoke_agent agent"
    assert sorted(draw(recorded)[1:]) == TREE
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("run", [run, run_async])
def test_streamed(tmp_path, run):
    """The same from a stream; the callback gets every chunk."""
    chunks, answers = [], []

    async def collect_async(chunk):
        chunks.append(chunk)

    callback = chunks.append if run is not run_async else collect_async
    recorded = record(
        tmp_path,
        lambda url: answers.append(run(make_agent(url), streaming_callback=callback)),
    )
    assert answers == [ANSWER]
    assert "".join(chunk.content for chunk in chunks).endswith(ANSWER)
    assert all(request["stream"] for request in recorded.requests)
    check_wire(recorded)
    check_trainable(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert sorted(draw(recorded)[1:]) == TREE


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", [run, run_async])
@pytest.mark.parametrize("tool_class", [AgentTool, ComponentTool])
def test_an_agent_as_a_tool(tmp_path, run, tool_class):
    """Its run is inside of the tool that it is, and has its name."""
    arguments = '{"messages": [{"role": "user", "content": [{"text": "A7?"}]}]}'
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments=arguments)]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        inner = make_agent(url, tools=())
        key = "agent" if tool_class is AgentTool else "component"
        tool = tool_class(**{key: inner}, name="ask_shop", description="Asks.")
        assert run(make_agent(url, tools=(tool,))) == "It has three."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_ran(recorded) == [("ask_shop", "c1", json.loads(arguments), "Three.")]
    assert draw(recorded) == [
        "invoke_agent agent",
        "  chat m",
        "  execute_tool ask_shop #c1",
        "    invoke_agent ask_shop",
        "      chat m",
        "  chat m",
    ]


def make_pipeline(base_url):
    pipeline = Pipeline(metadata={"name": "desk"})
    prompt = ChatPromptBuilder(template=[ChatMessage.from_user("{{question}}")])
    pipeline.add_component("prompt", prompt)
    pipeline.add_component("shop", make_agent(base_url))
    pipeline.connect("prompt.prompt", "shop.messages")
    return pipeline


def run_pipeline(pipeline, data):
    return pipeline.run(data)


def run_pipeline_async(pipeline, data):
    return asyncio.run(pipeline.run_async(data))


def stream_pipeline(pipeline, data):
    async def read():
        handle = pipeline.stream(data)
        async for _ in handle:
            pass
        return handle.result

    return asyncio.run(read())


@pytest.mark.parametrize("run", [run_pipeline, run_pipeline_async, stream_pipeline])
def test_a_pipeline(tmp_path, run):
    """A pipeline that has an agent is the run; its agent is named as its component is."""
    answers = []

    def program(url):
        result = run(make_pipeline(url), {"prompt": {"question": QUESTION}})
        answers.append(result["shop"]["last_message"].text)

    recorded = record(tmp_path, program)
    assert answers == [ANSWER]
    check_wire(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert draw(recorded)[:2] == ["invoke_agent desk", "  invoke_agent shop"]
    assert sorted(draw(recorded)[2:]) == ["  " + line for line in TREE]


def test_a_pipeline_without_an_agent(tmp_path):
    """It is no run: its model call is recorded as any other is."""

    def program(url):
        pipeline = Pipeline()
        pipeline.add_component("llm", make_generator(url))
        with starpo_trace.trajectory("mine"):
            pipeline.run({"llm": {"messages": ask()}})

    script = [Reply(content="Three.")]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == ["invoke_agent mine", "  chat m"]


@pytest.mark.parametrize("run", [run, run_async])
def test_a_tool_that_fails(tmp_path, run):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]

    def program(url):
        agent = make_agent(url, tools=(broken_stock,), raise_on_tool_invocation_failure=False)
        assert run(agent) == "No shelf."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert "no shelf for A7" in recorded.requests[1]["messages"][-1]["content"]
    assert list_ran(recorded) == [("broken_stock", "c1", {"sku": "A7"}, None)]
    (tool,) = [span for span in recorded.spans if span.name == "execute_tool broken_stock"]
    assert tool.attributes["error.type"].endswith("ToolInvocationError")
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("error")
def test_a_tool_whose_error_ends_the_run(tmp_path):
    """The program gets the exception, and the run ends with it."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    recorded = record(
        tmp_path,
        lambda url: run(
            make_agent(url, tools=(broken_stock,), raise_on_tool_invocation_failure=True)
        ),
        [Reply(tool_calls=[call])],
        raises=Exception,
    )
    assert type(recorded.error).__name__ == "ToolInvocationError"
    assert [row["end"] for row in recorded.trajectories] == ["error"]


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(make_agent(url).run_async(messages=ask()))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [run, run_async])
def test_a_server_that_fails(tmp_path, run):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path, lambda url: run(make_agent(url)), [Reply(status=500)], raises=Exception
    )
    check_end(recorded, "error", "error")


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, of one agent too."""

    async def run_three(url):
        agent = make_agent(url)
        results = await asyncio.gather(*(agent.run_async(messages=ask()) for _ in range(3)))
        assert [each["last_message"].text for each in results] == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


@pytest.mark.shows("state")
@pytest.mark.parametrize("run", [run, run_async])
def test_the_state_of_an_agent(tmp_path, run):
    """What its schema names is recorded at the start and after the step that changed it."""
    call = ToolCall(id="c1", name="count", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content=ANSWER)]

    def count(sku: str) -> dict[str, str | int]:
        """How many of an article are there."""
        return {"sku": sku, "count": 3}

    def program(url):
        told = {"found": {"source": "count"}}
        tool = create_tool_from_function(count, outputs_to_state=told)
        schema = {"shop": {"type": str}, "found": {"type": int}}
        run(make_agent(url, tools=(tool,), state_schema=schema), shop="north")

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_states(recorded) == [
        ("state", {"shop": "north"}),
        ("state", {"shop": "north", "found": 3}),
    ]


def test_put_back():
    """Afterwards the classes and functions are the ones that were there."""
    from haystack.components.agents import tool_calling

    check_put_back(
        (Agent, "run"),
        (Agent, "run_async"),
        (Pipeline, "run"),
        (Pipeline, "run_async"),
        (Pipeline, "run_async_generator"),
        (tool_calling, "_make_context_bound_invoke"),
        (tool_calling, "_make_bounded_invoke_async"),
    )
