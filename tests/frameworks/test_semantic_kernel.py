"""Semantic Kernel: what its model's server saw is what was recorded."""

import asyncio
import gc
import sys
from typing import Annotated, Any

import pytest
from matrix import Framework

pytest.importorskip("semantic_kernel", reason="semantic-kernel is not installed")

from openai import AsyncOpenAI
from opentelemetry.sdk.trace import TracerProvider
from scenario import (
    ANSWER,
    LATE,
    QUESTION,
    RAN,
    TWO_TURNS,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_trainable,
    check_wire,
    draw,
    list_tools,
    record,
    stock,
    stock_async,
)
from semantic_kernel import Kernel
from semantic_kernel.agents import (
    AgentGroupChat,
    ChatCompletionAgent,
    ChatHistoryAgentThread,
    ConcurrentOrchestration,
    GroupChatOrchestration,
    HandoffOrchestration,
    OpenAIResponsesAgent,
    OrchestrationHandoffs,
    RoundRobinGroupChatManager,
    SequentialOrchestration,
)
from semantic_kernel.agents.orchestration.group_chat import GroupChatManager
from semantic_kernel.agents.orchestration.orchestration_base import OrchestrationBase
from semantic_kernel.agents.runtime import InProcessRuntime
from semantic_kernel.agents.runtime.in_process import in_process_runtime
from semantic_kernel.agents.strategies import TerminationStrategy
from semantic_kernel.connectors.ai import (
    FunctionChoiceBehavior,
    PromptExecutionSettings,
    chat_completion_client_base,
)
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.contents import ChatHistory
from semantic_kernel.filters import AutoFunctionInvocationContext, FilterTypes
from semantic_kernel.functions import (
    KernelArguments,
    KernelPlugin,
    kernel_function,
)
from semantic_kernel.functions.kernel_function import KernelFunction
from semantic_kernel.prompt_template import PromptTemplateConfig
from semantic_kernel.utils.telemetry.agent_diagnostics import (
    decorators as agent_diagnostics,
)
from semantic_kernel.utils.telemetry.model_diagnostics import (
    decorators as model_diagnostics,
)
from semantic_kernel.utils.telemetry.model_diagnostics import function_tracer
from servers_openai import (
    answer_events,
    answer_response,
    make_call,
    make_events,
    make_text,
)
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.frameworks import semantic_kernel as patch
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(name="Semantic Kernel", packages=("semantic-kernel",), page="semantic_kernel")


def name_tool(call):
    """A call as the framework has the model make it: the plugin is part of the name."""
    return ToolCall(id=call.id, name=f"shop-{call.name}", arguments=call.arguments)


SCRIPT = tuple(
    Reply(
        content=reply.content,
        reasoning_content=reply.reasoning_content,
        tool_calls=[name_tool(call) for call in reply.tool_calls],
        usage=reply.usage,
    )
    for reply in TWO_TURNS
)
EXPECTED = [(f"shop-{name}", *rest) for name, *rest in RAN]
TREE = [
    *["  chat m"] * 2,
    "  execute_tool shop-stock #call_a",
    "  execute_tool shop-stock #call_b",
]
"""Spans of `SCRIPT` below the run, in order of their names."""
CALL = ToolCall(id="c1", name="shop-stock", arguments='{"sku": "A7"}')


def make_service(base_url):
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return OpenAIChatCompletion(ai_model_id="m", async_client=client)


def make_plugin(*tools):
    functions = [kernel_function(each, name=each.__name__.removesuffix("_async")) for each in tools]
    return KernelPlugin(name="shop", functions=functions)


def make_agent(base_url, *, tools=(stock,), name="shop", plugins=(), **options):
    plugins = [*plugins, *([make_plugin(*tools)] if tools else [])]
    return ChatCompletionAgent(
        service=make_service(base_url),
        instructions="Be brief.",
        name=name,
        plugins=plugins or None,
        **options,
    )


