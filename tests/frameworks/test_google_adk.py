"""Google ADK: what its model's server saw is what was recorded, of LiteLLM's models and of Gemini's."""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from matrix import Framework

pytest.importorskip("google.adk", reason="google-adk is not installed")

from google.adk.agents import BaseAgent, LlmAgent, LoopAgent, ParallelAgent, SequentialAgent
from google.adk.agents.invocation_context import LlmCallsLimitExceededError
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.flows.llm_flows import functions  # noqa: F401 (before anything is patched)
from google.adk.models.google_llm import Gemini
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import Runner
from google.adk.sessions.base_session_service import BaseSessionService
from google.adk.sessions.in_memory_session_service import InMemorySessionService
from google.adk.tools.agent_tool import AgentTool
from google.adk.tools.exit_loop_tool import exit_loop
from google.adk.tools.tool_context import ToolContext
from google.adk.version import __version__
from google.genai import types
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
from servers_google import answer_chunks, answer_json, make_answer
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(name="Google ADK", packages=("google-adk",), page="google_adk")
IS_OLD = __version__.startswith("1.")
TREE = ["invoke_agent shop", "  state shop", "  chat m", "  execute_tool stock #call_a",
        "  execute_tool stock #call_b", "  chat m"]  # fmt: skip
TOLD = [
    (name, call, arguments.replace(" ", ""), json.dumps({"result": result}, separators=(",", ":")))
    for name, call, arguments, result in RAN
]
"""`RAN` as ADK has it: arguments are parsed, a result is an object."""
STREAMED = RunConfig(streaming_mode=StreamingMode.SSE)


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    return LlmAgent(
        name=name,
        model=LiteLlm(model="openai/m", api_base=base_url, api_key="none", max_retries=0),
        instruction="Be brief.",
        tools=list(tools),
        **options,
    )


def make_runner(agent, state=None):
    service = InMemorySessionService()
    asyncio.run(service.create_session(app_name="a", user_id="u", session_id="s1", state=state))
    return Runner(app_name="a", agent=agent, session_service=service)


def ask(text=QUESTION):
    message = types.Content(role="user", parts=[types.Part(text=text)])
    return {"user_id": "u", "session_id": "s1", "new_message": message}


def read_text(events):
    """The last whole text."""
    contents = [event.content for event in events if event.content and not event.partial]
    told = [
        "".join(part.text for part in content.parts if part.text and not part.thought)
        for content in contents
    ]
    return [text for text in told if text][-1]


async def read(runner, **options):
    return [event async for event in runner.run_async(**ask(), **options)]


def run_sync(agent):
    return read_text(make_runner(agent).run(**ask()))


def run_async(agent):
    return read_text(asyncio.run(read(make_runner(agent))))


def run_streamed(agent):
    events = asyncio.run(read(make_runner(agent), run_config=STREAMED))
    assert any(event.partial for event in events)
    return read_text(events)


