"""Claude Agent SDK: what its program told, and what the API's server saw, is what was recorded.

The program that the SDK bundles runs offline against a scripted server, so its requests are known.
Where an SDK has none (0.1.7), and beside it, a stand-in speaks its protocol: `claude_stand_in.py`.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
from matrix import Framework

sdk = pytest.importorskip("claude_agent_sdk", reason="claude-agent-sdk is not installed")

from openai import OpenAI  # noqa: E402
from scenario import (  # noqa: E402
    ANSWER,
    QUESTION,
    USAGE,
    check_end,
    draw,
    list_tools,
    record,
)
from servers_anthropic import make_events, write_event  # noqa: E402
from servers_scripted import Answer, AnswerServer  # noqa: E402

import starpo_trace  # noqa: E402
from starpo_trace import semconv  # noqa: E402
from starpo_trace.capture.patches.anthropic_messages import read_messages_request  # noqa: E402
from starpo_trace.convert.writers.forms import WriteOptions, write_dataset  # noqa: E402
from starpo_trace.messages import chain_hashes, dump_identity  # noqa: E402
from starpo_trace.testing import Reply, ScriptedServer, ToolCall  # noqa: E402

FRAMEWORK = Framework(
    name="Claude Agent SDK", packages=("claude-agent-sdk",), page="claude_agent_sdk"
)
BUNDLED = Path(sdk.__file__).with_name("_bundled") / "claude"
STAND_IN = Path(__file__).with_name("claude_stand_in.py")
HAS_RESULTS = hasattr(sdk, "ResultError")
"""Whether it is a newer SDK: it raises what a failed result says, and serves tools to `query("...")`."""
TOOL = "mcp__shop__stock"
CALLS = tuple(
    ToolCall(id=f"toolu_{sku}", name=TOOL, arguments=f'{{"sku": "{sku}"}}') for sku in "ab"
)
TWO_TURNS = (
    Reply(content="Let me see.", reasoning_content="Look it up.", tool_calls=CALLS, usage=USAGE),
    Reply(content=ANSWER, usage=USAGE),
)
RAN = [(TOOL, f"toolu_{sku}", f'{{"sku":"{sku}"}}', f"{sku}: 3") for sku in "ab"]


class ClaudeServer:
    """Anthropic's API, answering from a script of replies or a function of the body."""

    def __init__(self, script):
        self._script = script
        self._server = AnswerServer()
        self._server.choose_answer = self._choose_answer
        self.requests = []

    @property
    def base_url(self):
        return self._server.url

    def _choose_answer(self, request):
        if not request.path.startswith("/v1/messages"):
            return Answer(chunks=[b"{}"], status=404)
        body = json.loads(request.body)
        number = len(self.requests)
        self.requests.append(body)
        is_function = callable(self._script)
        reply = (
            self._script(body) if is_function else self._script[min(number, len(self._script) - 1)]
        )
        time.sleep(reply.delay_s)
        if reply.status >= 400:
            error = {"type": "error", "error": {"type": "api_error", "message": "scripted"}}
            return Answer(chunks=[json.dumps(error).encode()], status=reply.status)
        return Answer(
            chunks=[write_event(event) for event in write_reply(reply, number, body["model"])],
            content_type="text/event-stream",
            stall_after=reply.cut_after_chunks,
        )

    def __enter__(self):
        self._server.__enter__()
        return self

    def __exit__(self, *details):
        self._server.__exit__(*details)


