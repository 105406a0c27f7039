"""OpenAI Responses API -> spans, against a real HTTP server; its request log is the ground truth."""

import asyncio
import gc
import json

import openai
import pytest
from openai.types.responses import Response
from opentelemetry.trace import StatusCode
from pydantic import BaseModel
from servers_openai import (
    answer_error,
    answer_events,
    answer_json,
    answer_response,
    client_of,
    make_call,
    make_events,
    make_reasoning,
    make_response,
    make_text,
    port_of,
)
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

ARGUMENTS = '{"sku": "A7",  "n":1e0}'
TOOLS = [{"type": "function", "name": "stock", "parameters": {"type": "object"}, "strict": None}]
OUTPUT = [
    make_reasoning("look", "it up", encrypted_content="enc=="),
    make_text("Checking."),
    make_call(ARGUMENTS),
    make_call("{not json", id="c2"),
]
OPTIONS = {
    "model": "m",
    "input": "how many?",
    "instructions": "Be kind.",
    "tools": TOOLS,
    "temperature": 0.5,
    "max_output_tokens": 64,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "low", "summary": "auto"},
    "store": False,
}
PROMPT = [
    {"role": "system", "parts": [{"type": "text", "content": "Be kind."}]},
    {"role": "user", "parts": [{"type": "text", "content": "how many?"}]},
]
ITEM = {"id": "msg_1", "status": "completed"}
ANSWER = {
    "role": "assistant",
    "parts": [
        {
            "type": "reasoning",
            "content": "look",
            "meta": {"type": "summary_text", "id": "rs_1", "encrypted_content": "enc=="},
        },
        {"type": "reasoning", "content": "it up", "meta": {"type": "summary_text"}},
        {"type": "text", "content": "Checking.", "meta": {"item": ITEM}},
        {
            "type": "tool_call",
            "id": "c1",
            "name": "stock",
            "arguments": ARGUMENTS,
            "meta": {"id": "fc_c1", "status": "completed"},
        },
        {
            "type": "tool_call",
            "id": "c2",
            "name": "stock",
            "arguments": "{not json",
            "meta": {"id": "fc_c2", "status": "completed"},
        },
    ],
    "finish_reason": "completed",
}


def async_client_of(server):
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def expected_span(server) -> dict:
    """The whole span of `OPTIONS` answered with `OUTPUT`, outside of a trajectory."""
    return {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "openai",
        semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_REASONING_LEVEL: "low",
        semconv.REQUEST_PARAMETERS: dump_json(
            {name: OPTIONS[name] for name in ("include", "reasoning", "store")}
        ),
        semconv.TOOL_DEFINITIONS: dump_json(TOOLS),
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 2,
        semconv.HISTORY_HASH: chain_hashes(PROMPT)[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json(PROMPT),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: port_of(server),
        semconv.RESPONSE_ID: "resp_1",
        semconv.RESPONSE_MODEL: "gpt-x",
        semconv.RESPONSE_FINISH_REASONS: ("completed",),
        semconv.USAGE_INPUT_TOKENS: 9,
        semconv.USAGE_OUTPUT_TOKENS: 5,
        semconv.USAGE_CACHE_READ_TOKENS: 4,
        semconv.USAGE_CACHE_WRITE_TOKENS: 2,
        semconv.USAGE_REASONING_TOKENS: 3,
        semconv.OUTPUT_MESSAGES: dump_json([ANSWER]),
    }


def create(client):
    assert type(client.responses.create(**OPTIONS)) is Response


def create_raw(client):
    raw = client.responses.with_raw_response.create(**OPTIONS)
    assert raw.parse().id == "resp_1"


def parse(client):
    assert client.responses.parse(**OPTIONS).output_text == "Checking."


def post(client):
    client.post("/responses", body=OPTIONS, cast_to=Response)


def create_beta(client):
    client.beta.responses.create(**OPTIONS)


@pytest.mark.parametrize("ask", [create, create_raw, parse, post, create_beta])
def test_every_way_in_is_one_whole_span(ask):
    """Request and answer, arguments verbatim, order of parts, encrypted reasoning, usage."""
    with AnswerServer(answer_response(*OUTPUT)) as server, client_of(server) as client:
        with record_spans() as store:
            ask(client)
        assert [dict(span.attributes) for span in store.spans] == [expected_span(server)]
        assert store.spans[0].name == "chat m"
        assert len(server.requests) == 1


def read_stream(client):
    for _ in client.responses.create(**OPTIONS, stream=True):
        pass


def read_helper(client):
    with client.responses.stream(**OPTIONS) as stream:
        assert stream.get_final_response().output_text == "Checking."


def read_raw_stream(client):
    with client.responses.with_streaming_response.create(**OPTIONS, stream=True) as raw:
        assert len(list(raw.parse())) > 8


@pytest.mark.parametrize("read", [read_stream, read_helper, read_raw_stream])
def test_a_stream_is_the_same_span(read):
    """Interleaved events come together as the answer that was not streamed."""
    with AnswerServer(answer_events(*make_events(*OUTPUT))) as server, client_of(server) as client:
        with record_spans() as store:
            read(client)
        [call] = [dict(span.attributes) for span in store.spans]
        call.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK)
        assert call == {
            **expected_span(server),
            semconv.REQUEST_STREAM: True,
            semconv.STREAM_OUTCOME: "exhausted",
        }


