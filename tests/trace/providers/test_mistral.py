"""Mistral SDK -> spans, against a real HTTP server; its request log is the ground truth."""

import asyncio
import gc
import json

import httpx2
import mistralai.client.basesdk
import mistralai.client.chat
import pytest
from mistralai.azure.client import MistralAzure
from mistralai.client import Mistral, errors
from mistralai.client._hooks import tracing
from mistralai.client.models import ChatCompletionResponse
from mistralai.client.utils.eventstreaming import EventStream, EventStreamAsync
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from pydantic import BaseModel
from servers_mistral import answer_events, answer_json, make_chunk
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

USER = {"role": "user", "content": "how many?"}
PROMPT = [{"role": "user", "parts": [{"type": "text", "content": "how many?"}]}]
TOOLS = [{"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}]
ARGUMENTS = {
    "model": "m",
    "messages": [USER],
    "tools": TOOLS,
    "temperature": 0.5,
    "top_p": 1.0,
    "max_tokens": 64,
    "random_seed": 7,
    "stop": ["END"],
    "logprobs": True,
    "safe_prompt": False,
}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}
LOGPROBS = [
    {"token": "a", "logprob": -0.25, "bytes": [97], "token_id": 4},
    {"token": "b", "logprob": -1.5, "bytes": [98], "token_id": 5},
]
PROMPT_LOGPROBS = [{"token": "p", "logprob": -1.0, "bytes": [112], "token_id": 3}]
THINKING = {
    "type": "thinking",
    "thinking": [{"type": "text", "text": "look it up"}],
    "signature": "s==",
}
CALLS = [
    {"id": "c1", "index": 0, "function": {"name": "stock", "arguments": '{"sku": "A7",  "n":1e0}'}},
    {"id": "c2", "index": 1, "function": {"name": "stock", "arguments": {"sku": "ü"}}},
]
ANSWER = {
    "id": "cmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "usage": USAGE,
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": [THINKING, {"type": "text", "text": "Checking."}],
                "tool_calls": CALLS,
            },
            "logprobs": {"content": LOGPROBS},
            "prompt_logprobs": {"content": PROMPT_LOGPROBS},
        }
    ],
}
TEXT_ANSWER = {
    **ANSWER,
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": '{"n":  3}'},
        }
    ],
}
CHUNKS = [
    make_chunk({"role": "assistant", "content": ""}, prompt_logprobs={"content": PROMPT_LOGPROBS}),
    make_chunk(
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "look "}]}]},
        logprobs={"content": LOGPROBS[:1]},
    ),
    make_chunk(
        {
            "content": [
                {
                    "type": "thinking",
                    "thinking": [{"type": "text", "text": "it up"}],
                    "signature": "s==",
                }
            ]
        },
        logprobs={"content": LOGPROBS[1:]},
    ),
    make_chunk({"content": "Check"}),
    make_chunk({"content": "ing."}),
    make_chunk(
        {
            "tool_calls": [
                {
                    "id": "c1",
                    "index": 0,
                    "function": {"name": "stock", "arguments": '{"sku": "A7",'},
                },
                CALLS[1],
            ]
        }
    ),
    make_chunk(
        {"tool_calls": [{"index": 0, "function": {"name": "", "arguments": '  "n":1e0}'}}]},
        finish_reason="tool_calls",
        usage=USAGE,
    ),
]
TEXT_CHUNKS = [
    make_chunk({"role": "assistant", "content": "on"}),
    make_chunk({"content": "ce"}),
    make_chunk({"content": ""}, finish_reason="stop", usage=USAGE),
]