def write_reply(reply, number, model):
    blocks = []
    if reply.reasoning_content is not None:
        blocks.append(
            {"type": "thinking", "thinking": reply.reasoning_content, "signature": "signed"}
        )
    if reply.content is not None:
        blocks.append({"type": "text", "text": reply.content})
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        for call in reply.tool_calls
    ]
    usage = reply.usage or USAGE
    return make_events(
        *blocks,
        id=f"msg_{number}",
        model=model,
        stop_reason="tool_use" if reply.tool_calls else "end_turn",
        usage={"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
    )


@pytest.fixture(params=["bundled", "stand-in"])
def cli(request, tmp_path, monkeypatch):
    """Path of the program that calls the model; nothing of the machine's own settings."""
    return find_program(request.param, tmp_path, monkeypatch)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Path of the stand-in, for what does not depend on the program."""
    return find_program("stand-in", tmp_path, monkeypatch)


def find_program(name, tmp_path, monkeypatch):
    for name_set in [each for each in os.environ if each.startswith(("CLAUDE", "ANTHROPIC"))]:
        monkeypatch.delenv(name_set)
    if name == "bundled":
        if not BUNDLED.exists():
            pytest.skip("this release of the SDK has no program of its own")
        return BUNDLED
    program = tmp_path / "claude"
    program.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
    program.chmod(0o755)
    return program


def is_real(cli):
    return cli == BUNDLED


async def find_stock(args):
    """A tool that runs in this process."""
    if args["sku"] == "none":
        raise RuntimeError("no shelf")
    return {"content": [{"type": "text", "text": f"{args['sku']}: 3"}]}


def make_options(cli, url, *, handler=find_stock, **options):
    folder = cli.parent if not is_real(cli) else Path(options.pop("folder"))
    options.pop("folder", None)
    shop = sdk.create_sdk_mcp_server(
        "shop", tools=[sdk.tool("stock", "How many of an article.", {"sku": str})(handler)]
    )
    given = {
        "system_prompt": "Be brief.",
        "model": "claude-sonnet-4-5",
        "mcp_servers": {"shop": shop},
        "allowed_tools": [TOOL],
        "cli_path": str(cli),
        "cwd": folder,
        "env": {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "none",
            "HOME": str(folder),
            "CLAUDE_CONFIG_DIR": str(folder / "config"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "DISABLE_AUTOUPDATER": "1",
            "ENABLE_TOOL_SEARCH": "false",
        },
    }
    return sdk.ClaudeAgentOptions(**{**given, **options})


async def query_text(options, question=QUESTION):
    result = None
    async for message in sdk.query(prompt=question, options=options):
        result = getattr(message, "result", result)
    return result


async def query_stream(options, question=QUESTION):
    """The input stays open until the answer is there, which older SDKs need for tools."""
    is_over = asyncio.Event()

    async def ask():
        yield {"type": "user", "message": {"role": "user", "content": question}}
        await is_over.wait()

    texts = []
    async for message in sdk.query(prompt=ask(), options=options):
        if isinstance(message, sdk.AssistantMessage):
            texts += [block.text for block in message.content if hasattr(block, "text")]
        if isinstance(message, sdk.ResultMessage):
            is_over.set()
    return texts[-1] if texts else None


async def ask_client(options, *questions):
    texts = []
    async with sdk.ClaudeSDKClient(options) as client:
        for question in questions or [QUESTION]:
            await client.query(question)
            async for message in client.receive_response():
                if isinstance(message, sdk.AssistantMessage):
                    texts += [block.text for block in message.content if hasattr(block, "text")]
    return texts[-1]


needs_newer = pytest.mark.skipif(
    not HAS_RESULTS, reason="a text given to query() of this release closes the input: no tools"
)
RUNS = [pytest.param(query_text, marks=needs_newer), query_stream, ask_client]


def simplify(parts):
    """Parts without what the program adds for itself: reminders, and newlines beside them."""
    return [
        {key: value for key, value in part.items() if key not in {"meta", "response"}}
        | ({"response": simplify_blocks(part["response"])} if "response" in part else {})
        for part in parts
    ]


def simplify_blocks(blocks):
    if isinstance(blocks, str):
        return blocks
    kept = [block for block in blocks if not block["text"].startswith("<system-reminder>")]
    return [{**block, "text": block["text"].rstrip("\n")} for block in kept]


def check_claude_wire(recorded, cli, script=TWO_TURNS, *, num_trajectories=1, has_usage=False):
    """Every request and answer is one turn; of the prompt, all that the stream tells."""
    assert recorded.rejected == []
    assert len(recorded.trajectories) == num_trajectories
    assert len({span.trace_id for span in recorded.spans}) == num_trajectories
    known = {None, *(span.span_id for span in recorded.spans)}
    assert [span.name for span in recorded.spans if span.parent_id not in known] == []
    turns = sorted(recorded.turns, key=lambda turn: turn["started_ns"])
    assert len(turns) == len(recorded.requests)
    for turn, body, reply in zip(turns, recorded.requests, script, strict=True):
        sent = read_messages_request({"provider": "anthropic"}, body).messages
        told = recorded.read_prompt(turn)
        if is_real(cli):
            assert [message["role"] for message in told] == [message["role"] for message in sent]
            for kept, whole in zip(told, sent, strict=True):
                if kept["role"] in {"system", "user"}:
                    texts = [part["content"].rstrip("\n") for part in whole["parts"]]
                    assert all(part["content"] in texts for part in kept["parts"])
                else:
                    assert simplify(kept["parts"]) == simplify(whole["parts"])
        else:
            assert [dump_identity(m) for m in told] == [dump_identity(m) for m in sent]
            assert turn["input_node"] == chain_hashes(sent)[-1].hex()
        assert turn["tool_definitions"] is None  # the stream does not tell them
        assert (turn["text"], turn["reasoning"]) == (reply.content, reply.reasoning_content)
        called = [(call["id"], call["name"]) for call in turn["tool_calls"]]
        assert called == [(call.id, call.name) for call in reply.tool_calls]
        arguments = [json.loads(call["arguments"]) for call in turn["tool_calls"]]
        assert arguments == [json.loads(call.arguments) for call in reply.tool_calls]
        usage = reply.usage or USAGE
        assert turn["input_tokens"] == usage["prompt_tokens"]
        assert turn["output_tokens"] == (usage["completion_tokens"] if has_usage else None)


@pytest.mark.pictured
@pytest.mark.shows("llm", "async", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("run", RUNS)
def test_two_turns(tmp_path, cli, run):
    """Two tool calls of one answer, each joined to its call; the answer after them."""
    answers = []

    def program(url):
        answers.append(asyncio.run(run(make_options(cli, url, folder=tmp_path))))

    recorded = record(tmp_path, program, TWO_TURNS, serve=ClaudeServer)
    assert answers == [ANSWER]
    check_claude_wire(recorded, cli)
    assert list_tools(recorded) == RAN
    tree = [line for line in draw(recorded) if "state" not in line]
    assert tree == [
        "invoke_agent claude",
        "  chat claude-sonnet-4-5",
        f"  execute_tool {TOOL} #toolu_a",
        f"  execute_tool {TOOL} #toolu_b",
        "  chat claude-sonnet-4-5",
    ]
    (row,) = recorded.trajectories
    assert row["end"] == "terminated"
    assert row["usable_for"] == "sft"
    assert "partial_content" in row["reasons"]
    first, tool, *_, last = [
        span for span in recorded.spans if span.parent_id and "state" not in span.name
    ]
    assert first.start_ns <= first.end_ns <= last.start_ns <= last.end_ns
    assert tool.end_ns <= last.start_ns


def test_trainable(tmp_path, stand_in):
    """What a trainer reads is the conversation that the stream told."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(ask_client(make_options(stand_in, url, folder=tmp_path))),
        TWO_TURNS,
        serve=ClaudeServer,
    )
    path = tmp_path / "lines.jsonl"
    write_dataset(recorded.dataset, path, form="trl", options=WriteOptions(split="all"))
    chats = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert [message["role"] for message in chats[-1]] == [
        *("system", "user", "assistant", "tool", "tool", "assistant")
    ]
    assert chats[-1][0]["content"] == "Be brief."
    assert chats[-1][1]["content"] == QUESTION
    assert chats[-1][-1]["content"] == ANSWER


