"""Recorded conversations with real providers, sent again: every fact of the wire is in the spans."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cassettes import Exchange, group_calls, read_cassette, send_again
from servers_scripted import AnswerServer
from wire_facts import Dialect, Unit, find_missing, find_missing_answer, find_missing_request
from wire_units import (
    anthropic_units,
    chat_answer_units,
    chat_units,
    converse_units,
    gemini_units,
    join_chat_chunks,
    join_converse_events,
    join_invoke_events,
    read_event_stream,
    read_sse,
    response_units,
)

from starpo_trace import semconv, trajectory
from starpo_trace.testing import record_spans

DATA = Path(__file__).parents[4] / "shared" / "data" / "vcr-cassettes-best"
NAME = "../shared/data/vcr-cassettes-best"
CASSETTES = sorted(DATA.rglob("*.yaml"))
NUM_CASSETTES = 18

USAGE = {
    "usage.prompt_tokens": semconv.USAGE_INPUT_TOKENS,
    "usage.input_tokens": semconv.USAGE_INPUT_TOKENS,
    "usage.completion_tokens": semconv.USAGE_OUTPUT_TOKENS,
    "usage.output_tokens": semconv.USAGE_OUTPUT_TOKENS,
    "usage.prompt_tokens_details.cached_tokens": semconv.USAGE_CACHE_READ_TOKENS,
    "usage.prompt_tokens_details.cache_write_tokens": semconv.USAGE_CACHE_WRITE_TOKENS,
    "usage.input_tokens_details.cached_tokens": semconv.USAGE_CACHE_READ_TOKENS,
    "usage.input_tokens_details.cache_write_tokens": semconv.USAGE_CACHE_WRITE_TOKENS,
    "usage.completion_tokens_details.reasoning_tokens": semconv.USAGE_REASONING_TOKENS,
    "usage.output_tokens_details.reasoning_tokens": semconv.USAGE_REASONING_TOKENS,
}
ANSWER = {"id": semconv.RESPONSE_ID, "model": semconv.RESPONSE_MODEL}
REQUEST = {
    "model": semconv.REQUEST_MODEL,
    "max_tokens": semconv.REQUEST_MAX_TOKENS,
    "max_completion_tokens": semconv.REQUEST_MAX_TOKENS,
    "n": semconv.REQUEST_CHOICE_COUNT,
    "previous_response_id": semconv.PREVIOUS_RESPONSE_ID,
}
OF_THE_TRANSPORT = {
    "object": "says which API it is",
    "created": "the span has its own times",
    "usage.total_tokens": "the sum of two that are recorded",
}
OF_RESULTS = "the API wants results to be the user's; the span says that they are a tool's"
CHAT = Dialect(
    request=REQUEST,
    answer={**ANSWER, **USAGE},
    content=frozenset({"messages", "choices"}),
    not_recorded=OF_THE_TRANSPORT,
    implied={
        "choices.index": "its place among the output messages",
        "choices.message.tool_calls.index": "its place among the calls",
    },
)
RESPONSES = Dialect(
    request=REQUEST,
    answer={**ANSWER, **USAGE, "status": semconv.RESPONSE_FINISH_REASONS},
    content=frozenset({"input", "output", "instructions"}),
    not_recorded={
        **OF_THE_TRANSPORT,
        "created_at": "the span has its own times",
        "completed_at": "the span has its own times",
        "previous_response_id": "the request's, and recorded of it",
        "instructions": "the request's, and recorded of it",
        **dict.fromkeys(
            (
                "tools",
                "tool_choice",
                "parallel_tool_calls",
                "text",
                "store",
                "background",
                "truncation",
                "top_logprobs",
                "prompt_cache_retention",
            ),
            "repeats the request, or says what the API's default is",
        ),
    },
    implied={},
)
ANTHROPIC = Dialect(
    request=REQUEST,
    answer={**ANSWER, **USAGE, "stop_reason": semconv.RESPONSE_FINISH_REASONS},
    content=frozenset({"messages", "system", "content"}),
    not_recorded={"type": "says which API it is", "role": "a unit's, and compared with it"},
    implied={"messages.role": OF_RESULTS},
)
GEMINI = Dialect(
    request={},
    answer={
        "responseId": semconv.RESPONSE_ID,
        "modelVersion": semconv.RESPONSE_MODEL,
        "candidates.finishReason": semconv.RESPONSE_FINISH_REASONS,
        "usageMetadata.promptTokenCount": semconv.USAGE_INPUT_TOKENS,
        "usageMetadata.candidatesTokenCount": semconv.USAGE_OUTPUT_TOKENS,
    },
    content=frozenset({"contents", "systemInstruction", "candidates.content"}),
    not_recorded={
        "candidates.index": "its place among the output messages",
        "usageMetadata.totalTokenCount": "the sum of two that are recorded",
    },
    implied={
        "contents.role": OF_RESULTS,
        "systemInstruction.role": "a program's whim; it is the system's whatever it says",
    },
    parameters="generationConfig",
    choices="candidates.",
)
CONVERSE = Dialect(
    request={},
    answer={
        "stopReason": semconv.RESPONSE_FINISH_REASONS,
        "usage.inputTokens": semconv.USAGE_INPUT_TOKENS,
        "usage.outputTokens": semconv.USAGE_OUTPUT_TOKENS,
    },
    content=frozenset({"messages"}),
    not_recorded={"usage.totalTokens": "the sum of two that are recorded"},
    implied={"messages.role": OF_RESULTS},
    parameters="toolConfig",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How to read the traffic of one path."""

    dialect: Dialect
    """Where its facts are."""
    read_prompt: Callable[[Any], Iterator[Unit]]
    """Request -> units."""
    read_answer: Callable[[Any], Iterator[Unit]]
    """Whole answer -> units."""
    join: Callable[[bytes], dict[str, Any]] = json.loads
    """Body of a streamed answer -> the whole answer."""