async def get_response(agent, **options):
    return str(await agent.get_response(QUESTION, **options))


async def invoke(agent, **options):
    return [str(each) async for each in agent.invoke(QUESTION, **options)][-1]


async def invoke_stream(agent, **options):
    pieces = [str(each) async for each in agent.invoke_stream(QUESTION, **options)]
    return "".join(pieces).removeprefix("Let me see.")


@pytest.mark.shows("llm", "async", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    ("run", "tool"),
    [
        pytest.param(get_response, stock, marks=pytest.mark.pictured),
        (invoke, stock_async),
        pytest.param(invoke_stream, stock, marks=pytest.mark.shows("streaming")),
    ],
)
def test_two_turns(tmp_path, run, tool):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(
        tmp_path,
        lambda url: answers.append(asyncio.run(run(make_agent(url, tools=(tool,))))),
        SCRIPT,
    )
    assert answers == [ANSWER]
    check_wire(recorded, SCRIPT)
    check_trainable(recorded, SCRIPT)
    assert list_tools(recorded) == EXPECTED
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == TREE
    check_end(recorded, "terminated", "ok", "ok")


async def ask_kernel(url):
    kernel = make_kernel(url)
    return str(await kernel.invoke_prompt(QUESTION, arguments=KernelArguments(make_settings())))


async def ask_kernel_streamed(url):
    arguments = KernelArguments(make_settings())
    chunks = make_kernel(url).invoke_prompt_stream(QUESTION, arguments=arguments)
    return "".join([str(each[0]) async for each in chunks]).removeprefix("Let me see.")


async def ask_service(url):
    history = ChatHistory()
    history.add_user_message(QUESTION)
    service = make_service(url)
    kernel = make_kernel(url)
    return str(await service.get_chat_message_content(history, make_settings(), kernel=kernel))


def make_kernel(url):
    kernel = Kernel()
    kernel.add_service(make_service(url))
    kernel.add_plugin(make_plugin(stock))
    return kernel


def make_settings():
    return PromptExecutionSettings(function_choice_behavior=FunctionChoiceBehavior.Auto())


@pytest.mark.parametrize("ask", [ask_kernel, ask_kernel_streamed, ask_service])
def test_a_kernel(tmp_path, ask):
    """A kernel whose functions a model calls is a run."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(asyncio.run(ask(url))), SCRIPT)
    assert answers == [ANSWER]
    check_wire(recorded, SCRIPT)
    assert list_tools(recorded) == EXPECTED
    assert draw(recorded)[0] == "invoke_agent kernel"
    assert sorted(draw(recorded)[1:]) == TREE


@pytest.mark.parametrize("run", [get_response, invoke, invoke_stream])
def test_an_agent_of_the_responses_api(tmp_path, run):
    """The same tools, joined to their calls."""
    turns = [
        [make_call(CALL.arguments, id="call_a", name=CALL.name)],
        [make_text("Three of each.")],
    ]
    answers = [
        answer_events(*make_events(*turn)) if run is invoke_stream else answer_response(*turn)
        for turn in turns
    ]

    def program(_url):
        with AnswerServer(*answers) as server:
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            agent = OpenAIResponsesAgent(
                ai_model_id="m", client=client, name="shop", plugins=[make_plugin(stock)]
            )
            assert asyncio.run(run(agent)) == ANSWER
            assert len(server.requests) == 2

    recorded = record(tmp_path, program)
    assert list_tools(recorded) == EXPECTED[:1]
    assert draw(recorded) == ["invoke_agent shop", TREE[0], TREE[2], TREE[1]]
    assert [row["text"] for row in recorded.turns] == [None, ANSWER]
    check_end(recorded, "terminated", "ok", "ok")


@pytest.mark.parametrize("ask", [ask_kernel, get_response])
def test_a_kernel_in_a_run(tmp_path, ask):
    """In a run of the program's own it is no part by itself; an agent is."""

    def program(url):
        with starpo_trace.trajectory("mine"):
            asyncio.run(ask(url if ask is ask_kernel else make_agent(url)))

    recorded = record(tmp_path, program, SCRIPT)
    check_wire(recorded, SCRIPT)
    names = {line.strip().rpartition(" #")[0] or line.strip() for line in draw(recorded)}
    agents = {"invoke_agent mine"} | ({"invoke_agent shop"} if ask is get_response else set())
    assert names == {*agents, "chat m", "execute_tool shop-stock"}


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", [get_response, invoke_stream])
def test_an_agent_as_a_plugin(tmp_path, run):
    """Its run is inside of the function that it is."""
    call = ToolCall(id="c1", name="inner-inner", arguments='{"messages": "A7?"}')
    script = [Reply(tool_calls=[call]), Reply(content="Three."), Reply(content="It has three.")]

    def program(url):
        inner = make_agent(url, tools=(), name="inner")
        outer = make_agent(url, tools=(), plugins=[inner])
        assert asyncio.run(run(outer)) == "It has three."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_tools(recorded) == [("inner-inner", "c1", call.arguments, "Three.")]
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool inner-inner #c1",
        "    invoke_agent inner",
        "      chat m",
        "  chat m",
    ]


