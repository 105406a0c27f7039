"""Pydantic AI: what its model's server saw is what was recorded."""

import asyncio

import pytest

pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenario import (
    ANSWER,
    CALLS,
    QUESTION,
    RAN,
    TWO_TURNS,
    USAGE,
    check_wire,
    draw,
    list_tools,
    record,
    stock,
)

from starpo_trace.testing import Reply


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    provider = OpenAIProvider(base_url=base_url, api_key="none")
    return Agent(
        OpenAIChatModel("m", provider=provider),
        name=name,
        instructions="Be brief.",
        tools=tools,
        **options,
    )


SILENT = (Reply(reasoning_content="Look it up.", tool_calls=CALLS, usage=USAGE), TWO_TURNS[1])
"""As `TWO_TURNS`; `run_stream` takes the first text for the answer."""


def run_sync(agent):
    return agent.run_sync(QUESTION).output


def run_async(agent):
    return asyncio.run(agent.run(QUESTION)).output


def run_iter(agent):
    async def read():
        async with agent.iter(QUESTION) as run:
            async for _ in run:
                pass
        return run.result.output

    return asyncio.run(read())


def run_stream(agent):
    async def read():
        async with agent.run_stream(QUESTION) as result:
            return [text async for text in result.stream_text()][-1]

    return asyncio.run(read())


def run_stream_sync(agent):
    with agent.run_stream_sync(QUESTION) as result:
        return list(result.stream_text())[-1]


def run_stream_events(agent):
    async def read():
        async with agent.run_stream_events(QUESTION) as events:
            return [event async for event in events][-1].result.output

    return asyncio.run(read())


@pytest.fixture(params=[True, False], ids=["traced", "untraced"], autouse=True)
def tracing(request):
    """Its own instrumentation must change nothing, whether it is on or off."""
    Agent.instrument_all(request.param and True)
    yield
    Agent.instrument_all(False)


@pytest.mark.parametrize("run", [run_sync, run_async, run_iter, run_stream_events])
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call, however the agent is run."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))))
    assert answers == [ANSWER]
    check_wire(recorded)
    assert list_tools(recorded) == RAN
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == [
        *["  chat m"] * 2,
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


@pytest.mark.parametrize("run", [run_stream, run_stream_sync])
def test_streamed(tmp_path, run):
    """The same from a stream of text that the program reads."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))), SILENT)
    assert answers == [ANSWER]
    check_wire(recorded, SILENT)
    assert list_tools(recorded) == RAN
    assert draw(recorded)[0] == "invoke_agent shop"
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]
