"""Google GenAI SDK -> spans, against a real HTTP server; its request log is the ground truth."""

import asyncio
import gc
import json
from contextlib import contextmanager
from functools import partial
from types import AsyncGeneratorType, GeneratorType

import httpx2
import pytest
from google import genai
from google.auth.credentials import AnonymousCredentials
from google.genai import _api_client, _extra_utils, errors, types
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from servers_google import answer_chunks, answer_json, make_answer
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

DECLARATION = {
    "name": "stock",
    "description": "d",
    "parameters": {"type": "OBJECT", "properties": {"sku": {"type": "STRING"}}},
}
CONFIG = {
    "system_instruction": "Be brief.",
    "temperature": 0.5,
    "top_p": 1,
    "top_k": 20,
    "max_output_tokens": 64,
    "seed": 7,
    "stop_sequences": ["END"],
    "response_logprobs": True,
    "logprobs": 1,
    "thinking_config": {"include_thoughts": True, "thinking_level": "LOW"},
    "tools": [{"function_declarations": [DECLARATION]}],
    "http_options": {"extra_body": {"labels": {"a": "b"}}},
}
OPTIONS = {"model": "gemini-x", "contents": "how many?", "config": CONFIG}
SHORT = {"model": "gemini-x", "contents": "hi"}
RATING = {"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}
CALLS = [
    {
        "functionCall": {"id": "c1", "name": "stock", "args": {"sku": "A7", "n": 1.0}},
        "thoughtSignature": "c2ln",
    },
    {"functionCall": {"id": "c2", "name": "stock", "args": {"sku": "B"}}},
]
CODE = [
    {"executableCode": {"language": "PYTHON", "code": "1"}},
    {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
]
IMAGE = {"data": "+/8=", "mimeType": "image/png"}
PARTS = [
    {"text": "look it up", "thought": True},
    {"text": "Let me see."},
    *CODE,
    {"inlineData": IMAGE},
    *CALLS,
]
LOGPROBS = {
    "chosenCandidates": [
        {"token": "Let", "tokenId": 5, "logProbability": -0.25},
        {"token": " me", "tokenId": 6, "logProbability": -1.5},
    ],
    "topCandidates": [{"candidates": [{"token": "Let", "tokenId": 5, "logProbability": -0.25}]}],
}
USAGE = {
    "promptTokenCount": 10,
    "candidatesTokenCount": 4,
    "thoughtsTokenCount": 5,
    "cachedContentTokenCount": 6,
    "toolUsePromptTokenCount": 3,
    "totalTokenCount": 22,
}
WHOLE = {
    **make_answer(*PARTS, safetyRatings=[RATING], logprobsResult=LOGPROBS),
    "usageMetadata": USAGE,
}
CHUNKS = [
    {
        **make_answer({"text": "look ", "thought": True}, finish=None),
        "usageMetadata": {"promptTokenCount": 10},
    },
    make_answer({"text": "it up", "thought": True}, finish=None),
    make_answer({"text": "Let "}, finish=None, logprobsResult={"chosenCandidates": []}),
    make_answer(
        {"text": "me see."}, *CODE, {"inlineData": IMAGE}, finish=None, logprobsResult=LOGPROBS
    ),
    make_answer(CALLS[0], finish=None),
    make_answer(CALLS[1], finish=None),
    {**make_answer({"text": ""}, safetyRatings=[RATING]), "usageMetadata": USAGE},
]
PROMPT = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {"role": "user", "parts": [{"type": "text", "content": "how many?"}]},
]
ANSWER = {
    "role": "assistant",
    "parts": [
        {"type": "reasoning", "content": "look it up"},
        {"type": "text", "content": "Let me see."},
        {
            "type": "server_tool_call",
            "id": None,
            "name": "code_execution",
            "arguments": '{"code":"1","language":"PYTHON"}',
        },
        {
            "type": "server_tool_call_response",
            "id": None,
            "response": {"outcome": "OUTCOME_OK", "output": "1"},
        },
        {"type": "inlineData", "raw": {"inlineData": IMAGE}},
        {
            "type": "tool_call",
            "id": "c1",
            "name": "stock",
            "arguments": '{"sku":"A7","n":1.0}',
            "meta": {"signature": "c2ln"},
        },
        {"type": "tool_call", "id": "c2", "name": "stock", "arguments": '{"sku":"B"}'},
    ],
    "finish_reason": "STOP",
    "extra": {
        "safetyRatings": [RATING],
        "logprobsResult": {"topCandidates": LOGPROBS["topCandidates"]},
        "usageMetadata": USAGE,
    },
}


def expected_span(server, *, is_streamed: bool = False, provider: str = "gcp.gemini") -> dict:
    """The whole span of `OPTIONS` and `WHOLE`, outside of a trajectory."""
    span = {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: provider,
        semconv.REQUEST_MODEL: "gemini-x",
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_TOP_P: 1.0,
        semconv.REQUEST_TOP_K: 20,
        semconv.REQUEST_SEED: 7,
        semconv.REQUEST_STOP_SEQUENCES: ("END",),
        semconv.REQUEST_REASONING_LEVEL: "LOW",
        semconv.REQUEST_PARAMETERS: {
            "generationConfig": {
                "responseLogprobs": True,
                "logprobs": 1,
                "thinkingConfig": {"include_thoughts": True, "thinking_level": "LOW"},
            },
            "labels": {"a": "b"},
        },
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 2,
        semconv.HISTORY_HASH: chain_hashes(PROMPT)[-1].hex(),
        semconv.INPUT_MESSAGES: PROMPT,
        semconv.TOOL_DEFINITIONS: [{"functionDeclarations": [DECLARATION]}],
        semconv.RESPONSE_ID: "r1",
        semconv.RESPONSE_MODEL: "gemini-x-001",
        semconv.RESPONSE_FINISH_REASONS: ("STOP",),
        semconv.USAGE_INPUT_TOKENS: 13,
        semconv.USAGE_OUTPUT_TOKENS: 9,
        semconv.USAGE_CACHE_READ_TOKENS: 6,
        semconv.USAGE_REASONING_TOKENS: 5,
        semconv.OUTPUT_MESSAGES: [ANSWER],
        semconv.RESPONSE_TOKEN_IDS: [5, 6],
        semconv.RESPONSE_LOGPROBS: [-0.25, -1.5],
    }
    if is_streamed:
        span |= {semconv.REQUEST_STREAM: True, semconv.STREAM_OUTCOME: "exhausted"}
    return span


JSON_KEYS = {
    semconv.REQUEST_PARAMETERS,
    semconv.INPUT_MESSAGES,
    semconv.OUTPUT_MESSAGES,
    semconv.TOOL_DEFINITIONS,
    semconv.RESPONSE_TOKEN_IDS,
    semconv.RESPONSE_LOGPROBS,
}


def check_spans(store, *expected: dict) -> None:
    """The recorded spans are these, times and the order of JSON fields left aside."""
    spans = [dict(span.attributes) for span in store.spans]
    for span in spans:
        if span.get(semconv.REQUEST_STREAM):
            assert span.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
        span.update({key: json.loads(span[key]) for key in JSON_KEYS & span.keys()})
    assert spans == list(expected)


def client_of(server, *, is_vertex: bool = False) -> genai.Client:
    transport = {"transport": httpx2.AsyncHTTPTransport()}  # not the installed aiohttp
    options = types.HttpOptions(base_url=server.url, async_client_args=transport)
    if is_vertex:
        return genai.Client(
            vertexai=True,
            project="p",
            location="eu",
            credentials=AnonymousCredentials(),
            http_options=options,
        )
    return genai.Client(api_key="none", http_options=options)


@contextmanager
def serve(*answers):
    """A server with these answers, and a client of it."""
    with AnswerServer(*answers) as server, client_of(server) as client:
        yield server, client


def run_async(server, ask):
    """Run `ask(client)` with an async client."""

    async def run():
        async with client_of(server).aio as client:
            return await ask(client)

    return asyncio.run(run())


def converse(server, *messages, is_chat=False, is_stream=False, is_async=False, config=None):
    """Send messages in one of the SDK's ways -> its answers to the last one."""
    name = "message" if is_chat else "contents"

    def get_sender(client):
        if is_chat:
            chat = client.chats.create(model="gemini-x", config=config)
            return chat.send_message_stream if is_stream else chat.send_message
        models = client.models
        send = models.generate_content_stream if is_stream else models.generate_content
        return partial(send, model="gemini-x", config=config)

    async def ask(client):
        send = get_sender(client)
        for message in messages:
            result = await send(**{name: message})
            answers = [chunk async for chunk in result] if is_stream else [result]
        return answers

    if is_async:
        return run_async(server, ask)
    with client_of(server) as client:
        send = get_sender(client)
        for message in messages:
            result = send(**{name: message})
            answers = list(result) if is_stream else [result]
    return answers


def body_of(server, number: int = 0) -> dict:
    return json.loads(server.requests[number].body)


def outputs_of(call: dict) -> list:
    return json.loads(call[semconv.OUTPUT_MESSAGES])


def test_a_call_is_one_whole_span():
    """Request, thoughts, code, parallel calls, usage, log-probabilities: all on one span."""
    with serve(answer_json(WHOLE)) as (server, client), record_spans() as store:
        answer = client.models.generate_content(**OPTIONS)
    assert type(answer) is types.GenerateContentResponse
    assert answer.text == "Let me see."
    assert [call.id for call in answer.function_calls] == ["c1", "c2"]
    check_spans(store, expected_span(server))
    assert body_of(server)["labels"] == {"a": "b"}


def test_an_async_call_is_the_same_span():
    """The async client records what the sync client records."""
    with AnswerServer(answer_json(WHOLE)) as server, record_spans() as store:
        answer = run_async(server, lambda client: client.models.generate_content(**OPTIONS))
    assert answer.text == "Let me see."
    check_spans(store, expected_span(server))


def test_vertex_is_the_same_span_of_another_provider(monkeypatch):
    """The Vertex AI client is recorded under its provider."""
    monkeypatch.setattr(_api_client.BaseApiClient, "_access_token", lambda _: "t")
    with AnswerServer(answer_json(WHOLE)) as server, record_spans() as store:
        client = client_of(server, is_vertex=True)
        client.models.generate_content(**OPTIONS)
    check_spans(store, expected_span(server, provider="gcp.vertex_ai"))


def test_a_stream_is_assembled_as_it_was_sent():
    """Pieces of thoughts and text are joined, and the program still gets a generator."""
    with serve(answer_chunks(*CHUNKS)) as (server, client), record_spans() as store:
        stream = client.models.generate_content_stream(**OPTIONS)
        assert type(stream) is GeneratorType
        assert len(list(stream)) == len(CHUNKS)
    check_spans(store, expected_span(server, is_streamed=True))


def test_an_async_stream_is_assembled_as_it_was_sent():
    """The async stream gives the same span, and is an async generator still."""

    async def ask(client):
        stream = await client.models.generate_content_stream(**OPTIONS)
        assert type(stream) is AsyncGeneratorType
        return [chunk async for chunk in stream]

    with AnswerServer(answer_chunks(*CHUNKS)) as server, record_spans() as store:
        assert len(run_async(server, ask)) == len(CHUNKS)
    check_spans(store, expected_span(server, is_streamed=True))


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
@pytest.mark.parametrize("is_stream", [False, True])
def test_the_sdks_other_http_library_is_the_same_span(is_stream):
    """With aiohttp, which the SDK prefers where it is installed, nothing changes."""
    answer = answer_chunks(*CHUNKS) if is_stream else answer_json(WHOLE)

    async def ask(server):
        options = types.HttpOptions(base_url=server.url)
        async with genai.Client(api_key="none", http_options=options).aio as client:
            if is_stream:
                stream = await client.models.generate_content_stream(**OPTIONS)
                return [chunk async for chunk in stream]
            return [await client.models.generate_content(**OPTIONS)]

    with AnswerServer(answer) as server, record_spans() as store:
        assert len(asyncio.run(ask(server))) == (len(CHUNKS) if is_stream else 1)
    check_spans(store, expected_span(server, is_streamed=is_stream))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
def test_the_next_message_of_a_chat_extends_the_answer(is_stream, is_async):
    """A chat sends its answers back, streamed ones in pieces, and they are recognised."""
    responses = [
        types.Part(
            function_response=types.FunctionResponse(id=call_id, name="stock", response={"n": 1})
        )
        for call_id in ("c1", "c2")
    ]

    answers = [
        answer_chunks(*CHUNKS) if is_stream else answer_json(WHOLE),
        answer_chunks(make_answer({"text": "1"})) if is_stream else answer_json(make_answer()),
    ]
    with (
        AnswerServer(*answers) as server,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        converse(
            server,
            "how many?",
            responses,
            is_chat=True,
            is_stream=is_stream,
            is_async=is_async,
            config=CONFIG,
        )
    second = store.select("llm")[1]
    assert (second[semconv.HISTORY_BASE_LENGTH], second[semconv.HISTORY_LENGTH]) == (3, 5)
    assert json.loads(second[semconv.INPUT_MESSAGES]) == [
        {
            "role": "tool",
            "parts": [
                {"type": "tool_call_response", "id": i, "response": {"n": 1}, "name": "stock"}
            ],
        }
        for i in ("c1", "c2")
    ]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_chat", [False, True])
def test_functions_that_the_sdk_calls_are_steps(is_chat, is_stream, is_async):
    """One span per request, and one step for each function called between, failed ones as well."""
    asked = make_answer(*CALLS)
    asked["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] = {"sku": "A7"}
    given = make_answer({"text": "ten"})
    answers = [answer_chunks(a) if is_stream else answer_json(a) for a in (asked, given)]

    def stock(sku: str) -> int:
        """Count."""
        if sku == "B":
            raise KeyError(sku)
        return 10

    async def stock_async(sku: str) -> int:
        """Count."""
        return stock(sku)

    stock_async.__name__ = "stock"
    config = {"tools": [stock_async if is_async and is_chat else stock]}

    with AnswerServer(*answers) as server, record_spans() as store, starpo_trace.trajectory():
        given = converse(
            server, "hi", is_chat=is_chat, is_stream=is_stream, is_async=is_async, config=config
        )
    assert given[-1].text == "ten"
    assert len(server.requests) == 2
    first, second = store.select("llm")
    assert (first[semconv.STEP], second[semconv.STEP]) == (0, 3)
    steps = store.select("step")
    error = "google.genai.errors.FunctionInvocationError"
    assert [
        (
            step[semconv.STEP],
            step[semconv.STEP_KIND],
            step[semconv.TOOL_NAME],
            step[semconv.TOOL_CALL_ID],
            step[semconv.TOOL_CALL_ARGUMENTS],
            step.get(semconv.TOOL_CALL_RESULT),
            step.get(semconv.ERROR_TYPE),
        )
        for step in steps
    ] == [
        (1, "tool", "stock", "c1", '{"sku":"A7"}', "10", None),
        (2, "tool", "stock", "c2", '{"sku":"B"}', None, error),
    ]
    declared = json.loads(first[semconv.TOOL_DEFINITIONS])
    assert declared == body_of(server)["tools"]


def test_a_blocked_prompt_says_why():
    """An answer without candidates keeps the server's reason as its finish reason."""
    feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": [RATING]}
    with (
        serve(answer_json({"promptFeedback": feedback, "modelVersion": "m"})) as (_, client),
        record_spans() as store,
    ):
        client.models.generate_content(**SHORT)
    [call] = store.select("llm")
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("PROHIBITED_CONTENT",)
    assert outputs_of(call) == [
        {
            "role": "assistant",
            "parts": [],
            "finish_reason": "PROHIBITED_CONTENT",
            "extra": {"promptFeedback": feedback},
        }
    ]


def test_an_answer_cut_off_for_safety_keeps_its_reason():
    """A finish reason other than STOP is kept verbatim, with its ratings."""
    answer = {"candidates": [{"finishReason": "SAFETY", "safetyRatings": [RATING]}]}
    with serve(answer_json(answer)) as (_, client), record_spans() as store:
        client.models.generate_content(**SHORT)
    [call] = store.select("llm")
    assert outputs_of(call)[0] == {
        "role": "assistant",
        "parts": [],
        "finish_reason": "SAFETY",
        "extra": {"safetyRatings": [RATING]},
    }


def test_files_and_structured_output_are_kept_verbatim():
    """Inline data, file references and schemas stay as they were sent."""
    contents = [
        types.Part.from_bytes(data=b"\xfb\xff", mime_type="image/png"),
        types.Part.from_uri(file_uri="gs://f", mime_type="image/png"),
        "what?",
    ]
    config = {"response_mime_type": "application/json", "response_schema": {"type": "STRING"}}
    with serve(answer_json(make_answer({"text": '"x"'}))) as (_, client), record_spans() as store:
        answer = client.models.generate_content(model="gemini-x", contents=contents, config=config)
    assert answer.parsed == "x"
    [call] = store.select("llm")
    file = {"fileUri": "gs://f", "mimeType": "image/png"}
    assert json.loads(call[semconv.INPUT_MESSAGES]) == [
        {
            "role": "user",
            "parts": [
                {"type": "inlineData", "raw": {"inlineData": IMAGE}},
                {"type": "fileData", "raw": {"fileData": file}},
                {"type": "text", "content": "what?"},
            ],
        }
    ]
    assert json.loads(call[semconv.REQUEST_PARAMETERS]) == {
        "generationConfig": {
            "responseMimeType": "application/json",
            "responseSchema": {"type": "STRING"},
        }
    }


def test_two_stretches_of_a_video_are_two_prompts():
    """Which stretch is meant is part of what the model saw."""
    with (
        serve(answer_json(make_answer({"text": "a cat"}))) as (_, client),
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        for start in ("0s", "10s"):
            part = types.Part(
                file_data=types.FileData(file_uri="gs://v", mime_type="video/mp4"),
                video_metadata=types.VideoMetadata(start_offset=start),
            )
            client.models.generate_content(model="gemini-x", contents=[part])
    stretches = [
        json.loads(call[semconv.INPUT_MESSAGES])[0]["parts"][0]["raw"]["videoMetadata"]
        for call in store.select("llm")
    ]
    assert stretches == [{"startOffset": "0s"}, {"startOffset": "10s"}]


def test_signatures_of_texts_are_kept_beside_them():
    """Signatures stay with the text they came with, and an empty text that has one is no text."""
    parts = [{"text": "a"}, {"text": "b", "thoughtSignature": "YQ=="}]
    alone = {"text": "", "thoughtSignature": "Yg=="}
    with (
        serve(answer_json(make_answer(*parts, CALLS[1], alone))) as (_, client),
        record_spans() as store,
    ):
        client.models.generate_content(**SHORT)
    [call] = store.select("llm")
    assert outputs_of(call)[0]["parts"] == [
        {"type": "text", "content": "ab", "meta": {"signature": "YQ=="}},
        {"type": "tool_call", "id": "c2", "name": "stock", "arguments": '{"sku":"B"}'},
        {"type": "reasoning", "content": "", "meta": {"signature": "Yg=="}},
    ]


def test_streamed_function_arguments_are_put_together():
    """Vertex AI streams the arguments of a call by path; they become one call."""
    calls = [
        {"name": "stock", "id": "c1", "willContinue": True},
        {
            "partialArgs": [{"jsonPath": "$.sku", "stringValue": "A", "willContinue": True}],
            "willContinue": True,
        },
        {
            "partialArgs": [
                {"jsonPath": "$.sku", "stringValue": "7"},
                {"jsonPath": "$.list[1].n", "numberValue": 2},
                {"jsonPath": "$.ok", "boolValue": False},
                {"jsonPath": "$.none", "nullValue": "NULL_VALUE"},
            ],
            "willContinue": True,
        },
        {},
    ]
    chunks = [make_answer({"functionCall": call}, finish=None) for call in calls]
    with (
        serve(answer_chunks(*chunks, make_answer(CALLS[1]))) as (_, client),
        record_spans() as store,
    ):
        list(client.models.generate_content_stream(**SHORT))
    [call] = store.select("llm")
    assert outputs_of(call)[0]["parts"] == [
        {
            "type": "tool_call",
            "id": "c1",
            "name": "stock",
            "arguments": '{"sku":"A7","list":[null,{"n":2}],"ok":false,"none":null}',
        },
        {"type": "tool_call", "id": "c2", "name": "stock", "arguments": '{"sku":"B"}'},
    ]


TEXT_CHUNKS = [make_answer({"text": "one "}, finish=None), make_answer({"text": "two"})]


def leave_by_close(client):
    stream = client.models.generate_content_stream(**SHORT)
    next(stream)
    stream.close()


def leave_by_break(client):
    for _ in client.models.generate_content_stream(**SHORT):
        break
    gc.collect()


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_break])
def test_a_stream_left_early_says_so(leave):
    """What was read is kept; a generator closed and one dropped are the same to the SDK."""
    with serve(answer_chunks(*TEXT_CHUNKS)) as (_, client), record_spans() as store:
        leave(client)
        [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "dropped"
    assert outputs_of(call) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "one "}]}
    ]


