"""OpenAI SDK -> spans, against a real HTTP server; its request log is the ground truth."""

import asyncio
import copy
import pickle
import subprocess
import sys

import openai
import pytest
from openai import _base_client
from openai.types.chat import ChatCompletion
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.messages import chain_hashes, dump_json, from_openai_chat
from starpo_trace.testing import Reply, ScriptedServer, ToolCall, record_spans

ARGUMENTS = '{"sku": "A7",  "n":1e0}'
TOOLS = [
    {
        "type": "function",
        "function": {"name": "stock", "parameters": {"type": "object", "properties": {}}},
    }
]
USER = {"role": "user", "content": "how many?"}
TOOL_REPLY = Reply(
    reasoning_content="look it up",
    tool_calls=[
        ToolCall(id="c1", name="stock", arguments=ARGUMENTS),
        ToolCall(id="c2", name="stock", arguments="{not json"),
    ],
    prompt_token_ids=[1, 2, 3],
    token_ids=[4, 5],
    logprobs=[-0.25, -1.5],
    usage={
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
)


def client_of(server: ScriptedServer, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, **options)


def expected_span(server: ScriptedServer) -> dict:
    """The whole span of `TOOL_REPLY`, outside of a trajectory."""
    return {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "openai",
        semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_TOP_P: 1.0,
        semconv.REQUEST_TOP_K: 20,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_SEED: 7,
        semconv.REQUEST_STOP_SEQUENCES: ("END",),
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 1,
        semconv.HISTORY_HASH: chain_hashes([from_openai_chat(USER)])[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json([from_openai_chat(USER)]),
        semconv.TOOL_DEFINITIONS: dump_json(TOOLS),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.RESPONSE_ID: "chatcmpl-1",
        semconv.RESPONSE_MODEL: "m",
        semconv.RESPONSE_FINISH_REASONS: ("tool_calls",),
        semconv.USAGE_INPUT_TOKENS: 3,
        semconv.USAGE_OUTPUT_TOKENS: 2,
        semconv.USAGE_CACHE_READ_TOKENS: 1,
        semconv.USAGE_REASONING_TOKENS: 1,
        semconv.OUTPUT_MESSAGES: dump_json(
            [
                {
                    "role": "assistant",
                    "parts": [
                        {"type": "reasoning", "content": "look it up"},
                        {"type": "tool_call", "id": "c1", "name": "stock", "arguments": ARGUMENTS},
                        {
                            "type": "tool_call",
                            "id": "c2",
                            "name": "stock",
                            "arguments": "{not json",
                        },
                    ],
                    "finish_reason": "tool_calls",
                }
            ]
        ),
        semconv.PROMPT_TOKEN_IDS: "[1,2,3]",
        semconv.RESPONSE_TOKEN_IDS: "[4,5]",
        semconv.RESPONSE_LOGPROBS: "[-0.25,-1.5]",
    }


OPTIONS = {
    "model": "m",
    "messages": [USER],
    "tools": TOOLS,
    "temperature": 0.5,
    "top_p": 1,
    "max_tokens": 64,
    "seed": 7,
    "stop": "END",
    "extra_body": {"top_k": 20},
}


def test_a_call_is_one_whole_span():
    """Request, answer, arguments verbatim, reasoning, usage, token ids: all on one span."""
    with ScriptedServer([TOOL_REPLY]) as server, client_of(server) as client:
        with record_spans() as store:
            answer = client.chat.completions.create(**OPTIONS)
        assert type(answer) is ChatCompletion
        assert answer.choices[0].message.tool_calls[0].function.arguments == ARGUMENTS
        assert [dict(span.attributes) for span in store.spans] == [expected_span(server)]
        assert (store.spans[0].name, store.spans[0].kind) == ("chat m", SpanKind.CLIENT)
        assert len(server.requests) == 1


def test_an_async_call_is_the_same_span():
    """The async client records what the sync client records."""

    async def ask(server):
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            return await client.chat.completions.create(**OPTIONS)

    with ScriptedServer([TOOL_REPLY]) as server:
        with record_spans() as store:
            answer = asyncio.run(ask(server))
        assert type(answer) is ChatCompletion
        assert [dict(span.attributes) for span in store.spans] == [expected_span(server)]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_raw_response_is_read_without_taking_it(is_async):
    """`with_raw_response` records the same span, and the program still reads the body."""

    async def ask(server):
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            raw = await client.chat.completions.with_raw_response.create(**OPTIONS)
            return raw.parse()

    with ScriptedServer([TOOL_REPLY]) as server, client_of(server) as client:
        with record_spans() as store:
            if is_async:
                answer = asyncio.run(ask(server))
            else:
                answer = client.chat.completions.with_raw_response.create(**OPTIONS).parse()
        assert answer.id == "chatcmpl-1"
        assert [dict(span.attributes) for span in store.spans] == [expected_span(server)]


def test_a_streaming_response_is_recorded_as_the_program_reads_it():
    """`with_streaming_response` leaves its body to the program, and records what it read."""
    with ScriptedServer([TOOL_REPLY]) as server, client_of(server) as client:
        with (
            record_spans() as store,
            client.chat.completions.with_streaming_response.create(**OPTIONS) as raw,
        ):
            assert raw.parse().id == "chatcmpl-1"
        assert [dict(span.attributes) for span in store.spans] == [
            {**expected_span(server), semconv.STREAM_OUTCOME: "exhausted"}
        ]


def test_a_streaming_response_that_nobody_reads_is_marked():
    """The span of a body that was closed unread says so."""
    with ScriptedServer([TOOL_REPLY]) as server, client_of(server) as client:
        with (
            record_spans() as store,
            starpo_trace.trajectory(),
            client.chat.completions.with_streaming_response.create(**OPTIONS),
        ):
            pass
        [call], [root] = store.select("llm"), store.select("trajectory")
        assert call[semconv.STREAM_OUTCOME] == "closed"
        assert semconv.OUTPUT_MESSAGES not in call
        assert root[semconv.USABLE_FOR] == "sft"
        assert "unread_response" in root[semconv.USABLE_FOR_REASONS]


def test_a_parsed_answer_is_recorded_as_it_came():
    """`chat.completions.parse` bypasses `create` and is recorded once, without what it parsed."""
    from pydantic import BaseModel

    class Count(BaseModel):
        n: int

    with ScriptedServer([Reply(content='{"n":  3}')]) as server, client_of(server) as client:
        with record_spans() as store:
            answer = client.chat.completions.parse(
                model="m", messages=[USER], response_format=Count
            )
        assert answer.choices[0].message.parsed == Count(n=3)
        [call] = store.select("llm")
        assert call[semconv.OUTPUT_MESSAGES] == dump_json(
            [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": '{"n":  3}'}],
                    "finish_reason": "stop",
                }
            ]
        )


def test_an_error_reaches_the_program_unchanged():
    """A refused request raises the SDK's own error; the span says so."""
    with (
        ScriptedServer([Reply(status=400)]) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(model="m", messages=[USER])
    assert "starpo" not in str(caught.value)
    assert caught.value.status_code == 400
    [span] = store.spans
    assert span.attributes[semconv.ERROR_TYPE] == "openai.BadRequestError"
    assert span.status.status_code is StatusCode.ERROR


def test_retries_inside_the_sdk_are_one_call():
    """Two 500s and an answer are one span, as they were one call."""
    replies = [Reply(status=500), Reply(status=500), Reply(content="ok")]
    with ScriptedServer(replies) as server:
        with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=2) as client:
            client._calculate_retry_timeout = lambda *_, **__: 0.0
            with record_spans() as store:
                client.chat.completions.create(model="m", messages=[USER])
        assert len(server.requests) == 3
        assert len(store.spans) == 1


def test_a_cancelled_call_is_marked():
    """Cancelling the task cancels the request, and the span says which error ended it."""

    async def ask(server):
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            asking = asyncio.create_task(client.chat.completions.create(model="m", messages=[USER]))
            while not server.requests:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with (
        ScriptedServer([Reply(content="late", delay_s=0.5)]) as server,
        record_spans() as store,
    ):
        asyncio.run(ask(server))
    [call] = store.select("llm")
    assert call[semconv.ERROR_TYPE] == "asyncio.exceptions.CancelledError"


def test_other_requests_are_no_model_calls():
    """A request that asks no model is not recorded."""
    with (
        ScriptedServer(lambda _: Reply(status=404)) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.NotFoundError),
    ):
        client.chat.completions.update("chatcmpl-1", metadata={"a": "b"})
    assert store.spans == []


