"""Gemini contents and parts -> GenAI messages.

A model's turn is one message, however many contents or chunks it came in: neighbouring texts are
joined, in answers and in the history alike, so that a streamed answer that a chat sends back in
pieces is recognised. A content of function responses becomes a message of role `tool` for each.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from starpo_trace.messages import Message, dump_json

Part = dict[str, Any]
WirePart = Mapping[str, Any]

_ROLES: Final = {"model": "assistant", "function": "tool"}
_SIDE_FIELDS: Final = frozenset({"thought", "thoughtSignature", "partMetadata", "videoMetadata"})
_SNAKE: Final = re.compile("_([a-z])")
_PATH_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\['([^']*)'\]")


def read_contents(contents: Any) -> list[Message]:
    """Contents of a request -> messages."""
    if isinstance(contents, Mapping):
        contents = [contents]
    messages: list[Message] = []
    turn: list[WirePart] = []
    for content in contents or ():
        parts = content.get("parts") or ()
        if content.get("role") == "model":
            turn.extend(parts)
            continue
        if turn:
            messages.append({"role": "assistant", "parts": read_turn(turn)})
            turn = []
        messages += _read_prompt(content.get("role") or "user", parts)
    if turn:
        messages.append({"role": "assistant", "parts": read_turn(turn)})
    return messages


def read_system(instruction: Any) -> list[Message]:
    """System instruction -> a message of its own."""
    if not instruction:
        return []
    parts = (
        instruction.get("parts") if isinstance(instruction, Mapping) else [{"text": instruction}]
    )
    return [{"role": "system", "parts": [read_part(part) for part in parts or ()]}]


def _read_prompt(role: str, wire_parts: Iterable[WirePart]) -> list[Message]:
    messages: list[Message] = []
    pending: list[Part] = []
    role = _ROLES.get(role, role)
    for wire_part in wire_parts:
        part = read_part(wire_part)
        if part["type"] != "tool_call_response":
            pending.append(part)
            continue
        if pending:
            messages.append({"role": role, "parts": pending})
            pending = []
        messages.append({"role": "tool", "parts": [part]})
    if pending or not messages:
        messages.append({"role": role, "parts": pending})
    return messages


def read_turn(wire_parts: Iterable[WirePart]) -> list[Part]:
    """All parts of a model's turn, in order -> message parts."""
    parts: list[Part] = []
    for wire_part in _join_partial_calls(wire_parts):
        part = read_part(wire_part)
        kind = part["type"]
        if kind not in {"text", "reasoning"}:
            parts.append(part)
            continue
        if not part["content"]:
            if "meta" not in part:
                continue  # how a stream ends
            if not (parts and parts[-1]["type"] == kind):  # a signature on its own
                parts.append({**part, "type": "reasoning"})
                continue
        if parts and parts[-1]["type"] == kind:
            _append_text(parts[-1], part)
        else:
            parts.append(part)
    return parts


def _append_text(before: Part, part: Part) -> None:
    before["content"] += part["content"]
    if "meta" not in part:
        return
    if "meta" not in before:
        before["meta"] = part["meta"]
    else:  # each signature is kept
        more = before["meta"].get("more", [])
        before["meta"] = {**before["meta"], "more": [*more, part["meta"]]}


def read_part(wire_part: WirePart) -> Part:
    """One part -> message part."""
    kind = next((name for name in wire_part if name not in _SIDE_FIELDS), "text")
    kind = next((name for name in _READERS if name in wire_part), kind)
    value = wire_part.get(kind)
    read = _READERS.get(kind)
    part = _make_raw(kind, value) if read is None else read(value or {})
    if kind == "text":
        is_thought = bool(wire_part.get("thought"))
        part = {"type": "reasoning" if is_thought else "text", "content": value or ""}
    for name, field in wire_part.items():
        if name == kind or field is None or (kind == "text" and name == "thought"):
            continue
        if name == "videoMetadata" and "raw" in part:  # which stretch of the video is meant
            part["raw"].update(_make_raw(name, field)["raw"])
            continue
        key = "signature" if name == "thoughtSignature" else name
        part.setdefault("meta", {})[key] = field
    return part


def _read_function_call(call: Mapping[str, Any]) -> Part:
    arguments = call.get("args")
    part: Part = {
        "type": "tool_call",
        "id": call.get("id"),
        "name": call.get("name"),
        "arguments": dump_json({} if arguments is None else arguments),
    }
    meta = {key: value for key, value in call.items() if key not in {"id", "name", "args"}}
    if meta:
        part["meta"] = meta
    return part