def run_streamed_sync(agent):
    return read_text(list(make_runner(agent).run(**ask(), run_config=STREAMED)))


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("tool", [stock, stock_async])
@pytest.mark.parametrize(
    "run",
    [
        run_sync,
        pytest.param(run_async, marks=pytest.mark.shows("async")),
        pytest.param(run_streamed, marks=pytest.mark.shows("async", "streaming")),
        pytest.param(run_streamed_sync, marks=pytest.mark.shows("streaming")),
    ],
)
def test_two_turns(tmp_path, run, tool):
    """Parallel tools, each joined to its call, however the agent is run."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url, tools=(tool,)))))
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
    assert list_tools(recorded) == TOLD
    assert draw(recorded)[:3] == TREE[:3]
    assert sorted(draw(recorded)) == sorted(TREE)
    [run] = recorded.trajectories
    assert (run["end"], run["conversation_id"]) == ("terminated", "s1")


@pytest.mark.shows("sub-agents")
def test_an_agent_as_a_tool(tmp_path):
    """Its run is inside of the tool that it is, with a state of its own."""
    call = ToolCall(id="c1", name="expert", arguments='{"request": "A7?"}')
    script = [Reply(tool_calls=[call]), Reply(content="Three."), Reply(content="It has three.")]

    def program(url):
        expert = make_agent(url, tools=(), name="expert")
        run_sync(make_agent(url, tools=(AgentTool(agent=expert),)))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool expert #c1",
        "    invoke_agent expert",
        "      state expert",
        "      chat m",
        "  chat m",
    ]
    assert list_tools(recorded) == [("expert", "c1", '{"request":"A7?"}', '{"result":"Three."}')]


TRANSFER = [
    Reply(
        tool_calls=[
            ToolCall(id="c1", name="transfer_to_agent", arguments='{"agent_name": "expert"}')
        ]
    ),
    Reply(content="Three."),
]


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("run", [run_sync, run_async, run_streamed])
def test_a_transfer(tmp_path, run):
    """A tool hands over to another agent, which is one of the run."""
    answers = []

    def program(url):
        expert = make_agent(url, tools=(), name="expert", description="Knows the shelves.")
        answers.append(run(make_agent(url, tools=(), sub_agents=[expert])))

    recorded = record(tmp_path, program, TRANSFER)
    assert answers == ["Three."]
    check_wire(recorded, TRANSFER)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool transfer_to_agent #c1",
        "  invoke_agent expert",
        "    chat m",
    ]
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


def test_a_conversation_goes_on_with_the_agent_that_has_it(tmp_path):
    """The second run of a session is a run of its own, in which the first agent calls no model."""

    def program(url):
        expert = make_agent(url, tools=(), name="expert", description="Knows the shelves.")
        runner = make_runner(make_agent(url, tools=(), sub_agents=[expert]))
        for _ in range(2):
            asyncio.run(read(runner))

    script = [*TRANSFER, Reply(content="Still three.")]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script, num_trajectories=2)
    assert [row["conversation_id"] for row in recorded.trajectories] == ["s1", "s1"]
    assert draw(recorded)[6:] == [
        "invoke_agent shop",
        "  state shop",
        "  invoke_agent expert",
        "    chat m",
    ]


@pytest.mark.shows("sub-agents")
def test_agents_one_after_the_other(tmp_path):
    """The workflow is the run, its agents are inside."""
    script = [Reply(content="One."), Reply(content="Two.")]

    def program(url):
        agents = [make_agent(url, tools=(), name=name) for name in ("first", "second")]
        assert run_async(SequentialAgent(name="line", sub_agents=agents)) == "Two."

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent line",
        "  state line",
        "  invoke_agent first",
        "    chat m",
        "  invoke_agent second",
        "    chat m",
    ]


@pytest.mark.shows("sub-agents", "parallel")
def test_agents_at_the_same_time(tmp_path):
    """Each one's calls and tools are inside of it."""

    def program(url):
        agents = [make_agent(url, name=name) for name in ("first", "second")]
        run_async(ParallelAgent(name="fan", sub_agents=agents))

    recorded = record(tmp_path, program, answer_by_history)
    assert recorded.rejected == []
    assert [row["num_turns"] for row in recorded.trajectories] == [4]
    ids = {span.span_id: span for span in recorded.spans}
    around = sorted(
        (ids[span.parent_id].name, span.name)
        for span in recorded.spans
        if span.parent_id in ids and not span.name.startswith(("state", "invoke"))
    )
    inside = [*["chat m"] * 2, *["execute_tool stock"] * 2]
    assert around == [
        (f"invoke_agent {name}", each) for name in ("first", "second") for each in inside
    ]


@pytest.mark.shows("sub-agents")
def test_a_loop(tmp_path):
    """Each round is a span; a tool ends it."""
    script = [
        Reply(content="Once more."),
        Reply(tool_calls=[ToolCall(id="c1", name="exit_loop", arguments="{}")]),
    ]

    def program(url):
        agent = make_agent(url, tools=(exit_loop,), name="worker")
        run_async(LoopAgent(name="loop", sub_agents=[agent], max_iterations=5))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent loop",
        "  state loop",
        "  invoke_agent worker",
        "    chat m",
        "  invoke_agent worker",
        "    chat m",
        "    execute_tool exit_loop #c1",
    ]