async def run_orchestration(orchestration):
    runtime = InProcessRuntime()
    runtime.start()
    result = await orchestration.invoke(task=QUESTION, runtime=runtime)
    value = await result.get(timeout=30)
    await runtime.stop_when_idle()
    return value


def make_team(url, *names, **options):
    return [make_agent(url, name=name, tools=(), description=name, **options) for name in names]


@pytest.mark.shows("sub-agents")
def test_a_sequence(tmp_path):
    """The orchestration is the run, under its name; its agents are in the runtime's tasks."""
    script = [*SCRIPT, Reply(content="Checked.")]

    async def program(url):
        members = [make_agent(url, name="first"), *make_team(url, "second")]
        result = await run_orchestration(SequentialOrchestration(members, name="desk"))
        assert str(result) == "Checked."
        assert starpo_trace.current_trajectory() is None

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == EXPECTED
    lines = draw(recorded)
    assert lines[:2] == ["invoke_agent desk", "  invoke_agent first"]
    assert sorted(lines[2:-2]) == ["  " + line for line in TREE]
    assert lines[-2:] == ["  invoke_agent second", "    chat m"]
    check_end(recorded, "terminated", "ok", "ok", "ok")


def test_agents_at_once(tmp_path):
    """Each is inside of the run, which ends when all have answered."""
    script = [Reply(content=ANSWER, delay_s=delay) for delay in (0.2, 0.0)]

    async def program(url):
        members = make_team(url, "left", "right")
        results = await run_orchestration(ConcurrentOrchestration(members))
        assert [str(each) for each in results] == [ANSWER] * 2

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    assert recorded.rejected == []
    assert len(recorded.turns) == len(recorded.requests) == 2
    assert draw(recorded)[0] == "invoke_agent ConcurrentOrchestration"
    assert sorted(draw(recorded)[1:]) == [
        *["    chat m"] * 2,
        "  invoke_agent left",
        "  invoke_agent right",
    ]
    check_end(recorded, "terminated", "ok", "ok")


def test_a_handoff(tmp_path):
    """A handoff is a function; so is the one that ends the run."""
    script = [
        Reply(tool_calls=[ToolCall(id="h1", name="Handoff-transfer_to_clerk", arguments="{}")]),
        Reply(
            tool_calls=[
                ToolCall(
                    id="h2", name="Handoff-complete_task", arguments='{"task_summary": "Three."}'
                )
            ]
        ),
    ]

    async def program(url):
        handoffs = OrchestrationHandoffs().add("desk", "clerk", "Counts.")
        members = make_team(url, "desk", "clerk")
        team = HandoffOrchestration(members=members, handoffs=handoffs, name="team")
        assert "Three." in str(await run_orchestration(team))

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent team",
        "  invoke_agent desk",
        "    chat m",
        "    execute_tool Handoff-transfer_to_clerk #h1",
        "  invoke_agent clerk",
        "    chat m",
        "    execute_tool Handoff-complete_task #h2",
    ]
    check_end(recorded, "terminated", "ok", "ok")
    assert recorded.trajectories[0]["num_steps"] == 4


