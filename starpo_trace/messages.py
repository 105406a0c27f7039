"""Provider messages -> GenAI messages, and the hash chain that tells histories apart.

A GenAI message is `{"role", "parts": [...]}` (OpenTelemetry GenAI input/output messages). Nothing
of the provider's message is lost: argument strings stay verbatim strings, fields without a place
in the conventions stay under `"extra"`.

A history's chain hash is `H(chain of what came before + identity of the message)`. Reasoning is no
part of a message's identity, because chat APIs and templates drop it from the history they send
back: a prompt that repeats an answer without its reasoning still extends the turn that gave it.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import orjson

Message = dict[str, Any]

_IDENTITY_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
REASONING_FIELDS = ("reasoning_content", "reasoning")
_OTHER_FIELDS = frozenset({"refusal", "audio", "function_call"})
_KNOWN_FIELDS = _OTHER_FIELDS.union(
    {"role", "content", "name", "tool_calls", "tool_call_id"}, REASONING_FIELDS
)
_CALL_FIELDS = frozenset({"id", "function", "custom", "index"})


def dump_json(value: Any) -> str:
    """Value -> compact JSON text; what JSON cannot hold becomes its `repr`."""
    try:
        return orjson.dumps(value, default=_describe, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):  # lone surrogates, integers beyond 64 bits, depth
        from starpo_trace.plainjson import dump_refused

        return dump_refused(value, _describe)


def _describe(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 (the user's own code)
        return object.__repr__(value)


def make_encodable(text: str) -> str:
    """Text -> the same as UTF-8 can hold it: lone surrogates become their escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def write_text(value: object) -> str:
    """What stands for a value where a text belongs: a member of a text enumeration is its value."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def from_openai_chat(message: Mapping[str, Any]) -> Message:
    """One OpenAI chat message (request or response form, as a mapping) -> GenAI message."""
    role = message.get("role", "assistant")
    content = message.get("content")
    if type(content) is str and len(message) <= 3:
        common = _convert_common(message, role, content)
        if common is not None:
            return common
    parts = [*_reasoning_parts(message), *_content_parts(message, role, content)]
    if message.get("tool_calls"):
        parts.extend([_tool_call_part(call) for call in message["tool_calls"]])
    if role == "assistant" and not _OTHER_FIELDS.isdisjoint(message):
        parts.extend(_other_parts(message))
    result: Message = {"role": role, "parts": parts}
    if message.get("name") is not None:
        result["name"] = message["name"]
    if content == "" or not message.keys() <= _KNOWN_FIELDS:
        extra = _read_extra(message)
        if extra:
            result["extra"] = extra
    return result


def _convert_common(message: Mapping[str, Any], role: str, content: str) -> Message | None:
    """Message that is nothing but a text, or a tool's answer; None for any other."""
    if role == "tool" and "tool_call_id" in message:
        part = {"type": "tool_call_response", "id": message["tool_call_id"], "response": content}
        return {"role": role, "parts": [part]} if len(message) == 3 else None
    if len(message) == 2 and role != "tool" and "role" in message:
        return {"role": role, "parts": [{"type": "text", "content": content}]}
    return None


def _reasoning_parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    for field in REASONING_FIELDS:
        if message.get(field):
            return [{"type": "reasoning", "content": message[field]}]
    return []


def _content_parts(message: Mapping[str, Any], role: str, content: Any) -> Iterable[dict[str, Any]]:
    if role in {"tool", "function"}:
        return [_tool_response_part(message.get("tool_call_id"), content)]
    if not isinstance(content, str):
        return [_content_part(part) for part in content or ()]
    if content or not message.get("tool_calls"):
        return [{"type": "text", "content": content}]
    return []


def _read_extra(message: Mapping[str, Any]) -> dict[str, Any]:
    extra = {
        key: value
        for key, value in message.items()
        if key not in _KNOWN_FIELDS and value is not None
    }
    # Beside calls, no text is "" or null, streamed or not, sent or received.
    if message.get("content") == "" and message.get("tool_calls"):
        extra["content"] = ""
    return extra


