"""Gemini's API, scripted: JSON answers, and chunks as server-sent events."""

import json
from typing import Any

from servers_scripted import Answer


def answer_json(value: Any, *, status: int = 200) -> Answer:
    """Answer with one JSON value."""
    return Answer(chunks=[json.dumps(value).encode()], status=status)


def answer_chunks(*chunks: Any, is_cut: bool = False, stall_after: int | None = None) -> Answer:
    """Answer with an event for each chunk."""
    return Answer(
        chunks=[f"data: {json.dumps(chunk)}\r\n\r\n".encode() for chunk in chunks],
        content_type="text/event-stream",
        is_cut=is_cut,
        stall_after=stall_after,
    )


def make_answer(*parts: dict[str, Any], finish: str | None = "STOP", **fields: Any) -> Any:
    """An answer, or a chunk of one, with these parts; more fields of its candidate."""
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0, **fields}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-x-001", "responseId": "r1"}
