"""Streamed answers -> one finished span each, however the reading ends."""

import asyncio
import gc
import json

import httpx2
import openai
import pytest
from openai import AsyncStream, Stream
from opentelemetry.trace import StatusCode

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import dump_json
from starpo_trace.testing import Reply, ScriptedServer, ToolCall, record_spans

ARGUMENTS = '{"city": "Köln",  "days": 1e0}'
OPTIONS = {"model": "m", "messages": [{"role": "user", "content": "weather?"}], "stream": True}
REPLY = Reply(
    reasoning_content="two cities, two calls",
    tool_calls=[
        ToolCall(id="c1", name="weather", arguments=ARGUMENTS),
        ToolCall(id="c2", name="weather", arguments='{"city":"Bonn"}'),
    ],
    prompt_token_ids=[1, 2, 3],
    token_ids=list(range(100, 120)),
    logprobs=[-0.5 * n for n in range(20)],
    usage={"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23},
)
TEXT = Reply(content="one two three four", num_stream_chunks=4)


def client_of(server):
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def async_client_of(server):
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def text_of(chunk):
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def check_whole(store):
    """The span holds everything of `REPLY`, assembled."""
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "exhausted"
    assert call[semconv.OUTPUT_MESSAGES] == dump_json(
        [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "two cities, two calls"},
                    {"type": "tool_call", "id": "c1", "name": "weather", "arguments": ARGUMENTS},
                    {
                        "type": "tool_call",
                        "id": "c2",
                        "name": "weather",
                        "arguments": '{"city":"Bonn"}',
                    },
                ],
                "finish_reason": "tool_calls",
            }
        ]
    )
    assert call[semconv.PROMPT_TOKEN_IDS] == "[1,2,3]"
    assert call[semconv.RESPONSE_TOKEN_IDS] == dump_json(list(range(100, 120)))
    assert call[semconv.RESPONSE_LOGPROBS] == dump_json([-0.5 * n for n in range(20)])
    assert call[semconv.USAGE_OUTPUT_TOKENS] == 20
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("tool_calls",)
    assert call[semconv.RESPONSE_TIME_TO_FIRST_CHUNK] > 0
    [root] = store.select("trajectory")
    assert (root[semconv.USABLE_FOR], root.get(semconv.USABLE_FOR_REASONS)) == ("rl", None)


def test_a_stream_is_assembled_as_it_was_sent():
    """Interleaved parallel tool calls, reasoning, token ids and log-probabilities come together."""
    with ScriptedServer([REPLY]) as server, client_of(server) as client:
        with record_spans() as store, starpo_trace.trajectory():
            stream = client.chat.completions.create(**OPTIONS)
            assert type(stream) is Stream
            chunks = list(stream)
        assert len(chunks) > 8
        check_whole(store)


def test_an_async_stream_is_assembled_as_it_was_sent():
    """The async stream gives the same span."""

    async def read(server):
        async with async_client_of(server) as client, starpo_trace.trajectory():
            stream = await client.chat.completions.create(**OPTIONS)
            assert type(stream) is AsyncStream
            return [chunk async for chunk in stream]

    with ScriptedServer([REPLY]) as server, record_spans() as store:
        assert len(asyncio.run(read(server))) > 8
    check_whole(store)


def test_the_stream_helper_is_one_call():
    """`.stream()`, which calls `create` underneath, is recorded once and works as before."""
    with (
        ScriptedServer([TEXT]) as server,
        client_of(server) as client,
        record_spans() as store,
        client.chat.completions.stream(model="m", messages=OPTIONS["messages"]) as stream,
    ):
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "one two three four"
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["exhausted"]


def read_one_chunk(stream):
    """Read up to the first text."""
    for chunk in stream:
        if text_of(chunk):
            return


def end_by_close(client):
    stream = client.chat.completions.create(**OPTIONS)
    read_one_chunk(stream)
    stream.close()
    stream.close()


def end_by_with(client):
    with client.chat.completions.create(**OPTIONS) as stream:
        read_one_chunk(stream)


def end_by_response_close(client):
    stream = client.chat.completions.create(**OPTIONS)
    read_one_chunk(stream)
    stream.response.close()


def fail_reading(client, error):
    with client.chat.completions.create(**OPTIONS) as stream:
        read_one_chunk(stream)
        raise error


def end_by_error_of_the_reader(client):
    with pytest.raises(KeyError, match="mine"):
        fail_reading(client, KeyError("mine"))


