"""Pydantic AI: what its model's server saw is what was recorded."""

import asyncio
import inspect
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import date

import pytest

pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")

from matrix import Framework
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    DeferredToolRequests,
    DeferredToolResults,
    ModelRetry,
    RunContext,
    ToolReturn,
    exceptions,
)
from pydantic_ai import agent as pydantic_ai_agent
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.result import StreamedRunResultSync
from pydantic_ai.usage import UsageLimits
from scenario import (
    ANSWER,
    CALLS,
    LATE,
    QUESTION,
    RAN,
    TWO_TURNS,
    USAGE,
    answer_by_history,
    broken_stock,
    cancel_soon,
    check_end,
    check_put_back,
    check_trainable,
    check_wire,
    draw,
    list_states,
    list_tools,
    record,
    stock,
)

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.testing import Reply, ToolCall

FRAMEWORK = Framework(name="Pydantic AI", packages=("pydantic-ai-slim",), page="pydantic_ai")


def make_agent(base_url, *, tools=(stock,), name="shop", **options):
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    provider = OpenAIProvider(openai_client=client)  # its own would outlive an event loop
    return Agent(
        OpenAIChatModel("m", provider=provider),
        name=name,
        instructions="Be brief.",
        tools=tools,
        **options,
    )


SILENT = (Reply(reasoning_content="Look it up.", tool_calls=CALLS, usage=USAGE), TWO_TURNS[1])
"""As `TWO_TURNS`; `run_stream` takes the first text for the answer."""


KEPT = {
    "end", "reasons", "usable_for", "tool_names", "signature", "content_digest", "input_node",
    "input_tokens", "output_tokens", "text", "reasoning", "tool_calls", "tool_definitions",
    "num_turns", "num_steps", "num_tool_calls", "num_messages", "num_branches", "turn",
}  # fmt: skip
"""Columns that do not tell when and under which id something was recorded."""


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


def run_output_stream(agent):
    async def read():
        async with agent.run_stream(QUESTION) as result:
            return [output async for output in result.stream_output()][-1]

    return asyncio.run(read())


def run_stream_sync(agent):
    result = agent.run_stream_sync(QUESTION)
    if not hasattr(result, "__enter__"):  # older versions
        return list(result.stream_text())[-1]
    with result:
        return list(result.stream_text())[-1]


def run_stream_events(agent):
    async def read():
        events = agent.run_stream_events(QUESTION)
        if not hasattr(events, "__aenter__"):  # older versions
            return [event async for event in events][-1].result.output
        async with events as entered:
            return [event async for event in entered][-1].result.output

    return asyncio.run(read())


