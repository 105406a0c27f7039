"""LangChain and LangGraph: what their model's server saw is what was recorded."""

import asyncio
import json
import operator
from typing import Annotated, TypedDict

import pytest
from matrix import Framework

pytest.importorskip("langgraph", reason="langgraph is not installed")
langchain_agents = pytest.importorskip("langchain.agents", reason="langchain is not installed")
langchain_openai = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed"
)

from langchain_core.documents import Document  # noqa: E402
from langchain_core.messages import ToolMessage  # noqa: E402
from langchain_core.retrievers import BaseRetriever  # noqa: E402
from langchain_core.tools import BaseTool, tool  # noqa: E402
from langgraph.checkpoint.memory import InMemorySaver  # noqa: E402
from langgraph.errors import GraphRecursionError  # noqa: E402
from langgraph.graph import END, START, StateGraph  # noqa: E402
from langgraph.prebuilt import ToolRuntime  # noqa: E402
from langgraph.pregel import Pregel  # noqa: E402
from langgraph.pregel._loop import PregelLoop  # noqa: E402
from langgraph.types import Command, interrupt  # noqa: E402
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
    check_put_back,
    check_trainable,
    check_wire,
    draw,
    draw_calls,
    list_tools,
    record,
    stock,
)

import starpo_trace  # noqa: E402
from starpo_trace import semconv  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(
    name="LangChain and LangGraph", packages=("langchain", "langgraph"), page="langgraph"
)
ASKED = {"messages": [{"role": "user", "content": QUESTION}]}


def make_model(base_url):
    return langchain_openai.ChatOpenAI(
        model="m", base_url=base_url, api_key="none", use_responses_api=False, max_retries=0
    )


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return langchain_agents.create_agent(
        make_model(base_url),
        tools=tools,
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


def run_events(agent):
    """Events of everything that happens; the last is the graph's."""

    async def read():
        return [each async for each in agent.astream_events(ASKED, version="v2")]

    return asyncio.run(read())[-1]["data"]["output"]["messages"][-1].content


def read_output(recorded, span):
    """What a model call said."""
    return [turn["text"] for turn in recorded.turns if turn["span_id"] == span.span_id]


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    "run",
    [
        run_sync,
        pytest.param(run_async, marks=pytest.mark.shows("async")),
        run_stream,
        pytest.param(run_astream, marks=pytest.mark.shows("async")),
        pytest.param(run_tokens, marks=pytest.mark.shows("streaming")),
        pytest.param(run_events, marks=pytest.mark.shows("async", "streaming")),
    ],
)
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))))
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
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


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_agent_as_a_tool(tmp_path, is_async):
    """Its graph is inside of the tool that runs it."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments='{"question": "A7?"}')]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        inner = make_agent(url, tools=(), name="inner")

        def ask_shop(question: str) -> str:
            """Asks."""
            return run_sync(inner)

        async def ask_shop_async(question: str) -> str:
            """Asks."""
            return (await inner.ainvoke(ASKED))["messages"][-1].content

        asks = tool("ask_shop")(ask_shop_async if is_async else ask_shop)
        (run_async if is_async else run_sync)(make_agent(url, tools=(asks,)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw_calls(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool ask_shop #c1",
        "    invoke_agent inner",
        "      chat m",
        "  chat m",
    ]
    assert list_tools(recorded)[0][3] == "Three."


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", [run_sync, run_async])
def test_agents_as_tools_at_once(tmp_path, run):
    """Each model call is in the agent that made it, in threads and in tasks."""
    calls = [
        ToolCall(id=f"c{sku}", name="ask_shop", arguments=json.dumps({"sku": sku}))
        for sku in ("A7", "B8", "C9")
    ]

    def answer(body):
        last = body["messages"][-1]
        if last["role"] == "tool":
            return Reply(content="Three of each.")
        if last["content"] == QUESTION:
            return Reply(tool_calls=calls)
        return Reply(content=f"{last['content']}: 3", delay_s=0.2)

    def program(url):
        def ask_shop(sku: str) -> str:
            """Asks."""
            asked = {"messages": [{"role": "user", "content": sku}]}
            return (
                make_agent(url, tools=(), name=f"shop-{sku}").invoke(asked)["messages"][-1].content
            )

        assert run(make_agent(url, tools=(ask_shop,))) == ANSWER

    recorded = record(tmp_path, program, answer)
    assert [tool[3] for tool in list_tools(recorded)] == ["A7: 3", "B8: 3", "C9: 3"]
    parents = {span.span_id: span.parent_id for span in recorded.spans}
    names = {span.span_id: span.attributes.get(semconv.AGENT_NAME) for span in recorded.spans}
    steps = {span.span_id: span.attributes.get(semconv.TOOL_CALL_ID) for span in recorded.spans}
    inner = {
        (steps[parents[span.parent_id]], names[span.parent_id], *read_output(recorded, span))
        for span in recorded.spans
        if span.name == "chat m" and span.parent_id != recorded.spans[0].span_id
    }
    assert inner == {(f"c{sku}", f"shop-{sku}", f"{sku}: 3") for sku in ("A7", "B8", "C9")}


@pytest.mark.shows("error")
def test_a_tool_that_fails(tmp_path):
    """It ends the run, as LangChain lets it; the step and the run say so."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    recorded = record(
        tmp_path,
        lambda url: run_sync(make_agent(url, tools=(broken_stock,))),
        [Reply(tool_calls=[call])],
        raises=RuntimeError,
    )
    assert [row["end"] for row in recorded.trajectories] == ["error"]
    (step,) = (span for span in recorded.spans if span.name == "execute_tool broken_stock")
    assert step.attributes[semconv.ERROR_TYPE] == "RuntimeError"


