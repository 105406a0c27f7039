"""Model calls with a sentinel in everything that a program or a server can put into them."""

import asyncio
import json
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import anthropic
import openai
import servers_anthropic
import servers_google
from google import genai
from google.genai import types
from sentinels import Sentinels
from servers_openai import (
    answer_chunks,
    answer_events,
    answer_json,
    chat_answer,
    chat_chunks,
    make_call,
    make_events,
    make_reasoning,
    make_response,
    make_text,
)
from servers_scripted import Answer, AnswerServer


def cut(text: str, size: int = 5) -> list[str]:
    """Text -> pieces."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def arguments(s: Sentinels, channel: str) -> str:
    """Arguments of a call, as a model writes them."""
    return json.dumps({"query": s.text(channel), "deep": [{"note": s.text(f"{channel}, deep")}]})


@contextmanager
def openai_client(s: Sentinels, *answers: Answer):
    """Client of a scripted server, with secrets wherever a client has any."""
    with (
        AnswerServer(*answers) as server,
        openai.OpenAI(
            base_url=f"http://agent:{s.token('userinfo')}@127.0.0.1:{server.port}/v1",
            api_key=s.token("api key"),
            default_headers={"X-Note": s.token("header")},
            default_query={"note": s.token("query")},
            max_retries=0,
        ) as client,
    ):
        yield client


def chat_options(s: Sentinels, way: str) -> dict[str, Any]:
    """Options of a chat completion."""
    function = {"name": "f", "arguments": arguments(s, f"{way}: argument sent back")}
    call = {"id": s.text(f"{way}: call id"), "type": "function", "function": function}
    parameters = {"type": "object", "properties": {"q": {"enum": [s.text(f"{way}: enum")]}}}
    tool = {"name": "f", "description": s.text(f"{way}: tool"), "parameters": parameters}
    return {
        "model": f"ft:{s.text(f'{way}: model')}",
        "messages": [
            {"role": "system", "content": s.text(f"{way}: system prompt")},
            {"role": "user", "name": "u", "content": s.text(f"{way}: user prompt")},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {
                "role": "tool",
                "tool_call_id": s.text(f"{way}: call id"),
                "content": json.dumps({"found": s.text(f"{way}: tool result")}),
            },
            {"role": "user", "content": [{"type": "text", "text": s.text(f"{way}: text part")}]},
        ],
        "tools": [{"type": "function", "function": tool}],
        "metadata": {"note": s.text(f"{way}: metadata")},
        "user": s.text(f"{way}: user"),
        "stop": [s.text(f"{way}: stop")],
        "reasoning_effort": s.text(f"{way}: effort"),
        "extra_body": {"note": s.text(f"{way}: extra body")},
    }


def ask_chat(s: Sentinels) -> None:
    """A chat completion with token texts and log-probabilities."""
    answer = s.text("chat: answer")
    entries = [
        {"token": piece, "bytes": None, "logprob": -0.5, "top_logprobs": []}
        for piece in cut(answer)
    ]
    call = {"name": "f", "arguments": arguments(s, "chat: argument")}
    message = {
        "content": answer,
        "reasoning_content": s.text("chat: reasoning"),
        "tool_calls": [{"id": s.text("chat: new id"), "type": "function", "function": call}],
    }
    body = chat_answer(message, logprobs={"content": entries})
    body |= {"id": s.text("chat: response id"), "model": s.text("chat: response model")}
    body |= {"service_tier": s.text("chat: tier")}
    body["choices"][0]["finish_reason"] = s.text("chat: finish reason")
    with openai_client(s, answer_json(body)) as client:
        client.chat.completions.create(**chat_options(s, "chat"), logprobs=True)


def stream_chat(s: Sentinels) -> None:
    """A streamed chat completion: each secret is cut into chunks."""
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning": piece} for piece in cut(s.text("stream: reasoning"))]
    deltas += [{"content": piece} for piece in cut(s.text("stream: answer"))]
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    deltas.append({"tool_calls": [head]})
    deltas += [
        {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        for piece in cut(arguments(s, "stream: argument"))
    ]
    with openai_client(s, answer_chunks(*chat_chunks(*deltas))) as client:
        for _ in client.chat.completions.create(**chat_options(s, "stream"), stream=True):
            pass


def ask_chat_async(s: Sentinels) -> None:
    """The same, async, and left before its end."""

    async def ask(port: int) -> None:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await client.chat.completions.create(**chat_options(s, "async"))
            options = chat_options(s, "closed stream")
            stream = await client.chat.completions.create(**options, stream=True)
            num_seen = 0
            async for _ in stream:
                num_seen += 1
                if num_seen == 60:
                    break
            await stream.close()

    pieces = [{"content": piece} for piece in cut(s.text("closed stream: answer"), 3)]
    answers = (
        answer_json(chat_answer({"content": s.text("async: answer")})),
        answer_chunks(*chat_chunks(*pieces, *({"content": " more"} for _ in range(60)))),
    )
    with AnswerServer(*answers) as server:
        asyncio.run(ask(server.port))


def ask_responses(s: Sentinels) -> None:
    """Two turns of the Responses API, the second streamed."""
    options = {
        "model": "m",
        "instructions": s.text("responses: instructions"),
        "input": [{"role": "user", "content": s.text("responses: input")}],
        "tools": [{"type": "function", "name": "f", "description": s.text("responses: tool")}],
        "metadata": {"note": s.text("responses: metadata")},
        "prompt_cache_key": s.text("responses: cache key"),
    }
    first_id = s.text("responses: id")

    def make_output(way: str) -> list[dict[str, Any]]:
        return [
            make_reasoning(s.text(f"{way}: reasoning"), encrypted_content=s.text(f"{way}: sealed")),
            make_text(s.text(f"{way}: answer")),
            make_call(arguments(s, f"{way}: argument")),
        ]

    answers = (
        answer_json(make_response(*make_output("responses"), id=first_id)),
        answer_events(*make_events(*make_output("response events"))),
        answer_json(
            make_response(
                status="failed",
                error={"code": "x", "message": s.text("responses: error")},
            )
        ),
    )
    with openai_client(s, *answers) as client:
        client.responses.create(**options)
        output = s.text("responses: output")
        options["input"] = [{"type": "function_call_output", "call_id": "c1", "output": output}]
        for _ in client.responses.create(**options, previous_response_id=first_id, stream=True):
            pass
        client.responses.create(model="m", input="hi")


def ask_embeddings(s: Sentinels) -> None:
    """What is embedded."""
    body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
    body |= {"model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    with openai_client(s, answer_json(body)) as client:
        client.embeddings.create(model="e", input=[s.text("embeddings: input")])


def fail_calls(s: Sentinels) -> None:
    """Servers whose errors quote what they were sent."""
    error = {"message": s.text("error message"), "type": "t", "code": s.text("error code")}
    event = {"message": "stopped", "failed_generation": s.text("error in a stream")}
    with openai_client(
        s, answer_json({"error": error}, status=400), answer_chunks({"error": event})
    ) as client:
        with suppress(openai.APIError):
            client.chat.completions.create(**chat_options(s, "failing"))
        with suppress(openai.APIError):
            for _ in client.chat.completions.create(**chat_options(s, "failing"), stream=True):
                pass


def ask_anthropic(s: Sentinels) -> None:
    """Messages with thinking and tools, then the same as events."""

    def make_content(way: str, wrap: Callable[[str], Any]) -> list[dict[str, Any]]:
        signature = s.text(f"{way}: signature")
        return [
            {"type": "thinking", "thinking": s.text(f"{way}: thinking"), "signature": signature},
            {"type": "text", "text": s.text(f"{way}: answer")},
            {
                "type": "tool_use",
                "id": s.text(f"{way}: id"),
                "name": "f",
                "input": wrap(arguments(s, f"{way}: argument")),
            },
        ]

    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": s.text("anthropic: tool result")}],
    }
    options: Any = {
        "model": "claude-x",
        "max_tokens": 9,
        "system": s.text("anthropic: system prompt"),
        "messages": [
            {"role": "user", "content": s.text("anthropic: user prompt")},
            {"role": "assistant", "content": make_content("anthropic sent", json.loads)},
            {"role": "user", "content": [result]},
        ],
        "tools": [
            {
                "name": "f",
                "description": s.text("anthropic: tool"),
                "input_schema": {"type": "object"},
            }
        ],
        "metadata": {"user_id": s.text("anthropic: metadata")},
        "stop_sequences": [s.text("anthropic: stop")],
    }
    answers = (
        servers_anthropic.answer_message(
            *make_content("anthropic", json.loads), container={"id": s.text("anthropic: container")}
        ),
        servers_anthropic.answer_events(
            *servers_anthropic.make_events(*make_content("anthropic events", str))
        ),
    )
    with (
        AnswerServer(*answers) as server,
        anthropic.Anthropic(
            base_url=server.url, api_key=s.token("anthropic key"), max_retries=0
        ) as client,
    ):
        client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            stream.until_done()


def ask_gemini(s: Sentinels) -> None:
    """A call with functions, thoughts and log-probabilities, then the same in chunks."""

    def make_parts(way: str) -> list[dict[str, Any]]:
        call = {"id": "g1", "name": "f", "args": json.loads(arguments(s, f"{way}: argument"))}
        return [
            {"text": s.text(f"{way}: thought"), "thought": True},
            {"text": s.text(f"{way}: answer")},
            {"functionCall": call},
        ]

    pieces = [
        {"token": p, "tokenId": 1, "logProbability": -1.0} for p in cut(s.text("gemini: answer"))
    ]
    logprobs = {
        "chosenCandidates": pieces,
        "topCandidates": [{"candidates": [piece]} for piece in pieces],
    }
    chunks = [
        servers_google.make_answer({"text": piece}, finish=None)
        for piece in cut(s.text("gemini chunks: answer"))
    ]
    answers = (
        servers_google.answer_json(
            servers_google.make_answer(*make_parts("gemini"), logprobsResult=logprobs)
        ),
        servers_google.answer_chunks(*chunks, servers_google.make_answer({"text": ""})),
        servers_google.answer_json(
            {"error": {"code": 400, "message": s.text("gemini: error"), "status": "X"}}, status=400
        ),
    )
    config = types.GenerateContentConfig(
        system_instruction=s.text("gemini: system prompt"),
        stop_sequences=[s.text("gemini: stop")],
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(name="f", description=s.text("gemini: tool"))
                ]
            )
        ],
    )
    with AnswerServer(*answers) as server:
        options = types.HttpOptions(base_url=server.url)
        with genai.Client(api_key=s.token("gemini key"), http_options=options) as client:
            models = client.models
            prompt = s.text("gemini: user prompt")
            models.generate_content(model="gemini-x", contents=prompt, config=config)
            for _ in models.generate_content_stream(model="gemini-x", contents=prompt):
                pass
            with suppress(genai.errors.APIError):
                models.generate_content(model="gemini-x", contents=prompt)