@pytest.fixture(params=[True, False], ids=["traced", "untraced"], autouse=True)
def tracing(request):
    """Its own instrumentation must change nothing, whether it is on or off."""
    Agent.instrument_all(request.param and True)
    yield
    Agent.instrument_all(False)


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize(
    "run",
    [
        run_sync,
        pytest.param(run_async, marks=pytest.mark.shows("async")),
        pytest.param(run_iter, marks=pytest.mark.shows("async")),
        pytest.param(run_stream_events, marks=pytest.mark.shows("async", "streaming")),
    ],
)
def test_two_turns(tmp_path, run):
    """Parallel tools, each joined to its call, however the agent is run."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))))
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
    assert list_tools(recorded) == RAN
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == [
        *["  chat m"] * 2,
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("run", [run_stream, run_stream_sync])
def test_streamed(tmp_path, run):
    """The same from a stream of text that the program reads."""
    answers = []
    recorded = record(tmp_path, lambda url: answers.append(run(make_agent(url))), SILENT)
    assert answers == [ANSWER]
    check_wire(recorded, SILENT)
    check_trainable(recorded, SILENT)
    assert list_tools(recorded) == RAN
    assert draw(recorded)[0] == "invoke_agent shop"
    has_block = run is run_stream or hasattr(StreamedRunResultSync, "__enter__")
    end = "terminated" if has_block else "abandoned"  # older versions never leave the run
    assert [row["end"] for row in recorded.trajectories] == [end]


def test_own_spans_change_no_row(tmp_path):
    """Spans that it writes between ours, to another store or to the same one, change no row."""

    def write_apart():
        return TracerProvider()

    def write_here():
        processor = get_runtime().get_tracer().span_processor
        return TracerProvider(active_span_processor=processor, shutdown_on_exit=False)

    def make_program(make_provider):
        def program(url):
            settings = make_provider and InstrumentationSettings(tracer_provider=make_provider())
            Agent.instrument_all(settings or False)
            run_sync(make_agent(url))

        return program

    def describe(recorded):
        return [
            {key: value for key, value in row.items() if key in KEPT}
            for row in (*recorded.trajectories, *recorded.turns)
        ]

    alone, apart, here = (
        record(tmp_path / str(number), make_program(make_provider))
        for number, make_provider in enumerate((None, write_apart, write_here))
    )
    check_wire(alone)
    assert describe(apart) == describe(alone)
    assert describe(here) == describe(alone)
    reasons = Counter(row["reason"] for row in here.rejected)
    reasons.pop("container", None)  # older versions have a span around tools
    assert reasons == {"duplicate_llm_call": 2, "duplicate_tool_run": 2}


def test_a_tool_that_asks_for_another_try(tmp_path):
    """The try failed; arguments that are refused run no tool."""
    calls = [
        ToolCall(id="c1", name="find", arguments='{"sku": "a7"}'),
        ToolCall(id="c2", name="find", arguments='{"ski": "A7"}'),
        ToolCall(id="c3", name="find", arguments='{"sku": "A7"}'),
    ]
    script = [*(Reply(tool_calls=[call]) for call in calls), Reply(content=ANSWER)]

    def find(sku: str) -> str:
        if sku.islower():
            raise ModelRetry("In capitals.")
        return stock(sku)

    recorded = record(
        tmp_path, lambda url: run_sync(make_agent(url, tools=(find,), retries=3)), script
    )
    check_wire(recorded, script)
    assert list_tools(recorded) == [
        ("find", "c1", '{"sku": "a7"}', None),
        ("find", "c3", '{"sku": "A7"}', "A7: 3"),
    ]
    failed = [span.attributes.get(semconv.ERROR_TYPE) for span in recorded.spans]
    assert [each.split(".")[-1] for each in failed if each] in (["ToolRetryError"], ["ModelRetry"])
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


def test_results_are_what_the_model_is_told(tmp_path):
    """An object as the JSON that the model gets of it, without what is for the program only."""

    class Shelf(BaseModel):
        sku: str
        since: date

    def look() -> ToolReturn:
        return ToolReturn(return_value=[Shelf(sku="A7", since=date(2024, 5, 1))], metadata="mine")

    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="look", arguments="{}")]),
        Reply(content=ANSWER),
    ]
    recorded = record(tmp_path, lambda url: run_sync(make_agent(url, tools=(look,))), script)
    check_wire(recorded, script)
    told = recorded.requests[1]["messages"][-1]["content"]
    assert list_tools(recorded) == [("look", "c1", "{}", told)]


@pytest.mark.parametrize("run", [run_sync, run_output_stream])
def test_an_output_tool(tmp_path, run):
    """The call that is the answer runs no tool: it is the last turn's."""

    class Count(BaseModel):
        count: int

    call = ToolCall(id="c1", name="final_result", arguments='{"count": 3}')
    script = [SILENT[0], Reply(tool_calls=[call])]
    outputs = []
    recorded = record(
        tmp_path, lambda url: outputs.append(run(make_agent(url, output_type=Count))), script
    )
    assert outputs == [Count(count=3)]
    check_wire(recorded, script)
    assert list_tools(recorded) == RAN


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("is_itself", [False, True])
def test_an_agent_that_a_tool_asks(tmp_path, is_itself):
    """Its run is inside of the tool that asked, also where it is the same agent."""
    script = [
        Reply(tool_calls=[ToolCall(id="c1", name="ask", arguments='{"text": "A7?"}')]),
        Reply(content="Three."),
        Reply(content="It has three."),
    ]

    def program(url):
        async def ask(text: str) -> str:
            return (await inner.run(text)).output

        outer = make_agent(url, tools=(ask,))
        inner = outer if is_itself else make_agent(url, tools=(), name="inner")
        run_sync(outer)

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool ask #c1",
        f"    invoke_agent {'shop' if is_itself else 'inner'}",
        "      chat m",
        "  chat m",
    ]