def read_response_prompt(body: Any) -> Iterator[Unit]:
    if body.get("instructions"):
        yield "system", {"content": body["instructions"]}
    yield from response_units(body["input"])


def read_anthropic_prompt(body: Any) -> Iterator[Unit]:
    system = [{"role": "system", "content": body["system"]}] if "system" in body else []
    yield from anthropic_units([*system, *body["messages"]])


def read_gemini_prompt(body: Any) -> Iterator[Unit]:
    system = {**body["systemInstruction"], "role": "system"}
    yield from gemini_units([system, *body["contents"]])


APIS = {
    "/chat/completions": Api(
        dialect=CHAT,
        read_prompt=lambda body: chat_units(body["messages"]),
        read_answer=chat_answer_units,
        join=lambda data: join_chat_chunks(read_sse(data)),
    ),
    "/responses": Api(
        dialect=RESPONSES,
        read_prompt=read_response_prompt,
        read_answer=lambda answer: response_units(answer["output"]),
        join=lambda data: read_sse(data)[-1]["response"],
    ),
    "/messages": Api(
        dialect=ANTHROPIC,
        read_prompt=read_anthropic_prompt,
        read_answer=lambda answer: anthropic_units([answer]),
    ),
    ":generateContent": Api(
        dialect=GEMINI,
        read_prompt=read_gemini_prompt,
        read_answer=lambda answer: gemini_units(each["content"] for each in answer["candidates"]),
    ),
    "/converse-stream": Api(
        dialect=CONVERSE,
        read_prompt=lambda body: converse_units(body["messages"]),
        read_answer=lambda answer: converse_units(answer["messages"]),
        join=lambda data: join_converse_events(read_event_stream(data)),
    ),
    "/invoke-with-response-stream": Api(
        dialect=ANTHROPIC,
        read_prompt=read_anthropic_prompt,
        read_answer=lambda answer: anthropic_units([answer]),
        join=lambda data: join_invoke_events(read_event_stream(data)),
    ),
}


def find_api(call: Sequence[Exchange]) -> Api:
    return next(api for ending, api in APIS.items() if ending in call[0].path)


def read_answer(call: Sequence[Exchange]) -> dict[str, Any]:
    """What came of a call in the end."""
    last = call[-1]
    return find_api(call).join(last.answer) if last.is_stream else json.loads(last.answer)