def test_a_round_of_agents(tmp_path):
    """A chat whose manager ends it after some rounds is truncated."""
    script = [Reply(content=f"{number}.") for number in range(2)]

    async def program(url):
        team = GroupChatOrchestration(
            members=make_team(url, "left", "right"),
            manager=RoundRobinGroupChatManager(max_rounds=2),
            name="chat",
        )
        assert str(await run_orchestration(team)) == "1."

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent chat",
        "  invoke_agent left",
        "    chat m",
        "  invoke_agent right",
        "    chat m",
    ]
    check_end(recorded, "truncated", "ok", "ok")
    assert read_reason(recorded) == "Maximum rounds reached."


def read_reason(recorded):
    return recorded.spans[0].attributes.get(semconv.TRAJECTORY_END_REASON)


class Approved(TerminationStrategy):
    async def should_agent_terminate(self, agent, history):
        return "approved" in history[-1].content


async def chat_whole(chat):
    return "".join([str(each) async for each in chat.invoke()])


async def chat_streamed(chat):
    return "".join([str(each) async for each in chat.invoke_stream()])


@pytest.mark.parametrize(
    ("run", "last", "end"),
    [
        (chat_whole, "approved", "terminated"),
        (chat_whole, "no", "truncated"),
        (chat_streamed, "no", "truncated"),
    ],
)
def test_a_group_chat(tmp_path, run, last, end):
    """One that takes as many turns as it may is truncated."""
    script = [Reply(content="one"), Reply(content=last)]

    async def program(url):
        chat = AgentGroupChat(
            agents=make_team(url, "writer", "reader"),
            termination_strategy=Approved(maximum_iterations=2),
        )
        await chat.add_chat_message(QUESTION)
        assert await run(chat) == "one" + last

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent AgentGroupChat",
        "  invoke_agent writer",
        "    chat m",
        "  invoke_agent reader",
        "    chat m",
    ]
    check_end(recorded, end, "ok", "ok")
    assert read_reason(recorded) == ("maximum iterations" if end == "truncated" else None)


@pytest.mark.shows("state")
def test_arguments(tmp_path):
    """What a kernel is given, and again where a function has changed what is in it."""

    hidden = {"include_in_function_choices": False}

    def stock(sku: str, basket: Annotated[Any, hidden] = None) -> str:
        """How many of an article are there."""
        basket.append(sku)
        return f"{sku}: 3"

    script = [Reply(tool_calls=[CALL]), Reply(content=ANSWER)]

    async def program(url):
        template = PromptTemplateConfig(template="Brief.", allow_dangerously_set_content=True)
        agent = make_agent(
            url,
            tools=(stock,),
            arguments=KernelArguments(who="me"),
            prompt_template_config=template,
        )
        await get_response(agent, arguments=KernelArguments(basket=[]))

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool shop-stock #c1",
        "  state shop",
        "  chat m",
    ]
    assert [row["value"] for row in recorded.states] == [
        '{"who":"me","basket":[]}',
        '{"who":"me","basket":["A7"]}',
    ]


def test_a_thread(tmp_path):
    """Its id is the conversation of its runs."""
    script = [Reply(content=f"{number}.") for number in range(2)]

    async def program(url):
        agent, thread = make_agent(url, tools=()), ChatHistoryAgentThread(thread_id="t1")
        for _ in script:
            await get_response(agent, thread=thread)

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    assert [row["conversation_id"] for row in recorded.trajectories] == ["t1"] * 2
    assert [row["num_turns"] for row in recorded.trajectories] == [1] * 2


