"""LlamaIndex: what its model's server saw is what was recorded."""

import asyncio
import inspect
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from matrix import Framework

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
pytest.importorskip("llama_index.llms.openai", reason="llama-index-llms-openai is not installed")

from llama_index.core.agent import workflow as agents
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import (
    FunctionTool,
    QueryEngineTool,
    RetrieverTool,
    acall_tool_with_selection,
    call_tool_with_selection,
    calling,
)
from llama_index.llms.openai import OpenAI
from openai import InternalServerError
from pydantic import BaseModel
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
    check_trainable,
    check_wire,
    draw,
    list_ran,
    list_tools,
    record,
    stock,
    stock_async,
)
from workflows import Context, Workflow, step
from workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)
from workflows.runtime import control_loop

import starpo_trace
from starpo_trace import semconv
from starpo_trace.testing import Reply, ToolCall, scripted

FRAMEWORK = Framework(
    name="LlamaIndex",
    packages=("llama-index-core", "llama-index-workflows"),
    page="llamaindex",
)
MODEL = "gpt-4o-mini"
"""It asks only models that it knows."""


def make_model(base_url):
    return OpenAI(model=MODEL, api_base=base_url, api_key="none", max_retries=0)


def make_agent(base_url, *, tools=(stock,), name="shop", kind=FunctionAgent, **options):
    options = {"system_prompt": "Be brief.", "streaming": False, **options}
    return kind(name=name, tools=list(tools), llm=make_model(base_url), **options)


def run(agent, **options):
    async def ask():
        return await agent.run(user_msg=QUESTION, **options)

    return str(asyncio.run(ask()))


def run_events(agent):
    """The events of a run, then its answer."""

    async def read():
        handler = agent.run(user_msg=QUESTION)
        text = [each.delta async for each in handler.stream_events() if hasattr(each, "delta")]
        answer = str(await handler)
        assert "".join(text).endswith(answer)
        return answer

    return asyncio.run(read())


def list_steps(recorded):
    """Spans of tools that ran, in their order."""
    return [span for span in recorded.spans if span.name.startswith("execute_tool")]


CHAT = f"chat {MODEL}"


@pytest.fixture(autouse=True)
def one_call_after_another(monkeypatch):
    """Tool calls of a stream in the order that OpenAI sends them; it reads no others."""
    give = scripted._tool_call_deltas
    monkeypatch.setattr(
        scripted,
        "_tool_call_deltas",
        lambda reply: sorted(give(reply), key=lambda delta: delta["tool_calls"][0]["index"]),
    )