def end_by_interrupt(client):
    with pytest.raises(KeyboardInterrupt):
        fail_reading(client, KeyboardInterrupt())


def end_by_drop(client):
    stream = client.chat.completions.create(**OPTIONS)
    read_one_chunk(stream)
    del stream
    gc.collect()


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (end_by_close, "closed"),
        (end_by_with, "closed"),
        (end_by_response_close, "closed"),
        (end_by_error_of_the_reader, "closed"),
        (end_by_interrupt, "cancelled"),
        (end_by_drop, "dropped"),
    ],
)
def test_a_stream_left_early_says_how(end, outcome):
    """What was read is kept, the ending is named, the span ends once, the run is not for RL."""
    with ScriptedServer([TEXT]) as server, client_of(server) as client, record_spans() as store:
        with starpo_trace.trajectory():
            end(client)
            gc.collect()
            num_ended = len(store.select("llm"))
        assert num_ended == 1
    [call], [root] = store.select("llm"), store.select("trajectory")
    assert call[semconv.STREAM_OUTCOME] == outcome
    assert '"content":"one t"' in call[semconv.OUTPUT_MESSAGES]
    assert root[semconv.USABLE_FOR] == "sft"
    assert "stream_incomplete" in root[semconv.USABLE_FOR_REASONS]


def leave_at_the_finish(client, *, is_closed):
    stream = client.chat.completions.create(**OPTIONS)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].finish_reason is not None:
            break
    if is_closed:
        stream.close()


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_stream_left_at_its_last_event_is_whole(is_closed):
    """The answer has said why it ends: nothing of it is missing, whatever of the stream is left."""
    with (
        ScriptedServer([TEXT]) as server,
        client_of(server) as client,
        record_spans() as store,
        starpo_trace.trajectory(),
    ):
        leave_at_the_finish(client, is_closed=is_closed)
        gc.collect()
    [call], [root] = store.select("llm"), store.select("trajectory")
    assert call[semconv.STREAM_OUTCOME] == "exhausted"
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("stop",)
    assert "stream_incomplete" not in root.get(semconv.USABLE_FOR_REASONS, ())


def test_a_stream_nobody_reads_ends_with_its_trajectory():
    """An open stream does not wait for the garbage collector: its trajectory ends it."""
    with ScriptedServer([TEXT]) as server, client_of(server) as client, record_spans() as store:
        with starpo_trace.trajectory():
            stream = client.chat.completions.create(**OPTIONS)
        assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["dropped"]
        assert "".join(map(text_of, stream)) == "one two three four"  # still whole for its reader
        assert len(store.select("llm")) == 1


def test_a_broken_connection_is_an_error_with_what_came():
    """The SDK's own exception reaches the program; the span keeps the partial answer."""
    reply = Reply(content="one two three four", cut_after_chunks=2)
    with (
        ScriptedServer([reply]) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.APIConnectionError),
    ):
        list(client.chat.completions.create(**OPTIONS))
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert call[semconv.ERROR_TYPE] == "openai.APIConnectionError"
    assert '"content":"one t"' in call[semconv.OUTPUT_MESSAGES]
    assert store.spans[0].status.status_code is StatusCode.ERROR


def test_an_error_event_in_a_stream_is_an_error():
    """A server that reports an error half-way raises the SDK's error, unchanged."""
    reply = Reply(content="one two three four", error_after_chunks=2)
    with (
        ScriptedServer([reply]) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.APIError, match="scripted"),
    ):
        list(client.chat.completions.create(**OPTIONS))
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["error"]


def test_a_refused_stream_is_an_error():
    """A stream that never began says so too."""
    with (
        ScriptedServer([Reply(status=400)]) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.BadRequestError),
    ):
        client.chat.completions.create(**OPTIONS)
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["error"]


def test_a_cancelled_async_stream_is_marked():
    """Cancelling the reading task ends the span as cancelled, with what came before."""

    async def read(server):
        async with async_client_of(server) as client:
            stream = await client.chat.completions.create(**OPTIONS)
            has_text = asyncio.Event()

            async def consume():
                async for chunk in stream:
                    if text_of(chunk):
                        has_text.set()

            reading = asyncio.create_task(consume())
            await has_text.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    reply = Reply(content="one two three four", chunk_pause_s=0.2)
    with ScriptedServer([reply]) as server, record_spans() as store:
        asyncio.run(read(server))
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "cancelled"
    assert '"content":"one t"' in call[semconv.OUTPUT_MESSAGES]


