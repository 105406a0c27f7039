"""Ollama SDK -> spans, against a real HTTP server; its request log is the ground truth."""

import asyncio
import gc
import json
import types

import httpx
import ollama
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from servers_ollama import DONE, answer_json, answer_lines, make_chunk
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

USER = {"role": "user", "content": "how many?"}
PROMPT = [{"role": "user", "parts": [{"type": "text", "content": "how many?"}]}]
TOOL = {
    "type": "function",
    "function": {
        "name": "stock",
        "description": "Count.",
        "parameters": {
            "type": "object",
            "required": ["sku"],
            "properties": {"sku": {"type": "string", "description": "Which."}},
        },
    },
}
TOOL_CALLS = [
    {"function": {"name": "stock", "arguments": {"sku": "A7", "n": 1.0}}},
    {"function": {"name": "stock", "arguments": {"sku": "ü"}}},
]
ANSWER_MESSAGE = {
    "role": "assistant",
    "content": "",
    "thinking": "look it up",
    "tool_calls": TOOL_CALLS,
}
LOGPROBS = [{"token": "a", "logprob": -0.25}, {"token": "b", "logprob": -1.5}]
OPTIONS = {
    "temperature": 0.5,
    "top_p": 1.0,
    "top_k": 20,
    "num_predict": 64,
    "seed": 7,
    "stop": ["END"],
    "num_ctx": 2048,
}
ARGUMENTS = {
    "model": "m",
    "messages": [USER],
    "tools": [TOOL],
    "options": OPTIONS,
    "think": True,
    "logprobs": True,
    "keep_alive": "5m",
}
STREAM = [
    make_chunk({"content": "", "thinking": "look "}, logprobs=LOGPROBS[:1]),
    make_chunk({"content": "", "thinking": "it up"}),
    make_chunk({"content": "", "tool_calls": TOOL_CALLS[:1]}, logprobs=LOGPROBS[1:]),
    make_chunk({"content": "", "tool_calls": TOOL_CALLS[1:]}),
    make_chunk({"content": ""}, **DONE),
]
TEXT_STREAM = [
    make_chunk({"content": "on"}),
    make_chunk({"content": "ce"}),
    make_chunk({"content": ""}, **DONE),
]


def answered(server, *, stream=False) -> dict:
    """The whole span of the call with `ARGUMENTS`, outside of a trajectory."""
    return {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "ollama",
        semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_TOP_P: 1.0,
        semconv.REQUEST_TOP_K: 20,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_SEED: 7,
        semconv.REQUEST_STOP_SEQUENCES: ("END",),
        semconv.REQUEST_PARAMETERS: dump_json(
            {
                "keep_alive": "5m",
                "think": True,
                "logprobs": True,
                "options": {"num_ctx": 2048},
            }
        ),
        **({semconv.REQUEST_STREAM: True, semconv.STREAM_OUTCOME: "exhausted"} if stream else {}),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 1,
        semconv.HISTORY_HASH: chain_hashes(PROMPT)[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json(PROMPT),
        semconv.TOOL_DEFINITIONS: dump_json([TOOL]),
        semconv.RESPONSE_MODEL: "m",
        semconv.RESPONSE_FINISH_REASONS: ("stop",),
        semconv.USAGE_INPUT_TOKENS: 5,
        semconv.USAGE_OUTPUT_TOKENS: 3,
        semconv.OUTPUT_MESSAGES: dump_json(
            [
                {
                    "role": "assistant",
                    "parts": [
                        {"type": "reasoning", "content": "look it up"},
                        {
                            "type": "tool_call",
                            "id": None,
                            "name": "stock",
                            "arguments": '{"sku":"A7","n":1.0}',
                        },
                        {
                            "type": "tool_call",
                            "id": None,
                            "name": "stock",
                            "arguments": '{"sku":"ü"}',
                        },
                    ],
                    "extra": {"content": ""},
                    "finish_reason": "stop",
                }
            ]
        ),
        semconv.RESPONSE_TOKENS: '["a","b"]',
        semconv.RESPONSE_LOGPROBS: "[-0.25,-1.5]",
    }


def plain_answer():
    return answer_json({"model": "m", "message": ANSWER_MESSAGE, "logprobs": LOGPROBS, **DONE})


def attributes_of(store) -> list[dict]:
    """Attributes of each span, without the one that is a time."""
    spans = [dict(span.attributes) for span in store.spans]
    for span in spans:
        span.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK, None)
    return spans


