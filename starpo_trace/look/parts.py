"""GenAI message JSON -> its parts as texts, none left out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from starpo_trace.messages import dump_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a message."""

    kind: str
    """text | thinking | call | result, or the part's own type."""
    text: str
    """What a person reads; JSON where the part is no text. A call's arguments are verbatim."""
    name: str | None = None
    """Of the tool."""
    call_id: str | None = None
    """That a call and its result share."""


def read_parts(message: str | None) -> list[Part]:
    """Message JSON -> parts; text that is no GenAI message is one part, as it stands."""
    if message is None:
        return []
    try:
        value = orjson.loads(message)
    except orjson.JSONDecodeError:
        return [Part(kind="unreadable", text=message)]
    parts = value.get("parts") if isinstance(value, dict) else None
    if not isinstance(parts, list):
        return [Part(kind="unreadable", text=message)]
    rest = {key: each for key, each in value.items() if key not in {"role", "parts"}}
    read = [_read_part(part) for part in parts]
    if len(read) == 1 and read[0].kind == "result" and isinstance(rest.get("name"), str):
        read = [replace(read[0], name=rest.pop("name"))]
    return [*read, *([Part(kind="also", text=dump_json(rest))] if rest else ())]


def read_calls(turn: Mapping[str, Any]) -> list[Part]:
    """Row of the table `turns` -> what the model thought, said and asked for."""
    parts = [
        Part(kind=kind, text=turn[column])
        for kind, column in (("thinking", "reasoning"), ("text", "text"))
        if turn[column]
    ]
    for call in turn["tool_calls"] or ():
        arguments = call["arguments"] or ""
        parts.append(Part(kind="call", text=arguments, name=call["name"], call_id=call["id"]))
    return parts


def _read_part(part: Any) -> Part:
    if not isinstance(part, dict):
        return Part(kind="unknown", text=dump_json(part))
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("content"), str):
        return Part(kind="text", text=part["content"])
    if kind == "reasoning" and isinstance(part.get("content"), str):
        return Part(kind="thinking", text=part["content"])
    if kind == "tool_call":
        return Part(
            kind="call",
            text=_as_text(part.get("arguments")),
            name=_or_none(part.get("name")),
            call_id=_or_none(part.get("id")),
        )
    if kind == "tool_call_response":
        result = part.get("response", part.get("result"))
        return Part(kind="result", text=_as_text(result), call_id=_or_none(part.get("id")))
    return Part(kind=kind if isinstance(kind, str) else "unknown", text=dump_json(part))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else dump_json(value)


def _or_none(value: Any) -> str | None:
    return None if value is None else _as_text(value)
