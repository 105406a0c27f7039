"""Semantic Kernel: what its model's server saw is what was recorded."""

import asyncio
import gc

import pytest
from matrix import Framework

pytest.importorskip("semantic_kernel", reason="semantic-kernel is not installed")

from openai import AsyncOpenAI  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from scenario import (  # noqa: E402
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
)
from semantic_kernel import Kernel  # noqa: E402
from semantic_kernel.agents import (  # noqa: E402
    AgentGroupChat,
    ChatCompletionAgent,
    ChatHistoryAgentThread,
    ConcurrentOrchestration,
    GroupChatOrchestration,
    HandoffOrchestration,
    OrchestrationHandoffs,
    RoundRobinGroupChatManager,
    SequentialOrchestration,
)
from semantic_kernel.agents.orchestration.group_chat import GroupChatManager  # noqa: E402
from semantic_kernel.agents.orchestration.orchestration_base import OrchestrationBase  # noqa: E402
from semantic_kernel.agents.runtime import InProcessRuntime  # noqa: E402
from semantic_kernel.agents.runtime.in_process import in_process_runtime  # noqa: E402
from semantic_kernel.agents.strategies import TerminationStrategy  # noqa: E402
from semantic_kernel.connectors.ai import (  # noqa: E402
    FunctionChoiceBehavior,
    PromptExecutionSettings,
    chat_completion_client_base,
)
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion  # noqa: E402
from semantic_kernel.contents import ChatHistory  # noqa: E402
from semantic_kernel.filters import AutoFunctionInvocationContext, FilterTypes  # noqa: E402
from semantic_kernel.functions import (  # noqa: E402
    KernelArguments,
    KernelPlugin,
    kernel_function,
)
from semantic_kernel.functions import kernel_function as kernel_functions  # noqa: E402
from semantic_kernel.functions.kernel_function import KernelFunction  # noqa: E402
from semantic_kernel.utils.telemetry.agent_diagnostics import (  # noqa: E402
    decorators as agent_diagnostics,
)
from semantic_kernel.utils.telemetry.model_diagnostics import (  # noqa: E402
    decorators as model_diagnostics,
)
from semantic_kernel.utils.telemetry.model_diagnostics import function_tracer  # noqa: E402

import starpo_trace  # noqa: E402
from starpo_trace import semconv  # noqa: E402
from starpo_trace.capture.runtime import get_runtime  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(
    name="Semantic Kernel", packages=("semantic-kernel",), page="semantic_kernel"
)


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


async def stock_async(sku: str) -> str:
    """How many of an article are there."""
    await asyncio.sleep(0)
    return stock(sku)


def make_service(base_url):
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return OpenAIChatCompletion(ai_model_id="m", async_client=client)


def make_plugin(*tools):
    functions = [
        kernel_function(each, name=each.__name__.removesuffix("_async")) for each in tools
    ]
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