@pytest.mark.parametrize("is_stream", [False, True])
def test_async_calls_are_the_same_spans(is_stream):
    """The async client, its streams and its stream helper record what the sync client records."""

    async def ask(server):
        async with async_client_of(server) as client:
            if not is_stream:
                await client.responses.create(**OPTIONS)
                (await client.responses.with_raw_response.create(**OPTIONS)).parse()
                return
            async for _ in await client.responses.create(**OPTIONS, stream=True):
                pass
            async with client.responses.stream(**OPTIONS) as stream:
                await stream.get_final_response()

    answer = answer_events(*make_events(*OUTPUT)) if is_stream else answer_response(*OUTPUT)
    with AnswerServer(answer) as server:
        with record_spans() as store:
            asyncio.run(ask(server))
        expected = expected_span(server)
        if is_stream:
            expected |= {semconv.REQUEST_STREAM: True, semconv.STREAM_OUTCOME: "exhausted"}
        calls = [dict(span.attributes) for span in store.spans]
        for call in calls:
            call.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK, None)
        assert calls == [expected, expected]


EVENTS = make_events(*OUTPUT)
NUM_EVENTS_BEFORE_LAST_DELTA = next(
    number for number, event in enumerate(EVENTS) if event["type"].endswith("item.done")
)
CUT = EVENTS[: NUM_EVENTS_BEFORE_LAST_DELTA - 2]


def test_a_cut_stream_keeps_what_came():
    """Without its last event an answer is put together from its pieces, and is an error."""
    with (
        AnswerServer(answer_events(*CUT, is_cut=True)) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.APIConnectionError),
    ):
        list(client.responses.create(**OPTIONS, stream=True))
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert call[semconv.RESPONSE_ID] == "resp_1"
    assert semconv.RESPONSE_FINISH_REASONS not in call
    parts = [dict(part) for part in ANSWER["parts"]]
    parts[2] = {**parts[2], "meta": {"item": {"id": "msg_1", "status": "in_progress"}}}
    parts[3] = {**parts[3], "arguments": ARGUMENTS[:16]}
    for part in parts[3:]:
        part["meta"] = {**part["meta"], "status": "in_progress"}
    assert call[semconv.OUTPUT_MESSAGES] == dump_json([{"role": "assistant", "parts": parts}])


def close(client):
    stream = client.responses.create(**OPTIONS, stream=True)
    next(stream)
    stream.close()


def leave_helper(client):
    with client.responses.stream(**OPTIONS) as stream:
        for event in stream:
            if event.type == "response.output_item.added":
                break


def drop(client):
    stream = client.responses.create(**OPTIONS, stream=True)
    next(stream)
    del stream
    gc.collect()


@pytest.mark.parametrize(
    ("end", "outcome"), [(close, "closed"), (leave_helper, "closed"), (drop, "dropped")]
)
def test_a_stream_left_early_says_how(end, outcome):
    """The ending is named, once, and the run is not for RL."""
    with (
        AnswerServer(answer_events(*EVENTS)) as server,
        client_of(server) as client,
        record_spans() as store,
        starpo_trace.trajectory(),
    ):
        end(client)
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == [outcome]
    assert "stream_incomplete" in store.select("trajectory")[0][semconv.USABLE_FOR_REASONS]


def test_a_cancelled_stream_is_marked():
    """Cancelling the reading task ends the span as cancelled."""

    async def read(server):
        async with async_client_of(server) as client:
            stream = await client.responses.create(**OPTIONS, stream=True)
            has_begun = asyncio.Event()

            async def consume():
                async for _ in stream:
                    has_begun.set()

            reading = asyncio.create_task(consume())
            await has_begun.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    with AnswerServer(answer_events(*EVENTS, stall_after=4)) as server, record_spans() as store:
        asyncio.run(read(server))
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["cancelled"]