def test_arguments_that_do_not_fit(tmp_path):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="stock", arguments='{"shelf": 7}')
    script = [Reply(tool_calls=[call]), Reply(content="Sorry.")]
    recorded = record(tmp_path, lambda url: run_sync(make_agent(url)), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == [("stock", "c1", '{"shelf":7}', None)]
    (step,) = (span for span in recorded.spans if span.name == "execute_tool stock")
    assert step.attributes[semconv.ERROR_TYPE].endswith("ValidationError")


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(make_agent(url).ainvoke(ASKED))),
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


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, in tasks and in threads."""

    async def run_three(url):
        results = await asyncio.gather(
            *(make_agent(url, name=f"a{i}").ainvoke(ASKED) for i in range(3))
        )
        assert [each["messages"][-1].content for each in results] == [ANSWER] * 3

    def program(url):
        asyncio.run(run_three(url))
        results = make_agent(url).batch([ASKED] * 2)
        assert [each["messages"][-1].content for each in results] == [ANSWER] * 2

    recorded = record(tmp_path, program, answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2] * 5
    assert len({span.trace_id for span in recorded.spans}) == 5


class Shelf(TypedDict):
    """State of a graph."""

    count: int
    seen: Annotated[list[str], operator.add]


def make_graph(url, **options):
    """Two nodes after each other; the first asks a model."""
    model = make_model(url)

    def look(state):
        return {"count": len(model.invoke("A7?").content), "seen": ["look"]}

    def sell(state):
        return {"count": state["count"] - 1, "seen": ["sell"]}

    graph = StateGraph(Shelf)
    graph.add_node("look", look)
    graph.add_node("sell", sell)
    graph.add_edge(START, "look")
    graph.add_edge("look", "sell")
    graph.add_edge("sell", END)
    return graph.compile(name="shelf", **options)


@pytest.mark.shows("state")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_states(tmp_path, is_async):
    """The state before the first node and after each; nodes are no agents."""
    script = [Reply(content="four")]

    def program(url):
        graph = make_graph(url)
        given = {"count": 0, "seen": ["start"]}
        if is_async:
            asyncio.run(graph.ainvoke(given))
        else:
            graph.invoke(given)

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shelf",
        "  state shelf",
        "  chat m",
        "  state shelf",
        "  state shelf",
    ]
    assert [json.loads(row["value"]) for row in recorded.states] == [
        {"count": 0, "seen": ["start"]},
        {"count": 4, "seen": ["start", "look"]},
        {"count": 3, "seen": ["start", "look", "sell"]},
    ]


@pytest.mark.shows("state")
def test_states_of_messages_grow_by_what_is_new(tmp_path):
    """Messages are numbered, so that a later state is written as what it adds."""
    recorded = record(tmp_path, lambda url: run_sync(make_agent(url)))
    assert [len(json.loads(row["value"])["messages"]) for row in recorded.states] == [1, 2, 4, 5]
    diffs = [
        json.loads(span.attributes[semconv.STATE_DIFF])["messages"]
        for span in recorded.spans
        if semconv.STATE_DIFF in span.attributes
    ]
    assert [sorted(diff) for diff in diffs][-2:] == [["2", "3"], ["4"]]
    assert diffs[-1]["4"]["content"] == ANSWER


@pytest.mark.parametrize("is_named", [False, True], ids=["alone", "in a trajectory"])
def test_interrupt_and_resume(tmp_path, is_named):
    """Two runs of one conversation; or one, where the program says so."""
    call = ToolCall(id="c1", name="sell", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="Sold.")]

    def sell(sku: str) -> str:
        """Sells."""
        return f"sold: {interrupt('May I?')}"

    def program(url):
        agent = make_agent(url, tools=(sell,), checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "t1"}}

        def run():
            assert "__interrupt__" in agent.invoke(ASKED, config)
            assert agent.invoke(Command(resume="yes"), config)["messages"][-1].content == "Sold."

        if is_named:
            with starpo_trace.trajectory("sale"):
                run()
        else:
            run()

    recorded = record(tmp_path, program, script)
    recorded.turns.sort(key=lambda turn: len(recorded.read_prompt(turn)))
    check_wire(recorded, script, num_trajectories=1 if is_named else 2)
    steps = [span for span in recorded.spans if span.name == "execute_tool sell"]
    assert [span.attributes[semconv.TOOL_CALL_ID] for span in steps] == ["c1", "c1"]
    assert [span.attributes.get(semconv.TOOL_CALL_RESULT) for span in steps] == [None, "sold: yes"]
    assert not any(semconv.ERROR_TYPE in span.attributes for span in recorded.spans)
    ends = {row["end"] for row in recorded.trajectories}
    assert ends == ({"terminated"} if is_named else {"truncated", "terminated"})
    if not is_named:
        assert {row["conversation_id"] for row in recorded.trajectories} == {"t1"}


def test_recursion_limit(tmp_path):
    """A limit truncates the run, and its exception is recorded."""
    recorded = record(
        tmp_path,
        lambda url: run_sync(make_agent(url), {"recursion_limit": 2}),
        [TWO_TURNS[0]],
        raises=Exception,
    )
    assert type(recorded.error).__name__ == "GraphRecursionError"
    assert [row["end"] for row in recorded.trajectories] == ["truncated"]
    run = recorded.spans[0]
    assert run.attributes[semconv.TRAJECTORY_END_REASON] == "recursion limit"
    assert run.attributes[semconv.ERROR_TYPE].endswith("GraphRecursionError")


def test_a_recursion_limit_inside_of_a_run_that_goes_on(tmp_path):
    """The limit of a graph that a tool ran is that step's error, not the run's end."""
    script = [Reply(content="Never mind.")]

    def program(url):
        builder = StateGraph(Shelf).add_node("turn", lambda state: {"count": 1})
        endless = builder.add_edge(START, "turn").add_edge("turn", "turn").compile(name="endless")

        @tool
        def turn() -> str:
            """Turns."""
            return str(endless.invoke({"count": 0}, {"recursion_limit": 2}))

        def ask(state):
            with pytest.raises(GraphRecursionError):
                turn.invoke({})
            return {"count": len(make_model(url).invoke("?").content)}

        StateGraph(Shelf).add_node("ask", ask).add_edge(START, "ask").compile().invoke({"count": 0})

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]
    failed = [span.name for span in recorded.spans if semconv.ERROR_TYPE in span.attributes]
    assert failed == ["execute_tool turn", "invoke_agent endless"]


def test_a_program_that_has_seen_enough(tmp_path):
    """A stream that is left early ends its run, and the program's Context is its own again."""

    def program(url):
        stream = make_agent(url).stream(ASKED, stream_mode="updates")
        next(stream)
        assert starpo_trace.current_trajectory() is None
        stream.close()

    recorded = record(tmp_path, program, [TWO_TURNS[0]])
    check_wire(recorded, [TWO_TURNS[0]])
    assert [row["num_turns"] for row in recorded.trajectories] == [1]