@pytest.fixture
def client_of():
    clients = []

    def make(server) -> ollama.Client:
        clients.append(ollama.Client(host=server.url))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def run_async(server, use):
    """Run `use(client)` with an async client of this server."""

    async def run():
        async with ollama.AsyncClient(host=server.url) as client:
            return await use(client)

    return asyncio.run(run())


def test_a_chat_is_one_whole_span(client_of):
    """Request, thinking, tool calls, usage and log-probabilities are on one span."""
    with AnswerServer(plain_answer()) as server, record_spans() as store:
        answer = client_of(server).chat(**ARGUMENTS)
    assert type(answer) is ollama.ChatResponse
    assert attributes_of(store) == [answered(server)]
    assert [request.path for request in server.requests] == ["/api/chat"]


def test_an_async_chat_is_the_same_span():
    """The async client records what the sync client records."""
    with AnswerServer(plain_answer()) as server, record_spans() as store:
        run_async(server, lambda client: client.chat(**ARGUMENTS))
    assert attributes_of(store) == [answered(server)]


def test_a_streamed_chat_is_the_same_span(client_of):
    """Chunks with parallel tool calls add up to the same answer, and come from a generator."""
    with AnswerServer(answer_lines(*STREAM)) as server, record_spans() as store:
        stream = client_of(server).chat(**ARGUMENTS, stream=True)
        assert type(stream) is types.GeneratorType
        assert len(list(stream)) == len(STREAM)
    assert attributes_of(store) == [answered(server, stream=True)]


def test_an_async_streamed_chat_is_the_same_span():
    """The async generator records what the generator records."""

    async def read(client):
        stream = await client.chat(**ARGUMENTS, stream=True)
        assert type(stream) is types.AsyncGeneratorType
        return [chunk async for chunk in stream]

    with AnswerServer(answer_lines(*STREAM)) as server, record_spans() as store:
        chunks = run_async(server, read)
    assert len(chunks) == len(STREAM)
    assert attributes_of(store) == [answered(server, stream=True)]


def test_module_functions_are_recorded(client_of, monkeypatch):
    """`ollama.chat` is a method of a client made at import, and is recorded all the same."""
    with AnswerServer(plain_answer()) as server, record_spans() as store:
        default = ollama.chat.__self__
        monkeypatch.setattr(default, "_client", client_of(server)._client)
        ollama.chat(**ARGUMENTS)
    assert attributes_of(store) == [answered(server)]


def test_a_function_given_as_a_tool_is_recorded_as_sent(client_of):
    """A Python function is recorded as the definition that the server was given."""

    def stock(sku: str) -> int:
        """Count.

        Args:
            sku: Which.
        """
        return len(sku)

    with AnswerServer(plain_answer()) as server, record_spans() as store:
        client_of(server).chat(model="m", messages=[USER], tools=[stock])
    [call] = attributes_of(store)
    sent = json.loads(server.requests[0].body)
    assert json.loads(call[semconv.TOOL_DEFINITIONS]) == sent["tools"]
    assert sent["tools"][0]["function"]["name"] == "stock"


