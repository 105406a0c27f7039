"""Items of the OpenAI Responses API -> GenAI messages.

One turn of the assistant is several items on the wire (reasoning, text, calls). They become one
message, both in the answer and in a later request that repeats it, so that the two hash the same.
Ids, statuses and annotations go to a part's `"meta"`, because programs may leave them out of the
history they send back.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from starpo_trace.capture.patches.plain import to_plain
from starpo_trace.messages import Message, dump_json

Item = Mapping[str, Any]
Part = dict[str, Any]

_CALLS: Final[Mapping[str, tuple[str | None, tuple[str, ...]]]] = {
    "function_call": (None, ("arguments",)),
    "custom_tool_call": (None, ("input",)),
    "computer_call": ("computer", ("action", "actions")),
    "local_shell_call": ("local_shell", ("action",)),
    "shell_call": ("shell", ("action",)),
    "apply_patch_call": ("apply_patch", ("operation",)),
    "tool_search_call": ("tool_search", ("arguments",)),
}
"""Calls that the program carries out: name (None: the item says it), and where the arguments are."""
_OUTPUTS: Final = {
    "function_call_output": "output",
    "custom_tool_call_output": "output",
    "computer_call_output": "output",
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "apply_patch_call_output": "output",
    "tool_search_output": "tools",
}
_SERVER_CALLS: Final = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "program",
    }
)
"""Calls that the server carries out itself."""
_OF_THE_USER: Final = frozenset(
    {
        "mcp_approval_response",
        "compaction_trigger",
        "additional_tools",
        "configuration_update",
    }
)
"""Items without a role that a program adds."""
_TEXT_TYPES: Final = frozenset({"input_text", "output_text", "text"})
_IDENTITY_FIELDS: Final = ("id", "status")


def read_items(items: Iterable[Any]) -> list[Message]:
    """Input or output items -> messages; what the assistant did in one go is one message."""
    messages: list[Message] = []
    hosted_ids: set[str] = set()
    for item in items:
        fields = item if type(item) is dict else to_plain(item)
        if not isinstance(fields, Mapping):
            continue
        message = _read_item(fields, hosted_ids)
        last = messages[-1] if messages else None
        if last is not None and message["role"] == last["role"] == "assistant":
            last["parts"] += message["parts"]
        else:
            messages.append(message)
    return messages


def join_parts(messages: Iterable[Message]) -> list[Part]:
    """All parts of an answer's messages, in order."""
    return [part for message in messages for part in message["parts"]]


def _read_item(item: Item, hosted_ids: set[str]) -> Message:
    kind = item.get("type") or ("message" if "role" in item else "unknown")
    if kind == "message":
        return _read_message(item)
    if kind in _OUTPUTS or kind == "program_output":
        return _read_output(item, kind, hosted_ids)
    if _is_hosted(item):
        hosted_ids.add(str(item.get("call_id")))
    parts = _read_action(item, kind)
    if parts is not None:
        return _say(parts)
    role = item.get("role") or ("user" if kind in _OF_THE_USER else "assistant")
    return {"role": role, "parts": [{"type": kind, "raw": dict(item)}]}


def _read_action(item: Item, kind: str) -> list[Part] | None:
    """Something else than text that the assistant made; None for what is not known to be that."""
    if kind == "reasoning":
        return _read_reasoning(item)
    if kind in _SERVER_CALLS or _is_hosted(item):
        return [_read_server_call(item, kind)]
    if kind in _CALLS:
        return [_read_call(item, kind)]
    if kind == "compaction":
        part = {"type": kind, "content": item.get("encrypted_content")}
        return [_add_meta(part, _leave_out(item, "type", "encrypted_content"))]
    return None


def _say(parts: list[Part]) -> Message:
    return {"role": "assistant", "parts": parts}


def _read_message(item: Item) -> Message:
    role = item.get("role", "assistant")
    content = item.get("content")
    if isinstance(content, str):
        parts: list[Part] = [{"type": "text", "content": content}]
    else:
        parts = [_read_part(part) for part in content or ()]
    rest = _leave_out(item, "type", "role", "content")
    message: Message = {"role": role, "parts": parts}
    if not rest:
        return message
    if role != "assistant":
        message["extra"] = rest
    elif parts:  # merged with its neighbours, so a part keeps it
        parts[0].setdefault("meta", {})["item"] = rest
    return message


def _read_part(part: Any) -> Part:
    fields = part if isinstance(part, Mapping) else {"value": part}
    kind = fields.get("type")
    if kind in _TEXT_TYPES:
        read = {"type": "text", "content": fields.get("text")}
        rest = _leave_out(fields, "type", "text", "logprobs")
        return _add_meta(read, {name: value for name, value in rest.items() if value})
    return {"type": str(kind), "raw": dict(fields)}


def _read_reasoning(item: Item) -> list[Part]:
    pieces = [*(item.get("summary") or ()), *(item.get("content") or ())]
    parts: list[Part] = [
        {
            "type": "reasoning",
            "content": piece.get("text"),
            "meta": _leave_out(piece, "text"),
        }
        for piece in pieces
    ]
    parts = parts or [{"type": "reasoning", "content": ""}]
    _add_meta(parts[0], _leave_out(item, "type", "summary", "content"))
    return parts


def _read_call(item: Item, kind: str) -> Part:
    fixed_name, argument_names = _CALLS[kind]
    name = next((each for each in argument_names if item.get(each) is not None), None)
    arguments = None if name is None else item[name]
    part = {
        "type": "tool_call",
        "id": item.get("call_id"),
        "name": fixed_name or item.get("name"),
        "arguments": arguments if isinstance(arguments, str) else dump_json(arguments),
    }
    rest = _leave_out(item, "call_id", name or "", "type" if kind == "function_call" else "")
    if fixed_name is None:
        rest.pop("name", None)
    return _add_meta(part, rest)


def _read_server_call(item: Item, kind: str) -> Part:
    part = {
        "type": "server_tool_call",
        "name": kind.removesuffix("_call"),
        "server_tool_call": _leave_out(item, *_IDENTITY_FIELDS),
    }
    return _add_meta(part, {name: item[name] for name in _IDENTITY_FIELDS if name in item})


def _read_output(item: Item, kind: str, hosted_ids: set[str]) -> Message:
    call_id = item.get("call_id")
    if kind == "program_output" or item.get("execution") == "server" or call_id in hosted_ids:
        part = {
            "type": "server_tool_call_response",
            "id": call_id,
            "server_tool_call_response": _leave_out(item, *_IDENTITY_FIELDS),
        }
        meta = {name: item[name] for name in _IDENTITY_FIELDS if name in item}
        return _say([_add_meta(part, meta)])
    name = _OUTPUTS[kind]
    part = {
        "type": "tool_call_response",
        "id": item.get("call_id", item.get("id")),
        "response": item.get(name),
    }
    rest = _leave_out(item, "call_id", name, "type" if kind == "function_call_output" else "")
    return {"role": "tool", "parts": [_add_meta(part, rest)]}


def _is_hosted(item: Item) -> bool:
    """Whether the server carries a call out that programs may carry out too."""
    environment = item.get("environment")
    return item.get("execution") == "server" or (
        isinstance(environment, Mapping) and environment.get("type") == "container_reference"
    )


def _leave_out(fields: Item, *names: str) -> dict[str, Any]:
    return {
        name: value for name, value in fields.items() if name not in names and value is not None
    }


def _add_meta(part: Part, meta: Mapping[str, Any]) -> Part:
    if meta:
        part["meta"] = {**part.get("meta", {}), **meta}
    return part
