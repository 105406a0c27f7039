"""Anthropic's API, scripted: messages, and messages as server-sent events."""

import json
from typing import Any

from servers_scripted import Answer


def answer_message(*content: dict[str, Any], **fields: Any) -> Answer:
    """Answer with one message."""
    return Answer(chunks=[json.dumps(make_message(*content, **fields)).encode()])


def answer_error(status: int) -> Answer:
    """Answer with an error object."""
    error = {"type": "error", "error": {"type": "scripted", "message": f"scripted {status}"}}
    return Answer(chunks=[json.dumps(error).encode()], status=status)


def answer_events(
    *events: dict[str, Any], is_cut: bool = False, stall_after: int | None = None
) -> Answer:
    """Answer with server-sent events."""
    return Answer(
        chunks=[write_event(event) for event in events],
        content_type="text/event-stream",
        is_cut=is_cut,
        stall_after=stall_after,
    )


def write_event(event: dict[str, Any]) -> bytes:
    """Event -> the bytes it is sent as."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def make_message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Body of a message."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(content),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
        **fields,
    }


def make_events(*content: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The same message as events, each text in pieces of four characters."""
    message = make_message(*content, **fields)
    usage = message["usage"]
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = {**usage, "output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(content):
        events += _make_block_events(index, block)
    events.append(
        {
            "type": "message_delta",
            "delta": {
                "stop_reason": message["stop_reason"],
                "stop_sequence": message["stop_sequence"],
            },
            "usage": {"output_tokens": usage["output_tokens"]},
        }
    )
    return [*events, {"type": "message_stop"}]


_STREAMED = {
    "text": ("text", "text_delta"),
    "thinking": ("thinking", "thinking_delta"),
    "signature": ("signature", "signature_delta"),
    "input": ("partial_json", "input_json_delta"),
}


def _make_block_events(index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
    """`input` of a block is its JSON text here."""
    streamed = {name: block[name] for name in _STREAMED if isinstance(block.get(name), str)}
    citations = block.get("citations") or []
    empty = {name: {} if name == "input" else "" for name in streamed}
    start = {**block, **empty}
    if citations:
        start["citations"] = []
    deltas: list[dict[str, Any]] = []
    for name, text in streamed.items():
        field, kind = _STREAMED[name]
        deltas += [{"type": kind, field: text[at : at + 4]} for at in range(0, len(text), 4)]
    deltas += [{"type": "citations_delta", "citation": citation} for citation in citations]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]