def test_a_tool_that_waits_for_approval(tmp_path):
    """What was asked and what ran when it was granted are steps of two runs."""

    def pay(ctx: RunContext, sum: int) -> str:
        if not ctx.tool_call_approved:
            raise ApprovalRequired
        return f"paid {sum}"

    def program(url):
        agent = make_agent(url, tools=(pay,), output_type=[str, DeferredToolRequests])
        asked = agent.run_sync(QUESTION)
        assert isinstance(asked.output, DeferredToolRequests)
        granted = DeferredToolResults(approvals={"c1": True})
        history = asked.all_messages()
        agent.run_sync(message_history=history, deferred_tool_results=granted)

    call = ToolCall(id="c1", name="pay", arguments='{"sum": 3}')
    script = [Reply(tool_calls=[call]), Reply(content="Paid.")]
    recorded = record(tmp_path, program, script)
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat m",
        "  execute_tool pay #c1",
        "invoke_agent shop",
        "  execute_tool pay #c1",
        "  chat m",
    ]
    results = [span.attributes.get(semconv.TOOL_CALL_RESULT) for span in recorded.spans]
    assert [each for each in results if each] == ["paid 3"]
    assert [row["end"] for row in recorded.trajectories] == ["terminated"] * 2


def test_inside_of_a_named_run(tmp_path):
    """Two agents in `trajectory()` are spans of its one run."""

    def program(url):
        with starpo_trace.trajectory("day", task_id="t1"):
            run_sync(make_agent(url, tools=(), name="first"))
            run_sync(make_agent(url, tools=(), name="second"))

    script = [Reply(content="One."), Reply(content="Two.")]
    recorded = record(tmp_path, program, script)
    check_wire(recorded, script)
    assert draw(recorded) == [
        "invoke_agent day",
        "  invoke_agent first",
        "    chat m",
        "  invoke_agent second",
        "    chat m",
    ]


@pytest.mark.skipif(
    "conversation_id" not in inspect.signature(Agent.iter).parameters,
    reason="this version knows no conversations",
)
def test_a_conversation(tmp_path):
    """Its id is the run's, and a run after the block is one of its own."""

    async def program(url):
        agent = make_agent(url, tools=())
        async with agent.iter(QUESTION, conversation_id="c-17") as run:
            node = await run.next(run.next_node)
            await run.next(node)  # the model's answer; and leaves it there
        await agent.run(QUESTION)

    script = [Reply(content="One."), Reply(content="Two.")]
    recorded = record(tmp_path, lambda url: asyncio.run(program(url)), script)
    rows = sorted(recorded.trajectories, key=lambda row: row["started_ns"])
    assert [(row["num_turns"], row["conversation_id"], row["end"]) for row in rows] == [
        (1, "c-17", "terminated"),
        (1, None, "terminated"),
    ]


@dataclass
class Cart:
    """What a run's tools share."""

    skus: list[str] = field(default_factory=list)


@dataclass
class Till(Cart):
    """The same with something that is no data."""

    lock: object = field(default_factory=threading.Lock)


def put(ctx: RunContext[Cart], sku: str) -> str:
    ctx.deps.skus.append(sku)
    return "Put."