def test_a_completion_is_recorded(client_of):
    """`generate` records system, prompt, image, thinking and what continues it."""
    answer = {"model": "m", "response": "four", "thinking": "2+2", "context": [1, 2], **DONE}
    with AnswerServer(answer_json(answer)) as server, record_spans() as store:
        client_of(server).generate(
            "m", "2+2?", suffix=".", system="be short", images=["aGk="], think="low", context=[1]
        )
    [call] = attributes_of(store)
    assert call[semconv.OPERATION_NAME] == "text_completion"
    assert call[semconv.REQUEST_REASONING_LEVEL] == "low"
    assert json.loads(call[semconv.INPUT_MESSAGES]) == [
        {"role": "system", "parts": [{"type": "text", "content": "be short"}]},
        {
            "role": "user",
            "parts": [
                {"type": "text", "content": "2+2?"},
                {"type": "image", "raw": "aGk="},
                {"type": "suffix", "raw": {"suffix": "."}},
                {"type": "context", "raw": {"context": [1]}},
            ],
        },
    ]
    assert json.loads(call[semconv.OUTPUT_MESSAGES]) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "2+2"},
                {"type": "text", "content": "four"},
            ],
            "extra": {"context": [1, 2]},
            "finish_reason": "stop",
        }
    ]


def test_a_streamed_completion_adds_up(client_of):
    """Chunks of `generate` are joined."""
    lines = [
        {"model": "m", "response": "fo", "done": False},
        {"model": "m", "response": "ur", "done": False},
        {"model": "m", "response": "", **DONE},
    ]
    with AnswerServer(answer_lines(*lines)) as server, record_spans() as store:
        list(client_of(server).generate("m", "2+2?", stream=True))
    [call] = attributes_of(store)
    assert json.loads(call[semconv.OUTPUT_MESSAGES]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "four"}],
            "finish_reason": "stop",
        }
    ]
    assert call[semconv.USAGE_OUTPUT_TOKENS] == 3


@pytest.mark.parametrize(
    ("method", "arguments", "answer", "query"),
    [
        ("embed", {"input": ["a", "b"]}, {"model": "m", "embeddings": [[1, 2, 3]] * 2}, ["a", "b"]),
        ("embeddings", {"prompt": "a"}, {"embedding": [1, 2, 3]}, "a"),
    ],
)
def test_an_embedding_is_a_retrieval_step(client_of, method, arguments, answer, query):
    """What was embedded and how long the vectors are is recorded; the vectors are not."""
    with AnswerServer(answer_json(answer)) as server, record_spans() as store:
        getattr(client_of(server), method)(model="m", **arguments)
    [call] = attributes_of(store)
    model = {semconv.RESPONSE_MODEL: "m"} if "model" in answer else {}
    assert call == {
        semconv.SCHEMA: "1",
        semconv.RECORD: "step",
        semconv.STEP_KIND: "retriever",
        semconv.OPERATION_NAME: "embeddings",
        semconv.PROVIDER_NAME: "ollama",
        semconv.REQUEST_MODEL: "m",
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.TOOL_CALL_ARGUMENTS: dump_json(query),
        semconv.EMBEDDINGS_DIMENSION_COUNT: 3,
        **model,
    }


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_sent_back_is_not_recorded_again(client_of, is_stream):
    """The second call's prompt extends the first one's prompt and answer."""
    first = answer_lines(*STREAM) if is_stream else plain_answer()
    with AnswerServer(first, plain_answer()) as server, record_spans(history="delta") as store:
        client = client_of(server)
        with starpo_trace.trajectory():
            if is_stream:
                calls = []
                for chunk in client.chat(model="m", messages=[USER], stream=True):
                    calls.extend(chunk.message.tool_calls or ())
                answer = {"role": "assistant", "tool_calls": calls}
            else:
                answer = client.chat(model="m", messages=[USER]).message
            result = {"role": "tool", "tool_name": "stock", "content": "4"}
            client.chat(model="m", messages=[USER, answer, result])
    second = store.select("llm")[1]
    assert second[semconv.HISTORY_BASE_LENGTH] == 2
    assert json.loads(second[semconv.INPUT_MESSAGES]) == [
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": None, "response": "4"}],
            "name": "stock",
        }
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_error_reaches_the_program_unchanged(client_of, is_stream):
    """A refused request raises the SDK's own error; the span says so."""
    refused = answer_json({"error": "no such model"}, status=404)
    with AnswerServer(refused) as server, record_spans() as store:
        with pytest.raises(ollama.ResponseError) as caught:
            list(client_of(server).chat(model="m", messages=[USER], stream=is_stream))
        assert caught.value.status_code == 404
    [span] = store.spans
    assert span.attributes[semconv.ERROR_TYPE] == "ollama._types.ResponseError"
    assert span.status.status_code is StatusCode.ERROR
    outcome = "error" if is_stream else None
    assert span.attributes.get(semconv.STREAM_OUTCOME) == outcome


