"""Anthropic SDK -> spans, against a real HTTP server; its request log is the ground truth."""

import asyncio
import gc
import json
from contextlib import contextmanager

import anthropic
import pytest
from anthropic import _base_client
from anthropic.lib.tools import _beta_runner
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from servers_anthropic import (
    answer_error,
    answer_events,
    answer_message,
    make_events,
)
from servers_bedrock import encode_chunks
from servers_scripted import Answer, AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

ARGUMENTS = '{"sku": "A7",  "n": 1e0}'
TOOLS = [{"name": "stock", "description": "d", "input_schema": {"type": "object"}}]
CACHE = {"type": "ephemeral"}
CITATION = {
    "type": "char_location",
    "cited_text": "ten",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 3,
}
SEARCH_RESULT = {
    "type": "web_search_result",
    "url": "u",
    "title": "t",
    "encrypted_content": "xx",
    "page_age": None,
}
THINKING = {"type": "thinking", "thinking": "look it up", "signature": "sig=="}
CONTENT = [
    THINKING,
    {"type": "redacted_thinking", "data": "secret=="},
    {"type": "text", "text": "Let me see.", "citations": [CITATION]},
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "A7"}},
    {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [SEARCH_RESULT]},
    {"type": "tool_use", "id": "c1", "name": "stock", "input": {"sku": "A7", "n": 1.0}},
    {"type": "tool_use", "id": "c2", "name": "stock", "input": {}},
]
STREAMED_CONTENT = [
    *CONTENT[:3],
    {**CONTENT[3], "input": '{"query":"A7"}'},
    CONTENT[4],
    {**CONTENT[5], "input": ARGUMENTS},
    {**CONTENT[6], "input": ""},
]
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 4,
    "cache_read_input_tokens": 6,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 5},
    "service_tier": "standard",
}
ANSWER = {"stop_reason": "tool_use", "usage": USAGE}
SYSTEM = [{"type": "text", "text": "Be brief.", "cache_control": CACHE}]
OPTIONS = {
    "model": "claude-x",
    "max_tokens": 64,
    "system": SYSTEM,
    "messages": [{"role": "user", "content": "how many?"}],
    "tools": TOOLS,
    "tool_choice": {"type": "auto"},
    "stop_sequences": ["END"],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "extra_body": {"top_p": 1, "top_k": 20, "temperature": 0.5},
}
SHORT = {
    "model": "claude-x",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}
PROMPT = [
    {
        "role": "system",
        "parts": [{"type": "text", "content": "Be brief.", "meta": {"cache_control": CACHE}}],
    },
    {"role": "user", "parts": [{"type": "text", "content": "how many?"}]},
]


def expected_answer(*, is_streamed: bool = False) -> dict:
    """The answer `CONTENT` as it is recorded."""
    call = {
        "type": "tool_call",
        "id": "c1",
        "name": "stock",
        "arguments": '{"sku":"A7","n":1.0}',
    }
    if is_streamed:
        call["meta"] = {"raw": ARGUMENTS}
    return {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "look it up", "meta": {"signature": "sig=="}},
            {"type": "reasoning", "content": "", "meta": {"encrypted": "secret=="}},
            {"type": "text", "content": "Let me see.", "meta": {"citations": [CITATION]}},
            {
                "type": "server_tool_call",
                "id": "s1",
                "name": "web_search",
                "arguments": '{"query":"A7"}',
            },
            {
                "type": "server_tool_call_response",
                "id": "s1",
                "response": [SEARCH_RESULT],
                "meta": {"type": "web_search_tool_result"},
            },
            call,
            {"type": "tool_call", "id": "c2", "name": "stock", "arguments": "{}"},
        ],
        "finish_reason": "tool_use",
        "extra": {"usage": USAGE},
    }