def test_an_agent_of_the_programs_own(tmp_path):
    """What it runs is inside of it; it is the run."""

    class Desk(BaseAgent):
        async def _run_async_impl(self, ctx):
            async for event in self.sub_agents[0].run_async(ctx):
                yield event

    script = [Reply(content="One.")]
    recorded = record(
        tmp_path,
        lambda url: run_async(
            Desk(name="desk", sub_agents=[make_agent(url, tools=(), name="inner")])
        ),
        script,
    )
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent desk",
        "  state desk",
        "  invoke_agent inner",
        "    chat m",
    ]


ONE_CALL = (
    Reply(tool_calls=[ToolCall(id="c1", name="look", arguments='{"sku": "A7"}')]),
    Reply(content=ANSWER),
)


@pytest.mark.shows("state")
def test_the_sessions_state(tmp_path):
    """As it is where the run begins, and after each event that changes it."""

    def look(sku: str, tool_context: ToolContext) -> str:
        tool_context.state["seen"] = [*tool_context.state.get("seen", ()), sku]
        tool_context.state["temp:secret"] = 1
        return "3"

    def program(url):
        agent = make_agent(url, tools=(look,), output_key="answer")
        runner = make_runner(agent, {"user:name": "Ann"})
        asyncio.run(read(runner))

    recorded = record(tmp_path, program, ONE_CALL)
    check_wire(recorded, ONE_CALL)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool look #c1",
        "  state shop",
        "  chat m",
        "  state shop",
    ]
    first = {"user:name": "Ann"}
    second = {**first, "seen": ["A7"], "temp:secret": 1}
    states = [json.loads(row["value"]) for row in recorded.states]
    assert states == [first, second, {**second, "answer": ANSWER}]


def test_a_tool_that_calls_a_model(tmp_path):
    """Its call is inside of the tool, also in another thread."""
    import litellm

    def program(url):
        def look(sku: str) -> str:
            """Look."""
            reply = litellm.completion(
                model="openai/m", api_base=url, api_key="none",
                messages=[{"role": "user", "content": sku}],
            )  # fmt: skip
            return reply.choices[0].message.content

        async def look_apart(sku: str) -> str:
            """Look."""
            return await asyncio.to_thread(look, sku)

        look_apart.__name__ = "look"
        run_async(make_agent(url, tools=(look,)))
        run_async(make_agent(url, tools=(look_apart,)))

    script = [ONE_CALL[0], Reply(content="3"), ONE_CALL[1]] * 2
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script, num_trajectories=2)
    expected = [
        "invoke_agent shop",
        "  state shop",
        "  chat m",
        "  execute_tool look #c1",
        "    chat m",
        "  chat m",
    ]
    assert draw(recorded) == expected * 2
    assert [tool[3] for tool in list_tools(recorded)] == ['{"result":"3"}'] * 2


def test_tools_in_a_pool_of_threads(tmp_path):
    """They are inside of the run there too."""
    config = pytest.importorskip("google.adk.agents.run_config")
    if not hasattr(config, "ToolThreadPoolConfig"):
        pytest.skip("this version has no pool of threads for tools")
    options = RunConfig(tool_thread_pool_config=config.ToolThreadPoolConfig(max_workers=2))
    for tool in (stock, stock_async):
        folder = tmp_path / str(asyncio.iscoroutinefunction(tool))
        recorded = record(
            folder,
            lambda url, tool=tool: asyncio.run(
                read(make_runner(make_agent(url, tools=(tool,))), run_config=options)
            ),
        )
        check_wire(recorded)
        assert list_tools(recorded) == TOLD
        assert sorted(draw(recorded)) == sorted(TREE)


