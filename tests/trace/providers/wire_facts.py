"""What was on the wire, and the span of the call -> every fact that the span does not hold.

A request's or answer's content is taken apart into units (a text, a call, a result) in the order of
the wire. Each unit's values are looked up in one part of the span's messages, part by part in the
same order; everything else on the wire has a key of its own, is among the request parameters, is
in the message's `extra`, or is on the list of what is not recorded, with the reason.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starpo_trace import semconv

Unit = tuple[str, dict[str, Any]]
"""Role in the span, and the values of one piece of content."""

KINDS = {
    "input_text": "text",
    "output_text": "text",
    "thinking": "reasoning",
    "function": "tool_call",
    "function_call": "tool_call",
    "tool_use": "tool_call",
    "tool_result": "tool_call_response",
    "function_call_output": "tool_call_response",
    "server_tool_use": "server_tool_call",
}
"""Kind of content on the wire -> kind of part, where the two differ."""
ARGUMENTS = frozenset({"input", "args", "arguments"})
"""What a call is called with: one text in the span, compact JSON where the wire has an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Where the facts of one API are."""

    request: Mapping[str, str]
    """Field of a request -> its key."""
    answer: Mapping[str, str]
    """Field of an answer -> its key."""
    content: frozenset[str]
    """Fields that hold messages, in the form of units."""
    not_recorded: Mapping[str, str]
    """Field of an answer -> why it is in no span."""
    implied: Mapping[str, str]
    """Field of a request or an answer -> what says it already."""
    parameters: str = ""
    """Field of a request whose fields are parameters too."""
    choices: str = ""
    """Field of an answer that holds a message each; what it says of one is in its `extra`."""


def find_missing(units: Sequence[Unit], messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Units that are not in the messages at their place, and parts that nothing was sent for."""
    parts = [(message, part) for message in messages for part in message["parts"]]
    missing: list[str] = []
    position = -1
    for role, unit in units:
        for candidate in (position + 1, position):
            if 0 <= candidate < len(parts) and not _compare(role, unit, *parts[candidate]):
                position = candidate
                break
        else:
            following = parts[position + 1] if position + 1 < len(parts) else None
            found = "no part" if following is None else _compare(role, unit, *following)
            missing.append(f"{role} {json.dumps(unit)[:300]}: {found}")
            position += 1
    missing += [f"nothing was sent for {json.dumps(p)[:300]}" for _, p in parts[position + 1 :]]
    return missing


def _compare(
    role: str, unit: dict[str, Any], message: Mapping[str, Any], part: Mapping[str, Any]
) -> list[str]:
    """Values of a unit that a part, with its message's fields, does not hold."""
    around = {key: value for key, value in message.items() if key not in {"parts", "role"}}
    found = list(walk({"part": part, "message": around}))
    by_name: dict[str, list[Any]] = {}
    for path, value in found:
        by_name.setdefault(path.rpartition(".")[2], []).append(_typed(value))
    everywhere = [_typed(value) for _, value in found]
    missing = [] if message["role"] == role else [f"role {message['role']!r}"]
    for path, value in walk(unit):
        name = path.rpartition(".")[2]
        if name == "type" and KINDS.get(value) == part["type"]:
            continue
        if _typed(value) not in by_name.get(name, everywhere) and not _is_renamed(
            value, name, part
        ):
            missing.append(f"{path}={value!r}")
    return missing


def _is_renamed(value: Any, name: str, part: Mapping[str, Any]) -> bool:
    """Whether a value is in the place that the conventions have for it, under another name."""
    places = {
        "id": ("id",),
        "content": ("content", "response"),
        "response": ("response",),
        "name": ("name",),
        "arguments": ("arguments",),
    }
    return any(part.get(place) == value for place in places.get(name, ()))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves by path; null and empty containers say nothing, arguments are one text."""
    name = path.rpartition(".")[2]
    if name in ARGUMENTS and isinstance(value, dict):
        yield path, dump_compact(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item, path)
    elif value is not None:
        yield path, value


def dump_compact(value: Any) -> str:
    """JSON without spaces, as arguments are recorded."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _typed(value: Any) -> tuple[type, Any]:
    return type(value), value


def find_missing_request(
    body: Mapping[str, Any], span: Mapping[str, Any], dialect: Dialect
) -> list[str]:
    """Parameters and tools of a request that its span does not hold."""
    others = json.loads(span.get(semconv.REQUEST_PARAMETERS, "{}"))
    nested = body.get(dialect.parameters) or {}
    fields = {**{k: v for k, v in body.items() if k != dialect.parameters}, **nested}
    missing = []
    for name, value in fields.items():
        if value is None or name in dialect.content:
            continue
        if name == "stream":
            is_held = span.get(semconv.REQUEST_STREAM, False) is value
        elif name == "tools":
            is_held = json.loads(span[semconv.TOOL_DEFINITIONS]) == value
        elif name in dialect.request:
            is_held = _typed(span.get(dialect.request[name])) == _typed(value)
        else:
            is_held = others.get(name) == value
        if not is_held:
            missing.append(f"request {name}={json.dumps(value)[:200]}")
    return missing


def find_missing_answer(
    answer: Mapping[str, Any], span: Mapping[str, Any], dialect: Dialect
) -> list[str]:
    """What an answer says beside its content and its span does not hold."""
    messages = json.loads(span.get(semconv.OUTPUT_MESSAGES, "[]"))
    extra = [_typed_leaf(leaf) for message in messages for leaf in walk(message.get("extra", {}))]
    missing = []
    for path, value in walk(answer):
        if _is_below(path, dialect.content) or _is_below(path, dialect.not_recorded):
            continue
        if path in dialect.answer:
            held = span.get(dialect.answer[path])
            is_held = value in held if isinstance(held, tuple) else _typed(held) == _typed(value)
        else:
            is_held = value == 0 and path.startswith("usage")  # nothing was used
        place = path.removeprefix(dialect.choices)
        if not is_held and _typed_leaf((place, value)) not in extra:
            missing.append(f"answer {path}={value!r}"[:300])
    return missing


def _typed_leaf(leaf: tuple[str, Any]) -> tuple[str, type, Any]:
    return leaf[0], type(leaf[1]), leaf[1]


def _is_below(path: str, roots: Any) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)