def test_a_broken_stream_keeps_what_was_read(client_of):
    """A connection that breaks raises the SDK's error; the span holds the part that came."""
    with (
        AnswerServer(answer_lines(*TEXT_STREAM[:2], is_cut=True)) as server,
        record_spans() as store,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        list(client_of(server).chat(model="m", messages=[USER], stream=True))
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert json.loads(call[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
        {"type": "text", "content": "once"}
    ]


def test_an_error_line_in_a_stream_is_an_error(client_of):
    """An error that the server reports mid-stream ends the call."""
    lines = [TEXT_STREAM[0], {"error": "out of memory"}]
    with (
        AnswerServer(answer_lines(*lines)) as server,
        record_spans() as store,
        pytest.raises(ollama.ResponseError, match="out of memory"),
    ):
        list(client_of(server).chat(model="m", messages=[USER], stream=True))
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == "error"


@pytest.mark.parametrize("ending", ["closed", "dropped"])
def test_a_stream_left_early_says_how(client_of, ending):
    """A closed generator and a dropped one are told apart; both keep what was read."""
    with AnswerServer(answer_lines(*TEXT_STREAM)) as server, record_spans() as store:
        stream = client_of(server).chat(model="m", messages=[USER], stream=True)
        next(stream)
        if ending == "closed":
            stream.close()
        del stream
        gc.collect()
        [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == ending
    assert json.loads(call[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
        {"type": "text", "content": "on"}
    ]


def test_a_stream_never_read_is_dropped(client_of):
    """A generator that nobody starts ends its call when it is collected."""
    with AnswerServer(answer_lines(*TEXT_STREAM)) as server, record_spans() as store:
        client_of(server).chat(model="m", messages=[USER], stream=True)
        gc.collect()
        assert server.requests == []
        [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == "dropped"


@pytest.mark.parametrize("ending", ["closed", "dropped", "cancelled"])
def test_an_async_stream_left_early_says_how(ending):
    """Async generators: closed, dropped, and cancelled while waiting for a chunk."""

    async def leave(client):
        stream = await client.chat(model="m", messages=[USER], stream=True)
        await anext(stream)
        if ending == "cancelled":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.05)
        elif ending == "closed":
            await stream.aclose()
        del stream
        gc.collect()
        await asyncio.sleep(0)

    lines = answer_lines(*TEXT_STREAM, stall_after=1 if ending == "cancelled" else None)
    with AnswerServer(lines) as server, record_spans() as store:
        run_async(server, leave)
        server.closing.set()
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == ending


def test_other_requests_and_suppressed_calls_are_not_recorded(client_of):
    """Listing models is no call of one; OpenTelemetry's own switch is honoured."""
    with AnswerServer(answer_json({"model": "m", "message": ANSWER_MESSAGE})) as server:
        client = client_of(server)
        with record_spans() as store:
            client.copy("a", "b")
            with suppress_instrumentation():
                client.chat(model="m", messages=[USER])
        client.chat(model="m", messages=[USER])
    assert len(server.requests) == 3
    assert store.spans == []


def test_uninstrument_restores_the_raw_attributes():
    """After uninstrument() the SDK's classes hold the very objects they held before."""
    owners = (ollama.Client, ollama.AsyncClient)
    before = [vars(owner)["_request"] for owner in owners]
    with record_spans():
        during = [vars(owner)["_request"] for owner in owners]
    assert all(now is not then for now, then in zip(during, before, strict=True))
    assert [vars(owner)["_request"] for owner in owners] == before