def test_a_callback_that_answers_for_a_tool(tmp_path):
    """The tool did not run: the answer is in the next prompt only."""
    seen = []

    def look(sku: str) -> str:
        seen.append(sku)
        return "3"

    def answer(tool, args, tool_context):
        return {"result": "from the cache"}

    recorded = record(
        tmp_path,
        lambda url: run_async(make_agent(url, tools=(look,), before_tool_callback=answer)),
        ONE_CALL,
    )
    check_wire(recorded, ONE_CALL)
    assert (seen, list_tools(recorded)) == ([], [])
    assert "from the cache" in recorded.requests[1]["messages"][-1]["content"]


@pytest.mark.shows("error")
def test_a_tool_that_fails(tmp_path):
    """What it raises ends the step and the run, and reaches the program."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call])]
    recorded = record(
        tmp_path,
        lambda url: run_async(make_agent(url, tools=(broken_stock,))),
        script,
        raises=RuntimeError,
    )
    check_wire(recorded, script)
    assert str(recorded.error) == "no shelf for A7"
    assert list_tools(recorded) == [("broken_stock", "c1", '{"sku":"A7"}', None)]
    failed = [span.name for span in recorded.spans if semconv.ERROR_TYPE in span.attributes]
    assert failed == ["invoke_agent shop", "execute_tool broken_stock"]
    check_end(recorded, "error", "ok")


def test_a_tool_that_fails_and_a_callback_that_tells_the_model(tmp_path):
    """The step has its error, and the run goes on."""
    from google.adk.plugins.base_plugin import BasePlugin

    class Tell(BasePlugin):
        async def on_tool_error_callback(self, **_options):
            return {"error": "no shelf"}

    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]

    def program(url):
        service = InMemorySessionService()
        asyncio.run(service.create_session(app_name="a", user_id="u", session_id="s1"))
        agent = make_agent(url, tools=(broken_stock,))
        plugins = [Tell(name="tell")]
        runner = Runner(app_name="a", agent=agent, session_service=service, plugins=plugins)
        asyncio.run(read(runner))

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    failed = [span.name for span in recorded.spans if semconv.ERROR_TYPE in span.attributes]
    assert failed == ["execute_tool broken_stock"]
    check_end(recorded, "terminated", "ok", "ok")


@pytest.mark.shows("error")
@pytest.mark.parametrize("config", [RunConfig(), STREAMED], ids=["whole", "streamed"])
def test_a_server_that_fails(tmp_path, config):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(read(make_runner(make_agent(url)), run_config=config)),
        [Reply(status=500)],
        raises=Exception,
    )
    check_end(recorded, "error", "error")


def test_a_server_that_fails_in_another_thread(tmp_path):
    """The same where the program is not told: versions 1 end `Runner.run` without an exception."""
    raises = None if IS_OLD else Exception
    recorded = record(
        tmp_path, lambda url: list(make_runner(make_agent(url)).run(**ask())),
        [Reply(status=500)], raises=raises,
    )  # fmt: skip
    check_end(recorded, "error", "error")


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its model answers is abandoned."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(read(make_runner(make_agent(url))))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")


@pytest.mark.shows("cancel")
@pytest.mark.skipif(IS_OLD, reason="versions 1 have no signal to abort a run")
def test_aborted(tmp_path):
    """ADK's own signal ends a run without an exception; it is abandoned."""

    async def abort_soon(runner):
        signal = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, signal.set)
        await read(runner, abort_signal=signal)

    recorded = record(
        tmp_path, lambda url: asyncio.run(abort_soon(make_runner(make_agent(url)))), LATE
    )
    check_end(recorded, "abandoned", "cancelled")