@pytest.mark.shows("streaming")
@pytest.mark.parametrize("run", [query_stream, ask_client])
def test_partial_messages(tmp_path, cli, run):
    """Pieces of an answer double nothing, and tell its usage and its end."""

    def program(url):
        options = make_options(cli, url, folder=tmp_path, include_partial_messages=True)
        assert asyncio.run(run(options)) == ANSWER

    recorded = record(tmp_path, program, TWO_TURNS, serve=ClaudeServer)
    check_claude_wire(recorded, cli, has_usage=True)
    assert list_tools(recorded) == RAN
    assert [turn["finish_reason"] for turn in recorded.turns] == ["tool_use", "end_turn"]
    assert {turn["outcome"] for turn in recorded.turns} == {"ok"}


def test_one_turn(tmp_path, stand_in):
    """The usage of a result is that of its only turn."""
    script = [Reply(content=ANSWER, usage=USAGE)]
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(
            query_text(make_options(stand_in, url, folder=tmp_path, mcp_servers={}))
        ),
        script,
        serve=ClaudeServer,
    )
    check_claude_wire(recorded, stand_in, script, has_usage=True)
    assert recorded.turns[0]["finish_reason"] == ("end_turn")


def test_two_questions(tmp_path, cli):
    """Each is a run of one conversation; the second goes on where the first ended."""
    script = [*TWO_TURNS, Reply(content="Yes.", usage=USAGE)]

    def program(url):
        options = make_options(cli, url, folder=tmp_path)
        assert asyncio.run(ask_client(options, QUESTION, "Sure?")) == "Yes."

    recorded = record(tmp_path, program, script, serve=ClaudeServer)
    num_turns = sorted(row["num_turns"] for row in recorded.trajectories)
    assert num_turns == [1, 2]
    roots = [span for span in recorded.spans if span.parent_id is None]
    assert len({span.attributes[semconv.CONVERSATION_ID] for span in roots}) == 1
    last = max(recorded.turns, key=lambda turn: turn["started_ns"])
    assert recorded.read_prompt(last)[-1]["parts"][0]["content"] == "Sure?"
    if not is_real(cli):
        for turn in recorded.turns:  # in pieces of the program's own
            turn["output_tokens"] = None
        check_claude_wire(recorded, cli, script, num_trajectories=2)