def find_missing_facts(api: Api, body: Any, answer: Any, span: dict[str, Any]) -> list[str]:
    """Facts of a request and its answer that are not in the span."""
    sent = json.loads(span[semconv.INPUT_MESSAGES])
    said = json.loads(span.get(semconv.OUTPUT_MESSAGES, "[]"))
    error, answer = answer.get("error"), {k: v for k, v in answer.items() if k != "error"}
    missing = find_missing(list(api.read_prompt(body)), sent)
    missing += find_missing(list(api.read_answer(answer)), said)
    missing += find_missing_request(body, span, api.dialect)
    missing += find_missing_answer(answer, span, api.dialect)
    if error is not None and json.loads(span[semconv.ERROR_BODY]) != error:
        missing.append(f"error {error}")
    return missing


def replay(exchanges: Sequence[Exchange]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Exchanges -> attributes of the calls' spans, and the bodies that the server received."""
    with (
        AnswerServer(*(exchange.make_answer() for exchange in exchanges)) as server,
        record_spans(history="full") as store,
        trajectory(),
    ):
        for exchange in exchanges:
            send_again(exchange, server.url)
    sent = [json.loads(request.body) if request.body else None for request in server.requests]
    return store.select("llm"), sent


@pytest.fixture(autouse=True)
def _reach_local_server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Of models that Anthropic has since announced the end of.
    warnings.filterwarnings("ignore", message="The model .* is deprecated")


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.stem)
def test_every_fact_of_the_wire_is_in_the_spans(path):
    """The SDK sends what was recorded then, and the spans hold what went both ways."""
    exchanges = read_cassette(path)
    calls = group_calls(exchanges)
    spans, sent = replay(exchanges)
    assert [exchange.body for exchange in exchanges] == sent
    assert len(calls) == len(spans)
    missing = {
        number: find_missing_facts(find_api(call), call[0].body, read_answer(call), span)
        for number, (call, span) in enumerate(zip(calls, spans, strict=True))
    }
    assert {number: [] for number in range(len(calls))} == missing


@pytest.mark.parametrize(
    "name",
    [
        "test_multiple_tools",
        "test_chat_completion_tool_calls_with_content",
        "test_google_adk_instrumentor_multi_tool_call",
        "test_live_tool_search_handoff_anthropic_openai_anthropic",
        "test_openrouter_cache_all_settings_real_api",
        "test_converse_stream_with_content_tool_call",
    ],
)
def test_the_check_sees_every_changed_value(name):
    """Were any single value on the wire another one, the check above would say so."""
    path = next((path for path in CASSETTES if path.stem == name), None)
    if path is None:
        pytest.skip(f"needs {NAME}")
    exchanges = read_cassette(path)
    calls = group_calls(exchanges)
    spans, _ = replay(exchanges)
    unseen = set()
    for call, span in zip(calls, spans, strict=True):
        api, body, answer = find_api(call), call[0].body, read_answer(call)
        for path, changed in change_each(body):
            if not find_missing_facts(api, changed, answer, span):
                unseen.add(path)
        for path, changed in change_each(answer):
            if not is_listed(path, api) and not find_missing_facts(api, body, changed, span):
                unseen.add(path)
    assert set() == unseen - find_api(calls[0]).dialect.implied.keys()


def change_each(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The same value with one leaf changed, for each leaf that says anything, and its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            for place, changed in change_each(item, f"{path}.{key}" if path else key):
                yield place, {**value, key: changed}
    elif isinstance(value, list):
        for number, item in enumerate(value):
            for place, changed in change_each(item, path):
                yield place, [*value[:number], changed, *value[number + 1 :]]
    elif isinstance(value, str):
        yield path, f"{value} changed"
    elif value is not None:
        yield path, not value if isinstance(value, bool) else value + 1


def is_listed(path: str, api: Api) -> bool:
    """Whether a field of an answer is on the list of what is not recorded."""
    return any(f"{path}.".startswith(f"{root}.") for root in api.dialect.not_recorded)


def test_all_cassettes_are_there():
    """A folder that lost some of its conversations does not pass for the whole."""
    if not DATA.is_dir():
        pytest.skip(f"needs {NAME}")
    assert len(CASSETTES) == NUM_CASSETTES