def test_the_limit_of_model_calls(tmp_path):
    """It truncates the run, and the program gets ADK's exception."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(
            read(make_runner(make_agent(url)), run_config=RunConfig(max_llm_calls=1))
        ),
        raises=LlmCallsLimitExceededError,
        script=TWO_TURNS[:1],
    )
    check_end(recorded, "truncated", "ok")
    assert recorded.spans[0].attributes[semconv.TRAJECTORY_END_REASON] == "max_llm_calls"


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_program_that_has_seen_enough(tmp_path, is_closed):
    """Closed or dropped after the first event, the run ends there, and only it."""

    async def look_at_one(runner):
        events = runner.run_async(**ask())
        async for _ in events:
            break
        if is_closed:
            await events.aclose()
        del events
        await asyncio.sleep(0.1)

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(look_at_one(make_runner(make_agent(url)))),
        TWO_TURNS[:1],
    )
    assert [row["num_turns"] for row in recorded.trajectories] == [1]
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own, in one loop and in threads."""

    async def run_three(url):
        runners = [Runner(app_name="a", agent=make_agent(url, name=f"a{i}"),
                          session_service=InMemorySessionService()) for i in range(3)]  # fmt: skip
        for runner in runners:
            await runner.session_service.create_session(app_name="a", user_id="u", session_id="s1")
        results = await asyncio.gather(*(read(runner) for runner in runners))
        assert [read_text(events) for events in results] == [ANSWER] * 3

    def program(url):
        asyncio.run(run_three(url))
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(run_sync, [make_agent(url) for _ in range(3)])) == [ANSWER] * 3

    recorded = record(tmp_path, program, answer_by_history)
    assert recorded.rejected == []
    assert [row["num_turns"] for row in recorded.trajectories] == [2] * 6
    assert len({span.trace_id for span in recorded.spans}) == 6
    assert {row["end"] for row in recorded.trajectories} == {"terminated"}


@pytest.mark.parametrize("run", [run_sync, run_async])
def test_inside_of_a_named_run(tmp_path, run):
    """Two agents in `trajectory()` are spans of its one run."""

    def program(url):
        with starpo_trace.trajectory("day", task_id="t1"):
            run(make_agent(url, tools=(), name="first"))
            run(make_agent(url, tools=(), name="second"))

    script = [Reply(content="One."), Reply(content="Two.")]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent day",
        "  invoke_agent first",
        "    state first",
        "    chat m",
        "  invoke_agent second",
        "    state second",
        "    chat m",
    ]


KEPT = {
    "end", "reasons", "usable_for", "tool_names", "signature", "content_digest", "input_node",
    "input_tokens", "output_tokens", "text", "reasoning", "tool_calls", "tool_definitions",
    "num_turns", "num_steps", "num_tool_calls", "num_messages", "num_branches", "turn",
}  # fmt: skip
"""Columns that do not tell when and under which id something was recorded."""


def replace_tracers(monkeypatch, provider):
    """Its own spans go to this provider, as they do to the one that a program has made global."""
    tracer = provider.get_tracer("gcp.vertex.agent")
    replaced = [
        name
        for name, module in sorted(sys.modules.items())
        if name.startswith("google.adk.")
        and type(vars(module).get("tracer")).__name__ == "ProxyTracer"
    ]
    assert replaced
    for name in replaced:
        monkeypatch.setattr(sys.modules[name], "tracer", tracer)


@pytest.mark.parametrize("schema", ["1", "2"])
@pytest.mark.parametrize("run", [run_async, run_streamed])
def test_own_spans_change_no_row(tmp_path, monkeypatch, run, schema):
    """Spans that it writes between ours, to another store or to the same one, change no row."""
    if IS_OLD and schema == "2":
        pytest.skip("this version has one kind of spans")
    monkeypatch.setenv("ADK_TELEMETRY_SCHEMA_VERSION_OPT_IN", schema)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")

    def write_here():
        processor = get_runtime().get_tracer().span_processor
        return TracerProvider(active_span_processor=processor, shutdown_on_exit=False)

    def make_program(make_provider):
        def program(url):
            with monkeypatch.context() as patched:
                if make_provider is not None:
                    replace_tracers(patched, make_provider())
                run(make_agent(url))

        return program

    def describe(recorded):
        return [
            {key: value for key, value in row.items() if key in KEPT}
            for row in (*recorded.trajectories, *recorded.turns)
        ]

    alone, apart, here = (
        record(tmp_path / str(number), make_program(make_provider))
        for number, make_provider in enumerate((None, TracerProvider, write_here))
    )
    check_wire(alone)
    assert len(here.spans) > len(alone.spans)
    assert describe(apart) == describe(alone)
    assert describe(here) == describe(alone)