class Books(BaseRetriever):
    """Finds one document, whatever is asked."""

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=f"on {query}", metadata={"page": 7})]


def test_a_retriever(tmp_path):
    """What is looked up for the prompt is a step; in the node's graph and in a graph's node."""
    script = [Reply(content="Read.")]

    def program(url):
        def look(state):
            (found,) = Books().invoke("A7")
            make_model(url).invoke(found.page_content)
            return {"count": 1}

        inner = StateGraph(Shelf).add_node("look", look).add_edge(START, "look")
        outer = StateGraph(Shelf).add_node("sub", inner.compile(name="inner"))
        outer.add_edge(START, "sub").compile(name="outer").invoke({"count": 0})

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw_calls(recorded) == [
        "invoke_agent outer",
        "  invoke_agent inner",
        "    retrieval Books",
        "    chat m",
    ]
    (step,) = (span for span in recorded.spans if span.name == "retrieval Books")
    assert step.attributes[semconv.TOOL_CALL_ARGUMENTS] == "A7"
    (found,) = json.loads(step.attributes[semconv.TOOL_CALL_RESULT])
    assert (found["page_content"], found["metadata"]) == ("on A7", {"page": 7})


def test_a_tool_that_gives_a_command(tmp_path):
    """Its update is the result, and no state or id that was injected is an argument."""
    call = ToolCall(id="c1", name="sell", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="Sold.")]

    def sell(sku: str, runtime: ToolRuntime) -> Command:
        """Sells."""
        told = ToolMessage(f"sold {sku}", tool_call_id=runtime.tool_call_id)
        return Command(update={"messages": [told]})

    recorded = record(tmp_path, lambda url: run_sync(make_agent(url, tools=(sell,))), script)
    check_wire(recorded, script)
    ((_, _, arguments, result),) = list_tools(recorded)
    assert arguments == '{"sku":"A7"}'
    assert json.loads(result)["update"]["messages"]["0"]["content"] == "sold A7"


def test_a_graph_that_runs_itself(tmp_path):
    """Each run of it is a span of its own."""
    script = [Reply(content="deep")]

    def program(url):
        def dig(state):
            if state["count"] == 2:
                return {"seen": [make_model(url).invoke("?").content]}
            return {"seen": graph.invoke({"count": state["count"] + 1, "seen": []})["seen"]}

        builder = StateGraph(Shelf).add_node("dig", dig).add_edge(START, "dig")
        graph = builder.compile(name="mole")
        assert graph.invoke({"count": 0, "seen": []})["seen"] == ["deep"]

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw_calls(recorded) == [
        "invoke_agent mole",
        "  invoke_agent mole",
        "    invoke_agent mole",
        "      chat m",
    ]


def test_put_back():
    """Every class is as it was, once recording is over."""
    check_put_back(
        (Pregel, "stream"),
        (Pregel, "astream"),
        (PregelLoop, "_first"),
        (PregelLoop, "after_tick"),
        (BaseTool, "run"),
        (BaseTool, "arun"),
        (BaseRetriever, "invoke"),
        (BaseRetriever, "ainvoke"),
    )
