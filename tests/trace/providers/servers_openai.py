"""OpenAI's APIs, scripted: chat completions, and responses, whole or as server-sent events."""

import json
from collections.abc import Iterator
from typing import Any

import openai
from servers_scripted import Answer, AnswerServer

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 14,
}


CHAT = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m"}
CHUNK = {**CHAT, "object": "chat.completion.chunk"}


def client_of(server: AnswerServer, **options: Any) -> openai.OpenAI:
    """Client that speaks to a scripted server."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


def port_of(server: AnswerServer) -> int:
    """Port that a scripted server listens on."""
    return int(server.url.rpartition(":")[2])


def ask_chat(client: openai.OpenAI, **options: Any) -> Any:
    """Ask for a chat completion."""
    messages = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(model="m", messages=messages, **options)


def chat_answer(*messages: dict[str, Any], **choice: Any) -> dict[str, Any]:
    """Body of a chat completion with a choice for each message."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", **message},
            "finish_reason": "stop",
            **choice,
        }
        for index, message in enumerate(messages)
    ]
    return {**CHAT, "choices": choices}


def chat_chunks(*deltas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Chunks of a streamed chat completion."""
    for delta in deltas:
        yield {**CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def answer_json(value: Any, *, status: int = 200) -> Answer:
    """Answer with one JSON value."""
    return Answer(chunks=[json.dumps(value).encode()], status=status)


def answer_error(status: int) -> Answer:
    """Answer with an error object."""
    error = {"message": f"scripted {status}", "type": "scripted", "code": None}
    return answer_json({"error": error}, status=status)


def answer_response(*output: dict[str, Any], **fields: Any) -> Answer:
    """Answer with one response."""
    return answer_json(make_response(*output, **fields))


def answer_events(*events: dict[str, Any], **fields: Any) -> Answer:
    """Answer with server-sent events, as the Responses API sends them."""
    return Answer(
        chunks=[f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events],
        content_type="text/event-stream",
        **fields,
    )


def answer_chunks(*chunks: dict[str, Any], **fields: Any) -> Answer:
    """Answer with server-sent events without names, as the older APIs send them."""
    return Answer(
        chunks=[*(f"data: {json.dumps(c)}\n\n".encode() for c in chunks), b"data: [DONE]\n\n"],
        content_type="text/event-stream",
        **fields,
    )


def make_response(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Body of a response."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "model": "gpt-x",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": USAGE,
        **fields,
    }


def make_text(text: str, *, id: str = "msg_1", **part: Any) -> dict[str, Any]:
    """Output item that says a text."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": [], **part}],
    }


def make_call(arguments: str, *, id: str = "c1", name: str = "stock") -> dict[str, Any]:
    """Output item that calls a function."""
    return {
        "id": f"fc_{id}",
        "type": "function_call",
        "status": "completed",
        "call_id": id,
        "name": name,
        "arguments": arguments,
    }


def make_reasoning(*summary: str, id: str = "rs_1", **fields: Any) -> dict[str, Any]:
    """Output item that holds reasoning."""
    texts = [{"type": "summary_text", "text": text} for text in summary]
    return {"id": id, "type": "reasoning", "summary": texts, **fields}


def make_events(*output: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The same response as events: calls interleaved, texts in pieces of four characters."""
    whole = make_response(*output, **fields)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    pieces = []
    for index, item in enumerate(output):
        started = {**item, **{name: empty for name, empty in _EMPTY.items() if name in item}}
        events.append(
            {"type": "response.output_item.added", "output_index": index, "item": started}
        )
        events += _make_parts(index, item)
        pieces += _make_deltas(index, item)
    pieces.sort(key=lambda piece: piece[0])  # turn by turn
    events += [event for _, event in pieces]
    for index, item in enumerate(output):
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


_EMPTY = {"content": [], "summary": [], "arguments": "", "input": "", "status": "in_progress"}
_DELTA_TYPES = {
    "function_call": "response.function_call_arguments.delta",
    "mcp_call": "response.mcp_call_arguments.delta",
    "custom_tool_call": "response.custom_tool_call_input.delta",
}
_PART_DELTA_TYPES = {
    "output_text": "response.output_text.delta",
    "refusal": "response.refusal.delta",
    "reasoning_text": "response.reasoning_text.delta",
    "summary_text": "response.reasoning_summary_text.delta",
}


def _make_parts(index: int, item: dict[str, Any]) -> list[dict[str, Any]]:
    """Events that begin each part of an item."""
    place = {"output_index": index, "item_id": item.get("id")}
    empty = {"text": "", "refusal": ""}
    return [
        {
            "type": f"response.{event}_part.added",
            **place,
            index_name: position,
            "part": {**part, **{key: text for key, text in empty.items() if key in part}},
        }
        for name, event, index_name in (
            ("content", "content", "content_index"),
            ("summary", "reasoning_summary", "summary_index"),
        )
        for position, part in enumerate(item.get(name) or ())
    ]


def _make_deltas(index: int, item: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    place = {"output_index": index, "item_id": item.get("id")}
    texts = []
    if item["type"] in _DELTA_TYPES:
        text = item.get("arguments", item.get("input"))
        texts.append((text, {"type": _DELTA_TYPES[item["type"]], **place}))
    for name, index_name in (("content", "content_index"), ("summary", "summary_index")):
        for position, part in enumerate(item.get(name) or ()):
            text = part.get("text", part.get("refusal"))
            event = {"type": _PART_DELTA_TYPES[part["type"]], **place, index_name: position}
            if part["type"] == "output_text":
                event["logprobs"] = part.get("logprobs", [])
            texts.append((text, event))
    return [
        (turn, {**event, "delta": text[start : start + 4]})
        for text, event in texts
        for turn, start in enumerate(range(0, len(text), 4))
    ]