def expected_span(server, *, stream=False) -> dict:
    """The whole span of the call with `ARGUMENTS`, outside of a trajectory."""
    return {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "mistral_ai",
        semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_TOP_P: 1.0,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_SEED: 7,
        semconv.REQUEST_STOP_SEQUENCES: ("END",),
        semconv.REQUEST_PARAMETERS: '{"logprobs":true,"safe_prompt":false}',
        **({semconv.REQUEST_STREAM: True, semconv.STREAM_OUTCOME: "exhausted"} if stream else {}),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 1,
        semconv.HISTORY_HASH: chain_hashes(PROMPT)[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json(PROMPT),
        semconv.TOOL_DEFINITIONS: dump_json(json.loads(server.requests[0].body)["tools"]),
        semconv.RESPONSE_ID: "cmpl-1",
        semconv.RESPONSE_MODEL: "m",
        semconv.RESPONSE_FINISH_REASONS: ("tool_calls",),
        semconv.USAGE_INPUT_TOKENS: 3,
        semconv.USAGE_OUTPUT_TOKENS: 2,
        semconv.USAGE_CACHE_READ_TOKENS: 1,
        semconv.OUTPUT_MESSAGES: dump_json(
            [
                {
                    "role": "assistant",
                    "parts": [
                        {
                            "type": "reasoning",
                            "content": "look it up",
                            "meta": {"signature": "s=="},
                        },
                        {"type": "text", "content": "Checking."},
                        {
                            "type": "tool_call",
                            "id": "c1",
                            "name": "stock",
                            "arguments": '{"sku": "A7",  "n":1e0}',
                        },
                        {
                            "type": "tool_call",
                            "id": "c2",
                            "name": "stock",
                            "arguments": '{"sku":"ü"}',
                        },
                    ],
                    "finish_reason": "tool_calls",
                }
            ]
        ),
        semconv.PROMPT_TOKEN_IDS: "[3]",
        semconv.RESPONSE_TOKEN_IDS: "[4,5]",
        semconv.RESPONSE_LOGPROBS: "[-0.25,-1.5]",
    }


def attributes_of(store) -> list[dict]:
    """Attributes of each span, without the one that is a time."""
    spans = [dict(span.attributes) for span in store.spans]
    for span in spans:
        span.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK, None)
    return spans


def parts_of(call) -> list[dict]:
    return json.loads(call[semconv.OUTPUT_MESSAGES])[0]["parts"]


def client_of(server, kind=Mistral) -> Mistral:
    return kind(server_url=server.url, api_key="none")


def run_async(server, use):
    """Run `use(client)` with a client of this server."""

    async def run():
        async with client_of(server) as client:
            return await use(client)

    return asyncio.run(run())


def test_a_chat_is_one_whole_span():
    """Request, thinking, tool calls verbatim, usage and log-probabilities are on one span."""
    with AnswerServer(answer_json(ANSWER)) as server, client_of(server) as client:
        with record_spans() as store:
            answer = client.chat.complete(**ARGUMENTS)
        assert type(answer) is ChatCompletionResponse
        assert attributes_of(store) == [expected_span(server)]
        assert [request.path for request in server.requests] == ["/v1/chat/completions"]


def test_an_async_chat_is_the_same_span():
    """The async method records what the sync method records."""
    with AnswerServer(answer_json(ANSWER)) as server, record_spans() as store:
        run_async(server, lambda client: client.chat.complete_async(**ARGUMENTS))
    assert attributes_of(store) == [expected_span(server)]


def test_a_streamed_chat_is_the_same_span():
    """Chunks with parallel tool calls add up to the same answer, in the SDK's own stream."""
    with AnswerServer(answer_events(*CHUNKS)) as server, client_of(server) as client:
        with record_spans() as store, client.chat.stream(**ARGUMENTS) as stream:
            assert type(stream) is EventStream
            assert len(list(stream)) == len(CHUNKS)
        assert attributes_of(store) == [expected_span(server, stream=True)]


def test_an_async_streamed_chat_is_the_same_span():
    """The async stream records what the stream records."""

    async def read(client):
        async with await client.chat.stream_async(**ARGUMENTS) as stream:
            assert type(stream) is EventStreamAsync
            return [event async for event in stream]

    with AnswerServer(answer_events(*CHUNKS)) as server, record_spans() as store:
        events = run_async(server, read)
    assert len(events) == len(CHUNKS)
    assert attributes_of(store) == [expected_span(server, stream=True)]