def expected_span(server, *, is_streamed: bool = False) -> dict:
    """The whole span of `OPTIONS` and `CONTENT`, outside of a trajectory."""
    span = {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "anthropic",
        semconv.REQUEST_MODEL: "claude-x",
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_TOP_P: 1.0,
        semconv.REQUEST_TOP_K: 20,
        semconv.REQUEST_STOP_SEQUENCES: ("END",),
        semconv.REQUEST_PARAMETERS: dump_json(
            {"thinking": OPTIONS["thinking"], "tool_choice": OPTIONS["tool_choice"]}
        ),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 2,
        semconv.HISTORY_HASH: chain_hashes(PROMPT)[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json(PROMPT),
        semconv.TOOL_DEFINITIONS: dump_json(TOOLS),
        semconv.RESPONSE_ID: "msg_1",
        semconv.RESPONSE_MODEL: "claude-x",
        semconv.RESPONSE_FINISH_REASONS: ("tool_use",),
        semconv.USAGE_INPUT_TOKENS: 20,
        semconv.USAGE_CACHE_WRITE_TOKENS: 4,
        semconv.USAGE_CACHE_READ_TOKENS: 6,
        semconv.USAGE_OUTPUT_TOKENS: 9,
        semconv.USAGE_REASONING_TOKENS: 5,
        semconv.OUTPUT_MESSAGES: dump_json([expected_answer(is_streamed=is_streamed)]),
    }
    if is_streamed:
        span |= {semconv.REQUEST_STREAM: True, semconv.STREAM_OUTCOME: "exhausted"}
    return span


def check_spans(store, *expected: dict) -> None:
    """The recorded spans are these, times and the order of fields left aside."""
    spans = [dict(span.attributes) for span in store.spans]
    for span in spans:
        if span.get(semconv.REQUEST_STREAM):
            assert span.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK) > 0
    for span in [*spans, *expected]:
        for key in (semconv.OUTPUT_MESSAGES, semconv.REQUEST_PARAMETERS):
            span[key] = json.loads(span[key])
    assert spans == list(expected)


@contextmanager
def serve(*answers):
    """A server with these answers, and a client of it."""
    with AnswerServer(*answers) as server, client_of(server) as client:
        yield server, client


def client_of(server, kind=anthropic.Anthropic, **options):
    return kind(base_url=server.url, api_key="none", max_retries=0, **options)


def run_async(server, ask, **options):
    """Run `ask(client)` with an async client."""

    async def run():
        async with client_of(server, anthropic.AsyncAnthropic, **options) as client:
            return await ask(client)

    return asyncio.run(run())


def body_of(server, number: int = 0) -> dict:
    return json.loads(server.requests[number].body)


def test_a_call_is_one_whole_span():
    """Request, thinking with signatures, built-in tools, arguments, usage: all on one span."""
    with serve(answer_message(*CONTENT, **ANSWER)) as (server, client), record_spans() as store:
        answer = client.messages.create(**OPTIONS)
    assert type(answer) is anthropic.types.Message
    assert [block.type for block in answer.content] == [block["type"] for block in CONTENT]
    check_spans(store, expected_span(server))
    assert body_of(server)["system"] == SYSTEM


