"""MCP: a tool of a server in another process is a step, and what it does there is part of the run."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from matrix import Framework

mcp = pytest.importorskip("mcp", reason="mcp is not installed")

import anyio  # noqa: E402
from mcp.client import session as client_session  # noqa: E402
from mcp.client import streamable_http  # noqa: E402
from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402
from mcp.server.lowlevel import Server  # noqa: E402
from openai import OpenAI  # noqa: E402
from opentelemetry import propagate, trace  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.trace.propagation.tracecontext import (  # noqa: E402
    TraceContextTextMapPropagator,
)
from scenario import check_wire, draw, list_tools  # noqa: E402
from scenario import record as record_here  # noqa: E402

import starpo_trace  # noqa: E402
from starpo_trace.capture.agents import ToolRun, begin_tool  # noqa: E402
from starpo_trace.capture.attachment import Attachment  # noqa: E402
from starpo_trace.capture.runtime import get_runtime  # noqa: E402
from starpo_trace.testing import Reply, ToolCall  # noqa: E402

FRAMEWORK = Framework(
    name="MCP",
    packages=("mcp",),
    page="mcp",
    exempt={
        "streaming": "a protocol for tools: it streams no answers of models",
        "reasoning": "a protocol for tools: no model's reasoning is in it",
        "sub-agents": "a protocol for tools: it has no agents",
        "state": "a protocol for tools: it keeps no state of an agent",
    },
)
SERVER = Path(__file__).with_name("mcp_server.py")
IS_OLD = hasattr(Server, "call_tool")
"""Whether it is version 1."""
USAGE = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}
CALL = ToolCall(id="call_a", name="ask", arguments='{"question": "How many?"}')
SCRIPT = [
    Reply(tool_calls=[CALL], usage=USAGE),
    Reply(content="Three.", usage=USAGE),
    Reply(content="There are three.", usage=USAGE),
]
TREE = [
    "invoke_agent agent",
    "  chat m",
    "  execute_tool ask",
    "    retrieval shelf",
    "    chat m",
    "  chat m",
]


def record(folder, program, script=SCRIPT, **options):
    """Record this process and the server's."""
    return record_here(folder, program, script, others=[folder / "server"], **options)


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def list_arguments(folder, url, transport="stdio", *, port=0, kind="high", tracing="none"):
    store = folder / "server"
    return [str(each) for each in (SERVER, transport, port, store, url, kind, tracing)]


@contextlib.asynccontextmanager
async def connect_stdio(folder, url, **options):
    server = StdioServerParameters(
        command=sys.executable, args=list_arguments(folder, url, **options), env=dict(os.environ)
    )
    async with stdio_client(server) as (read, write), mcp.ClientSession(read, write) as session:
        await session.initialize()
        yield session


@contextlib.asynccontextmanager
async def connect_http(folder, url, **options):
    port = find_port()
    arguments = list_arguments(folder, url, "http", port=port, **options)
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port}/mcp"
        async with (
            streamable_http.streamable_http_client(address) as (read, write, *_),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            yield session
    finally:
        process.terminate()
        process.wait(30)


def read_text(result):
    return result.content[0].text


async def run_agent(session, url, call=None):
    """Two turns of a model, and between them the tool of the server."""
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "How many?"}]
    answer = client.chat.completions.create(model="m", messages=messages).choices[0].message
    messages.append(answer.model_dump(exclude_none=True))
    for asked in answer.tool_calls:
        call = call or session.call_tool
        result = await call(asked.function.name, json.loads(asked.function.arguments))
        told = {"role": "tool", "tool_call_id": asked.id, "content": read_text(result)}
        messages.append(told)
    client.chat.completions.create(model="m", messages=messages)


def run_inside(connect, folder, **options):
    """Program: the connection is made before the run begins, as in a server of an agent."""

    def program(url):
        async def run():
            async with connect(folder, url, **options) as session, starpo_trace.trajectory():
                await run_agent(session, url)

        asyncio.run(run())

    return program


CONNECTIONS = [
    pytest.param(connect_stdio, {}, id="stdio"),
    pytest.param(connect_stdio, {"kind": "low"}, id="stdio-low-level"),
    pytest.param(connect_http, {}, id="http"),
]


def check_parts(recorded):
    """Spans of both processes are one trajectory, in one trace, and none is an orphan."""
    check_wire(recorded, SCRIPT)
    (row,) = recorded.trajectories
    assert (row["num_parts"], row["num_turns"], row["end"]) == (2, 3, "terminated")
    assert not {"orphan_span", "missing_turn", "duplicate_step", "open_part"} & set(row["reasons"])
    assert list_tools(recorded) == [("ask", None, '{"question":"How many?"}', "Three.")]


@pytest.mark.pictured
@pytest.mark.shows("llm", "async", "tools")
@pytest.mark.parametrize(("connect", "options"), CONNECTIONS)
def test_a_server_in_another_process(tmp_path, connect, options):
    """What its tool asks a model is inside of the client's step."""
    recorded = record(tmp_path, run_inside(connect, tmp_path, **options), SCRIPT)
    check_parts(recorded)
    assert [line for line in draw(recorded) if "part" not in line] == TREE