def test_an_async_stream_left_early_says_so():
    """Leaving an async stream ends its span as well."""

    async def ask(client):
        async for _ in await client.models.generate_content_stream(**SHORT):
            break
        gc.collect()
        await asyncio.sleep(0.01)  # the event loop closes what was dropped
        return len(store.spans)

    with AnswerServer(answer_chunks(*TEXT_CHUNKS)) as server, record_spans() as store:
        assert run_async(server, ask) == 1
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["dropped"]


def test_a_stream_nobody_reads_on_ends_with_its_trajectory():
    """An open stream does not wait for the garbage collector: its trajectory ends it."""
    with serve(answer_chunks(*TEXT_CHUNKS)) as (_, client), record_spans() as store:
        with starpo_trace.trajectory():
            stream = client.models.generate_content_stream(**SHORT)
            next(stream)
        [call] = store.select("llm")
        assert [chunk.text for chunk in stream] == ["two"]  # still whole for its reader
    assert call[semconv.STREAM_OUTCOME] == "dropped"
    assert len(store.select("llm")) == 1


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_reaches_the_program_unchanged(is_stream, is_async):
    """A refused request raises the SDK's own error; the span says so."""
    error = {"error": {"code": 400, "message": "scripted", "status": "INVALID_ARGUMENT"}}

    with (
        AnswerServer(answer_json(error, status=400)) as server,
        record_spans() as store,
        pytest.raises(errors.ClientError, match="scripted"),
    ):
        converse(server, "hi", is_stream=is_stream, is_async=is_async)
    [span] = store.spans
    assert span.attributes[semconv.ERROR_TYPE] == "google.genai.errors.ClientError"
    assert span.attributes.get(semconv.STREAM_OUTCOME) == ("error" if is_stream else None)
    assert span.status.status_code is StatusCode.ERROR