@pytest.mark.parametrize("is_with", [True, False])
def test_an_async_stream_closed_early_is_closed(is_with):
    """`async with` and `close()` on an async stream are seen."""

    async def read(server):
        async with async_client_of(server) as client:
            stream = await client.chat.completions.create(**OPTIONS)
            if is_with:
                async with stream:
                    await anext(stream)
            else:
                await anext(stream)
                await stream.close()

    with ScriptedServer([TEXT]) as server, record_spans() as store:
        asyncio.run(read(server))
    assert [call[semconv.STREAM_OUTCOME] for call in store.select("llm")] == ["closed"]


def test_a_stream_without_its_end_is_not_for_rl():
    """A server that stops without a finish reason gave only part of an answer."""
    reply = Reply(content="x", token_ids=[1], logprobs=[-1.0], prompt_token_ids=[1])

    def without_end(_reply, model):
        for chunk in chunks(_reply, model):
            if chunk["choices"][0]["finish_reason"] is None:
                yield chunk

    from starpo_trace.testing import scripted as testing

    chunks = testing.build_chunks
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(testing, "build_chunks", without_end)
        with (
            ScriptedServer([reply]) as server,
            client_of(server) as client,
            record_spans() as store,
            starpo_trace.trajectory(),
        ):
            list(client.chat.completions.create(**OPTIONS))
    [root] = store.select("trajectory")
    assert root[semconv.USABLE_FOR_REASONS] == ("stream_incomplete",)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_program_may_build_its_answer_inside_the_chunks(is_async):
    """What is recorded is what came, also when the program adds later pieces to earlier chunks."""
    call = ToolCall(id="c1", name="weather", arguments='{"city": "Paris", "unit": "c"}')

    def build(calls, chunk):
        for piece in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            if piece.index not in calls:
                calls[piece.index] = piece
            else:
                calls[piece.index].function.arguments += piece.function.arguments
        if chunk.choices:
            chunk.choices[0].delta.content = "changed"

    async def ask(server):
        calls = {}
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            stream = await client.chat.completions.create(model="m", messages=[], stream=True)
            async for chunk in stream:
                build(calls, chunk)
        return calls

    with ScriptedServer([Reply(tool_calls=[call])]) as server, record_spans() as store:
        if is_async:
            calls = asyncio.run(ask(server))
        else:
            calls = {}
            with openai.OpenAI(base_url=server.base_url, api_key="none") as client:
                for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
                    build(calls, chunk)
    assert calls[0].function.arguments == call.arguments
    [span] = store.select("llm")
    [message] = json.loads(span[semconv.OUTPUT_MESSAGES])
    assert [(part["name"], part["arguments"]) for part in message["parts"]] == [
        ("weather", call.arguments)
    ]


def test_what_a_hook_of_the_client_asks_is_a_call_of_its_own():
    """A guardrail that asks another model while a request is sent leaves the request's record."""
    with (
        ScriptedServer([Reply(content="safe")]) as guard_server,
        ScriptedServer([Reply(content="42")]) as server,
        openai.OpenAI(base_url=guard_server.base_url, api_key="none") as guard,
    ):

        def check(_request):
            guard.chat.completions.create(
                model="guard", messages=[{"role": "user", "content": "is it safe?"}]
            )

        http_client = openai.DefaultHttpxClient(event_hooks={"request": [check]})
        with (
            openai.OpenAI(
                base_url=server.base_url, api_key="none", http_client=http_client
            ) as client,
            record_spans() as store,
        ):
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "what is it?"}]
            )
    asked = {
        span[semconv.REQUEST_MODEL]: json.loads(span[semconv.OUTPUT_MESSAGES])[0]["parts"][0]
        for span in store.select("llm")
    }
    assert asked == {
        "guard": {"type": "text", "content": "safe"},
        "m": {"type": "text", "content": "42"},
    }


def test_a_stream_that_ends_before_its_answer_does_is_cut():
    """A body that ends cleanly without a finish reason is no whole answer."""
    body = b'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"ha"}}]}\n\n'
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    with (
        openai.OpenAI(api_key="none", http_client=httpx2.Client(transport=transport)) as client,
        record_spans() as store,
    ):
        texts = [
            chunk.choices[0].delta.content
            for chunk in client.chat.completions.create(model="m", messages=[], stream=True)
        ]
    [span] = store.select("llm")
    assert (texts, span[semconv.STREAM_OUTCOME]) == (["ha"], "cut")
