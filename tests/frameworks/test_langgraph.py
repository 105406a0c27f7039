"""LangChain and LangGraph: what their model's server saw is what was recorded."""

import asyncio
import json
import operator
from typing import Annotated, TypedDict

import pytest

pytest.importorskip("langgraph", reason="langgraph is not installed")
langchain_agents = pytest.importorskip("langchain.agents", reason="langchain is not installed")
langchain_openai = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed"
)

from langchain_core.tools import tool  # noqa: E402
from langgraph.checkpoint.memory import InMemorySaver  # noqa: E402
from langgraph.graph import END, START, StateGraph  # noqa: E402
from langgraph.types import Command, interrupt  # noqa: E402
from scenario import (  # noqa: E402
    ANSWER,
    QUESTION,
    RAN,
    TWO_TURNS,
    broken_stock,
    check_wire,
    draw,
    list_tools,
    record,
    stock,
)

import starpo_trace  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

ASKED = {"messages": [{"role": "user", "content": QUESTION}]}


def make_model(base_url):
    return langchain_openai.ChatOpenAI(
        model="m", base_url=base_url, api_key="none", use_responses_api=False, max_retries=0
    )


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return langchain_agents.create_agent(
        make_model(base_url),
        tools=[tool(each) if callable(each) and not hasattr(each, "name") else each for each in tools],
        system_prompt="Be brief.",
        name=name,
        **options,
    )


def run_sync(agent, config=None):
    return agent.invoke(ASKED, config)["messages"][-1].content


def run_async(agent):
    return asyncio.run(agent.ainvoke(ASKED))["messages"][-1].content


def run_stream(agent):
    return list(agent.stream(ASKED, stream_mode="values"))[-1]["messages"][-1].content


def run_tokens(agent):
    """Chunks of messages, which makes the model stream."""
    chunks = agent.stream(ASKED, stream_mode="messages")
    return "".join(
        chunk.content for chunk, told in chunks if told["langgraph_node"] == "model"
    ).removeprefix("Let me see.")


def run_astream(agent):
    async def read():
        return [each async for each in agent.astream(ASKED, stream_mode="values")]

    return asyncio.run(read())[-1]["messages"][-1].content


def draw_calls(recorded):
    """The tree without its states."""
    return [line for line in draw(recorded) if not line.strip().startswith("state ")]


@pytest.mark.parametrize("run", [run_sync, run_async, run_stream, run_astream, run_tokens])
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))))
    assert answers == [ANSWER]
    check_wire(recorded)
    assert [(n, i, json.loads(a), r) for n, i, a, r in list_tools(recorded)] == [
        (n, i, json.loads(a), r) for n, i, a, r in RAN
    ]
    assert draw_calls(recorded)[0] == "invoke_agent shop"
    assert sorted(draw_calls(recorded)[1:]) == [
        *["  chat m"] * 2,
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"