@pytest.mark.parametrize(("connect", "options"), CONNECTIONS)
def test_telemetry_that_goes_elsewhere(tmp_path, connect, options, monkeypatch):
    """Spans of mcp's own that Starpo does not get are no parents of what it records.

    Nor need the program's propagators send baggage.
    """
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", TraceContextTextMapPropagator())
    options = {**options, "tracing": "elsewhere"}
    recorded = record(tmp_path, run_inside(connect, tmp_path, **options), SCRIPT)
    check_parts(recorded)
    assert [line for line in draw(recorded) if "part" not in line] == TREE


@pytest.mark.skipif(IS_OLD, reason="version 1 writes no spans of its own")
def test_telemetry_that_goes_here(tmp_path, monkeypatch):
    """Spans of mcp's own between ours change nothing in the dataset."""

    def program(url):
        runtime = get_runtime()
        runtime.get_tracer()
        from mcp.shared import _otel

        tracer = runtime._provider.get_tracer("mcp-python-sdk")
        monkeypatch.setattr(_otel, "_tracer", tracer)
        run_inside(connect_stdio, tmp_path)(url)

    recorded = record(tmp_path, program, SCRIPT)
    assert "MCP send tools/call ask" in [span.name for span in recorded.spans]
    assert {row["reason"] for row in recorded.rejected} <= {"mcp_transport"}
    recorded.rejected.clear()
    (row,) = recorded.trajectories
    assert (row["num_turns"], row["num_tool_calls"]) == (3, 1)
    names = [line.strip() for line in draw(recorded) if "MCP" not in line and "part" not in line]
    assert names == [line.strip() for line in TREE]
    assert "orphan_span" not in row["reasons"]


@pytest.mark.parametrize("name", ["ask", "shop_ask"])
def test_a_step_that_is_open(tmp_path, name):
    """A call by which a step's tool is reached is no second step."""

    def program(url):
        async def run():
            async with connect_stdio(tmp_path, url) as session, starpo_trace.trajectory():

                async def call(_name, arguments):
                    scope = begin_tool(ToolRun(name=name, arguments=arguments, call_id="call_a"))
                    attachment = Attachment(scope.context)
                    result = await session.call_tool("ask", arguments)
                    attachment.detach()
                    scope.finish(None, read_text(result))
                    return result

                await run_agent(session, url, call)

        asyncio.run(run())

    recorded = record(tmp_path, program, SCRIPT)
    check_wire(recorded, SCRIPT)
    tools = list_tools(recorded)
    assert tools == [(name, "call_a", '{"question":"How many?"}', "Three.")]


def test_a_step_of_the_program(tmp_path):
    """The same for a step that the program names itself."""

    def program(url):
        async def run():
            async with connect_stdio(tmp_path, url) as session, starpo_trace.trajectory():

                async def call(name, arguments):
                    with starpo_trace.step("tool", name, call_id="call_a"):
                        return await session.call_tool(name, arguments)

                await run_agent(session, url, call)

        asyncio.run(run())

    recorded = record(tmp_path, program, SCRIPT)
    check_wire(recorded, SCRIPT)
    assert [tool[:2] for tool in list_tools(recorded)] == [("ask", "call_a")]


