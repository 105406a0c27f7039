"""Messages of each API as they are on the wire -> units of content, in order.

Written from the APIs' documents, and on purpose without the code that it is there to check.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.eventstream import EventStreamBuffer
from wire_facts import Unit

Wire = Mapping[str, Any]


def chat_units(messages: Any) -> Iterator[Unit]:
    """Messages of a chat completion."""
    for message in messages:
        role = message["role"]
        rest = {k: v for k, v in message.items() if k not in _CHAT_CONTENT}
        units: list[dict[str, Any]] = []
        if message.get("reasoning"):
            units.append({"type": "reasoning", "content": message["reasoning"]})
        content = message.get("content")
        if isinstance(content, str) and (content or not message.get("tool_calls")):
            units.append({"content": content})
        elif isinstance(content, list):
            units += content if role != "tool" else [_unwrap_text(block) for block in content]
        units += [
            {"id": call["id"], "type": call["type"], **call["function"]}
            for call in message.get("tool_calls") or ()
        ]
        for number, unit in enumerate(units):
            yield role, {**unit, **(rest if number == 0 else {})}


def _unwrap_text(block: dict[str, Any]) -> dict[str, Any]:
    """Text of a tool's result without the word that it is one: a result is, unless it says so."""
    return {k: v for k, v in block.items() if (k, v) != ("type", "text")}


_CHAT_CONTENT = frozenset({"role", "content", "reasoning", "tool_calls"})


def chat_answer_units(answer: Wire) -> Iterator[Unit]:
    """Choices of a chat completion, with what is said about each."""
    for choice in answer["choices"]:
        said = {k: v for k, v in choice.items() if k not in {"index", "message"}}
        for number, (role, unit) in enumerate(chat_units([choice["message"]])):
            yield role, {**unit, **(said if number == 0 else {})}


def response_units(items: Any) -> Iterator[Unit]:
    """Items of the Responses API."""
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            content = item["content"]
            parts = [{"content": content}] if isinstance(content, str) else content
            rest = {k: v for k, v in item.items() if k not in {"type", "role", "content"}}
            for number, part in enumerate(parts):
                yield item["role"], {**part, **(rest if number == 0 else {})}
        elif kind == "reasoning":
            rest = {k: v for k, v in item.items() if k not in {"summary", "content"}}
            pieces = [*(item.get("summary") or ()), *(item.get("content") or ())]
            for number, piece in enumerate(pieces or [{}]):
                yield "assistant", {**(rest if number == 0 else {}), **piece}
        else:
            yield ("tool" if kind.endswith("_output") else "assistant"), item


def anthropic_units(messages: Any) -> Iterator[Unit]:
    """Messages of the Messages API."""
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            yield ("tool" if block["type"] == "tool_result" else message["role"]), block


def gemini_units(contents: Any) -> Iterator[Unit]:
    """Contents of the Gemini API."""
    for content in contents:
        role = {"model": "assistant"}.get(content["role"], content["role"])
        for part in content["parts"]:
            unit = dict(part)
            for name in ("functionCall", "functionResponse"):
                unit.update(unit.pop(name, {}))
            yield ("tool" if "functionResponse" in part else role), unit


def converse_units(messages: Any) -> Iterator[Unit]:
    """Messages of the Converse API."""
    for message in messages:
        for block in message["content"]:
            unit = dict(block)
            for name in ("toolUse", "toolResult"):
                unit.update(unit.pop(name, {}))
            yield ("tool" if "toolResult" in block else message["role"]), unit


def read_sse(data: bytes) -> list[dict[str, Any]]:
    """Body of server-sent events -> their JSON."""
    lines = data.decode().splitlines()
    texts = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def read_event_stream(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Body of AWS's binary events -> type and JSON of each."""
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(event.headers[":event-type"], json.loads(event.payload)) for event in buffer]


def join_chat_chunks(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Chunks of a streamed chat completion -> the answer that they spell."""
    top: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant"}
    choice: dict[str, Any] = {"index": 0, "message": message}
    for chunk in chunks:
        for name, value in chunk.items():
            if name != "choices":
                top[name] = {**top.get(name, {}), **value} if name == "x_groq" else value
        for piece in chunk.get("choices", ()):
            _join_delta(message, piece["delta"])
            choice["finish_reason"] = piece["finish_reason"] or choice.get("finish_reason")
    return {**top, "choices": [choice]}


def _join_delta(message: dict[str, Any], delta: Wire) -> None:
    for name in ("content", "reasoning"):
        if delta.get(name) is not None:
            message[name] = message.get(name, "") + delta[name]
    if "channel" in delta:  # said again with each piece
        message["channel"] = delta["channel"]
    if "tool_calls" in delta:  # this server sends them whole
        message["tool_calls"] = message.get("tool_calls", []) + delta["tool_calls"]


def join_converse_events(events: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Events of ConverseStream -> the answer that they spell."""
    top: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    for kind, fields in events:
        if kind == "contentBlockStart":
            blocks[fields["contentBlockIndex"]] = dict(fields["start"]["toolUse"])
        elif kind == "contentBlockDelta":
            index, delta = fields["contentBlockIndex"], fields["delta"]
            block = blocks.setdefault(index, {})
            if "text" in delta:
                block["text"] = block.get("text", "") + delta["text"]
            else:
                texts[index] = texts.get(index, "") + delta["toolUse"]["input"]
        elif kind in {"messageStop", "metadata"}:
            top.update({name: value for name, value in fields.items() if name != "p"})
    for index, text in texts.items():
        blocks[index] |= {"input": json.loads(text), "streamed": text}
    content = [blocks[index] for index in sorted(blocks)]
    return {**top, "messages": [{"role": "assistant", "content": content}]}


def join_invoke_events(events: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Events of a streamed InvokeModel of Claude's -> the message that they spell."""
    top: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    for _, fields in events:
        event = json.loads(base64.b64decode(fields["bytes"]))
        kind = event["type"]
        if kind == "message_start":
            top = event["message"]
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            delta, index = event["delta"], event["index"]
            if "text" in delta:
                blocks[index]["text"] += delta["text"]
            else:
                texts[index] = texts.get(index, "") + delta["partial_json"]
        elif kind == "message_delta":
            top = {**top, **event["delta"], "usage": {**top["usage"], **event["usage"]}}
        elif kind == "message_stop":
            top |= {name: value for name, value in event.items() if name != "type"}
    for index, text in texts.items():
        blocks[index] |= {"input": json.loads(text), "streamed": text}
    return {**top, "content": [blocks[index] for index in sorted(blocks)]}