def test_a_conversation_that_is_shortened(tmp_path, cli):
    """After a compaction, prompts begin with its summary; the call that wrote it is not told."""
    if not is_real(cli):
        pytest.skip("the stand-in has no commands")
    script = [Reply(content="One."), Reply(content="<summary>We counted.</summary>")]

    def program(url):
        options = make_options(cli, url, folder=tmp_path)
        asyncio.run(ask_client(options, QUESTION, "/compact", "Sure?"))

    recorded = record(tmp_path, program, script, serve=ClaudeServer)
    assert len(recorded.requests) == 3
    first, last = sorted(recorded.turns, key=lambda turn: turn["started_ns"])
    assert [message["role"] for message in recorded.read_prompt(first)] == ["system", "user"]
    told = recorded.read_prompt(last)
    assert [message["role"] for message in told] == ["system", "user", "user"]
    assert "We counted." in told[1]["parts"][0]["content"]
    assert told[2]["parts"][0]["content"] == "Sure?"
    sent = json.dumps(recorded.requests[-1]["messages"])
    assert json.dumps(told[1]["parts"][0]["content"])[1:-1] in sent


@pytest.mark.shows("sub-agents")
@pytest.mark.parametrize("is_forwarded", [False, True])
def test_sub_agent(tmp_path, cli, is_forwarded):
    """It is inside of the tool that asked for it, with what the stream tells of it."""
    if is_forwarded and not HAS_RESULTS:
        pytest.skip("this release cannot have a sub-agent's text forwarded")
    given = {"description": "Looks", "prompt": "A7?", "subagent_type": "inner"}
    if is_real(cli):
        given["run_in_background"] = False
    script = [
        Reply(tool_calls=[ToolCall(id="toolu_t", name="Agent", arguments=json.dumps(given))]),
        Reply(content="I look.", tool_calls=CALLS[:1]),
        Reply(content="Three."),
        Reply(content=ANSWER),
    ]

    def program(url):
        inner = sdk.AgentDefinition(description="Looks", prompt="You look.", tools=[TOOL])
        more = {"forward_subagent_text": True} if is_forwarded else {}
        options = make_options(cli, url, folder=tmp_path, agents={"inner": inner}, **more)
        assert asyncio.run(ask_client(options)) in {ANSWER}

    recorded = record(tmp_path, program, script, serve=ClaudeServer)
    assert len(recorded.requests) == 4
    tree = [line for line in draw(recorded) if "state" not in line]
    assert tree == [
        "invoke_agent claude",
        "  chat claude-sonnet-4-5",
        "  execute_tool Agent #toolu_t",
        "    invoke_agent inner",
        "      chat claude-sonnet-4-5",
        f"      execute_tool {TOOL} #toolu_a",
        *["      chat claude-sonnet-4-5"]
        * is_forwarded,  # else its last answer is the tool's result
        "  chat claude-sonnet-4-5",
    ]
    inner = recorded.turns[1]
    assert inner["outcome"] == ("ok" if is_forwarded else "dropped")
    assert inner["text"] == ("I look." if is_forwarded else None)
    prompt = recorded.read_prompt(inner)
    assert [part["content"] for message in prompt for part in message["parts"]] == [
        *("You look.", "A7?")
    ]
    if is_forwarded and not is_real(cli):
        check_claude_wire(recorded, cli, script)


