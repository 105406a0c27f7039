"""Provider messages -> GenAI messages, and the hash chain that tells histories apart.

A GenAI message is `{"role", "parts": [...]}` (OpenTelemetry GenAI input/output messages). Nothing
of the provider's message is lost: argument strings stay verbatim strings, fields without a place
in the conventions stay under `"extra"`.

Each message has an identity hash; a history's chain hash is `H(chain of what came before, hash of
the message)`. Reasoning is no part of a message's identity, because chat APIs and templates drop
it from the history they send back: a prompt that repeats an answer without its reasoning still
extends the turn that gave it.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import orjson

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "reasoning")
_KNOWN_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})


def dump_json(value: Any) -> str:
    """Value -> compact JSON text; what JSON cannot hold becomes its `repr`."""
    try:
        return orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):  # lone surrogates, integers beyond 64 bits, depth
        import json

        return json.dumps(value, default=repr, separators=(",", ":"))


def from_openai_chat(message: Mapping[str, Any]) -> Message:
    """One OpenAI chat message (request or response form, as a mapping) -> GenAI message."""
    role = message.get("role", "assistant")
    content = message.get("content")
    if len(message) == 2 and type(content) is str and role != "tool" and "role" in message:
        return {"role": role, "parts": [{"type": "text", "content": content}]}  # the common case
    parts: list[dict[str, Any]] = []
    for field in REASONING_FIELDS:
        if message.get(field):
            parts.append({"type": "reasoning", "content": message[field]})
            break
    if role == "tool":
        parts.append(
            {
                "type": "tool_call_response",
                "id": message.get("tool_call_id"),
                "response": content,
            }
        )
    elif isinstance(content, str):
        parts.append({"type": "text", "content": content})
    elif content is not None:
        parts.extend(_content_part(part) for part in content)
    parts.extend(_tool_call_part(call) for call in message.get("tool_calls") or ())
    result: Message = {"role": role, "parts": parts}
    if message.get("name") is not None:
        result["name"] = message["name"]
    extra = {
        key: value
        for key, value in message.items()
        if key not in _KNOWN_FIELDS and key not in REASONING_FIELDS and value is not None
    }
    if extra:
        result["extra"] = extra
    return result


def to_openai_chat(message: Message) -> dict[str, Any]:
    """GenAI message -> OpenAI chat message; the inverse of `from_openai_chat`."""
    result: dict[str, Any] = {"role": message["role"]}
    texts = [part for part in message["parts"] if part["type"] not in _STRUCTURAL_PARTS]
    if len(texts) == 1 and texts[0]["type"] == "text" and "raw" not in texts[0]:
        result["content"] = texts[0]["content"]
    elif texts:
        result["content"] = [_openai_content_part(part) for part in texts]
    for part in message["parts"]:
        if part["type"] == "reasoning":
            result["reasoning_content"] = part["content"]
        elif part["type"] == "tool_call_response":
            result["tool_call_id"] = part["id"]
            result["content"] = part["response"]
        elif part["type"] == "tool_call":
            result.setdefault("content", None)
            result.setdefault("tool_calls", []).append(_openai_tool_call(part))
    if "name" in message:
        result["name"] = message["name"]
    result.update(message.get("extra", {}))
    return result


def message_hash(message: Message) -> bytes:
    """Identity of one message: 16 bytes over role, name and every part but reasoning.

    A part's `"meta"` (item ids, signatures, wire forms) is no part of it either, because programs
    leave it out of the history they send back.
    """
    parts = [
        {key: value for key, value in part.items() if key != "meta"} if "meta" in part else part
        for part in message["parts"]
        if part["type"] != "reasoning"
    ]
    identity = [message["role"], message.get("name"), parts]
    try:
        data = orjson.dumps(identity, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        data = dump_json(identity).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16).digest()


def extend_chain(chain: bytes, message: Message) -> bytes:
    """Chain hash of a history, one message longer. An empty history is `b""`."""
    return blake2b(chain + message_hash(message), digest_size=16).digest()


def chain_hashes(messages: Iterable[Message], base: bytes = b"") -> list[bytes]:
    """Chain hash after each message, starting from the chain `base`."""
    chains = []
    chain = base
    for message in messages:
        chain = extend_chain(chain, message)
        chains.append(chain)
    return chains


_STRUCTURAL_PARTS = frozenset({"reasoning", "tool_call", "tool_call_response"})


def _content_part(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping) and part.get("type") == "text" and set(part) == {"type", "text"}:
        return {"type": "text", "content": part["text"], "raw": "part"}
    if isinstance(part, Mapping):
        return {"type": str(part.get("type", "unknown")), "raw": dict(part)}
    return {"type": "unknown", "raw": part}


def _openai_content_part(part: dict[str, Any]) -> Any:
    if part["type"] == "text" and part.get("raw", "part") == "part":
        return {"type": "text", "text": part["content"]}
    return part["raw"]


def _tool_call_part(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    part: dict[str, Any] = {
        "type": "tool_call",
        "id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }
    extra = {k: v for k, v in call.items() if k not in {"id", "function", "index"}}
    if extra and extra != {"type": "function"}:
        part["extra"] = extra
    return part


def _openai_tool_call(part: dict[str, Any]) -> dict[str, Any]:
    call: dict[str, Any] = {
        "id": part["id"],
        "type": "function",
        "function": {"name": part["name"], "arguments": part["arguments"]},
    }
    call.update(part.get("extra", {}))
    return call