@pytest.mark.shows("llm", "async", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("make", [lambda agent: agent, lambda agent: AgentWorkflow([agent])])
@pytest.mark.parametrize(
    ("is_streaming", "run"),
    [
        (False, run),
        pytest.param(True, run, marks=pytest.mark.shows("streaming")),
        pytest.param(True, run_events, marks=pytest.mark.shows("streaming")),
    ],
    ids=["whole", "streamed", "events"],
)
def test_two_turns(tmp_path, make, run, is_streaming):
    """Parallel tools, each joined to its call; of an agent, and of a workflow that has one."""
    answers = []
    recorded = record(
        tmp_path,
        lambda url: answers.append(run(make(make_agent(url, streaming=is_streaming)))),
    )
    assert answers == [ANSWER]
    assert [bool(request.get("stream")) for request in recorded.requests] == [is_streaming] * 2
    check_wire(recorded)
    check_trainable(recorded)
    assert list_ran(recorded) == RAN_PARSED
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == [
        *[f"  {CHAT}"] * 2,
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"


def test_an_async_tool(tmp_path):
    """Recorded as one that runs in a thread is."""
    tool = FunctionTool.from_defaults(async_fn=stock_async, name="stock")
    recorded = record(tmp_path, lambda url: run(make_agent(url, tools=(tool,))))
    check_wire(recorded)
    assert list_ran(recorded) == RAN_PARSED


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("is_thread", [False, True], ids=["task", "thread"])
def test_an_agent_as_a_tool(tmp_path, is_thread):
    """Its run is inside of the tool that runs it."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask_shop", arguments='{"question": "A7?"}')]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        inner = make_agent(url, tools=(), name="inner")

        async def ask_shop(question: str) -> str:
            """Asks."""
            return str(await inner.run(user_msg=question))

        def ask_shop_in_thread(question: str) -> str:
            """Asks."""
            return asyncio.run(ask_shop(question))

        asks = FunctionTool.from_defaults(
            **({"fn": ask_shop_in_thread} if is_thread else {"async_fn": ask_shop}),
            name="ask_shop",
        )
        assert run(make_agent(url, tools=(asks,))) == "It has three."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_tools(recorded)[0][3] == "Three."
    assert draw(recorded) == [
        "invoke_agent shop",
        f"  {CHAT}",
        "  execute_tool ask_shop #c1",
        "    invoke_agent inner",
        f"      {CHAT}",
        f"  {CHAT}",
    ]


async def take(ctx: Context, sku: str) -> str:
    """Takes an article."""
    async with ctx.store.edit_state() as held:
        held["state"] = {**held["state"], "taken": [*held["state"]["taken"], sku]}
    return "Taken."


def make_desk(base_url, **options):
    desk = make_agent(base_url, tools=(), name="desk", description="Greets.")
    shop = make_agent(base_url, tools=(take,), description="Has articles.", **options)
    return AgentWorkflow([desk, shop], root_agent="desk", initial_state={"taken": []})


HANDOFF = (
    Reply(
        tool_calls=[
            ToolCall(
                id="c1", name="handoff", arguments='{"to_agent": "shop", "reason": "an article"}'
            )
        ]
    ),
    Reply(
        reasoning_content="It wants A7.",
        tool_calls=[ToolCall(id="c2", name="take", arguments='{"sku": "A7"}')],
    ),
    Reply(content="Here is A7."),
)


@pytest.mark.pictured
@pytest.mark.shows("sub-agents", "state")
def test_a_handoff(tmp_path):
    """Who has the turn is a span in the run, around what it did; the state is the run's."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_desk(url))), HANDOFF)
    assert answers == ["Here is A7."]
    check_wire(recorded, HANDOFF)
    check_trainable(recorded, HANDOFF)
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]
    assert draw(recorded) == [
        "invoke_agent AgentWorkflow",
        "  state AgentWorkflow",
        "  invoke_agent desk",
        f"    {CHAT}",
        "    execute_tool handoff #c1",
        "  state AgentWorkflow",
        "  invoke_agent shop",
        f"    {CHAT}",
        "    execute_tool take #c2",
        "  state AgentWorkflow",
        f"    {CHAT}",
    ]
    assert list_states(recorded) == [
        {"state": {"taken": []}, "current_agent_name": "desk"},
        {"state": {"taken": []}, "current_agent_name": "shop"},
        {"state": {"taken": ["A7"]}, "current_agent_name": "shop"},
    ]
    gave = {call: result for _, call, _, result in list_tools(recorded)}
    assert gave["c2"] == "Taken."
    assert gave["c1"] == recorded.requests[1]["messages"][-1]["content"]


def list_states(recorded):
    """States in their order, whole."""
    states = sorted(recorded.states, key=lambda each: each["time_ns"])
    return [json.loads(each["value"]) for each in states]


@pytest.mark.shows("state")
def test_states_of_an_agent(tmp_path):
    """What it begins with, and what a tool made of it; nothing of its own bookkeeping."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="take", arguments='{"sku": "A7"}')]),
        Reply(content="Here."),
    ]
    recorded = record(
        tmp_path,
        lambda url: run(make_agent(url, tools=(take,), initial_state={"taken": []})),
        script,
    )
    check_wire(recorded, script)
    assert list_states(recorded) == [{"state": {"taken": []}}, {"state": {"taken": ["A7"]}}]
    assert '"ctx"' not in list_tools(recorded)[0][2]


def test_a_context_that_goes_on(tmp_path):
    """The second run of a Context begins with the state of the first; each is a trajectory."""
    take_a7 = Reply(tool_calls=[ToolCall(id="c1", name="take", arguments='{"sku": "A7"}')])
    script = [take_a7, Reply(content="Here."), Reply(content="A7.")]

    def program(url):
        agent = make_agent(url, tools=(take,), initial_state={"taken": []})

        async def talk():
            context = Context(agent)
            await agent.run(user_msg="A7, please.", ctx=context)
            return str(await agent.run(user_msg="What have I?", ctx=context))

        assert asyncio.run(talk()) == "A7."

    recorded = record(tmp_path, program, script)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [1, 2]
    assert list_states(recorded) == [
        {"state": {"taken": []}},
        {"state": {"taken": ["A7"]}},
        {"state": {"taken": ["A7"]}},
    ]


def test_a_conversation(tmp_path):
    """The session of the memory is the run's conversation."""
    recorded = record(
        tmp_path,
        lambda url: run(make_agent(url), memory=Memory.from_defaults(session_id="alice")),
    )
    check_wire(recorded)
    assert [row["conversation_id"] for row in recorded.trajectories] == ["alice"]


@pytest.mark.shows("error")
def test_a_tool_that_fails(tmp_path):
    """The model is told, and the step has the error."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]
    recorded = record(tmp_path, lambda url: run(make_agent(url, tools=(broken_stock,))), script)
    check_wire(recorded, script)
    assert recorded.requests[1]["messages"][-1]["content"] == "no shelf for A7"
    (tool,) = [span for span in recorded.spans if span.name == "execute_tool broken_stock"]
    assert tool.attributes["error.type"] == "RuntimeError"
    assert recorded.trajectories[0]["end"] == "terminated"


def test_a_tool_that_there_is_not(tmp_path):
    """Nothing ran."""
    call = ToolCall(id="c1", name="fly", arguments="{}")
    script = [Reply(tool_calls=[call]), Reply(content="I cannot.")]
    recorded = record(tmp_path, lambda url: run(make_agent(url)), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == []


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("is_handler", [False, True], ids=["task", "handler"])
def test_cancelled(tmp_path, is_handler):
    """A run that is cancelled while its model answers is abandoned."""

    async def cancel(url):
        if not is_handler:

            async def ask():
                await make_agent(url).run(user_msg=QUESTION)

            await cancel_soon(ask())
        handler = make_agent(url).run(user_msg=QUESTION)
        await asyncio.sleep(0.5)
        await handler.cancel_run()
        await handler

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel(url)),
        LATE,
        raises=WorkflowCancelledByUser if is_handler else asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("error")
@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("make", [lambda agent: agent, lambda agent: AgentWorkflow([agent])])
def test_a_server_that_fails(tmp_path, make, is_streaming):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path,
        lambda url: run(make(make_agent(url, streaming=is_streaming))),
        [Reply(status=500)],
        raises=InternalServerError,
    )
    check_end(recorded, "error", "error")


def test_a_handoff_that_fails(tmp_path):
    """Both the agent and the run have the error, and both spans end."""
    script = [HANDOFF[0], Reply(status=500)]
    recorded = record(tmp_path, lambda url: run(make_desk(url)), script, raises=InternalServerError)
    check_end(recorded, "error", "ok", "error")
    failed = [span.name for span in recorded.spans if "error.type" in span.attributes]
    assert failed == ["invoke_agent AgentWorkflow", "invoke_agent shop", CHAT]


def find_reason(recorded):
    """Why the run was cut short."""
    return recorded.spans[0].attributes[semconv.TRAJECTORY_END_REASON]


def test_too_many_iterations(tmp_path):
    """A run that its limit ends was cut short."""
    recorded = record(
        tmp_path,
        lambda url: run(make_agent(url), max_iterations=1),
        TWO_TURNS[:1],
        raises=WorkflowRuntimeError,
    )
    check_end(recorded, "truncated", "ok")
    assert find_reason(recorded) == "max iterations"


@pytest.mark.skipif(
    "early_stopping_method" not in FunctionAgent.model_fields,
    reason="this version only fails there",
)
def test_a_last_answer_at_the_limit(tmp_path):
    """So was one whose model is asked for a last answer."""
    script = [TWO_TURNS[0], Reply(content="I do not know.")]
    recorded = record(
        tmp_path,
        lambda url: run(make_agent(url), max_iterations=1, early_stopping_method="generate"),
        script,
    )
    check_end(recorded, "truncated", "ok", "ok")
    assert find_reason(recorded) == "max iterations"


def test_a_run_that_takes_too_long(tmp_path):
    """A workflow's timeout is a limit too."""
    recorded = record(
        tmp_path,
        lambda url: run(make_agent(url, timeout=0.5)),
        LATE,
        raises=WorkflowTimeoutError,
    )
    check_end(recorded, "truncated", "cancelled")
    assert find_reason(recorded) == "timeout"


async def run_three(url):
    results = await asyncio.gather(
        *(make_agent(url, name=f"a{i}").run(user_msg=QUESTION) for i in range(3))
    )
    assert [str(each) for each in results] == [ANSWER] * 3


def run_threads(url):
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda i: run(make_agent(url, name=f"a{i}")), range(3))
        assert list(answers) == [ANSWER] * 3