def message_hash(message: Message) -> bytes:
    """Identity of one message: 16 bytes over its role, name and parts.

    Reasoning, and what a part holds under `"meta"` (item ids, signatures, wire forms), are no part
    of it, because programs leave them out of the history they send back.
    """
    return blake2b(dump_identity(message), digest_size=16).digest()


def dump_identity(message: Message) -> bytes:
    """Message -> the sorted JSON that it is told apart by."""
    parts = message["parts"]
    for part in parts:
        if "meta" in part or part["type"] == "reasoning":
            parts = _leave_out_unsent(parts)
            break
    identity = (message["role"], message.get("name"), parts)
    try:
        return orjson.dumps(identity, None, _IDENTITY_OPTIONS)
    except (TypeError, ValueError):
        return dump_json(identity).encode("utf-8", "surrogatepass")


def _leave_out_unsent(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in part.items() if key != "meta"}
        for part in parts
        if part["type"] != "reasoning"
    ]


def extend_chain(chain: bytes, message: Message) -> bytes:
    """Chain hash of a history, one message longer. An empty history is `b""`."""
    return hash_link(chain, dump_identity(message))


def hash_link(chain: bytes, identity: bytes) -> bytes:
    """Chain hash of a history, and the identity of the next message -> the next chain hash."""
    return blake2b(chain + identity, digest_size=16).digest()


def chain_hashes(messages: Iterable[Message], base: bytes = b"") -> list[bytes]:
    """Chain hash after each message, starting from the chain `base`."""
    chains = []
    chain = base
    for message in messages:
        chain = extend_chain(chain, message)
        chains.append(chain)
    return chains


def _other_parts(message: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """What an assistant may say in fields of its own: a refusal, audio, a deprecated call."""
    refusal, audio = message.get("refusal"), message.get("audio")
    if refusal is not None:
        raw = {"type": "refusal", "refusal": refusal}
        yield {"type": "refusal", "raw": raw, "meta": {"field": "refusal"}}
    if audio is not None:
        # A history names an earlier answer's audio by its id alone.
        meta = {key: value for key, value in audio.items() if key != "id"}
        part = {"type": "audio", "raw": {"id": audio.get("id")}}
        yield {**part, "meta": meta}
    call = message.get("function_call")
    if call is not None:
        yield {
            "type": "tool_call",
            "id": None,
            "name": call.get("name"),
            "arguments": call.get("arguments"),
            "extra": {"type": "function_call"},
        }


def _content_part(part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        return {"type": "unknown", "raw": part}
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        # A text is the same with and without such a wrapping and its marks for caching, which
        # programs move on with every call.
        rest = {key: value for key, value in part.items() if key not in {"type", "text"}}
        return {"type": "text", "content": part["text"], "meta": {"part": rest}}
    return {"type": str(part.get("type", "unknown")), "raw": dict(part)}


def _tool_response_part(call_id: Any, content: Any) -> dict[str, Any]:
    part = {"type": "tool_call_response", "id": call_id, "response": content}
    if type(content) is list and len(content) == 1:
        only = _content_part(content[0])
        if only["type"] == "text":
            part["response"], part["meta"] = only["content"], only["meta"]
    return part


def _tool_call_part(call: Mapping[str, Any]) -> dict[str, Any]:
    function, text_name = call.get("function") or {}, "arguments"
    if call.get("type") == "custom" and "custom" in call:
        function, text_name = call["custom"], "input"
    part: dict[str, Any] = {
        "type": "tool_call",
        "id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get(text_name),
    }
    if len(call) > 3 or call.get("type") != "function" or "id" not in call:
        extra = {k: v for k, v in call.items() if k not in _CALL_FIELDS}
        if extra and extra != {"type": "function"}:
            part["extra"] = extra
    return part
