"""Ollama's API, scripted: JSON answers and streams of JSON lines."""

import json
from typing import Any

from servers_scripted import Answer

DONE = {"done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 3}


def answer_json(value: Any, *, status: int = 200) -> Answer:
    """Answer with one JSON value."""
    return Answer(chunks=[json.dumps(value).encode()], status=status)


def answer_lines(*values: Any, is_cut: bool = False, stall_after: int | None = None) -> Answer:
    """Answer with a line of JSON for each value."""
    return Answer(
        chunks=[json.dumps(value).encode() + b"\n" for value in values],
        content_type="application/x-ndjson",
        is_cut=is_cut,
        stall_after=stall_after,
    )


def make_chunk(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """One chunk of a streamed chat."""
    return {"model": "m", "message": {"role": "assistant", **message}, "done": False, **fields}