@pytest.mark.shows("state")
def test_the_dependencies_of_a_run(tmp_path):
    """Recorded at its start and where a tool changed them; those that are no data are not."""
    call = ToolCall(id="c1", name="put", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call, CALLS[0]]), Reply(content=ANSWER)] * 2

    def program(url):
        agent = make_agent(url, tools=(put, stock), deps_type=Cart)
        for cart in (Cart(skus=["B8"]), Till()):
            agent.run_sync(QUESTION, deps=cart)

    recorded = record(tmp_path, program, script)
    check_wire(recorded, script, num_trajectories=2)
    assert list_states(recorded) == [("deps", {"skus": ["B8"]}), ("deps", {"skus": ["B8", "A7"]})]


@pytest.mark.shows("error")
def test_a_tool_that_fails(tmp_path):
    """What a tool raises ends the step and the run, and reaches the program."""
    call = ToolCall(id="c1", name="broken_stock", arguments='{"sku": "A7"}')
    script = [Reply(tool_calls=[call])]
    recorded = record(
        tmp_path,
        lambda url: run_sync(make_agent(url, tools=(broken_stock,))),
        script,
        raises=RuntimeError,
    )
    check_wire(recorded, script)
    assert str(recorded.error) == "no shelf for A7"
    assert list_tools(recorded) == [("broken_stock", "c1", '{"sku": "A7"}', None)]
    failed = [span.name for span in recorded.spans if semconv.ERROR_TYPE in span.attributes]
    assert failed == ["invoke_agent shop", "execute_tool broken_stock"]
    assert [row["end"] for row in recorded.trajectories] == ["error"]


@pytest.mark.shows("error")
def test_a_server_that_fails(tmp_path):
    """The run ends as an error, with the exception that left it."""
    recorded = record(
        tmp_path,
        lambda url: run_sync(make_agent(url)),
        [Reply(status=400)],
        raises=ModelHTTPError,
    )
    check_end(recorded, "error", "error")


async def cancel_task(agent):
    await cancel_soon(agent.run(QUESTION))


async def cancel_run(agent):
    async with agent.iter(QUESTION) as run:
        asyncio.get_running_loop().call_later(0.5, run.cancel)
        async for _ in run:
            pass


async def time_out(agent):
    await agent.run(QUESTION, timeout=0.5)


@pytest.mark.parametrize(
    ("stop", "raises", "end"),
    [
        pytest.param(
            cancel_task, asyncio.CancelledError, "abandoned", marks=pytest.mark.shows("cancel")
        ),
        *(
            pytest.param(stop, getattr(exceptions, raises), end, marks=pytest.mark.shows(feature))
            for stop, raises, end, feature in (
                (cancel_run, "RunCancelled", "abandoned", "cancel"),
                (time_out, "RunTimedOut", "error", "error"),
            )
            if hasattr(exceptions, raises)  # not in older versions
        ),
    ],
)
def test_stopped(tmp_path, stop, raises, end):
    """Cancelled while its model answers, a run is abandoned; one that took too long failed."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(stop(make_agent(url))),
        LATE,
        raises=raises,
    )
    check_end(recorded, end, "cancelled")


def test_too_many_requests(tmp_path):
    """A limit on what a run may use cuts it short; the program gets its exception."""
    limits = UsageLimits(request_limit=1)
    recorded = record(
        tmp_path,
        lambda url: make_agent(url).run_sync(QUESTION, usage_limits=limits),
        TWO_TURNS[:1],
        raises=UsageLimitExceeded,
    )
    check_end(recorded, "truncated", "ok")


def test_several_runs_at_once(tmp_path):
    """Each is a trajectory of its own."""

    async def run_three(url):
        runs = (make_agent(url, name=f"a{number}").run(QUESTION) for number in range(3))
        assert [each.output for each in await asyncio.gather(*runs)] == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer_by_history)
    assert sorted(row["num_turns"] for row in recorded.trajectories) == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


def test_put_back():
    """What was patched is as it was before."""
    manager = pydantic_ai_agent.ToolManager
    name = "execute_tool_call"
    check_put_back(
        (Agent, "iter"), (manager, name if hasattr(manager, name) else "_call_function_tool")
    )
