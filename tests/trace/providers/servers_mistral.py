"""Mistral's API, scripted: JSON answers and server-sent events."""

import json
from typing import Any

from servers_scripted import Answer


def answer_json(value: Any, *, status: int = 200) -> Answer:
    """Answer with one JSON value."""
    return Answer(chunks=[json.dumps(value).encode()], status=status)


def answer_events(
    *values: Any, is_done: bool = True, is_cut: bool = False, stall_after: int | None = None
) -> Answer:
    """Answer with an event for each value."""
    events = [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]
    return Answer(
        chunks=[*events, b"data: [DONE]\n\n"] if is_done else events,
        content_type="text/event-stream",
        is_cut=is_cut,
        stall_after=stall_after,
    )


def make_chunk(delta: dict[str, Any], *, finish_reason: str | None = None, **fields: Any) -> Any:
    """One chunk of a streamed completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    choice.update({name: fields.pop(name) for name in list(fields) if "logprobs" in name})
    return {"id": "cmpl-1", "model": "m", "choices": [choice], **fields}