def test_a_tool_that_fails(tmp_path, cli):
    """The step has failed, with what the model is told."""
    call = ToolCall(id="toolu_n", name=TOOL, arguments='{"sku": "none"}')
    script = [Reply(tool_calls=[call]), Reply(content="No shelf.")]
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(ask_client(make_options(cli, url, folder=tmp_path))),
        script,
        serve=ClaudeServer,
    )
    (tool,) = [span for span in recorded.spans if span.name.startswith("execute_tool")]
    if HAS_RESULTS:
        assert "no shelf" in tool.error
    else:  # this release does not tell its program that a tool has failed
        assert (tool.error, tool.attributes[semconv.TOOL_CALL_RESULT]) == (None, "no shelf")
    assert recorded.trajectories[0]["end"] == "terminated"


def test_a_model_call_inside_of_a_tool(tmp_path, cli):
    """A tool of this process has the run's context: what it asks is inside of its step."""
    inner = ScriptedServer([Reply(content="3")])

    async def ask_model(args):
        client = OpenAI(base_url=inner.base_url, api_key="none")
        messages = [{"role": "user", "content": args["sku"]}]
        answer = await asyncio.to_thread(
            lambda: client.chat.completions.create(model="m", messages=messages)
        )
        return {"content": [{"type": "text", "text": answer.choices[0].message.content}]}

    script = [Reply(tool_calls=CALLS), Reply(content=ANSWER)]

    def program(url):
        options = make_options(cli, url, handler=ask_model, folder=tmp_path)
        asyncio.run(ask_client(options))

    with inner:
        recorded = record(tmp_path, program, script, serve=ClaudeServer)
    assert len({span.trace_id for span in recorded.spans}) == 1
    above = {span.span_id: span.parent_id for span in recorded.spans}
    tools = {s.span_id for s in recorded.spans if s.name == f"execute_tool {TOOL}"}
    inside = []
    for span in recorded.spans:
        if span.name == "chat m":
            around = span.parent_id
            while around not in {None, *tools}:
                around = above[around]  # spans of mcp's own
            inside.append(around)
    assert len(tools) == 2
    assert set(inside) == tools
    assert recorded.trajectories[0]["num_turns"] == 4