@pytest.mark.parametrize("way", ["beta", "raw", "post", "parse"])
def test_every_way_in_is_the_same_span(way):
    """Beta messages, raw responses, `client.post` and `parse` record what `create` records."""
    options = {name: value for name, value in OPTIONS.items() if name != "extra_body"}
    with serve(answer_message(*CONTENT, **ANSWER)) as (server, client), record_spans() as store:
        if way == "beta":
            answer = client.beta.messages.create(**OPTIONS, betas=["x"])
        elif way == "raw":
            answer = client.messages.with_raw_response.create(**OPTIONS).parse()
        elif way == "post":
            answer = client.post(
                "/v1/messages",
                body={**options, **OPTIONS["extra_body"]},
                cast_to=anthropic.types.Message,
            )
        else:
            answer = client.messages.parse(**OPTIONS)
    assert answer.id == "msg_1"
    check_spans(store, expected_span(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize("way", ["create", "beta", "raw"])
def test_an_async_call_is_the_same_span(way):
    """The async client records what the sync client records."""

    async def ask(client):
        if way == "raw":
            raw = await client.messages.with_raw_response.create(**OPTIONS)
            return await raw.parse() if asyncio.iscoroutinefunction(raw.parse) else raw.parse()
        messages = client.beta.messages if way == "beta" else client.messages
        return await messages.create(**OPTIONS)

    with AnswerServer(answer_message(*CONTENT, **ANSWER)) as server, record_spans() as store:
        assert run_async(server, ask).id == "msg_1"
    check_spans(store, expected_span(server))


def test_a_streaming_response_is_recorded_as_the_program_reads_it():
    """`with_streaming_response` leaves its body to the program."""
    with (
        serve(answer_message(*CONTENT, **ANSWER)) as (server, client),
        record_spans() as store,
        client.messages.with_streaming_response.create(**OPTIONS) as raw,
    ):
        assert raw.parse().id == "msg_1"
    check_spans(store, {**expected_span(server), semconv.STREAM_OUTCOME: "exhausted"})


def test_a_raw_stream_is_recorded_from_its_events():
    """A raw response of a streamed call is read from its bytes, as the program reads them."""
    with (
        serve(answer_events(*make_events(*STREAMED_CONTENT, **ANSWER))) as (server, client),
        record_spans() as store,
        client.messages.with_streaming_response.create(**OPTIONS, stream=True) as raw,
    ):
        assert b"message_stop" in b"".join(raw.iter_bytes())
    check_spans(store, expected_span(server, is_streamed=True))


def stream_by_create(client):
    with client.messages.create(**OPTIONS, stream=True) as stream:
        assert type(stream) is anthropic.Stream
        return len(list(stream))


def stream_by_helper(client):
    with client.messages.stream(**OPTIONS) as stream:
        assert "".join(stream.text_stream) == "Let me see."
        return len(stream.get_final_message().content)


def stream_by_beta_helper(client):
    with client.beta.messages.stream(**OPTIONS) as stream:
        return len(stream.get_final_message().content)


@pytest.mark.parametrize("read", [stream_by_create, stream_by_helper, stream_by_beta_helper])
def test_a_stream_is_assembled_as_it_was_sent(read):
    """Thinking, citations and parallel tool calls come together; argument text is kept verbatim."""
    with (
        serve(answer_events(*make_events(*STREAMED_CONTENT, **ANSWER))) as (server, client),
        record_spans() as store,
    ):
        assert read(client) >= 7
    check_spans(store, expected_span(server, is_streamed=True))
    assert len(server.requests) == 1


@pytest.mark.parametrize("way", ["create", "helper", "beta helper"])
def test_an_async_stream_is_assembled_as_it_was_sent(way):
    """The async streams give the same span."""

    async def ask(client):
        if way == "create":
            stream = await client.messages.create(**OPTIONS, stream=True)
            assert type(stream) is anthropic.AsyncStream
            return len([event async for event in stream])
        messages = client.messages if way == "helper" else client.beta.messages
        async with messages.stream(**OPTIONS) as stream:
            return len((await stream.get_final_message()).content)

    answer = answer_events(*make_events(*STREAMED_CONTENT, **ANSWER))
    with AnswerServer(answer) as server, record_spans() as store:
        assert run_async(server, ask) >= 7
    check_spans(store, expected_span(server, is_streamed=True))


def test_the_next_turn_extends_the_answer():
    """SDK objects sent back, with cache breakpoints moved and results split, extend the history."""
    with (
        serve(
            answer_message(*CONTENT, **ANSWER), answer_message({"type": "text", "text": "10"})
        ) as (_, client),
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        first = client.messages.create(**OPTIONS)
        results = [
            {"type": "tool_result", "tool_use_id": "c1", "content": "10", "cache_control": CACHE},
            {
                "type": "tool_result",
                "tool_use_id": "c2",
                "content": [{"type": "text", "text": "none", "cache_control": CACHE}],
                "is_error": True,
            },
            {"type": "text", "text": "go on"},
        ]
        history = [
            *OPTIONS["messages"],
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": results},
        ]
        client.messages.create(**{**OPTIONS, "system": "Be brief.", "messages": history})
    second = store.select("llm")[1]
    assert second[semconv.HISTORY_BASE_LENGTH] == 3
    assert second[semconv.HISTORY_LENGTH] == 6
    assert json.loads(second[semconv.INPUT_MESSAGES]) == [
        {
            "role": "tool",
            "parts": [
                {
                    "type": "tool_call_response",
                    "id": "c1",
                    "response": "10",
                    "meta": {"cache_control": CACHE},
                }
            ],
        },
        {
            "role": "tool",
            "parts": [
                {
                    "type": "tool_call_response",
                    "id": "c2",
                    "response": [{"type": "text", "text": "none"}],
                    "meta": {"content_cache_control": {"0": CACHE}},
                    "is_error": True,
                }
            ],
        },
        {"role": "user", "parts": [{"type": "text", "content": "go on"}]},
    ]


def test_a_streamed_answer_sent_back_extends_the_history():
    """The answer that the stream helper assembled hashes as the recorded one."""
    with (
        serve(
            answer_events(*make_events(*STREAMED_CONTENT, **ANSWER)),
            answer_message({"type": "text", "text": "10"}),
        ) as (_, client),
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        with client.messages.stream(**OPTIONS) as stream:
            first = stream.get_final_message()
        history = [*OPTIONS["messages"], {"role": "assistant", "content": first.content}]
        client.messages.create(**{**OPTIONS, "messages": iter(history)})
    assert store.select("llm")[1][semconv.HISTORY_BASE_LENGTH] == 3


def test_media_and_unknown_blocks_are_kept_verbatim():
    """What has no part of its own stays as sent, without its cache breakpoint."""
    image = {"type": "image", "source": {"type": "url", "url": "u"}}
    with (
        serve(answer_message({"type": "new_block", "x": 1}, stop_sequence="END")) as (_, client),
        record_spans() as store,
    ):
        content = [{**image, "cache_control": CACHE}]
        client.messages.create(**{**SHORT, "messages": [{"role": "user", "content": content}]})
    [call] = store.select("llm")
    assert json.loads(call[semconv.INPUT_MESSAGES]) == [
        {
            "role": "user",
            "parts": [{"type": "image", "raw": image, "meta": {"cache_control": CACHE}}],
        }
    ]
    assert json.loads(call[semconv.OUTPUT_MESSAGES]) == [
        {
            "role": "assistant",
            "parts": [{"type": "new_block", "raw": {"type": "new_block", "x": 1}}],
            "finish_reason": "end_turn",
            "extra": {"stop_sequence": "END"},
        }
    ]


TEXT_EVENTS = make_events({"type": "text", "text": "one two three four"})
FIRST_TEXT = 4
"""How many events there are up to the first text."""


def read_text(stream):
    """Read up to the first text."""
    for event in stream:
        if event.type == "content_block_delta":
            return


def leave_by_close(client):
    stream = client.messages.create(**SHORT, stream=True)
    read_text(stream)
    stream.close()


def leave_by_with(client):
    with client.messages.stream(**SHORT) as stream:
        read_text(stream)


def fail_reading(client, error):
    with client.messages.stream(**SHORT) as stream:
        read_text(stream)
        raise error


def leave_by_error(client):
    with pytest.raises(KeyError, match="mine"):
        fail_reading(client, KeyError("mine"))


def leave_by_interrupt(client):
    with pytest.raises(KeyboardInterrupt):
        fail_reading(client, KeyboardInterrupt())


def leave_by_drop(client):
    gc.disable()
    try:
        read_text(client.messages.create(**SHORT, stream=True))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("leave", "outcome"),
    [
        (leave_by_close, "closed"),
        (leave_by_with, "closed"),
        (leave_by_error, "closed"),
        (leave_by_interrupt, "cancelled"),
        (leave_by_drop, "dropped"),
    ],
)
def test_a_stream_left_early_says_how(leave, outcome):
    """What was read is kept, the ending is named, and no output tokens are claimed."""
    with serve(answer_events(*TEXT_EVENTS)) as (_, client), record_spans() as store:
        leave(client)
        [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == outcome
    assert json.loads(call[semconv.OUTPUT_MESSAGES]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "one "}]}
    ]
    assert call[semconv.USAGE_INPUT_TOKENS] == 3
    assert semconv.USAGE_OUTPUT_TOKENS not in call


def test_arguments_that_were_cut_off_stay_as_they_came():
    """A tool call cut by the token limit keeps its broken text."""
    block = {"type": "tool_use", "id": "c1", "name": "stock", "input": '{"sku": "A'}
    with (
        serve(answer_events(*make_events(block, stop_reason="max_tokens"))) as (_, client),
        record_spans() as store,
    ):
        list(client.messages.create(**SHORT, stream=True))
    [call] = store.select("llm")
    assert json.loads(call[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
        {"type": "tool_call", "id": "c1", "name": "stock", "arguments": '{"sku": "A'}
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_error_reaches_the_program_unchanged(is_stream):
    """A refused request raises the SDK's own error; the span says so."""
    with (
        serve(answer_error(400)) as (_, client),
        record_spans() as store,
        pytest.raises(anthropic.BadRequestError) as caught,
    ):
        client.messages.create(**SHORT, stream=is_stream)
    assert "starpo" not in str(caught.value)
    [span] = store.spans
    assert span.attributes[semconv.ERROR_TYPE] == "anthropic.BadRequestError"
    assert span.attributes.get(semconv.STREAM_OUTCOME) == ("error" if is_stream else None)
    assert span.status.status_code is StatusCode.ERROR


def test_a_broken_connection_is_an_error_with_what_came():
    """The exception reaches the program; the span keeps the partial answer."""
    with (
        serve(answer_events(*TEXT_EVENTS[:FIRST_TEXT], is_cut=True)) as (_, client),
        record_spans() as store,
        pytest.raises(Exception, match=r"peer closed|[Cc]onnection"),
    ):
        list(client.messages.create(**SHORT, stream=True))
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert '"content":"one "' in call[semconv.OUTPUT_MESSAGES]


def test_an_error_event_in_a_stream_is_an_error():
    """A server that reports an error half-way raises the SDK's error, unchanged."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "scripted"}}
    with (
        serve(answer_events(*TEXT_EVENTS[:FIRST_TEXT], error)) as (_, client),
        record_spans() as store,
        pytest.raises(anthropic.APIStatusError, match="scripted"),
    ):
        list(client.messages.create(**SHORT, stream=True))
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["error"]


def test_a_cancelled_async_stream_is_marked():
    """Cancelling the reading task ends the span as cancelled, with what came before."""

    async def ask(client):
        async def consume():
            async with client.messages.stream(**SHORT) as stream:
                async for text in stream.text_stream:
                    assert text == "one "
                    has_text.set()

        has_text = asyncio.Event()
        reading = asyncio.create_task(consume())
        await asyncio.wait_for(has_text.wait(), 30)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    answer = answer_events(*TEXT_EVENTS, stall_after=FIRST_TEXT)
    with AnswerServer(answer) as server, record_spans() as store:
        run_async(server, ask)
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "cancelled"
    assert '"content":"one "' in call[semconv.OUTPUT_MESSAGES]


def test_retries_inside_the_sdk_are_one_call():
    """A 529 and an answer are one span, as they were one call."""
    with serve(answer_error(529), answer_message({"type": "text", "text": "x"})) as (
        server,
        client,
    ):
        client._calculate_retry_timeout = lambda *_, **__: 0.0
        with record_spans() as store:
            client.with_options(max_retries=1).messages.create(**SHORT)
    assert (len(server.requests), len(store.spans)) == (2, 1)


def test_counting_tokens_and_batches_are_no_calls():
    """Only messages are recorded."""
    with serve(answer_error(404)) as (_, client), record_spans() as store:
        with pytest.raises(anthropic.NotFoundError):
            client.messages.count_tokens(model="claude-x", messages=SHORT["messages"])
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.create(requests=[{"custom_id": "1", "params": SHORT}])
    assert store.select("llm") == []


def platform_client_of(server, platform):
    if platform == "bedrock":
        return anthropic.AnthropicBedrock(
            base_url=server.url, aws_region="eu-west-1", aws_access_key="a", aws_secret_key="s"
        )
    return anthropic.AnthropicVertex(
        base_url=server.url, region="eu", project_id="p", access_token="t"
    )


@pytest.mark.parametrize(
    ("platform", "provider"), [("bedrock", "aws.bedrock"), ("vertex", "gcp.vertex_ai")]
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_other_platforms_are_named(platform, provider, is_stream):
    """Bedrock and Vertex clients, which change the path and Bedrock the stream, are recorded."""
    text = {"type": "text", "text": "one two"}
    events = make_events(text)
    if not is_stream:
        answer = answer_message(text)
    elif platform == "bedrock":
        kind = "application/vnd.amazon.eventstream"
        answer = Answer(chunks=encode_chunks(*events), content_type=kind)
    else:
        answer = answer_events(*events)
    with (
        AnswerServer(answer) as server,
        platform_client_of(server, platform) as client,
        record_spans() as store,
    ):
        result = client.messages.create(**SHORT, stream=is_stream)
        if is_stream:
            assert len(list(result)) == len(events) - 1  # less the ping
    [call] = store.select("llm")
    assert call[semconv.PROVIDER_NAME] == provider
    assert call[semconv.REQUEST_MODEL] == "claude-x"
    assert call[semconv.RESPONSE_ID] == "msg_1"
    assert json.loads(call[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
        {"type": "text", "content": "one two"}
    ]
    assert server.requests[0].path != "/v1/messages"


@pytest.mark.parametrize(("way", "outcome"), [("with", "closed"), ("drop", "dropped")])
def test_an_async_stream_left_early_says_how(way, outcome):
    """`async with` on the stream helper, and a stream that is dropped, are seen."""

    async def ask(client):
        if way == "with":
            async with client.messages.stream(**SHORT) as stream:
                async for _ in stream.text_stream:
                    break
        else:
            stream = await client.messages.create(**SHORT, stream=True)
            await anext(stream)
            del stream
            gc.collect()
        return len(store.spans)

    with AnswerServer(answer_events(*TEXT_EVENTS)) as server, record_spans() as store:
        assert run_async(server, ask) == 1
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == [outcome]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_ours", [True, False])
def test_tools_of_the_tool_runner_are_steps(is_async, is_ours):
    """Each run of a tool is one step, joined to its call by id, failed ones as well."""
    content = [
        {"type": "tool_use", "id": "c1", "name": "stock", "input": {"sku": "A7"}},
        {"type": "tool_use", "id": "c2", "name": "stock", "input": {"sku": "B"}},
    ]
    answers = [
        answer_message(*content, stop_reason="tool_use"),
        answer_message({"type": "text", "text": "ten"}),
    ]

    def stock(sku: str) -> str:
        """Count.

        Args:
            sku: The item.
        """
        if sku == "B":
            raise KeyError(sku)
        return "10"

    async def stock_async(sku: str) -> str:
        return stock(sku)

    async def ask(client):
        tool = anthropic.beta_async_tool(stock_async, name="stock", description="Count.")
        return await client.beta.messages.tool_runner(**SHORT, tools=[tool]).until_done()

    with AnswerServer(*answers) as server, record_spans() as store:
        provider = store.provider if is_ours else trace.get_tracer_provider()
        options = {"open_telemetry": {"tracer_provider": provider}}
        with starpo_trace.trajectory():
            if is_async:
                final = run_async(server, ask, **options)
            else:
                with client_of(server, **options) as client:
                    tool = anthropic.beta_tool(stock)
                    final = client.beta.messages.tool_runner(**SHORT, tools=[tool]).until_done()
    assert final.content[0].text == "ten"
    kinds = [
        (span[semconv.STEP], span[semconv.STEP_KIND])
        for span in [*store.select("llm"), *store.select("step")]
    ]
    assert sorted(kinds) == [(0, "planner"), (1, "tool"), (2, "tool"), (3, "planner")]
    second = store.select("llm")[1]
    assert (second[semconv.PREVIOUS_RESPONSE_ID], second[semconv.HISTORY_LENGTH]) == ("msg_1", 4)
    steps = store.select("step")
    assert [step[semconv.TOOL_CALL_ID] for step in steps] == ["c1", "c2"]
    assert steps[0][semconv.TOOL_CALL_ARGUMENTS] == '{"sku":"A7"}'
    assert steps[0][semconv.TOOL_CALL_RESULT] == "10"
    assert steps[1][semconv.ERROR_TYPE] == "tool_error"
    theirs = [s.name for s in store.spans if s.instrumentation_scope.name != semconv.SCOPE_NAME]
    assert theirs == (["anthropic.messages.tool_runner"] if is_ours else [])


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_sdk_writes_no_second_span_of_a_recorded_call(is_stream, is_async):
    """With one provider for both there is one span, whose context the request carries."""
    text = {"type": "text", "text": "x"}
    answer = answer_events(*make_events(text)) if is_stream else answer_message(text)

    async def ask(client):
        result = await client.messages.create(**SHORT, stream=is_stream)
        if is_stream:
            return [event async for event in result]
        return result

    with AnswerServer(answer) as server, record_spans() as store:
        options = {"open_telemetry": {"tracer_provider": store.provider}}
        if is_async:
            run_async(server, ask, **options)
        else:
            with client_of(server, **options) as client:
                result = client.messages.create(**SHORT, stream=is_stream)
                if is_stream:
                    list(result)
    [span] = store.spans
    assert span.attributes[semconv.RECORD] == "llm"
    context = span.get_span_context()
    assert server.requests[0].headers["traceparent"] == (
        f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    )


def test_the_sdk_keeps_its_spans_where_starpo_does_not_record():
    """Calls Starpo leaves alone, and another provider of the user's, keep the SDK's own spans."""
    text = answer_message({"type": "text", "text": "x"})
    counted = answer_message({"type": "text", "text": "x"}, input_tokens=3)
    with record_spans() as theirs:
        provider = theirs.provider
    options = {"open_telemetry": {"tracer_provider": provider}}
    with AnswerServer(text, text, counted, text) as server, client_of(server, **options) as client:
        client.messages.create(**SHORT)
        with record_spans() as store:  # into a provider of its own
            client.messages.create(**SHORT)
            client.messages.count_tokens(model="claude-x", messages=SHORT["messages"])
            with suppress_instrumentation():
                client.messages.create(**SHORT)
    assert len(store.select("llm")) == 1
    names = ["create", "create", "count_tokens", "create"]
    assert [span.name for span in theirs.spans] == [f"anthropic.messages.{n}" for n in names]


def test_suppressed_instrumentation_records_nothing():
    """OpenTelemetry's own switch is honoured."""
    with serve(answer_message({"type": "text", "text": "x"})) as (server, client):
        with record_spans() as store, suppress_instrumentation():
            client.messages.create(**SHORT)
        assert len(server.requests) == 1
    assert store.spans == []


def test_uninstrument_restores_the_raw_attributes():
    """After uninstrument() the SDK holds the very objects it held before."""
    seams = [
        (_base_client.SyncAPIClient, "_request"),
        (_base_client.AsyncAPIClient, "_request"),
        (_base_client, "start_api_call_span"),
        (_beta_runner.BaseToolRunner, "_tool_use_span"),
    ]
    before = [vars(owner)[name] for owner, name in seams]
    with record_spans():
        during = [vars(owner)[name] for owner, name in seams]
    assert all(now is not then for now, then in zip(during, before, strict=True))
    after = [vars(owner)[name] for owner, name in seams]
    assert all(now is then for now, then in zip(after, before, strict=True))