@pytest.mark.parametrize("run", [get_response, invoke_stream])
def test_a_tool_that_fails(tmp_path, run):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="shop-broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]

    def program(url):
        assert asyncio.run(run(make_agent(url, tools=(broken_stock,)))) == "No shelf."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert "no shelf for A7" in recorded.requests[1]["messages"][-1]["content"]
    assert list_tools(recorded) == [("shop-broken_stock", "c1", call.arguments, None)]
    (tool,) = [span for span in recorded.spans if span.name == "execute_tool shop-broken_stock"]
    assert tool.attributes[semconv.ERROR_TYPE] == "RuntimeError"
    check_end(recorded, "terminated", "ok", "ok")


def test_tools_that_do_not_run(tmp_path):
    """One that there is not, one whose arguments are refused, and one that a filter answers."""
    calls = [
        ToolCall(id="c1", name="shop-unknown", arguments="{}"),
        ToolCall(id="c2", name="shop-stock", arguments='{"ski": "A7"}'),
        ToolCall(id="c3", name="shop-stock", arguments='{"sku": "A7"}'),
    ]
    script = [Reply(tool_calls=calls), Reply(content=ANSWER)]

    async def program(url):
        agent = make_agent(url)

        @agent.kernel.filter(FilterTypes.AUTO_FUNCTION_INVOCATION)
        async def answer(context: AutoFunctionInvocationContext, next):
            context.function_result.value = "4"

        await get_response(agent)

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == []


def test_results_are_what_the_model_is_told(tmp_path):
    """Objects as their text."""

    def look() -> list[dict[str, int]]:
        return [{"A7": 3}]

    call = ToolCall(id="c1", name="shop-look", arguments="{}")
    script = [Reply(tool_calls=[call]), Reply(content=ANSWER)]
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(get_response(make_agent(url, tools=(look,)))),
        script,
    )
    check_wire(recorded, script)
    told = recorded.requests[1]["messages"][-1]["content"]
    assert list_tools(recorded) == [("shop-look", "c1", "{}", told)]


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("run", [get_response, invoke_stream])
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
def test_a_cancelled_orchestration(tmp_path):
    """By its result's `cancel`."""

    async def program(url):
        runtime = InProcessRuntime()
        runtime.start()
        team = SequentialOrchestration(make_team(url, "left", "right"), name="team")
        result = await team.invoke(task=QUESTION, runtime=runtime)
        await asyncio.sleep(0.5)
        result.cancel()
        await runtime.stop_when_idle()

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), LATE)
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [get_response, invoke, invoke_stream])
def test_a_server_that_fails(tmp_path, run):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(run(make_agent(url))),
        [Reply(status=500)],
        raises=Exception,
    )
    check_end(recorded, "error", "error")