def test_a_broken_connection_is_an_error_with_what_came():
    """The exception reaches the program; the span keeps the partial answer."""
    with (
        serve(answer_chunks(TEXT_CHUNKS[0], is_cut=True)) as (_, client),
        record_spans() as store,
        pytest.raises(Exception, match=r"peer closed|[Cc]onnection"),
    ):
        list(client.models.generate_content_stream(**SHORT))
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert '"content":"one "' in call[semconv.OUTPUT_MESSAGES]


def test_a_cancelled_async_stream_is_marked():
    """Cancelling the reading task ends the span as cancelled, with what came before."""

    async def ask(client):
        async def consume():
            async for _ in await client.models.generate_content_stream(**SHORT):
                has_text.set()

        has_text = asyncio.Event()
        reading = asyncio.create_task(consume())
        await asyncio.wait_for(has_text.wait(), 30)
        await asyncio.sleep(0)  # on to the next read
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    answer = answer_chunks(*TEXT_CHUNKS, stall_after=1)
    with AnswerServer(answer) as server, record_spans() as store:
        run_async(server, ask)
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "cancelled"
    assert '"content":"one "' in call[semconv.OUTPUT_MESSAGES]


@pytest.mark.parametrize("is_async", [False, True])
def test_embeddings_are_retrieval_steps(is_async):
    """What is embedded and how long the vectors are is recorded, the vectors are not."""
    answer = answer_json({"embeddings": [{"values": [0.5, 0.25]}, {"values": [1, 2]}]})
    options = {
        "model": "embedder",
        "contents": ["a", "b"],
        "config": {"task_type": "RETRIEVAL_QUERY", "output_dimensionality": 2},
    }
    with AnswerServer(answer) as server, record_spans() as store:
        if is_async:
            result = run_async(server, lambda client: client.models.embed_content(**options))
        else:
            with client_of(server) as client:
                result = client.models.embed_content(**options)
    assert result.embeddings[0].values == [0.5, 0.25]
    check_spans(
        store,
        {
            semconv.SCHEMA: "1",
            semconv.RECORD: "step",
            semconv.STEP_KIND: "retriever",
            semconv.OPERATION_NAME: "embeddings",
            semconv.PROVIDER_NAME: "gcp.gemini",
            semconv.REQUEST_MODEL: "embedder",
            semconv.REQUEST_PARAMETERS: {"taskType": "RETRIEVAL_QUERY", "outputDimensionality": 2},
            semconv.SERVER_ADDRESS: "127.0.0.1",
            semconv.SERVER_PORT: server.port,
            semconv.TOOL_CALL_ARGUMENTS: dump_json(["a", "b"]),
            semconv.EMBEDDINGS_DIMENSION_COUNT: 2,
        },
    )


