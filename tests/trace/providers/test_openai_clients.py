"""OpenAI over other HTTP clients -> the same spans, bodies read by the program included."""

import asyncio

import httpx
import httpx2
import openai
import pytest
from servers_openai import answer_events, answer_response, make_events, make_text
from servers_scripted import AnswerServer

from starpo_trace import semconv
from starpo_trace.testing import record_spans

TEXT = make_text("3 left")
WHOLE, EVENTS = answer_response(TEXT), answer_events(*make_events(TEXT))
OPTIONS = {"model": "m", "input": "how many?"}


@pytest.mark.parametrize("make_client", [httpx.Client, httpx2.Client])
def test_a_client_of_ones_own_is_recorded(make_client):
    """A synchronous client with a custom HTTP client: whole, streamed, and read by the program."""
    with (
        AnswerServer(WHOLE, EVENTS, WHOLE) as server,
        make_client() as http_client,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", http_client=http_client
        ) as client,
        record_spans() as store,
    ):
        client.responses.create(**OPTIONS)
        list(client.responses.create(**OPTIONS, stream=True))
        with client.responses.with_streaming_response.create(**OPTIONS) as raw:
            assert b"3 left" in raw.read()
    check(store)


@pytest.mark.parametrize(
    "make_client", [httpx.AsyncClient, httpx2.AsyncClient, openai.DefaultAioHttpClient]
)
def test_an_async_client_of_ones_own_is_recorded(make_client):
    """The same with asynchronous clients, aiohttp's among them."""

    async def ask(server):
        async with (
            make_client() as http_client,
            openai.AsyncOpenAI(
                base_url=f"{server.url}/v1", api_key="none", http_client=http_client
            ) as client,
        ):
            await client.responses.create(**OPTIONS)
            async for _ in await client.responses.create(**OPTIONS, stream=True):
                pass
            async with client.responses.with_streaming_response.create(**OPTIONS) as raw:
                assert b"3 left" in await raw.read()

    with AnswerServer(WHOLE, EVENTS, WHOLE) as server, record_spans() as store:
        asyncio.run(ask(server))
    check(store)


def check(store):
    """Three calls, each with its answer."""
    calls = store.select("llm")
    assert [call.get(semconv.STREAM_OUTCOME) for call in calls] == [
        None,
        "exhausted",
        "exhausted",
    ]
    assert ["3 left" in call[semconv.OUTPUT_MESSAGES] for call in calls] == [True] * 3