def test_a_refused_request_is_an_error():
    """The SDK's own exception reaches the program."""
    with (
        AnswerServer(answer_error(400)) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.BadRequestError),
    ):
        client.responses.create(**OPTIONS)
    [call] = store.select("llm")
    assert call[semconv.ERROR_TYPE] == "openai.BadRequestError"


FAILURE = {"code": "server_error", "message": "it broke"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failed_response_is_an_error(is_stream):
    """A failure that is reported in an answer, with status 200, marks the span."""
    fields = {"status": "failed", "error": FAILURE, "usage": None}
    answer = answer_events(*make_events(**fields)) if is_stream else answer_response(**fields)
    with (
        AnswerServer(answer) as server,
        client_of(server) as client,
        record_spans() as store,
        starpo_trace.trajectory(),
    ):
        response = client.responses.create(**OPTIONS, stream=is_stream)
        if is_stream:
            assert [event.type for event in response][-1] == "response.failed"
    span = store.spans[0]
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "server_error: it broke",
    )
    assert span.attributes[semconv.ERROR_TYPE] == "server_error"
    assert span.attributes[semconv.RESPONSE_FINISH_REASONS] == ("failed",)
    assert semconv.USAGE_INPUT_TOKENS not in span.attributes


def test_an_error_event_is_an_error():
    """An error event in the middle of a stream marks the span; what came before is kept."""
    error = {"type": "error", "code": "rate_limit", "message": "slow down", "sequence_number": 99}
    with (
        AnswerServer(answer_events(*CUT, error)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        list(client.responses.create(**OPTIONS, stream=True))
    [call] = store.select("llm")
    assert call[semconv.ERROR_TYPE] == "rate_limit"
    assert "Checking." in call[semconv.OUTPUT_MESSAGES]


def test_an_incomplete_response_says_why():
    """The reason why an answer stops is its finish reason."""
    fields = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    with (
        AnswerServer(answer_response(make_text("1, 2"), **fields)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        client.responses.create(**OPTIONS)
    [call] = store.select("llm")
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("max_output_tokens",)


def test_log_probabilities_of_the_text_are_recorded():
    """`include=["message.output_text.logprobs"]`: also from a stream that was cut."""
    entries = [
        {"token": token, "bytes": [], "logprob": p, "top_logprobs": []}
        for token, p in (("Hel", -0.5), ("lo", -1.25))
    ]
    events = make_events(make_text("Hello", logprobs=entries))
    for event in events:
        if event["type"].endswith("text.delta"):
            event["logprobs"] = entries[:1] if event["delta"] == "Hell" else entries[1:]
    cut = [event for event in events if event["type"].endswith(("created", "added", "delta"))]
    with (
        AnswerServer(answer_events(*events), answer_events(*cut)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        for _ in range(2):
            list(client.responses.create(**OPTIONS, stream=True))
    for call in store.select("llm"):
        assert call[semconv.RESPONSE_LOGPROBS] == "[-0.5,-1.25]"
        assert call[semconv.RESPONSE_TOKENS] == '["Hel","lo"]'


class Count(BaseModel):
    n: int


def test_what_the_sdk_parsed_is_left_out():
    """`parse` gives the program its own classes; the span holds the text as it came."""
    with (
        AnswerServer(answer_response(make_text('{"n":  3}'))) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        answer = client.responses.parse(model="m", input="?", text_format=Count)
    assert answer.output_parsed == Count(n=3)
    [call] = store.select("llm")
    assert call[semconv.OUTPUT_MESSAGES] == dump_json(
        [
            {
                "role": "assistant",
                "parts": [{"type": "text", "content": '{"n":  3}', "meta": {"item": ITEM}}],
                "finish_reason": "completed",
            }
        ]
    )


TOOL_OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3"}


def echo_objects(answer):
    return answer.output


def echo_plainly(answer):
    """As a program that drops ids, statuses and reasoning does."""
    return [
        {"role": "assistant", "content": answer.output_text},
        *(
            {
                "type": "function_call",
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
            for item in answer.output
            if item.type == "function_call"
        ),
    ]


@pytest.mark.parametrize("echo", [echo_objects, echo_plainly])
def test_an_answer_sent_back_is_known(echo):
    """The second turn's span holds only what is new after prompt and answer."""
    with (
        AnswerServer(answer_response(*OUTPUT)) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        answer = client.responses.create(**OPTIONS)
        history = [{"role": "user", "content": "how many?"}, *echo(answer), TOOL_OUTPUT]
        client.responses.create(**{**OPTIONS, "input": history})
    second = store.select("llm")[1]
    assert second[semconv.HISTORY_BASE_LENGTH] == 3
    assert second[semconv.INPUT_MESSAGES] == dump_json(
        [
            {
                "role": "tool",
                "parts": [{"type": "tool_call_response", "id": "c1", "response": "3"}],
            }
        ]
    )


@pytest.mark.parametrize("instructions", ["Be kind.", "Be rude."])
def test_a_history_on_the_server_is_continued(instructions):
    """`previous_response_id` extends that answer, unless the instructions have changed."""
    first = answer_response(*OUTPUT, instructions="Be kind.")
    with (
        AnswerServer(first, answer_response(make_text("3"), id="resp_2")) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        client.responses.create(**OPTIONS)
        client.responses.create(
            model="m",
            input=[TOOL_OUTPUT],
            instructions=instructions,
            previous_response_id="resp_1",
        )
    second, root = store.select("llm")[1], store.select("trajectory")[0]
    is_continued = instructions == "Be kind."
    assert second[semconv.PREVIOUS_RESPONSE_ID] == "resp_1"
    assert second[semconv.HISTORY_LENGTH] == (4 if is_continued else 2)
    assert second.get(semconv.HISTORY_BASE_LENGTH) == (3 if is_continued else None)
    assert ("history_on_server" in root[semconv.USABLE_FOR_REASONS]) is not is_continued


def test_a_conversation_is_continued():
    """`conversation` extends its last answer, and is the span's conversation."""
    conversation = {"id": "conv_1"}
    with (
        AnswerServer(
            answer_response(make_text("hi"), conversation=conversation),
            answer_response(make_text("3"), id="resp_2", conversation=conversation),
        ) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        client.responses.create(model="m", input="hello", conversation="conv_1")
        client.responses.create(model="m", input="how many?", conversation=conversation)
    calls = store.select("llm")
    assert [call[semconv.CONVERSATION_ID] for call in calls] == ["conv_1", "conv_1"]
    assert calls[1][semconv.HISTORY_BASE_LENGTH] == 2
    assert calls[1][semconv.HISTORY_LENGTH] == 3


def test_a_response_that_is_compacted_is_recorded():
    """`compact` is a call; its answer is what stands for the history from then on."""
    kept = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    compacted = {
        "id": "cmp_1",
        "object": "response.compaction",
        "created_at": 0,
        "output": [kept, {"id": "ci_1", "type": "compaction", "encrypted_content": "enc=="}],
        "usage": make_response()["usage"],
    }
    with (
        AnswerServer(answer_json(compacted), answer_response(make_text("ok"))) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        client.responses.compact(model="m", input=[{"role": "user", "content": "a"}])
        client.responses.create(model="m", input=compacted["output"])
    first, second = store.select("llm")
    part = {"type": "compaction", "content": "enc==", "meta": {"id": "ci_1"}}
    message = {"role": "assistant", "parts": [part]}
    assert first[semconv.OPERATION_NAME] == "compact"
    assert json.loads(first[semconv.OUTPUT_MESSAGES]) == [{**message, "extra": {"kept": [kept]}}]
    assert second[semconv.HISTORY_BASE_LENGTH] == 2


def run_agent(server):
    """Everything that a program sees of a few calls, errors included."""
    seen = []
    with client_of(server) as client:
        seen.append(client.responses.create(**OPTIONS).model_dump())
        seen += [event.model_dump() for event in client.responses.create(**OPTIONS, stream=True)]
        with client.responses.with_streaming_response.create(**OPTIONS) as raw:
            seen.append((type(raw), raw.status_code, raw.read()))
        try:
            client.responses.create(**OPTIONS)
        except openai.BadRequestError as error:
            seen.append((type(error), str(error), error.body, error.__cause__))
    return seen, [(request.path, request.body) for request in server.requests]


def test_nothing_changes_for_the_program():
    """Recorded or not, the program sees and sends the same."""
    answers = [
        answer_response(*OUTPUT),
        answer_events(*EVENTS),
        answer_response(*OUTPUT),
        answer_error(400),
    ]
    with AnswerServer(*answers) as server:
        without = run_agent(server)
    with AnswerServer(*answers) as server, record_spans() as store:
        recorded = run_agent(server)
    assert len(store.spans) == 4
    assert recorded == without