GEMINI_CALLS = [
    {"functionCall": {"name": "stock", "args": {"sku": "A7"}}, "thoughtSignature": "c2ln"},
    {"functionCall": {"name": "stock", "args": {"sku": "B8"}}},
]
GEMINI_USAGE = {"promptTokenCount": 30, "candidatesTokenCount": 12, "totalTokenCount": 42}
THOUGHT = {"text": "Look it up.", "thought": True}


@pytest.mark.shows("llm", "tools", "parallel", "reasoning", "streaming", "async")
@pytest.mark.parametrize("is_streamed", [False, True])
def test_gemini(tmp_path, monkeypatch, is_streamed):
    """Its own model: prompts, answers and usage are those of the wire; no call has an id there."""
    answers = []
    end = {"usageMetadata": GEMINI_USAGE}
    if is_streamed:
        first = answer_chunks(make_answer(THOUGHT, finish=None), make_answer(*GEMINI_CALLS) | end)
        words = (make_answer({"text": text}, finish=None) for text in ("Three ", "of each."))
        last = answer_chunks(*words, make_answer({"text": ""}) | end)
    else:
        first = answer_json(make_answer(THOUGHT, *GEMINI_CALLS) | end)
        last = answer_json(make_answer({"text": ANSWER}) | end)

    def program(_url):
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("GOOGLE_API_KEY", "none")
        model = Gemini(model="gemini-x")
        agent = LlmAgent(name="shop", model=model, instruction="Be brief.", tools=[stock])
        answers.append((run_streamed_sync if is_streamed else run_async)(agent))

    with AnswerServer(first, last) as server:
        recorded = record(tmp_path, program)
    assert answers == [ANSWER]
    assert recorded.rejected == []
    bodies = [json.loads(request.body) for request in server.requests]
    assert len(recorded.turns) == len(bodies) == 2
    assert sorted(draw(recorded)) == sorted(
        line.replace("chat m", "generate_content gemini-x").partition(" #")[0] for line in TREE
    )
    assert [tool[:1] + tool[2:] for tool in list_tools(recorded)] == [
        tool[:1] + tool[2:] for tool in TOLD
    ]
    one, two = recorded.turns
    assert (one["reasoning"], one["text"], two["text"]) == ("Look it up.", None, ANSWER)
    called = [(call["name"], json.loads(call["arguments"])) for call in one["tool_calls"]]
    assert called == [("stock", {"sku": "A7"}), ("stock", {"sku": "B8"})]
    assert [(turn["input_tokens"], turn["output_tokens"]) for turn in recorded.turns] == [
        (30, 12)
    ] * 2
    declared = [json.loads(turn["tool_definitions"]) for turn in recorded.turns]
    assert declared == [body["tools"] for body in bodies]
    prompt = recorded.read_prompt(two)
    system, question, answer, results = prompt[0], prompt[1], prompt[2], prompt[3:]
    assert system["parts"][0]["content"] == bodies[1]["systemInstruction"]["parts"][0]["text"]
    assert question["parts"] == [{"type": "text", "content": QUESTION}]
    assert [part["name"] for part in answer["parts"] if part["type"] == "tool_call"] == [
        "stock"
    ] * 2
    told = [part for message in results for part in message["parts"]]
    assert [part["response"] for part in told] == [
        part["functionResponse"]["response"] for part in bodies[1]["contents"][-1]["parts"]
    ]


def test_put_back():
    """Afterwards the classes and functions are the ones that were there."""
    places = [
        (Runner, "run_async"),
        (BaseAgent, "run_async"),
        (BaseSessionService, "append_event"),
    ]
    name = "__call_tool_async" if IS_OLD else "_call_tool_async"
    places += [
        (module, name)
        for key, module in sys.modules.items()
        if key.startswith("google.adk.flows.") and name in vars(module)
    ]
    assert len(places) == (4 if IS_OLD else 6)
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