@pytest.mark.parametrize("run_all", [lambda url: asyncio.run(run_three(url)), run_threads])
def test_several_runs_at_once(tmp_path, run_all):
    """Each is a trajectory of its own."""
    recorded = record(tmp_path, run_all, answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    assert len(list_tools(recorded)) == 6


def test_one_agent_runs_several_times(tmp_path):
    """At the same time, and it is not mistaken for one run."""

    async def run_two(url):
        agent = make_agent(url)
        await asyncio.gather(*(agent.run(user_msg=QUESTION) for _ in range(2)))

    recorded = record(tmp_path, lambda url: asyncio.run(run_two(url)), answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2]


def test_inside_of_a_run_that_is_named(tmp_path):
    """The program's own run is the trajectory, the agent a span of it."""

    def program(url):
        with starpo_trace.trajectory("mine"):
            run(make_agent(url))

    recorded = record(tmp_path, program)
    check_wire(recorded)
    assert draw(recorded)[:2] == ["invoke_agent mine", "  invoke_agent shop"]


REACT = (
    Reply(content='Thought: Look it up.\nAction: stock\nAction Input: {"sku": "A7"}'),
    Reply(content=f"Thought: I know it.\nAnswer: {ANSWER}"),
)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_react(tmp_path, is_streaming):
    """Its calls are text: a tool has no call id, and the observation is a message."""
    answers = []
    recorded = record(
        tmp_path,
        lambda url: answers.append(run(make_agent(url, kind=ReActAgent, streaming=is_streaming))),
        REACT,
    )
    assert answers == [ANSWER]
    check_wire(recorded, REACT)
    assert list_ran(recorded) == [("stock", None, {"sku": "A7"}, "A7: 3")]
    assert recorded.requests[1]["messages"][-1]["content"] == "Observation: A7: 3"
    assert draw(recorded) == [
        "invoke_agent shop",
        f"  {CHAT}",
        "  execute_tool stock",
        f"  {CHAT}",
    ]


def test_code(tmp_path):
    """Code that the model wrote is a tool that ran."""
    script = [Reply(content="<execute>print(3)</execute>"), Reply(content="Three.")]

    def execute(code: str) -> str:
        return f"ran {code}"

    recorded = record(
        tmp_path,
        lambda url: run(
            agents.CodeActAgent(
                code_execute_fn=execute, llm=make_model(url), streaming=False, tools=[]
            )
        ),
        script,
    )
    check_wire(recorded, script)
    assert list_ran(recorded) == [("execute", None, {"code": "print(3)"}, "ran print(3)")]


class Shelf(BaseModel):
    """State of a workflow that declares its type."""

    asked: list[ChatMessage] = []
    found: str | None = None


class Looked(Event):
    """Between the steps of `Lookup`."""

    answer: str


class Lookup(Workflow):
    """A program's own workflow, with an agent inside; its second step runs in a thread."""

    def __init__(self, base_url):
        super().__init__(timeout=30)
        self.agent = make_agent(base_url)

    @step
    async def look(self, ctx: Context[Shelf], ev: StartEvent) -> Looked:
        async with ctx.store.edit_state() as shelf:
            shelf.asked = [ChatMessage(role="user", content=ev.question)]
        return Looked(answer=str(await self.agent.run(user_msg=ev.question)))

    @step
    def give(self, ev: Looked) -> StopEvent:
        return StopEvent(result=ev.answer)


@pytest.mark.shows("sub-agents", "state")
def test_a_workflow_with_an_agent(tmp_path):
    """The workflow is the run, the agent a span of it, and a typed state is recorded."""

    def program(url):
        async def look():
            return await Lookup(url).run(question=QUESTION)

        assert asyncio.run(look()) == ANSWER

    recorded = record(tmp_path, program)
    check_wire(recorded)
    tree = draw(recorded)
    assert tree[:3] == ["invoke_agent Lookup", "  state Lookup", "  invoke_agent shop"]
    assert sorted(tree[3:]) == [
        *[f"    {CHAT}"] * 2,
        "    execute_tool stock #call_a",
        "    execute_tool stock #call_b",
        "  state Lookup",
    ]
    first, second = list_states(recorded)
    assert first == {"asked": [], "found": None}
    assert second["asked"]["0"]["blocks"][0]["text"] == QUESTION


class ByHand(Workflow):
    """A loop of a model and its tools that a program wrote, with what LlamaIndex has for it."""

    def __init__(self, base_url, *, call):
        super().__init__(timeout=30)
        self.llm, self.call = make_model(base_url), call

    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        tool = FunctionTool.from_defaults(stock)
        history = [ChatMessage(role="user", content=QUESTION)]
        said = await self.llm.achat_with_tools(
            [tool], chat_history=history, allow_parallel_tool_calls=True
        )
        history.append(said.message)
        for call in self.llm.get_tool_calls_from_response(said):
            output = await self.call(call, tool)
            told = {"tool_call_id": call.tool_id}
            history.append(ChatMessage(role="tool", content=str(output), additional_kwargs=told))
        last = await self.llm.achat_with_tools([tool], chat_history=history)
        return StopEvent(result=last.message.content)


async def call_selected(call, tool):
    return await acall_tool_with_selection(call, [tool])


async def call_selected_sync(call, tool):
    return call_tool_with_selection(call, [tool])


async def call_tool(call, tool):
    return tool(**call.tool_kwargs)


async def call_tool_async(call, tool):
    return await tool.acall(**call.tool_kwargs)


@pytest.mark.parametrize(
    ("call", "has_ids"),
    [
        (call_selected, True),
        (call_selected_sync, True),
        (call_tool, False),
        (call_tool_async, False),
    ],
)
def test_a_workflow_with_a_model(tmp_path, call, has_ids):
    """A tool that the program calls is a step, once; with its call's id where that is given."""

    def program(url):
        async def ask():
            return await ByHand(url, call=call).run()

        assert asyncio.run(ask()) == ANSWER

    recorded = record(tmp_path, program)
    check_wire(recorded)
    assert sorted(draw(recorded)[1:]) == [
        *[f"  {CHAT}"] * 2,
        "  execute_tool stock" + " #call_a" * has_ids,
        "  execute_tool stock" + " #call_b" * has_ids,
    ]
    told = [span.attributes for span in list_steps(recorded)]
    given = [json.loads(each[semconv.TOOL_CALL_ARGUMENTS]) for each in told]
    assert given == [{"sku": "A7"}, {"sku": "B8"}]
    assert [each[semconv.TOOL_CALL_RESULT] for each in told] == ["A7: 3", "B8: 3"]


class Fails(Workflow):
    """A step of it raises."""

    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise LookupError("no shelf")


@pytest.mark.shows("error")
def test_a_step_that_fails(tmp_path):
    """The run ends with its exception."""

    async def fail(url):
        await Fails().run()

    recorded = record(tmp_path, lambda url: asyncio.run(fail(url)), raises=LookupError)
    assert [row["end"] for row in recorded.trajectories] == ["error"]


async def confirm(ctx: Context, sku: str) -> str:
    """Asks the user."""
    reply = await ctx.wait_for_event(
        HumanResponseEvent, waiter_event=InputRequiredEvent(prefix=f"{sku}?")
    )
    return reply.response


def test_a_tool_that_waits_for_the_user(tmp_path):
    """One run: the tool begins again when the answer is there, and its first try is no error."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="confirm", arguments='{"sku": "A7"}')]),
        Reply(content="Done."),
    ]

    def program(url):
        async def talk():
            handler = make_agent(url, tools=(confirm,)).run(user_msg="A7.")
            async for event in handler.stream_events():
                if isinstance(event, InputRequiredEvent):
                    handler.ctx.send_event(HumanResponseEvent(response="yes"))
            return str(await handler)

        assert asyncio.run(talk()) == "Done."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    gave = [span.attributes.get(semconv.TOOL_CALL_RESULT) for span in list_steps(recorded)]
    assert gave == [None, "yes"]
    assert all("error.type" not in span.attributes for span in recorded.spans)
    assert recorded.trajectories[0]["end"] == "terminated"


class Shelves(BaseRetriever):
    """Finds what is on the shelves."""

    def _retrieve(self, query_bundle):
        node = TextNode(text="A7: 3", id_="n1", metadata={"shelf": 1})
        return [NodeWithScore(node=node, score=0.5)]


FOUND = [{"id": "n1", "score": 0.5, "text": "A7: 3", "metadata": {"shelf": 1}}]


@pytest.mark.shows("tools")
def test_a_retriever_as_a_tool(tmp_path):
    """What was found is a step of its own, in the tool."""
    call = ToolCall(id="c1", name="shelves", arguments='{"input": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="Three.")]

    def program(url):
        tool = RetrieverTool.from_defaults(Shelves(), name="shelves", description="Finds.")
        run(make_agent(url, tools=(tool,)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        f"  {CHAT}",
        "  execute_tool shelves #c1",
        "    retrieval Shelves",
        f"  {CHAT}",
    ]
    (span,) = [each for each in recorded.spans if each.name == "retrieval Shelves"]
    assert "A7" in span.attributes["gen_ai.tool.call.arguments"]
    assert json.loads(span.attributes["gen_ai.tool.call.result"]) == FOUND


def test_a_query_engine_as_a_tool(tmp_path):
    """Retrieval and the model that reads what was found are in the tool."""
    call = ToolCall(id="c1", name="shelves", arguments='{"input": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="It has 3."), Reply(content="Three.")]

    def program(url):
        engine = RetrieverQueryEngine.from_args(Shelves(), llm=make_model(url))
        tool = QueryEngineTool.from_defaults(engine, name="shelves", description="Finds.")
        run(make_agent(url, tools=(tool,)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert list_tools(recorded)[0][3] == "It has 3."
    assert draw(recorded) == [
        "invoke_agent shop",
        f"  {CHAT}",
        "  execute_tool shelves #c1",
        "    retrieval Shelves",
        f"    {CHAT}",
        f"  {CHAT}",
    ]


def test_a_query_in_a_run_that_is_named(tmp_path):
    """A query engine by itself is no run; in one its retrieval is a step."""

    def program(url):
        engine = RetrieverQueryEngine.from_args(Shelves(), llm=make_model(url))
        with starpo_trace.trajectory("mine"):
            assert str(engine.query("A7?")) == "Three."

    script = [Reply(content="Three.")]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == ["invoke_agent mine", "  retrieval Shelves", f"  {CHAT}"]


def test_a_run_that_nobody_waits_for(tmp_path):
    """It ends when it is done, not when its handler is dropped."""

    async def drop(url):
        make_agent(url).run(user_msg=QUESTION)
        await asyncio.sleep(2)

    recorded = record(tmp_path, lambda url: asyncio.run(drop(url)))
    check_wire(recorded)
    assert recorded.trajectories[0]["end"] == "terminated"


def test_put_back():
    """Afterwards the classes and functions are the ones that were there."""
    loop = sys.modules.get("workflows.runtime.control_loop.runner") or control_loop
    places = [
        (loop._ControlLoopRunner, "run"),
        (loop._ControlLoopRunner, "run_worker"),
        (AgentWorkflow, "run_agent_step"),
        *[(each, "call_tool") for each in (AgentWorkflow, agents.BaseWorkflowAgent)],
        *[(each, "_call_tool") for each in (AgentWorkflow, agents.BaseWorkflowAgent)],
        *[(each, "call") for each in (FunctionTool, QueryEngineTool, RetrieverTool)],
        *[(each, "acall") for each in (FunctionTool, QueryEngineTool, RetrieverTool)],
        (calling, "call_tool_with_selection"),
        (calling, "acall_tool_with_selection"),
        (BaseRetriever, "retrieve"),
        (BaseRetriever, "aretrieve"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    signatures = [inspect.signature(each) for each in during]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [inspect.signature(each) for each in before] == signatures
    after = [vars(owner)[name] for owner, name in places]
    assert all(old is new for old, new in zip(before, after, strict=True))
