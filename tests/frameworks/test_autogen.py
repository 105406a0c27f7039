"""AutoGen: what its model's server saw is what was recorded."""

import asyncio
import json
from dataclasses import dataclass

import pytest
from matrix import Framework

pytest.importorskip("autogen_agentchat", reason="autogen-agentchat is not installed")
pytest.importorskip("autogen_ext.models.openai", reason="autogen-ext[openai] is not installed")

from autogen_agentchat.agents import AssistantAgent, BaseChatAgent, SocietyOfMindAgent
from autogen_agentchat.base import Response, TaskResult
from autogen_agentchat.conditions import (
    ExternalTermination,
    MaxMessageTermination,
    TextMentionTermination,
)
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage
from autogen_agentchat.teams import (
    BaseGroupChat,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)
from autogen_agentchat.teams._group_chat._base_group_chat_manager import BaseGroupChatManager
from autogen_agentchat.teams._group_chat._chat_agent_container import ChatAgentContainer
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core import (
    CancellationToken,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)
from autogen_core import _single_threaded_agent_runtime as runtimes
from autogen_core.memory import ListMemory, MemoryContent
from autogen_core.models import UserMessage
from autogen_core.tools import BaseTool, FunctionTool, StaticWorkbench, ToolOverride
from autogen_ext.models.openai import OpenAIChatCompletionClient
from opentelemetry import trace
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
    check_two_turns,
    check_wire,
    draw,
    draw_calls,
    list_tools,
    record,
    stock,
    stock_async,
)

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(
    name="AutoGen", packages=("autogen-agentchat", "autogen-core", "autogen-ext"), page="autogen"
)

_INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "family": "unknown",
    "structured_output": False,
    "multiple_system_messages": True,
}


def make_client(base_url):
    return OpenAIChatCompletionClient(
        model="m", base_url=base_url, api_key="none", max_retries=0, model_info=_INFO
    )


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return AssistantAgent(
        name,
        make_client(base_url),
        tools=list(tools),
        system_message="Be brief.",
        **{"max_tool_iterations": 3, **options},
    )


async def run(runner):
    return (await runner.run(task=QUESTION)).messages[-1].content


async def run_stream(runner):
    last = [each async for each in runner.run_stream(task=QUESTION)][-1]
    assert isinstance(last, TaskResult)
    return last.messages[-1].content


async def on_messages(agent):
    asked = [TextMessage(content=QUESTION, source="user")]
    return (await agent.on_messages(asked, CancellationToken())).chat_message.content


async def on_messages_stream(agent):
    asked = [TextMessage(content=QUESTION, source="user")]
    last = [each async for each in agent.on_messages_stream(asked, CancellationToken())][-1]
    assert isinstance(last, Response)
    return last.chat_message.content


RUNS = [run, run_stream, on_messages, on_messages_stream]


def ask(program):
    """Coroutine function of a URL -> program."""
    return lambda url: asyncio.run(program(url))