@pytest.mark.shows("error")
def test_a_tool_that_fails(tmp_path):
    """A result that says so is a step's error; an exception of the protocol too."""
    seen = []
    soon = timedelta(seconds=1e-4) if IS_OLD else 1e-4

    def program(url):
        async def run():
            async with connect_stdio(tmp_path, url) as session:
                with starpo_trace.trajectory():
                    result = await session.call_tool("ask", {"question": "fail"})
                    seen.append(read_text(result))
                with starpo_trace.trajectory():
                    await session.call_tool("ask", {"question": "fail"}, soon)

        asyncio.run(run())

    recorded = record(tmp_path, program, SCRIPT, raises=BaseException)
    first, second = [span for span in recorded.spans if span.name == "execute_tool ask"]
    assert "Error executing tool ask" in seen[0]
    assert seen[0] in first.error
    assert "imed out" in second.error
    assert sorted(row["end"] for row in recorded.trajectories) == ["error", "terminated"]


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its tool runs is abandoned."""
    script = [SCRIPT[0], Reply(content="late", delay_s=3)]

    def program(url):
        async def run():
            async with connect_stdio(tmp_path, url) as session:

                async def agent():
                    async with starpo_trace.trajectory():
                        await run_agent(session, url)

                task = asyncio.ensure_future(agent())
                await asyncio.sleep(2)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

        try:
            asyncio.run(run())
        except* anyio.BrokenResourceError:  # mcp 1 may get the late answer while it closes
            pass

    recorded = record(tmp_path, program, script)
    assert [row["end"] for row in recorded.trajectories] == ["abandoned"]


@pytest.mark.shows("parallel")
def test_several_at_once(tmp_path):
    """Runs that share a server are trajectories of their own; so are calls of one run its steps."""

    def program(url):
        async def run():
            async with connect_stdio(tmp_path, url) as session:

                async def agent(number):
                    with starpo_trace.trajectory(task_id=f"t{number}"):
                        await asyncio.gather(
                            *(session.call_tool("ask", {"question": f"{number}"}) for _ in "ab")
                        )

                await asyncio.gather(*(agent(number) for number in range(3)))

        asyncio.run(run())

    recorded = record(tmp_path, program, lambda body: Reply(content=body["messages"][0]["content"]))
    assert recorded.rejected == []
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    for row in recorded.trajectories:
        turns = [t for t in recorded.turns if t["trajectory_id"] == row["trajectory_id"]]
        assert [turn["text"] for turn in turns] == [row["task_id"].removeprefix("t")] * 2
        assert "orphan_span" not in row["reasons"]
    results = [tool[3] for tool in list_tools(recorded)]
    assert sorted(results) == ["0", "0", "1", "1", "2", "2"]
    assert len({span.trace_id for span in recorded.spans}) == 3


def test_outside_of_a_run(tmp_path):
    """A call without a run is left alone, and so is what the server does for it."""

    def program(url):
        async def run():
            async with connect_stdio(tmp_path, url) as session:
                result = await session.call_tool("ask", {"question": "How many?"})
                assert read_text(result) == "Three."

        asyncio.run(run())

    recorded = record(tmp_path, program, SCRIPT[1:2])
    assert list_tools(recorded) == []
    assert [row["num_turns"] for row in recorded.trajectories] in [[], [1]]


def test_what_a_server_asks_its_client(tmp_path):
    """A model that a server's tool asks its client for is part of the run."""
    asked = []

    async def sample(_context, params):
        client = OpenAI(base_url=urls[0], api_key="none")
        messages = [{"role": "user", "content": params.messages[0].content.text}]
        answer = await asyncio.to_thread(
            lambda: client.chat.completions.create(model="m", messages=messages)
        )
        asked.append(params.messages[0].content.text)
        text = answer.choices[0].message.content
        content = mcp.types.TextContent(type="text", text=text)
        return mcp.types.CreateMessageResult(role="assistant", content=content, model="m")

    urls = []

    def program(url):
        urls.append(url)
        asyncio.run(call_sampling_tool(sample))

    recorded = record(tmp_path, program, [Reply(content="Three.")])
    assert asked == ["How many?"]
    assert [line for line in draw(recorded) if "MCP" not in line] == [
        "invoke_agent agent",
        "  execute_tool sample",
        "    chat m",
    ]
    assert [row["num_turns"] for row in recorded.trajectories] == [1]


async def call_sampling_tool(sample):
    """A server in this process, over streams in memory."""
    to_server, server_read = anyio.create_memory_object_stream(10)
    to_client, client_read = anyio.create_memory_object_stream(10)
    server = make_sampling_server()
    async with anyio.create_task_group() as tasks:
        options = server.create_initialization_options()
        tasks.start_soon(server.run, server_read, to_client, options)
        async with mcp.ClientSession(client_read, to_server, sampling_callback=sample) as session:
            await session.initialize()
            async with starpo_trace.trajectory():
                await session.call_tool("sample", {})
        tasks.cancel_scope.cancel()


def make_sampling_server():
    types = mcp.types
    tool = types.Tool.model_validate({"name": "sample", "inputSchema": {"type": "object"}})
    question = types.SamplingMessage(
        role="user", content=types.TextContent(type="text", text="How many?")
    )
    if IS_OLD:
        server = Server("sampling")

        @server.list_tools()
        async def list_tools():
            return [tool]

        @server.call_tool()
        async def call_tool(_name, _arguments):
            session = server.request_context.session
            answer = await session.create_message([question], max_tokens=10)
            return [answer.content]

        return server

    async def on_list_tools(_context, _params):
        return types.ListToolsResult(tools=[tool])

    async def on_call_tool(context, _params):
        answer = await context.session.create_message([question], max_tokens=10)
        return types.CallToolResult(content=[answer.content])

    return Server("sampling", on_list_tools=on_list_tools, on_call_tool=on_call_tool)


def test_put_back():
    """Afterwards the classes are the ones that were there."""
    places = [(client_session.ClientSession, "call_tool")]
    if IS_OLD:
        from mcp.shared.session import BaseSession

        places += [(BaseSession, "send_request"), (Server, "_handle_request")]
        places.append((client_session.ClientSession, "_received_request"))
    else:
        from mcp.client.client import Client
        from mcp.server import _otel
        from mcp.server.runner import ServerRunner
        from mcp.shared import jsonrpc_dispatcher

        places += [(Client, "call_tool"), (ServerRunner, "_on_request"), (_otel, "otel_span")]
        places += [(jsonrpc_dispatcher, name) for name in ("inject_trace_context", "otel_span")]
        places.append((client_session.ClientSession, "_on_request"))
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