def test_hooks_are_left_alone(tmp_path, cli):
    """They are called as ever; what they ask a model is part of the run."""
    inner = ScriptedServer([Reply(content="fine")])
    seen = []

    async def look(given, tool_use_id, _context):
        client = OpenAI(base_url=inner.base_url, api_key="none")
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "ok?"}])
        seen.append((given["hook_event_name"], given["tool_name"], tool_use_id))
        return {}

    def program(url):
        hooks = {"PreToolUse": [sdk.HookMatcher(matcher=None, hooks=[look])]}
        options = make_options(cli, url, folder=tmp_path, hooks=hooks)
        assert asyncio.run(ask_client(options)) == ANSWER

    with inner:
        recorded = record(tmp_path, program, TWO_TURNS, serve=ClaudeServer)
    assert seen == [("PreToolUse", TOOL, "toolu_a"), ("PreToolUse", TOOL, "toolu_b")]
    assert [line for line in draw(recorded) if line.strip() == "chat m"] == ["  chat m"] * 2
    assert list_tools(recorded) == RAN


@pytest.mark.shows("state")
def test_session(tmp_path, cli):
    """What the program says of the session, and what the run came to."""
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(ask_client(make_options(cli, url, folder=tmp_path))),
        TWO_TURNS,
        serve=ClaudeServer,
    )
    first, last = [json.loads(row["value"]) for row in recorded.states]
    assert first["model"] == "claude-sonnet-4-5"
    assert TOOL in first["tools"]
    assert first["permissionMode"] == "default"
    assert last["usage"]["output_tokens"] == 2 * USAGE["completion_tokens"]
    assert last["total_cost_usd"] > 0


@pytest.mark.shows("error")
@pytest.mark.parametrize("run", [query_text, ask_client])
def test_a_server_that_fails(tmp_path, cli, run):
    """The run ends as an error, with a failed call."""

    def program(url):
        with contextlib.suppress(IndexError):  # a client raises nothing: there is only a result
            asyncio.run(run(make_options(cli, url, folder=tmp_path, mcp_servers={})))
            if run is query_text and not HAS_RESULTS:
                raise RuntimeError("the SDK of this release raises nothing")

    raises = Exception if run is query_text else None
    recorded = record(tmp_path, program, [Reply(status=500)], raises=raises, serve=ClaudeServer)
    check_end(recorded, "error", "error")


def test_a_program_that_is_not_there(tmp_path, stand_in):
    """A run that cannot begin has failed too, and is no trouble."""
    options = make_options(
        stand_in, "http://127.0.0.1:1", folder=tmp_path, cli_path="/nowhere/claude"
    )
    recorded = record(
        tmp_path,
        lambda _: asyncio.run(query_text(options)),
        raises=sdk.CLINotFoundError,
        serve=ClaudeServer,
    )
    check_end(recorded, "error")


@pytest.mark.shows("cancel")
@pytest.mark.parametrize("run", [query_stream, ask_client])
def test_cancelled(tmp_path, cli, run):
    """A run that is cancelled while its model answers is abandoned."""
    script = [TWO_TURNS[0], Reply(content="late", delay_s=6)]

    async def cancel_late(options):
        task = asyncio.ensure_future(run(options))
        await asyncio.sleep(0)
        while len(server[0].requests) < 2:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        task.cancel()
        await task

    server = []

    def serve(given):
        server.append(ClaudeServer(given))
        return server[0]

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_late(make_options(cli, url, folder=tmp_path))),
        script,
        raises=asyncio.CancelledError,
        serve=serve,
    )
    check_end(recorded, "abandoned", "ok")  # of the second call, the stream has told nothing
    assert list_tools(recorded) == RAN


