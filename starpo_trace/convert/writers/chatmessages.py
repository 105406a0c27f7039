"""GenAI messages of any dialect -> the chat messages and tools that OpenAI and chat templates read.

One conversation in, one out, in the one form that trainers take: texts, images as URLs, calls with an
id and their arguments as JSON text, one message for each result, right after its call. A conversation
that this form cannot hold is refused by name, so that none is written with a part missing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from starpo_trace.messages import Message, dump_json

_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_RESULT_ROLES: Final = frozenset({"tool", "function"})
_KEPT_PARTS: Final = frozenset({"image_url", "input_audio", "file"})
_SCHEMA_NAMES: Final = (
    "parameters",
    "input_schema",
    "inputSchema",
    "parameters_json_schema",
    "parametersJsonSchema",
)


class UnwritableError(ValueError):
    """The conversation has no place in a chat file; the text is the reason's name."""


def write_chat(conversation: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages from the first to the answer -> chat messages.

    Calls recorded without ids get some, and results without ids answer calls in their order.

    Raises:
        UnwritableError: `unknown_role`, `unwritable_part`, `unanswered_call`, `unmatched_result`,
            `no_answer`.
    """
    return [written for each in write_each(conversation) for written in each]


def write_each(conversation: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """As `write_chat`: for each message what it becomes, results of several calls being several.

    Raises:
        UnwritableError: as `write_chat`.
    """
    place = 0
    pending: list[str] = []
    for message in conversation:
        chat: list[dict[str, Any]] = []
        role = message["role"]
        if role not in _ROLES:
            raise UnwritableError("unknown_role")
        results, rest = _split_results(message)
        for part in results:
            call_id = _answer_call(pending, part.get("id"))
            content = _write_result(part.get("response"))
            named = {"name": message["name"]} if role == "tool" and "name" in message else {}
            chat.append({"role": "tool", "tool_call_id": call_id, "content": content, **named})
        if rest or not results:
            if pending:
                raise UnwritableError("unanswered_call")
            written = _write_message(message, rest, place + len(chat))
            pending = [call["id"] for call in written.get("tool_calls", ())]
            chat.append(written)
        place += len(chat)
        yield chat


def write_tools(definitions: Any) -> list[dict[str, Any]]:
    """Tool definitions of any provider -> `{"type": "function", "function": {...}}` each.

    Raises:
        UnwritableError: `unwritable_tool`: no function, such as a search that the provider runs.
    """
    found: list[dict[str, Any]] = []
    for each in definitions if isinstance(definitions, list) else [definitions]:
        found += [_write_tool(tool) for tool in _unwrap_tools(each)]
    return found


def _split_results(message: Message) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Parts of a message -> results of calls, and the rest."""
    parts = message["parts"]
    results = [part for part in parts if part["type"] == "tool_call_response"]
    rest = [part for part in parts if part["type"] != "tool_call_response"]
    if message["role"] in _RESULT_ROLES and rest:
        if results:
            raise UnwritableError("unwritable_part")
        return [{"response": _join_texts(rest)}], []
    return results, rest


def _answer_call(pending: list[str], call_id: Any) -> str:
    if not pending or (call_id is not None and call_id not in pending):
        raise UnwritableError("unmatched_result")
    answered = pending[0] if call_id is None else call_id
    pending.remove(answered)
    return answered


def _write_message(message: Message, parts: list[dict[str, Any]], place: int) -> dict[str, Any]:
    """A message that is no tool's: what is in fields of its own, and its contents."""
    role = message["role"]
    if role in _RESULT_ROLES:
        raise UnwritableError("unmatched_result")
    written: dict[str, Any] = {"role": role, "content": None}
    if "name" in message:
        written["name"] = message["name"]
    thoughts = [each for each in parts if each["type"] == "reasoning"]
    if thoughts:
        written["reasoning_content"] = "\n".join(
            _require_text(each["content"]) for each in thoughts
        )
    fields = _write_fields(parts, place) if role == "assistant" else {}
    kinds = {"reasoning", "tool_call", "refusal"} if role == "assistant" else {"reasoning"}
    contents = [_write_content(each) for each in parts if each["type"] not in kinds]
    written["content"] = _simplify(contents)
    if written["content"] in (None, "") and not fields:
        if role == "assistant":
            raise UnwritableError("no_answer")
        written["content"] = ""
    return written | fields


def _write_fields(parts: Iterable[Mapping[str, Any]], place: int) -> dict[str, Any]:
    """What an assistant says beside its content: calls, a refusal."""
    fields: dict[str, Any] = {}
    calls = [part for part in parts if part["type"] == "tool_call"]
    if calls:
        fields["tool_calls"] = [
            _write_call(call, f"call_{place}_{index}") for index, call in enumerate(calls)
        ]
    for part in parts:
        if part["type"] == "refusal":
            fields["refusal"] = _require_text(_read_raw(part).get("refusal"))
    return fields


def _simplify(contents: list[dict[str, Any]]) -> str | list[dict[str, Any]] | None:
    """Contents -> nothing, the one text, or all of them."""
    if not contents:
        return None
    return contents[0]["text"] if [each["type"] for each in contents] == ["text"] else contents


def _write_content(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": _require_text(part.get("content"))}
    raw = _read_raw(part)
    if kind in _KEPT_PARTS and isinstance(raw.get(kind), dict):
        return {"type": kind, kind: raw[kind]}
    url = _find_image(kind, raw)
    if url is None:
        raise UnwritableError("unwritable_part")
    return {"type": "image_url", "image_url": {"url": url}}


def _find_image(kind: str, raw: Mapping[str, Any]) -> str | None:
    """An image as the conventions, Anthropic, OpenAI's Responses, or OpenInference write it."""
    media = str(raw.get("mime_type") or "")
    is_image = raw.get("modality") == "image" or media.startswith("image/")
    if kind == "uri" and is_image:
        return _get_text(raw.get("uri"))
    if kind == "blob" and is_image:
        return _make_data_url(media or "image/png", raw.get("content"))
    if kind not in {"image", "image_url", "input_image"}:
        return None
    source = raw.get("source")
    if isinstance(source, dict) and source.get("type") == "base64":
        return _make_data_url(source.get("media_type"), source.get("data"))
    found: Any = source or raw.get("image_url") or raw.get("image")
    while isinstance(found, dict):
        found = found.get("url", found.get("image"))
    return _get_text(found)


def _make_data_url(media: Any, content: Any) -> str | None:
    return f"data:{media};base64,{content}" if _get_text(content) and _get_text(media) else None


def _read_raw(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the provider's part was; parts of the conventions are that themselves."""
    raw = part.get("raw", part)
    return raw if isinstance(raw, dict) else {}


def _write_call(part: Mapping[str, Any], default_id: str) -> dict[str, Any]:
    if part.get("extra") == {"type": "custom"}:
        raise UnwritableError("unwritable_part")
    arguments = part.get("arguments")
    if not isinstance(arguments, str):
        arguments = dump_json({} if arguments is None else arguments)
    function = {"name": _require_text(part.get("name")), "arguments": arguments or "{}"}
    return {"id": part.get("id") or default_id, "type": "function", "function": function}


def _write_result(response: Any) -> str:
    """A tool's answer of whatever form -> its text; images have no place there."""
    if response is None or isinstance(response, str):
        return response or ""
    if isinstance(response, list) and all(
        isinstance(each, dict) and isinstance(each.get("text"), str) for each in response
    ):
        return "\n".join(each["text"] for each in response)
    return dump_json(response)


def _join_texts(parts: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(_write_content(part).get("text") or _refuse_part() for part in parts)


def _refuse_part() -> str:
    raise UnwritableError("unwritable_part")


def _require_text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnwritableError("unwritable_part")
    return value


def _get_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _unwrap_tools(tool: Any) -> Iterable[Any]:
    """A definition -> the functions in it: Google's lists of them, Bedrock's wrapping."""
    if not isinstance(tool, dict):
        raise UnwritableError("unwritable_tool")
    for name in ("function_declarations", "functionDeclarations"):
        if isinstance(tool.get(name), list):
            return tool[name]
    return [tool.get("toolSpec", tool)]


def _write_tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        tool = tool["function"]
    elif isinstance(tool, dict) and tool.get("type", "function") not in {"function", "custom"}:
        raise UnwritableError("unwritable_tool")
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or "format" in tool:
        raise UnwritableError("unwritable_tool")
    function = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
    schema = next((tool[name] for name in _SCHEMA_NAMES if name in tool), None)
    if isinstance(schema, dict):
        function["parameters"] = _write_schema(schema.get("json", schema))
    return {"type": "function", "function": function}


def _write_schema(schema: Any) -> Any:
    """JSON schema with Google's types in capitals in the standard's small letters."""
    if isinstance(schema, list):
        return [_write_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.lower()
        if name == "type" and isinstance(value, str) and value.isupper()
        else _write_schema(value)
        for name, value in schema.items()
    }