@pytest.mark.shows("error")
def test_an_orchestration_that_fails(tmp_path):
    """The run ends with what its result raises."""
    team = SequentialOrchestration
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(run_orchestration(team(make_team(url, "left"), name="team"))),
        [Reply(status=500)],
        raises=Exception,
    )
    check_end(recorded, "error", "error")


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_that_is_not_read_to_its_end(tmp_path, how):
    """The run ends where the program has seen enough."""

    async def read_some(url):
        stream = make_agent(url).invoke_stream(QUESTION)
        async for _ in stream:
            break
        if how == "closed":
            await stream.aclose()
        del stream
        gc.collect()
        await asyncio.sleep(0.1)
        assert starpo_trace.current_trajectory() is None

    recorded = record(tmp_path, lambda url: asyncio.run(read_some(url)), SCRIPT[:1])
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, of one agent too, and of one runtime."""

    async def program(url):
        agent = make_agent(url)
        answers = await asyncio.gather(*(get_response(agent) for _ in range(3)))
        assert answers == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), answer_as_named)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


def answer_as_named(body):
    return SCRIPT[TWO_TURNS.index(answer_by_history(body))]


def test_orchestrations_of_one_runtime(tmp_path):
    """Each message is handled in the run of who sent it."""

    async def program(url):
        runtime = InProcessRuntime()
        runtime.start()
        teams = [
            SequentialOrchestration([make_agent(url, name=f"a{i}")], name=f"team{i}")
            for i in range(3)
        ]
        results = [await team.invoke(task=QUESTION, runtime=runtime) for team in teams]
        answers = [str(await each.get(timeout=30)) for each in results]
        assert answers == ["Let me see." + ANSWER] * 3
        await runtime.stop_when_idle()

    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), answer_as_named)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    gc.collect()
    assert patch._senders == {}


KEPT = ("num_turns", "num_steps", "num_tool_calls", "end", "usable_for", "text", "input_node")
DIAGNOSTICS = (agent_diagnostics, model_diagnostics, function_tracer)
TRACERS = (
    sys.modules[KernelFunction.__module__],
    chat_completion_client_base,
    agent_diagnostics,
    model_diagnostics,
)


@pytest.mark.parametrize("is_sensitive", [False, True])
def test_own_spans_change_no_row(tmp_path, monkeypatch, is_sensitive):
    """Its diagnostics, to another store or to the same one, change no row."""

    def write_apart():
        return TracerProvider()

    def write_here():
        processor = get_runtime().get_tracer().span_processor
        return TracerProvider(active_span_processor=processor, shutdown_on_exit=False)

    def make_program(make_provider):
        def program(url):
            if make_provider is not None:
                for module in DIAGNOSTICS:
                    settings = module.MODEL_DIAGNOSTICS_SETTINGS
                    monkeypatch.setattr(settings, "enable_otel_diagnostics", True)
                    monkeypatch.setattr(settings, "enable_otel_diagnostics_sensitive", is_sensitive)
                provider = make_provider()
                for module in TRACERS:
                    monkeypatch.setattr(module, "tracer", provider.get_tracer(module.__name__))
            assert asyncio.run(get_response(make_agent(url))) == ANSWER

        return program

    def describe(recorded):
        return [
            {key: value for key, value in row.items() if key in KEPT}
            for row in (*recorded.trajectories, *recorded.turns)
        ]

    alone, apart, here = (
        record(tmp_path / str(number), make_program(make_provider), SCRIPT)
        for number, make_provider in enumerate((None, write_apart, write_here))
    )
    check_wire(alone, SCRIPT)
    assert describe(apart) == describe(alone)
    assert describe(here) == describe(alone)
    assert len({span.trace_id for span in here.spans}) == 1
    assert list_tools(here) == EXPECTED
    assert "AutoFunctionInvocationLoop" in {span.name for span in here.spans}
    reasons = sorted(row["reason"] for row in here.rejected)
    assert reasons == ["duplicate_llm_call"] * 2 + ["not_an_agent_span"]  # which is its loop


def test_put_back():
    """Afterwards the classes and functions are the ones that were there."""
    places = [
        (ChatCompletionAgent, "get_response"),
        (ChatCompletionAgent, "invoke"),
        (ChatCompletionAgent, "invoke_stream"),
        (Kernel, "invoke_function_call"),
        (KernelFunction, "invoke"),
        (function_tracer, "start_as_current_span"),
        (chat_completion_client_base.ChatCompletionClientBase, "get_chat_message_contents"),
        (
            chat_completion_client_base.ChatCompletionClientBase,
            "get_streaming_chat_message_contents",
        ),
        (AgentGroupChat, "invoke"),
        (AgentGroupChat, "invoke_stream"),
        (OrchestrationBase, "invoke"),
        (GroupChatManager, "should_terminate"),
        (in_process_runtime, "get_telemetry_envelope_metadata"),
        (InProcessRuntime, "_process_send"),
        (InProcessRuntime, "_process_publish"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
