"""Span of LiteLLM's OpenTelemetry callback -> canonical span, through GenAI attributes.

A call has two spans. `litellm_request` has GenAI attributes whose messages keep calls and ids
beside the parts, and whose answer lacks its calls, which stand without ids in attributes of their
own. `raw_gen_ai_request` below it holds request and response of the provider, each field as Python
prints it, with vLLM's token ids; where it holds them it is the one that is kept.
"""

import ast
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.flattened import PARAMETERS, gather, read_raw_answer
from starpo_trace.convert.dialects.plainmessages import read_plain_message
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_SCOPE: Final = "litellm"
_RAW: Final = "raw_gen_ai_request"
_PREFIX: Final = "llm."
_NOT_PROVIDERS: Final = frozenset({"request", "is_streaming", "usage"})
_MAX_PRINTED: Final = 16 << 20
_RESPONSE_FIELDS: Final = ("choices", "prompt_token_ids", "object")


def matches(span: SpanRow) -> bool:
    """Whether it is LiteLLM's span of a call, or of what went over the wire."""
    if span.name == _RAW or (span.scope == _SCOPE and _provider_of(span.attributes) is not None):
        return True
    return span.scope == _SCOPE and keys.OPERATION_NAME in span.attributes


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """LiteLLM span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    attributes = dict(span.attributes)
    if keys.OPERATION_NAME in attributes:
        attributes |= _repair_messages(attributes)
    else:
        attributes[keys.OPERATION_NAME] = "chat"
        provider = _provider_of(attributes)
        if provider is not None:
            attributes |= _read_raw(attributes, f"{_PREFIX}{provider}.")
    return genai.convert(replace(span, attributes=attributes))


def _provider_of(attributes: Mapping[str, Any]) -> str | None:
    for name in attributes:
        if name.startswith(_PREFIX) and name.count(".") == 2:
            provider = name.split(".")[1]
            if provider not in _NOT_PROVIDERS:
                return provider
    return None


def _read_raw(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    raw = {
        name.removeprefix(prefix): _read_printed(value)
        for name, value in attributes.items()
        if name.startswith(prefix)
    }
    found: dict[str, Any] = {}
    messages = raw.get("messages")
    if isinstance(messages, list):
        prompt = [read_plain_message(each, "user") for each in messages]
        if raw.get("system") is not None:  # Anthropic's
            prompt = [read_plain_message({"content": raw["system"]}, "system"), *prompt]
        found[keys.INPUT_MESSAGES] = dump_json(prompt)
    said = [read_plain_message(each, "assistant") for each in _list_answers(raw)]
    if said:
        found[keys.OUTPUT_MESSAGES] = dump_json(said)
    if isinstance(raw.get("tools"), list):
        found[keys.TOOL_DEFINITIONS] = dump_json(raw["tools"])
    found |= {key: raw[name] for name, key in PARAMETERS.items() if name in raw}
    usage = raw.get("usage")
    if isinstance(usage, dict):
        found[keys.USAGE_INPUT_TOKENS] = usage.get("prompt_tokens", usage.get("input_tokens"))
        found[keys.USAGE_OUTPUT_TOKENS] = usage.get("completion_tokens", usage.get("output_tokens"))
    found |= {keys.RESPONSE_MODEL: raw.get("model"), keys.RESPONSE_ID: raw.get("id")}
    answer = {name: raw[name] for name in _RESPONSE_FIELDS if name in raw}
    found |= read_raw_answer(answer, said, found)
    return found | _read_ids(raw, found)


def _list_answers(raw: Mapping[str, Any]) -> list[Any]:
    choices = raw.get("choices")
    if isinstance(choices, list):
        messages = [each.get("message") for each in choices if isinstance(each, dict)]
        return [each for each in messages if isinstance(each, dict)]
    return [{"content": raw["content"]}] if isinstance(raw.get("content"), list) else []


def _read_ids(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the answer where vLLM's older versions had them: one list for each choice."""
    ids = raw.get("response_token_ids")
    if not isinstance(ids, list) or not ids or keys.RESPONSE_TOKEN_IDS in known:
        return {}
    return {keys.RESPONSE_TOKEN_IDS: dump_json(ids[0] if isinstance(ids[0], list) else ids)}


def _read_printed(value: Any) -> Any:
    """A value as Python prints it, or JSON text -> the value; any other text as it is."""
    if not isinstance(value, str) or value[:1] not in {"[", "{"} or len(value) > _MAX_PRINTED:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            return read_json(value)
        except ValueError:
            return value


def _repair_messages(attributes: Mapping[str, Any]) -> dict[str, Any]:
    repaired: dict[str, Any] = {}
    for key in (keys.INPUT_MESSAGES, keys.OUTPUT_MESSAGES):
        messages = read_json(attributes.get(key))
        if isinstance(messages, list):
            repaired[key] = [_repair_message(message) for message in messages]
    said = repaired.get(keys.OUTPUT_MESSAGES)
    if said and not any(part.get("type") == "tool_call" for part in said[0]["parts"]):
        said[0]["parts"] += _read_bare_calls(attributes)
    return {key: dump_json(messages) for key, messages in repaired.items()}


def _repair_message(message: Any) -> dict[str, Any]:
    """Calls and ids that stand beside the parts -> parts."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        raise TypeError("a message has no list `parts`")
    fixed = {k: v for k, v in message.items() if k not in {"tool_calls", "tool_call_id"}}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        read = read_plain_message({"tool_calls": calls}, "assistant")
        known = [p for p in read["parts"] if p["type"] == "tool_call"]
        fixed["parts"] = [*message["parts"], *known]
    if message.get("role") == "tool" and message.get("tool_call_id") is not None:
        parts = message["parts"]
        texts = [each["content"] for each in parts if isinstance(each.get("content"), str)]
        response = "".join(texts) if len(texts) == len(parts) else parts
        part = {"type": "tool_call_response", "id": message["tool_call_id"], "response": response}
        fixed["parts"] = [part]
    return fixed


def _read_bare_calls(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`gen_ai.completion.N.function_call.*`, N counting calls: they have no ids."""
    found = gather(attributes, "gen_ai.completion")
    calls = [each.get("function_call") for each in found or () if isinstance(each, dict)]
    return [
        {
            "type": "tool_call",
            "id": None,
            "name": call.get("name"),
            "arguments": call.get("arguments"),
        }
        for call in calls
        if isinstance(call, dict)
    ]