@pytest.mark.parametrize("is_partial", [False, True])
def test_interrupted(tmp_path, cli, is_partial):
    """What had come of the answer is a cancelled turn; the session goes on with another run."""
    script = [Reply(content="This is long.", cut_after_chunks=5), Reply(content=ANSWER)]

    async def ask_and_stop(options):
        async with sdk.ClaudeSDKClient(options) as client:
            await client.query(QUESTION)
            while not server[0].requests:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            await client.interrupt()
            async for _ in client.receive_response():
                pass
            await client.query("Again?")
            async for _ in client.receive_response():
                pass

    server = []

    def serve(given):
        server.append(ClaudeServer(given))
        return server[0]

    if not is_real(cli):
        pytest.skip("the stand-in looks for an interruption only between pieces")
    recorded = record(
        tmp_path,
        lambda url: asyncio.run(
            ask_and_stop(
                make_options(cli, url, folder=tmp_path, include_partial_messages=is_partial)
            )
        ),
        script,
        serve=serve,
    )
    assert sorted(row["end"] for row in recorded.trajectories) == ["abandoned", "terminated"]
    cut, whole = sorted(recorded.turns, key=lambda turn: turn["started_ns"])
    assert (cut["outcome"], whole["outcome"]) == ("cancelled", "ok")
    assert cut["text"] == "This is "
    assert whole["text"] == ANSWER


@pytest.mark.skipif(
    not HAS_RESULTS, reason="this release raises in another task when its stream is left"
)
def test_left_early(tmp_path, stand_in):
    """A program that leaves the stream before the result has abandoned the run."""

    async def leave(options):
        messages = sdk.query(prompt=QUESTION, options=options)
        async for message in messages:
            if isinstance(message, sdk.AssistantMessage):
                break
        await messages.aclose()

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(
            leave(make_options(stand_in, url, folder=tmp_path, mcp_servers={}))
        ),
        [Reply(content=ANSWER, cut_after_chunks=8)],  # its text, but not its end
        serve=ClaudeServer,
    )
    check_end(recorded, "abandoned", "cancelled")
    assert recorded.turns[0]["text"] == ANSWER


@pytest.mark.parametrize("run", [query_stream, ask_client])
def test_turn_limit(tmp_path, cli, run):
    """The SDK's limit of turns truncates the run."""

    def program(url):
        options = make_options(cli, url, folder=tmp_path, max_turns=1)
        with contextlib.suppress(Exception):  # raised by newer SDKs only
            asyncio.run(run(options))

    recorded = record(tmp_path, program, TWO_TURNS, serve=ClaudeServer)
    check_end(recorded, "truncated", "ok")
    assert recorded.spans[0].attributes[semconv.TRAJECTORY_END_REASON] == "max_turns"


def test_several_runs_at_once(tmp_path, stand_in):
    """Each is a trajectory of its own."""

    def answer(body):
        return TWO_TURNS[any(message["role"] == "assistant" for message in body["messages"])]

    async def run_three(url):
        runs = [ask_client(make_options(stand_in, url, folder=tmp_path)) for _ in range(3)]
        assert await asyncio.gather(*runs) == [ANSWER] * 3

    recorded = record(tmp_path, lambda url: asyncio.run(run_three(url)), answer, serve=ClaudeServer)
    assert [row["num_turns"] for row in recorded.trajectories] == [2, 2, 2]
    assert len({span.trace_id for span in recorded.spans}) == 3


def test_inside_a_named_run(tmp_path, cli):
    """A program's own `trajectory()` is the run; the SDK's agent is a part of it."""

    def program(url):
        with starpo_trace.trajectory("mine"):
            asyncio.run(ask_client(make_options(cli, url, folder=tmp_path)))

    recorded = record(tmp_path, program, TWO_TURNS, serve=ClaudeServer)
    tree = [line for line in draw(recorded) if "state" not in line]
    assert tree[:3] == ["invoke_agent mine", "  invoke_agent claude", "    chat claude-sonnet-4-5"]
    check_claude_wire(recorded, cli)


def test_put_back():
    """Afterwards the classes are the ones that were there."""
    from claude_agent_sdk._internal.client import InternalClient
    from claude_agent_sdk._internal.query import Query

    places = [
        (InternalClient, "process_query"),
        *((Query, name) for name in ("start", "stream_input", "_handle_control_request")),
        *((sdk.ClaudeSDKClient, name) for name in ("connect", "query", "interrupt", "disconnect")),
    ]
    before = [vars(owner)[name] for owner, name in places]
    starpo_trace.instrument()
    during = [vars(owner)[name] for owner, name in places]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(owner)[name] for owner, name in places] == before