def test_messages_given_as_an_iterator_are_left_to_the_sdk():
    """What the program gives to be read once is read once, by the SDK."""
    with (
        AnswerServer(answer_json(ANSWER)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        client.chat.complete(model="m", messages=(each for each in [USER]))
    [call] = attributes_of(store)
    assert json.loads(call[semconv.INPUT_MESSAGES]) == PROMPT


class Count(BaseModel):
    """What `parse` parses."""

    n: int


@pytest.mark.parametrize("way", ["parse", "parse_async", "parse_stream", "parse_stream_async"])
def test_parsed_answers_are_recorded_as_they_came(way):
    """Each way of parsing is one call, recorded without what was parsed."""
    chunk = make_chunk({"role": "assistant", "content": '{"n":  3}'}, finish_reason="stop")

    async def ask(client):
        answer = await getattr(client.chat, way)(Count, model="m", messages=[USER])
        return [each async for each in answer] if "stream" in way else answer

    answer = answer_events(chunk) if "stream" in way else answer_json(TEXT_ANSWER)
    with AnswerServer(answer) as server, record_spans() as store:
        if "async" in way:
            told = run_async(server, ask)
        else:
            with client_of(server) as client:
                told = getattr(client.chat, way)(Count, model="m", messages=[USER])
                told = list(told) if "stream" in way else told
    if "stream" not in way:
        assert told.choices[0].message.parsed == Count(n=3)
    [call] = attributes_of(store)
    assert parts_of(call) == [{"type": "text", "content": '{"n":  3}'}]
    assert json.loads(call[semconv.REQUEST_PARAMETERS])["response_format"]["type"] == "json_schema"


def test_agents_and_completions_are_recorded():
    """An agent's completion, and text completed between a prompt and a suffix."""
    with (
        AnswerServer(answer_json(TEXT_ANSWER)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        client.agents.complete(agent_id="ag:1", messages=[USER])
        client.fim.complete(model="m", prompt="def f():", suffix="return 1")
    agent, fim = attributes_of(store)
    assert agent[semconv.REQUEST_MODEL] == "ag:1"
    assert json.loads(agent[semconv.INPUT_MESSAGES]) == PROMPT
    assert fim[semconv.OPERATION_NAME] == "text_completion"
    assert [span.name for span in store.spans] == ["chat ag:1", "text_completion m"]
    assert json.loads(fim[semconv.INPUT_MESSAGES]) == [
        {
            "role": "user",
            "parts": [
                {"type": "text", "content": "def f():"},
                {"type": "suffix", "raw": {"suffix": "return 1"}},
            ],
        }
    ]


def test_prompts_that_differ_beside_their_text_are_different():
    """Another suffix, or an answer to be continued, is another history: nothing is left out."""
    begun = {"role": "assistant", "content": "Sure"}
    with (
        AnswerServer(answer_json(TEXT_ANSWER)) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
    ):
        with starpo_trace.trajectory():
            for suffix in ("return 1", "raise ValueError"):
                client.fim.complete(model="m", prompt="def f():", suffix=suffix)
        with starpo_trace.trajectory():
            for prefix in (True, False):
                client.chat.complete(model="m", messages=[USER, {**begun, "prefix": prefix}])
    first, second, continued, whole = store.select("llm")
    for call, suffix in ((first, "return 1"), (second, "raise ValueError")):
        [message] = json.loads(call[semconv.INPUT_MESSAGES])
        assert message["parts"][1] == {"type": "suffix", "raw": {"suffix": suffix}}
    last = json.loads(continued[semconv.INPUT_MESSAGES])[-1]["parts"]
    assert last == [
        {"type": "text", "content": "Sure"},
        {"type": "prefix", "raw": {"prefix": True}},
    ]
    assert continued[semconv.HISTORY_HASH] != whole[semconv.HISTORY_HASH]


def test_a_client_for_azure_is_recorded_under_its_name():
    """The copies of the SDK for other clouds are recorded as those clouds."""
    with AnswerServer(answer_json(TEXT_ANSWER)) as server, record_spans() as store:
        client_of(server, MistralAzure).chat.complete(model="m", messages=[USER])
        gc.collect()
    [call] = attributes_of(store)
    assert call[semconv.PROVIDER_NAME] == "azure.ai.inference"
    assert json.loads(call[semconv.INPUT_MESSAGES]) == PROMPT


@pytest.mark.parametrize("is_async", [False, True])
def test_an_embedding_is_a_retrieval_step(is_async):
    """What was embedded and how long the vectors are is recorded; the vectors are not."""
    arguments = {"model": "m", "inputs": ["a", "b"], "output_dimension": 3}
    data = [{"object": "embedding", "embedding": [1, 2, 3], "index": 0}]
    answer = {"id": "e1", "object": "list", "model": "m", "data": data}
    answer["usage"] = {"prompt_tokens": 2, "total_tokens": 2, "completion_tokens": 0}
    with AnswerServer(answer_json(answer)) as server, record_spans() as store:
        if is_async:
            run_async(server, lambda client: client.embeddings.create_async(**arguments))
        else:
            with client_of(server) as client:
                client.embeddings.create(**arguments)
    assert attributes_of(store) == [
        {
            semconv.SCHEMA: "1",
            semconv.RECORD: "step",
            semconv.STEP_KIND: "retriever",
            semconv.OPERATION_NAME: "embeddings",
            semconv.PROVIDER_NAME: "mistral_ai",
            semconv.REQUEST_MODEL: "m",
            semconv.REQUEST_PARAMETERS: '{"output_dimension":3}',
            semconv.SERVER_ADDRESS: "127.0.0.1",
            semconv.SERVER_PORT: server.port,
            semconv.TOOL_CALL_ARGUMENTS: '["a","b"]',
            semconv.RESPONSE_ID: "e1",
            semconv.RESPONSE_MODEL: "m",
            semconv.USAGE_INPUT_TOKENS: 2,
            semconv.USAGE_OUTPUT_TOKENS: 0,
            semconv.EMBEDDINGS_DIMENSION_COUNT: 3,
        }
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_sent_back_is_not_recorded_again(is_stream):
    """The second call's prompt extends the first one's prompt and answer, in any form."""
    first = answer_events(*CHUNKS) if is_stream else answer_json(ANSWER)
    result = {"role": "tool", "tool_call_id": "c1", "name": "stock", "content": "4"}
    with (
        AnswerServer(first, answer_json(ANSWER)) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        if is_stream:
            list(client.chat.stream(model="m", messages=[USER]))
            answer = {"role": "assistant", "content": "Checking.", "tool_calls": CALLS}
        else:
            told = client.chat.complete(model="m", messages=[USER])
            answer = told.choices[0].message
        client.chat.complete(model="m", messages=[USER, answer, result])
    second = store.select("llm")[1]
    assert second[semconv.HISTORY_BASE_LENGTH] == 2
    assert json.loads(second[semconv.INPUT_MESSAGES]) == [
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "c1", "response": "4"}],
            "name": "stock",
        }
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_error_reaches_the_program_unchanged(is_stream):
    """A refused request raises the SDK's own error; the span says so and what was asked."""
    refused = answer_json({"message": "slow down"}, status=429)
    with AnswerServer(refused) as server, client_of(server) as client, record_spans() as store:
        ask = client.chat.stream if is_stream else client.chat.complete
        with pytest.raises(errors.SDKError) as caught:
            ask(model="m", messages=[USER])
        assert caught.value.status_code == 429
    [span] = store.spans
    assert span.attributes[semconv.ERROR_TYPE] == "mistralai.client.errors.sdkerror.SDKError"
    assert json.loads(span.attributes[semconv.INPUT_MESSAGES]) == PROMPT
    assert semconv.OUTPUT_MESSAGES not in span.attributes
    assert span.status.status_code is StatusCode.ERROR


def test_a_broken_stream_keeps_what_was_read():
    """A connection that breaks raises the SDK's error; the span holds the part that came."""
    broken = answer_events(*TEXT_CHUNKS[:2], is_done=False, is_cut=True)
    with (
        AnswerServer(broken) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        list(client.chat.stream(model="m", messages=[USER]))
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert parts_of(call) == [{"type": "text", "content": "once"}]


@pytest.mark.parametrize("ending", ["closed", "with", "dropped"])
def test_a_stream_left_early_says_how(ending):
    """A closed stream and a dropped one are told apart; both keep what was read."""
    with (
        AnswerServer(answer_events(*TEXT_CHUNKS)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        stream = client.chat.stream(model="m", messages=[USER])
        next(stream)
        if ending == "closed":
            stream.close()
        elif ending == "with":
            with stream:
                pass
        del stream
        gc.collect()
        [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == ("dropped" if ending == "dropped" else "closed")
    assert parts_of(call) == [{"type": "text", "content": "on"}]


@pytest.mark.parametrize("ending", ["closed", "cancelled"])
def test_an_async_stream_left_early_says_how(ending):
    """Async streams: closed, and cancelled while waiting for a chunk."""

    async def leave(client):
        async with await client.chat.stream_async(model="m", messages=[USER]) as stream:
            await anext(stream)
            if ending == "cancelled":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.05)

    events = answer_events(*TEXT_CHUNKS, stall_after=1 if ending == "cancelled" else None)
    with AnswerServer(events) as server, record_spans() as store:
        run_async(server, leave)
        server.closing.set()
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == ending


@pytest.mark.parametrize("is_async", [False, True])
def test_the_sdks_own_telemetry_does_not_double(monkeypatch, is_async):
    """With `MISTRAL_SDK_TELEMETRY=global` a recorded call is one span; others are as before."""
    monkeypatch.setenv("MISTRAL_SDK_TELEMETRY", "global")
    arguments = {"model": "m", "messages": [USER]}

    def ask(server):
        if is_async:
            run_async(server, lambda client: client.chat.complete_async(**arguments))
        else:
            with client_of(server) as client:
                client.chat.complete(**arguments)

    with AnswerServer(answer_json(TEXT_ANSWER)) as server:
        with record_spans() as store:
            monkeypatch.setattr(trace, "get_tracer_provider", lambda: store.provider)
            ask(server)
            recorded = list(store.spans)
        ask(server)
    assert [span.instrumentation_scope.name for span in recorded] == [semconv.SCOPE_NAME]
    [theirs] = store.spans[len(recorded) :]
    assert theirs.instrumentation_scope.name != semconv.SCOPE_NAME


def test_other_requests_and_suppressed_calls_are_not_recorded():
    """Other paths are no call of a model; OpenTelemetry's own switch is honoured."""
    with AnswerServer(answer_json(TEXT_ANSWER)) as server, client_of(server) as client:
        with record_spans() as store:
            with pytest.raises(errors.ResponseValidationError):
                client.classifiers.moderate(model="m", inputs=["x"])
            with suppress_instrumentation():
                client.chat.complete(model="m", messages=[USER])
        client.chat.complete(model="m", messages=[USER])
        assert len(server.requests) == 3
    assert store.spans == []


def test_uninstrument_restores_the_raw_attributes():
    """After uninstrument() the SDK holds the very objects it held before."""
    names = ("complete", "complete_async", "stream", "stream_async")
    seams = [(mistralai.client.chat.Chat, name) for name in names]
    seams += [
        (mistralai.client.basesdk.BaseSDK, "do_request"),
        (mistralai.client.basesdk.BaseSDK, "do_request_async"),
        (tracing, "get_or_create_otel_tracer"),
    ]
    before = [vars(owner)[name] for owner, name in seams]
    with record_spans():
        during = [vars(owner)[name] for owner, name in seams]
    assert all(now is not then for now, then in zip(during, before, strict=True))
    assert [vars(owner)[name] for owner, name in seams] == before