def test_suppressed_instrumentation_records_nothing():
    """OpenTelemetry's own switch is honoured."""
    with ScriptedServer([Reply(content="x")]) as server, client_of(server) as client:
        with record_spans() as store, suppress_instrumentation():
            client.chat.completions.create(model="m", messages=[USER])
        assert len(server.requests) == 1
    assert store.spans == []


def test_nothing_is_recorded_with_content_off():
    """Prompt, answer, tools, arguments, error texts and token ids: none leaves the process."""
    secret = "hunter2"
    tools = [{"type": "function", "function": {"name": "t", "description": secret}}]
    reply = Reply(
        content=secret,
        tool_calls=[ToolCall(id="1", name="t", arguments=secret)],
        prompt_token_ids=[424242],
        token_ids=[424242],
        logprobs=[-1.0],
    )
    messages = [{"role": "user", "content": secret}]

    def run(client):
        with starpo_trace.trajectory():
            client.chat.completions.create(model="m", messages=messages, tools=tools)
            with starpo_trace.step("tool", "t", arguments=secret) as step:
                step.result(secret)
            starpo_trace.state({"password": secret})
            starpo_trace.observe(messages)
            starpo_trace.reward(1, explanation=secret)
            raise RuntimeError(secret)

    with (
        ScriptedServer([reply]) as server,
        client_of(server) as client,
        record_spans(history="off") as store,
        pytest.raises(RuntimeError),
    ):
        run(client)
    exported = "".join(span.to_json() for span in store.spans)
    assert secret not in exported
    assert "424242" not in exported
    [root] = store.select("trajectory")
    assert root[semconv.USABLE_FOR] == "none"
    assert root[semconv.USABLE_FOR_REASONS] == ("history_off",)