def _read_function_response(response: Mapping[str, Any]) -> Part:
    part: Part = {
        "type": "tool_call_response",
        "id": response.get("id"),
        "response": response.get("response"),
        "name": response.get("name"),
    }
    others = {
        key: value for key, value in response.items() if key not in {"id", "name", "response"}
    }
    return {**part, "extra": others} if others else part


def _read_code(code: Mapping[str, Any]) -> Part:
    return {
        "type": "server_tool_call",
        "id": code.get("id"),
        "name": "code_execution",
        "arguments": dump_json({key: code[key] for key in sorted(code) if key != "id"}),
    }


def _read_server_call(call: Mapping[str, Any]) -> Part:
    return {
        "type": "server_tool_call",
        "id": call.get("id"),
        "name": call.get("toolType"),
        "arguments": dump_json(call.get("args") or {}),
    }


def _read_server_result(result: Mapping[str, Any]) -> Part:
    return {
        "type": "server_tool_call_response",
        "id": result.get("id"),
        "response": {key: value for key, value in result.items() if key != "id"},
    }


def _read_inline_data(blob: Mapping[str, Any]) -> Part:
    data = blob.get("data")
    if isinstance(data, str) and ("-" in data or "_" in data):
        blob = {**blob, "data": data.replace("-", "+").replace("_", "/")}
    return _make_raw("inlineData", blob)


def _make_raw(kind: str, value: Any) -> Part:
    """Part kept as it is on the wire, in the server's spelling: the SDK's own differs in places.

    The SDK sends some names in snake case, and base64 in the other alphabet.
    """
    if isinstance(value, Mapping):
        value = {_SNAKE.sub(_raise_letter, key): item for key, item in value.items()}
    return {"type": kind, "raw": {kind: value}}


def _raise_letter(match: re.Match[str]) -> str:
    return match[1].upper()


def _read_text(_: Any) -> Part:
    return {}


_READERS: Final[dict[str, Callable[[Mapping[str, Any]], Part]]] = {
    "text": _read_text,
    "functionCall": _read_function_call,
    "functionResponse": _read_function_response,
    "executableCode": _read_code,
    "codeExecutionResult": _read_server_result,
    "toolCall": _read_server_call,
    "toolResponse": _read_server_result,
    "inlineData": _read_inline_data,
}


def _join_partial_calls(wire_parts: Iterable[WirePart]) -> list[WirePart]:
    """Parts of a turn -> the same, with function calls whose arguments were streamed in one piece."""
    joined: list[WirePart] = []
    is_open = False
    for wire_part in wire_parts:
        call = wire_part.get("functionCall")
        if not isinstance(call, Mapping):
            joined.append(wire_part)
            continue
        if not is_open:
            joined.append({**wire_part, "functionCall": dict(call)})
        target = joined[-1]["functionCall"] if not is_open else _find_open_call(joined)
        if is_open or "partialArgs" in call:
            target.pop("partialArgs", None)
            target["args"] = _merge_arguments(target.get("args") or {}, call)
        is_open = bool(call.get("willContinue"))
        target.pop("willContinue", None)
    return joined


def _find_open_call(joined: list[WirePart]) -> dict[str, Any]:
    return next(part["functionCall"] for part in reversed(joined) if "functionCall" in part)


def _merge_arguments(arguments: dict[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    for partial in call.get("partialArgs") or ():
        path = [
            int(index) if index else name or quoted
            for name, index, quoted in _PATH_STEP.findall(partial.get("jsonPath") or "")
        ]
        value = next(
            (
                partial[name]
                for name in ("stringValue", "numberValue", "boolValue")
                if name in partial
            ),
            None,
        )
        if path:
            arguments = _put(arguments, path, value)
    return arguments


def _put(holder: Any, path: list[str | int], value: Any) -> Any:
    """Holder with the value at the path; text is appended to text that is there already."""
    if not path:
        return holder + value if isinstance(holder, str) and isinstance(value, str) else value
    key, *rest = path
    if isinstance(key, int):
        items = list(holder) if isinstance(holder, list) else []
        items += [None] * (key + 1 - len(items))
        items[key] = _put(items[key], rest, value)
        return items
    fields = dict(holder) if isinstance(holder, Mapping) else {}
    fields[key] = _put(fields.get(key), rest, value)
    return fields