def test_embeddings_of_vertex_are_the_same_steps(monkeypatch):
    """Vertex AI's own form of the request is read as well, with its usage."""
    monkeypatch.setattr(_api_client.BaseApiClient, "_access_token", lambda _: "t")
    embedding = {"values": [0.5], "statistics": {"token_count": 3}}
    with (
        AnswerServer(answer_json({"predictions": [{"embeddings": embedding}]})) as server,
        record_spans() as store,
    ):
        client = client_of(server, is_vertex=True)
        client.models.embed_content(model="text-embedding-005", contents="a")
    [step] = store.select("step")
    assert step[semconv.PROVIDER_NAME] == "gcp.vertex_ai"
    assert step[semconv.TOOL_CALL_ARGUMENTS] == '["a"]'
    assert step[semconv.EMBEDDINGS_DIMENSION_COUNT] == 1
    assert step[semconv.USAGE_INPUT_TOKENS] == 3


def test_counting_tokens_is_no_call():
    """Only answers and embeddings are recorded."""
    with serve(answer_json({"totalTokens": 3})) as (server, client), record_spans() as store:
        assert client.models.count_tokens(**SHORT).total_tokens == 3
    assert len(server.requests) == 1
    assert store.spans == []


def test_suppressed_instrumentation_records_nothing():
    """OpenTelemetry's own switch is honoured, for answers and for functions."""
    answers = [answer_json(make_answer(CALLS[1])), answer_json(make_answer({"text": "x"}))]

    def stock(sku: str) -> int:
        """Count."""
        return 10

    with (
        AnswerServer(*answers) as server,
        client_of(server) as client,
        record_spans() as store,
        suppress_instrumentation(),
    ):
        client.models.generate_content(**SHORT, config={"tools": [stock]})
    assert len(server.requests) == 2
    assert store.spans == []


def test_uninstrument_restores_the_raw_attributes():
    """After uninstrument() the SDK holds the very objects it held before."""
    names = ["request", "async_request", "request_streamed", "async_request_streamed"]
    utils = [
        "get_function_response_parts",
        "get_function_response_parts_async",
        "invoke_function_from_dict_args",
        "invoke_function_from_dict_args_async",
    ]
    seams = [(_api_client.BaseApiClient, name) for name in names]
    seams += [(_extra_utils, name) for name in utils]
    before = [vars(owner)[name] for owner, name in seams]
    with record_spans():
        during = [vars(owner)[name] for owner, name in seams]
    assert all(now is not then for now, then in zip(during, before, strict=True))
    after = [vars(owner)[name] for owner, name in seams]
    assert all(now is then for now, then in zip(after, before, strict=True))