@pytest.mark.shows("llm", "async", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("tool", [stock, stock_async], ids=["in a thread", "async"])
def test_two_turns(tmp_path, run, tool):
    """Parallel tools, each joined to its call, however the agent is run."""

    async def program(url):
        assert await run(make_agent(url, tools=(tool,))) == ANSWER

    recorded = record(tmp_path, ask(program))
    check_two_turns(recorded)
    check_trainable(recorded)


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("run", RUNS)
def test_streamed(tmp_path, run):
    """The same where the model streams."""

    async def program(url):
        assert await run(make_agent(url, model_client_stream=True)) == ANSWER

    recorded = record(tmp_path, ask(program))
    assert all(request["stream"] for request in recorded.requests)
    check_two_turns(recorded)


def call(name, arguments="{}", *, call_id="c1"):
    return Reply(tool_calls=[ToolCall(id=call_id, name=name, arguments=arguments)])


MEMBERS = (*TWO_TURNS, Reply(content="Checked."))
"""For a team of two: the first has tools, the second an answer."""


def make_round(base_url, **options):
    members = [make_agent(base_url), make_agent(base_url, name="check", tools=())]
    return RoundRobinGroupChat(members, name="desk", **{"max_turns": 2, **options})


@pytest.mark.pictured
@pytest.mark.shows("sub-agents", "async")
@pytest.mark.parametrize("run", [run, run_stream])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own runtime", "shared runtime"])
def test_a_team(tmp_path, run, is_shared):
    """Members are inside of it, also where a runtime handles messages in tasks begun before."""

    async def program(url):
        if not is_shared:
            assert await run(make_round(url)) == "Checked."
            return
        runtime = SingleThreadedAgentRuntime()
        runtime.start()
        assert await run(make_round(url, runtime=runtime)) == "Checked."
        await runtime.stop_when_idle()

    recorded = record(tmp_path, ask(program), MEMBERS)
    check_wire(recorded, MEMBERS)
    check_trainable(recorded, MEMBERS)
    assert list_tools(recorded) == RAN
    told = draw_calls(recorded)
    assert told[:3] == ["invoke_agent desk", "  invoke_agent shop", "    chat m"]
    assert sorted(told[3:5]) == [
        "    execute_tool stock #call_a",
        "    execute_tool stock #call_b",
    ]
    assert told[5:] == ["    chat m", "  invoke_agent check", "    chat m"]


def test_teams_at_once_in_one_runtime(tmp_path):
    """A message belongs to the run that it was sent in."""

    async def program(url):
        runtime = SingleThreadedAgentRuntime()
        runtime.start()
        teams = [
            RoundRobinGroupChat([make_agent(url)], max_turns=1, runtime=runtime) for _ in "abc"
        ]
        assert await asyncio.gather(*(run(team) for team in teams)) == [ANSWER] * 3
        await runtime.stop_when_idle()

    recorded = record(tmp_path, ask(program), answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    assert [row["num_tool_calls"] for row in recorded.trajectories] == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3
    assert recorded.rejected == []


@pytest.mark.shows("sub-agents")
def test_a_selector(tmp_path):
    """The team's own model call is below the team."""
    script = (Reply(content="check"), Reply(content="Checked."))

    async def program(url):
        members = [make_agent(url), make_agent(url, name="check", tools=())]
        assert await run(SelectorGroupChat(members, make_client(url), max_turns=1)) == "Checked."

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert draw_calls(recorded) == [
        "invoke_agent SelectorGroupChat",
        "  chat m",
        "  invoke_agent check",
        "    chat m",
    ]


@pytest.mark.shows("sub-agents", "tools")
def test_a_handoff(tmp_path):
    """It is a tool of the one who hands over; the next is beside it."""
    script = (call("transfer_to_check"), Reply(content="DONE"))

    async def program(url):
        members = [
            make_agent(url, tools=(), handoffs=["check"]),
            make_agent(url, tools=(), name="check"),
        ]
        stop = TextMentionTermination("DONE")
        assert await run(Swarm(members, termination_condition=stop)) == "DONE"

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    told = "Transferred to check, adopting the role of check immediately."
    assert list_tools(recorded) == [("transfer_to_check", "c1", "{}", told)]
    assert draw_calls(recorded) == [
        "invoke_agent Swarm",
        "  invoke_agent shop",
        "    chat m",
        "    execute_tool transfer_to_check #c1",
        "  invoke_agent check",
        "    chat m",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"


@pytest.mark.shows("sub-agents", "state")
def test_magentic_one(tmp_path):
    """The orchestrator's calls are the team's, and so are its facts and its plan."""
    answers = {
        "is_request_satisfied": False,
        "is_progress_being_made": True,
        "is_in_loop": False,
        "instruction_or_question": "Check.",
        "next_speaker": "check",
    }
    ledgers = [
        json.dumps({key: {"answer": value, "reason": "so"} for key, value in told.items()})
        for told in (answers, {**answers, "is_request_satisfied": True})
    ]
    texts = ("FACTS", "PLAN", ledgers[0], "Checked.", ledgers[1], "Final.")
    script = tuple(Reply(content=text) for text in texts)

    async def program(url):
        members = [make_agent(url, name="check", tools=()), make_agent(url)]
        assert await run(MagenticOneGroupChat(members, make_client(url))) == "Final."

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert draw_calls(recorded) == [
        "invoke_agent MagenticOneGroupChat",
        *["  chat m"] * 3,
        "  invoke_agent check",
        "    chat m",
        *["  chat m"] * 2,
    ]
    first, *_, last = [json.loads(row["value"]) for row in recorded.states]
    assert (first["facts"], first["plan"], first["n_rounds"]) == ("", "", 0)
    assert (last["facts"], last["plan"], last["n_rounds"]) == ("FACTS", "PLAN", 2)


@pytest.mark.shows("state")
def test_states(tmp_path):
    """Before the first turn, and where a turn changed something; without the messages."""

    async def program(url):
        await run(make_round(url, max_turns=3))

    script = (*MEMBERS, Reply(content=ANSWER))
    recorded = record(tmp_path, ask(program), script)
    assert {row["name"] for row in recorded.states} == {"desk"}
    states = [json.loads(row["value"]) for row in recorded.states]
    assert {key for told in states for key in told} == {
        *("type", "version", "current_turn", "next_speaker_index"),
    }
    assert [(told["current_turn"], told["next_speaker_index"]) for told in states] == [
        *((0, 0), (0, 1), (1, 0), (2, 1)),
        (0, 1),
    ]
    assert draw(recorded)[:4] == [
        "invoke_agent desk",
        "  state desk",
        "  state desk",
        "  invoke_agent shop",
    ]


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("is_team", [False, True], ids=["agent", "team"])
def test_an_agent_as_a_tool(tmp_path, run, is_team):
    """Its run is inside of the tool that it is."""
    script = [call("inner", '{"task": "A7?"}'), Reply(content="Three."), Reply(content=ANSWER)]

    async def program(url):
        inner = make_agent(url, tools=(), name="inner")
        tool = AgentTool(inner, return_value_as_last_message=True)
        if is_team:
            team = RoundRobinGroupChat([inner], name="group", max_turns=1)
            tool = TeamTool(team, "inner", "Asks.", return_value_as_last_message=True)
        assert await run(make_agent(url, tools=(tool,))) == ANSWER

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == [("inner", "c1", '{"task": "A7?"}', "Three.")]
    inner = ["    invoke_agent inner", "      chat m"]
    if is_team:
        inner = ["    invoke_agent group", *("  " + line for line in inner)]
    assert draw_calls(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool inner #c1",
        *inner,
        "  chat m",
    ]


def test_teams_inside_of_a_team(tmp_path):
    """A team that is a member, and an agent that is a team."""
    script = [Reply(content=text) for text in ("One.", "Two.", "Three.")]

    async def program(url):
        def group(name):
            return RoundRobinGroupChat(
                [make_agent(url, tools=(), name=name)], name=f"group_{name}", max_turns=1
            )

        mind = SocietyOfMindAgent("mind", group("b"), make_client(url))
        assert (
            await run(RoundRobinGroupChat([group("a"), mind], name="desk", max_turns=2)) == "Three."
        )

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert draw_calls(recorded) == [
        "invoke_agent desk",
        "  invoke_agent group_a",
        "    invoke_agent a",
        "      chat m",
        "  invoke_agent mind",
        "    invoke_agent group_b",
        "      invoke_agent b",
        "        chat m",
        "    chat m",
    ]


class Plain(BaseChatAgent):
    """An agent of the program's own."""

    def __init__(self, client):
        super().__init__("plain", "Asks.")
        self._client = client

    @property
    def produced_message_types(self):
        return (TextMessage,)

    async def on_messages(self, messages, cancellation_token):
        told = await self._client.create(
            [message.to_model_message() for message in messages],
            cancellation_token=cancellation_token,
        )
        return Response(chat_message=TextMessage(content=told.content, source=self.name))

    async def on_reset(self, cancellation_token):
        pass


@pytest.mark.parametrize("run", [run, run_stream])
def test_an_agent_of_the_programs_own(tmp_path, run):
    """Alone and in a team."""
    script = [Reply(content="Three."), Reply(content="Four.")]

    async def program(url):
        assert await run(Plain(make_client(url))) == "Three."
        team = RoundRobinGroupChat([Plain(make_client(url))], name="desk", max_turns=1)
        assert await run(team) == "Four."

    recorded = record(tmp_path, ask(program), script)
    assert draw_calls(recorded) == [
        "invoke_agent plain",
        "  chat m",
        "invoke_agent desk",
        "  invoke_agent plain",
        "    chat m",
    ]


@dataclass
class Asked:
    """A message of the program's own."""

    text: str


class Asker(RoutedAgent):
    """An agent of AutoGen's core: no agent that AgentChat knows."""

    def __init__(self, client):
        super().__init__("Asks.")
        self._client = client

    @message_handler
    async def handle(self, message: Asked, ctx: MessageContext) -> None:
        """Ask."""
        tool = FunctionTool(stock, "Looks.", name="stock")
        await tool.run_json({"sku": "A7"}, ctx.cancellation_token, call_id="c1")
        await self._client.create([UserMessage(content=message.text, source="user")])


def test_agents_of_the_core(tmp_path):
    """A run that the program names has what its messages cause, in a runtime begun before it."""

    async def program(url):
        runtime = SingleThreadedAgentRuntime()
        await Asker.register(runtime, "asker", lambda: Asker(make_client(url)))
        await runtime.add_subscription(TypeSubscription("asked", "asker"))
        runtime.start()
        with starpo_trace.trajectory("mine"):
            await runtime.publish_message(Asked(QUESTION), TopicId("asked", "default"))
            await asyncio.sleep(0.5)
        await runtime.stop_when_idle()

    script = [Reply(content="Three.")]
    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == [("stock", "c1", '{"sku":"A7"}', "A7: 3")]
    assert draw(recorded) == ["invoke_agent mine", "  execute_tool stock #c1", "  chat m"]


def test_memories(tmp_path):
    """What a memory gave is a retrieval before the model call that has it."""

    async def program(url):
        memory = ListMemory()
        await memory.add(MemoryContent(content="A7 is red.", mime_type="text/plain"))
        await run(make_agent(url, tools=(), memory=[memory]))

    script = [Reply(content="Red.")]
    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert draw(recorded) == ["invoke_agent shop", "  retrieval memory", "  chat m"]
    assert json.loads(recorded.spans[1].attributes[semconv.TOOL_CALL_RESULT]) == ["A7 is red."]


def test_a_renamed_tool(tmp_path):
    """One step, under the name that the model knows."""
    script = [call("look", '{"sku": "A7"}'), Reply(content=ANSWER)]

    async def program(url):
        workbench = StaticWorkbench(
            [FunctionTool(stock, "Looks.", name="stock")],
            tool_overrides={"stock": ToolOverride(name="look")},
        )
        agent = AssistantAgent("shop", make_client(url), workbench=workbench, max_tool_iterations=2)
        assert await run(agent) == ANSWER

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    assert list_tools(recorded) == [("look", "c1", '{"sku": "A7"}', "A7: 3")]


async def broken_async(sku: str) -> str:
    """How many of an article are there."""
    raise LookupError(sku)


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        (broken_stock, '{"sku": "A7"}', "RuntimeError"),
        (broken_async, '{"sku": "A7"}', "LookupError"),
        (stock, '{"skew": "A7"}', "pydantic_core._pydantic_core.ValidationError"),
        (stock, '{"sku": ', "RuntimeError"),
    ],
    ids=["in a thread", "async", "wrong arguments", "no JSON"],
)
def test_a_tool_that_fails(tmp_path, tool, arguments, error):
    """The model is told, the step has the exception, and the run goes on."""
    script = [call(tool.__name__, arguments), Reply(content="No shelf.")]

    async def program(url):
        assert await run(make_agent(url, tools=(tool,))) == "No shelf."

    recorded = record(tmp_path, ask(program), script)
    check_wire(recorded, script)
    told = recorded.requests[1]["messages"][-1]["content"]
    assert list_tools(recorded) == [(tool.__name__, "c1", arguments, told)]
    (step,) = [span for span in recorded.spans if span.name.startswith("execute_tool")]
    assert step.attributes[semconv.ERROR_TYPE] == error
    assert recorded.trajectories[0]["end"] == "terminated"


def test_an_agent_as_a_tool_that_fails(tmp_path):
    """The inner agent has the exception, and the tool; the run goes on."""
    script = [call("inner", '{"task": "A7?"}'), Reply(status=500), Reply(content="No idea.")]

    async def program(url):
        tool = AgentTool(make_agent(url, tools=(), name="inner"))
        assert await run(make_agent(url, tools=(tool,))) == "No idea."

    recorded = record(tmp_path, ask(program), script)
    check_end(recorded, "terminated", "ok", "error", "ok")
    failed = {
        span.name: span.attributes[semconv.ERROR_TYPE]
        for span in recorded.spans
        if semconv.ERROR_TYPE in span.attributes
    }
    assert failed.keys() == {"chat m", "invoke_agent inner", "execute_tool inner"}
    assert failed["execute_tool inner"] == failed["invoke_agent inner"]


@pytest.mark.parametrize(
    ("condition", "end"),
    [
        (None, "truncated"),
        (MaxMessageTermination(2), "truncated"),
        (MaxMessageTermination(2) | TextMentionTermination("Three"), "terminated"),
        (TextMentionTermination("Three"), "terminated"),
    ],
    ids=["turns", "messages", "messages or text", "text"],
)
def test_a_team_that_stops(tmp_path, condition, end):
    """A limit truncates the run, with the reason that the framework gives."""

    async def program(url):
        members = [make_agent(url, tools=())]
        limit = 1 if condition is None else None
        await run(RoundRobinGroupChat(members, max_turns=limit, termination_condition=condition))

    recorded = record(tmp_path, ask(program), TWO_TURNS[1:])
    check_end(recorded, end, "ok")
    reason = recorded.spans[0].attributes.get(semconv.TRAJECTORY_END_REASON)
    expected = {None: "Maximum number of turns 1 reached."}
    if end == "truncated":
        assert reason == expected.get(
            condition, "Maximum number of messages 2 reached, current message count: 2"
        )
    else:
        assert reason is None


def test_a_team_that_is_no_run(tmp_path):
    """A run that the program named may go on after its team has stopped."""

    async def program(url):
        with starpo_trace.trajectory("mine"):
            await run(make_round(url))

    recorded = record(tmp_path, ask(program), MEMBERS)
    check_wire(recorded, MEMBERS)
    assert draw(recorded)[:2] == ["invoke_agent mine", "  invoke_agent desk"]
    assert recorded.trajectories[0]["end"] == "terminated"


async def cancel_by_token(start, token):
    task = asyncio.ensure_future(start)
    await asyncio.sleep(0.5)
    token.cancel()
    await task


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("has_token", [False, True], ids=["task", "token"])
@pytest.mark.parametrize("is_team", [False, True], ids=["agent", "team"])
def test_cancelled(tmp_path, is_team, has_token):
    """A run that is cancelled while its model answers is abandoned."""

    async def program(url):
        runner = make_round(url, max_turns=1) if is_team else make_agent(url)
        token = CancellationToken()
        start = runner.run(task=QUESTION, cancellation_token=token)
        await (cancel_by_token(start, token) if has_token else cancel_soon(start))

    recorded = record(tmp_path, ask(program), LATE, raises=asyncio.CancelledError)
    if is_team and not has_token:  # AutoGen waits for the member
        check_end(recorded, "abandoned", "ok")
    else:
        check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("cancel")
def test_stopped_from_outside(tmp_path):
    """So is a team that its program asked to stop, though it finishes the turn."""

    async def program(url):
        stop = ExternalTermination()
        task = asyncio.ensure_future(run(make_round(url, termination_condition=stop, max_turns=9)))
        await asyncio.sleep(0.3)
        stop.set()
        assert await task == "late"

    recorded = record(tmp_path, ask(program), (Reply(content="late", delay_s=1.0),))
    check_end(recorded, "abandoned", "ok")


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", RUNS)
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
@pytest.mark.parametrize("run", [run, run_stream])
def test_a_member_that_fails(tmp_path, run):
    """The team ends as an error, and the member has it too."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(run(make_round(url))),
        [Reply(status=500)],
        raises=RuntimeError,
    )
    check_end(recorded, "error", "error")
    failed = [span.name for span in recorded.spans if span.attributes.get(semconv.ERROR_TYPE)]
    assert sorted(failed) == ["chat m", "invoke_agent desk", "invoke_agent shop"]


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "dropped"])
def test_a_stream_that_is_left(tmp_path, is_closed):
    """Who has seen enough ends the run; what follows is no part of it."""

    async def program(url):
        stream = make_agent(url, model_client_stream=True).run_stream(task=QUESTION)
        async for each in stream:
            if isinstance(each, ModelClientStreamingChunkEvent):
                break
        if is_closed:
            await stream.aclose()
        del stream, each
        await asyncio.sleep(0.1)
        await run(make_agent(url, tools=(), name="next"))

    script = [TWO_TURNS[1], Reply(content="Three.")]
    recorded = record(tmp_path, ask(program), script)
    assert [line for line in draw(recorded) if "agent" in line] == [
        "invoke_agent shop",
        "invoke_agent next",
    ]
    assert sorted(row["end"] for row in recorded.trajectories) == ["terminated", "terminated"]
    first, second = [span for span in recorded.spans if span.parent_id is None]
    assert first.end_ns < second.start_ns


def test_a_stream_of_a_team_that_is_closed(tmp_path):
    """AutoGen lets the team go on to its end, and so does the run."""

    async def program(url):
        stream = make_round(url).run_stream(task=QUESTION)
        await anext(stream)
        await stream.aclose()

    recorded = record(tmp_path, ask(program), MEMBERS)
    check_wire(recorded, MEMBERS)
    assert len(draw_calls(recorded)) == 8


def test_own_spans_change_no_row(tmp_path, monkeypatch):
    """Spans that it writes, to another store or between ours, change no row and double nothing."""

    def write_nowhere():
        return trace.NoOpTracerProvider()

    def write_here():
        processor = get_runtime().get_tracer().span_processor
        return TracerProvider(active_span_processor=processor, shutdown_on_exit=False)

    def make_program(make_provider):
        async def program(url):
            monkeypatch.setattr(trace, "_TRACER_PROVIDER", make_provider())
            await run(make_round(url))

        return program

    def describe(recorded):
        names = ("end", "num_turns", "num_steps", "num_tool_calls", "num_messages", "usable_for")
        wire = ("text", "reasoning", "tool_calls", "tool_definitions", "input_node")
        return [
            *({name: row[name] for name in names} for row in recorded.trajectories),
            *({name: row[name] for name in wire} for row in recorded.turns),
        ]

    alone, apart, here = (
        record(tmp_path / str(number), ask(make_program(make_provider)), MEMBERS)
        for number, make_provider in enumerate((write_nowhere, TracerProvider, write_here))
    )
    check_wire(alone, MEMBERS)
    assert describe(apart) == describe(alone)
    assert describe(here) == describe(alone)
    assert len([span for span in here.spans if span.name.startswith("autogen ")]) > 10
    ours = [draw_calls(each) for each in (alone, here)]
    assert sorted(line.strip() for line in ours[0]) == sorted(
        line.strip() for line in ours[1] if not line.strip().startswith(("autogen", "create"))
    )


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own."""

    async def program(url):
        agents = [make_agent(url, name=f"a{i}") for i in range(3)]
        assert await asyncio.gather(*map(run, agents)) == [ANSWER] * 3

    recorded = record(tmp_path, ask(program), answer_by_history)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


def test_a_component_is_what_it_was(tmp_path):
    """Teams are written to configurations and read from them while recording."""

    script = [Reply(content="One."), Reply(content="Two.")]

    async def program(url):
        team = RoundRobinGroupChat([make_agent(url, tools=())], max_turns=1)
        await run(team)
        saved = await team.save_state()
        again = RoundRobinGroupChat.load_component(team.dump_component())
        assert again.dump_component() == team.dump_component()
        await again.load_state(saved)
        assert await again.save_state() == saved
        assert await run(again) == "Two."

    recorded = record(tmp_path, ask(program), script)
    assert len(recorded.requests[1]["messages"]) == 4
    assert [row["end"] for row in recorded.trajectories] == ["truncated"] * 2


def test_put_back():
    """Afterwards the methods and functions are the ones that were there."""
    places = [
        *((BaseChatAgent, name) for name in ("run", "run_stream", "on_messages_stream")),
        *((AssistantAgent, name) for name in ("on_messages", "on_messages_stream")),
        (AssistantAgent, "_execute_tool_call"),
        (AssistantAgent, "_update_model_context_with_memory"),
        (BaseTool, "run_json"),
        (BaseGroupChat, "run_stream"),
        (BaseGroupChatManager, "on_message_impl"),
        (BaseGroupChatManager, "_signal_termination"),
        (ChatAgentContainer, "handle_request"),
        (ChatAgentContainer, "publish_message"),
        (SingleThreadedAgentRuntime, "_process_send"),
        (SingleThreadedAgentRuntime, "_process_publish"),
        (runtimes, "get_telemetry_envelope_metadata"),
    ]
    before = [vars(owner).get(name) for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner).get(name) for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner).get(name) for owner, name in places] == before
