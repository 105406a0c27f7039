"""OpenAI's embeddings, searches, text completions and Azure's paths -> spans."""

import asyncio
import base64
import json
import struct

import openai
import pytest
from servers_openai import (
    answer_chunks,
    answer_error,
    answer_json,
    answer_response,
    ask_chat,
    chat_answer,
    client_of,
    port_of,
)
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

COMPLETION = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "m"}


def record_calls(answer, ask):
    """Attributes of the calls that `ask(client)` makes to a server with this answer."""
    with (
        AnswerServer(answer) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        ask(client)
    return [dict(span.attributes) for span in store.spans]


# Embeddings and search -----------------------------------------------------------------------

VECTOR = [0.5, -1.0, 2.0]
PACKED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


def embed(client):
    answer = client.embeddings.create(model="m", input=["a", "b"], dimensions=3)
    assert list(answer.data[0].embedding) == VECTOR


def embed_raw(client):
    client.embeddings.with_raw_response.create(model="m", input=["a", "b"], dimensions=3)


@pytest.mark.parametrize("ask", [embed, embed_raw])
def test_embeddings_are_a_step(ask):
    """The step says what was embedded, into how many numbers, at what cost; not the vectors."""
    answer = answer_json(
        {
            "object": "list",
            "model": "e-x",
            "data": [{"object": "embedding", "index": 0, "embedding": PACKED}],
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
    )
    with AnswerServer(answer) as server, client_of(server) as client, record_spans() as store:
        with starpo_trace.trajectory():
            ask(client)
        port = port_of(server)
    [step], [root] = store.select("step"), store.select("trajectory")
    assert step.pop(semconv.TRAJECTORY_ID) == root[semconv.TRAJECTORY_ID]
    assert step == {
        semconv.SCHEMA: "1",
        semconv.RECORD: "step",
        semconv.STEP: 0,
        semconv.STEP_KIND: "retriever",
        semconv.OPERATION_NAME: "embeddings",
        semconv.PROVIDER_NAME: "openai",
        semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_PARAMETERS: step[semconv.REQUEST_PARAMETERS],
        semconv.TOOL_CALL_ARGUMENTS: '["a","b"]',
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: port,
        semconv.RESPONSE_MODEL: "e-x",
        semconv.USAGE_INPUT_TOKENS: 2,
        semconv.EMBEDDINGS_DIMENSION_COUNT: 3,
    }
    assert json.loads(step[semconv.REQUEST_PARAMETERS])["dimensions"] == 3


FOUND = {
    "file_id": "f",
    "filename": "a.md",
    "score": 0.5,
    "attributes": {},
    "content": [{"type": "text", "text": "ten"}],
}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_search_is_a_step(is_async):
    """A vector store search says which store, what was asked and what was found."""
    page = {"object": "vector_store.search_results.page", "data": [FOUND], "has_more": False}

    async def search(server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            async for result in client.vector_stores.search("vs_1", query="how many?"):
                assert result.filename == "a.md"

    with AnswerServer(answer_json(page)) as server, record_spans() as store:
        if is_async:
            asyncio.run(search(server))
        else:
            with client_of(server) as client:
                results = client.vector_stores.search("vs_1", query="how many?")
                assert [result.filename for result in results] == ["a.md"]
        port = port_of(server)
    [span] = store.spans
    assert span.name == "retrieval"
    assert dict(span.attributes) == {
        semconv.SCHEMA: "1",
        semconv.RECORD: "step",
        semconv.STEP_KIND: "retriever",
        semconv.OPERATION_NAME: "retrieval",
        semconv.PROVIDER_NAME: "openai",
        semconv.DATA_SOURCE_ID: "vs_1",
        semconv.TOOL_CALL_ARGUMENTS: '"how many?"',
        semconv.TOOL_CALL_RESULT: span.attributes[semconv.TOOL_CALL_RESULT],
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: port,
    }
    assert json.loads(span.attributes[semconv.TOOL_CALL_RESULT]) == [FOUND]


# Text completions ----------------------------------------------------------------------------

WHOLE_CHOICE = {
    "index": 0,
    "text": "3 left",
    "finish_reason": "stop",
    "logprobs": {"tokens": ["3", " left"], "token_logprobs": [-0.5, -1.5], "top_logprobs": None},
    "token_ids": [7, 8],
    "prompt_token_ids": [1, 2],
}


def test_a_text_completion_is_a_whole_span():
    """Prompt, text, log-probabilities, and vLLM's ids of both."""
    answer = {
        **COMPLETION,
        "choices": [WHOLE_CHOICE],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }
    prompt = [{"role": "user", "parts": [{"type": "text", "content": "how many?"}]}]
    with (
        AnswerServer(answer_json(answer)) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        client.completions.create(model="m", prompt="how many?", max_tokens=9, logprobs=1)
        port = port_of(server)
    message = {
        "role": "assistant",
        "parts": [{"type": "text", "content": "3 left"}],
        "finish_reason": "stop",
    }
    assert [dict(span.attributes) for span in store.spans] == [
        {
            semconv.SCHEMA: "1",
            semconv.RECORD: "llm",
            semconv.OPERATION_NAME: "text_completion",
            semconv.PROVIDER_NAME: "openai",
            semconv.REQUEST_MODEL: "m",
            semconv.REQUEST_MAX_TOKENS: 9,
            semconv.REQUEST_PARAMETERS: '{"logprobs":1}',
            semconv.HISTORY_MODE: "full",
            semconv.HISTORY_LENGTH: 1,
            semconv.HISTORY_HASH: chain_hashes(prompt)[-1].hex(),
            semconv.INPUT_MESSAGES: dump_json(prompt),
            semconv.SERVER_ADDRESS: "127.0.0.1",
            semconv.SERVER_PORT: port,
            semconv.RESPONSE_ID: "cmpl-1",
            semconv.RESPONSE_MODEL: "m",
            semconv.RESPONSE_FINISH_REASONS: ("stop",),
            semconv.USAGE_INPUT_TOKENS: 2,
            semconv.USAGE_OUTPUT_TOKENS: 2,
            semconv.OUTPUT_MESSAGES: dump_json([message]),
            semconv.PROMPT_TOKEN_IDS: "[1,2]",
            semconv.RESPONSE_TOKEN_IDS: "[7,8]",
            semconv.RESPONSE_LOGPROBS: "[-0.5,-1.5]",
        }
    ]


def test_a_streamed_text_completion_comes_together():
    """vLLM sends the prompt's ids with the first chunk, and those of the text piece by piece."""
    chunks = [
        {
            "index": 0,
            "text": text,
            "finish_reason": reason,
            "logprobs": {"tokens": [text], "token_logprobs": [p]},
            "token_ids": [token_id],
            "prompt_token_ids": prompt_ids,
        }
        for text, reason, p, token_id, prompt_ids in (
            ("3", None, -0.5, 7, [1, 2]),
            (" left", "stop", -1.5, 8, None),
        )
    ]
    answer = answer_chunks(*({**COMPLETION, "choices": [chunk]} for chunk in chunks))

    def ask(client):
        for _ in client.completions.create(model="m", prompt=[1, 2], stream=True):
            pass

    [call] = record_calls(answer, ask)
    assert json.loads(call[semconv.INPUT_MESSAGES])[0]["parts"] == [
        {"type": "token_ids", "raw": [1, 2]}
    ]
    assert call[semconv.PROMPT_TOKEN_IDS] == "[1,2]"
    assert call[semconv.RESPONSE_TOKEN_IDS] == "[7,8]"
    assert call[semconv.RESPONSE_LOGPROBS] == "[-0.5,-1.5]"
    assert '"content":"3 left"' in call[semconv.OUTPUT_MESSAGES]
    assert call[semconv.STREAM_OUTCOME] == "exhausted"
    assert semconv.USAGE_INPUT_TOKENS not in call


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_a_server_says_of_a_choice_is_kept(is_stream):
    """vLLM's `stop_reason`, as of chat completions."""
    choice = {"index": 0, "text": "3", "finish_reason": "stop", "stop_reason": "###"}
    make = answer_chunks if is_stream else answer_json
    answer = make({**COMPLETION, "choices": [choice]})

    def ask(client):
        told = client.completions.create(model="m", prompt="n?", stream=is_stream)
        for _ in told if is_stream else ():
            pass

    [call] = record_calls(answer, ask)
    [message] = json.loads(call[semconv.OUTPUT_MESSAGES])
    assert message["extra"] == {"stop_reason": "###"}


def test_a_repeated_prompt_is_not_taken_for_the_answer():
    """With `echo` the tokens begin with the prompt's, so none are recorded as sampled."""
    lists = {"tokens": ["hi", "3"], "token_logprobs": [None, -0.5]}
    choice = {"index": 0, "text": "hi3", "finish_reason": "stop", "logprobs": lists}
    [call] = record_calls(
        answer_json({**COMPLETION, "choices": [choice]}),
        lambda client: client.completions.create(model="m", prompt="hi", echo=True, logprobs=1),
    )
    assert semconv.RESPONSE_LOGPROBS not in call
    assert semconv.RESPONSE_TOKENS not in call


def test_an_error_of_any_api_reaches_the_program():
    """A refused embedding is marked, and raises the SDK's own error."""
    with (
        AnswerServer(answer_error(400)) as server,
        client_of(server) as client,
        record_spans() as store,
        pytest.raises(openai.BadRequestError),
    ):
        client.embeddings.create(model="m", input="x")
    [step] = store.select("step")
    assert step[semconv.ERROR_TYPE] == "openai.BadRequestError"


# Azure ---------------------------------------------------------------------------------------


def azure_of(server, **options):
    return openai.AzureOpenAI(
        azure_endpoint=server.url, api_key="none", api_version="v", max_retries=0, **options
    )


@pytest.mark.parametrize("options", [{}, {"azure_deployment": "m"}])
def test_azure_deployments_are_recorded(options):
    """Both forms of a deployment's path, for chat, embeddings and Responses."""
    with (
        AnswerServer(
            answer_json(chat_answer({"content": "x"})),
            answer_response(),
        ) as server,
        azure_of(server, **options) as client,
        record_spans() as store,
    ):
        ask_chat(client)
        client.responses.create(model="m", input="hi")
        paths = [request.path for request in server.requests]
    assert paths == [
        "/openai/deployments/m/chat/completions?api-version=v",
        "/openai/responses?api-version=v",
    ]
    calls = store.select("llm")
    assert [call[semconv.PROVIDER_NAME] for call in calls] == ["azure.ai.openai"] * 2
    assert [call[semconv.REQUEST_MODEL] for call in calls] == ["m", "m"]


def test_azure_v1_is_recorded():
    """The plain path of Azure's newer API, with the async Azure client."""

    async def ask(server):
        url = f"{server.url}/openai/v1"
        async with openai.AsyncAzureOpenAI(base_url=url, api_key="none", api_version="v") as client:
            await client.responses.create(model="m", input="hi")

    with AnswerServer(answer_response()) as server, record_spans() as store:
        asyncio.run(ask(server))
        assert [request.path for request in server.requests] == [
            "/openai/v1/responses?api-version=v"
        ]
    assert [call[semconv.PROVIDER_NAME] for call in store.select("llm")] == ["azure.ai.openai"]