def test_uninstrument_restores_the_raw_attributes():
    """After uninstrument() the SDK's classes hold the very objects they held before."""
    owners = (_base_client.SyncAPIClient, _base_client.AsyncAPIClient)
    before = [vars(owner)["request"] for owner in owners]
    with record_spans():
        during = [vars(owner)["request"] for owner in owners]
    assert all(now is not then for now, then in zip(during, before, strict=True))
    after = [vars(owner)["request"] for owner in owners]
    assert all(now is then for now, then in zip(after, before, strict=True))


def test_a_patch_on_top_of_ours_survives():
    """What somebody else wrapped around Starpo's patch is left in place, and still works."""
    raw = vars(_base_client.SyncAPIClient)["request"]
    with ScriptedServer([Reply(content="x")]) as server, client_of(server) as client:
        calls = []
        try:
            with record_spans() as store:
                ours = _base_client.SyncAPIClient.request

                def theirs(self, *args, **kwargs):
                    calls.append("theirs")
                    return ours(self, *args, **kwargs)

                _base_client.SyncAPIClient.request = theirs
                client.chat.completions.create(model="m", messages=[USER])
            client.chat.completions.create(model="m", messages=[USER])
        finally:
            _base_client.SyncAPIClient.request = raw
        assert calls == ["theirs", "theirs"]
        assert len(store.spans) == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", ["openai first", "starpo first"])
def test_import_order_does_not_matter(order, tmp_path):
    """The SDK is patched whether it is imported before or after instrument()."""
    lines = [
        "import openai",
        f"import starpo_trace; starpo_trace.instrument(store={str(tmp_path)!r})",
    ]
    if order == "starpo first":
        lines.reverse()
        lines.insert(1, "import sys; assert 'openai' not in sys.modules")
    with ScriptedServer([Reply(content="x")]) as server:
        lines += [
            f"client = openai.OpenAI(base_url={server.base_url!r}, api_key='none')",
            "client.chat.completions.create(model='m', messages=[])",
            "assert starpo_trace.flush()",
            "print(starpo_trace.stats()['acknowledged'])",
        ]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
        )
    assert (done.stdout.strip(), done.stderr) == ("1", "")


@pytest.mark.slow
def test_a_missing_seam_is_said_once(tmp_path):
    """An SDK without what is patched is told with its version, and the rest is recorded."""
    with ScriptedServer([Reply(content="x")]) as server:
        lines = [
            "import openai._base_client",
            "del openai._base_client.AsyncAPIClient",
            "import starpo_trace",
            *[f"starpo_trace.instrument(store={str(tmp_path)!r})", "starpo_trace.uninstrument()"],
            f"starpo_trace.instrument(store={str(tmp_path)!r})",
            f"client = openai.OpenAI(base_url={server.base_url!r}, api_key='none')",
            "client.chat.completions.create(model='m', messages=[])",
            "assert starpo_trace.flush()",
            "print(starpo_trace.stats()['acknowledged'])",
        ]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
        )
    assert done.stdout.strip() == "1"
    [warning] = done.stderr.splitlines()
    assert f"openai {openai.__version__} are not recorded" in warning
    assert "tested with openai >=1.66,<4" in warning


def test_patched_methods_are_copied_as_methods_are():
    """A copy of a bound method is bound to a copy of its object; a method is its own copy."""

    class Client:
        def __init__(self, names):
            self.names = names

        def ask(self):
            return self.names

    patches = PatchSet()
    patches.wrap(Client, "ask", lambda wrapped, _instance, args, kwargs: wrapped(*args, **kwargs))
    client = Client(["a"])
    copied = copy.deepcopy(client.ask)
    assert (copied() == ["a"], copied() is client.names) == (True, False)
    assert copy.copy(client.ask)() is client.names
    assert copy.deepcopy(vars(Client)["ask"]) is vars(Client)["ask"]
    function, arguments = client.ask.__reduce__()
    assert function(*arguments)() is client.names
    of_class = Client.ask  # asked of the class it is no method of anybody
    assert copy.copy(of_class)(client) == copy.deepcopy(of_class)(client) == ["a"]
    patches.restore()
    assert type(vars(Client)["ask"]).__name__ == "function"
    with record_spans():
        for copied in (pickle.loads(pickle.dumps(openai.OpenAI.request)),):
            assert copied.__wrapped__ is openai.OpenAI.request.__wrapped__
