"""Inspect's chat messages -> GenAI messages, each once, however many prompts repeat it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starpo_trace.messages import Message

_ATTACHMENT: Final = re.compile(r"attachment://([0-9a-f]{32})\Z")
_MAX_PROMPT: Final = 1 << 17
"""More messages than any prompt has; references could otherwise ask for any number."""


class MessageReader:
    """Messages of one sample."""

    def __init__(self, sample: Mapping[str, Any]) -> None:
        pool = sample.get("events_data")
        self._pool = (pool.get("messages") or []) if isinstance(pool, Mapping) else []
        self._attachments = sample.get("attachments") or {}
        self._known: dict[str, tuple[Any, Message]] = {}
        self._pooled: list[Message] = []

    def read_prompt(self, event: Mapping[str, Any]) -> list[Message]:
        """What a call of the model saw: messages, or stretches of the sample's pool of them.

        Raises:
            ValueError, TypeError, KeyError: it cannot be read.
        """
        references = event.get("input_refs")
        if not references:
            return [self.read(message) for message in event.get("input") or ()]
        prompt: list[Message] = []
        for start, end in references:
            if not 0 <= start <= end <= len(self._pool) or len(prompt) > _MAX_PROMPT:
                raise ValueError(f"a prompt of messages {start} to {end} of {len(self._pool)}")
            # In the order of the pool: an answer comes before the prompts that repeat it.
            while len(self._pooled) < end:
                self._pooled.append(self.read(self._pool[len(self._pooled)]))
            prompt += self._pooled[start:end]
        return prompt

    def read(self, message: Any, arguments: Mapping[str, str] | None = None) -> Message:
        """One message; `arguments` are those of its calls, word for word, by their ids.

        What was read before is the same object, also where only its arguments were written anew.
        """
        message = self.resolve(message)
        known = self._known.get(str(message.get("id")))
        if known is not None and known[0] == message:
            return known[1]
        result = _convert(message, arguments or {})
        if message.get("id") is not None:
            self._known[str(message["id"])] = (message, result)
        return result

    def resolve(self, value: Any) -> Any:
        """Value -> with its attachments in place."""
        if isinstance(value, str):
            found = _ATTACHMENT.match(value)
            return self._attachments.get(found[1], value) if found else value
        if isinstance(value, list):
            return [self.resolve(each) for each in value]
        if isinstance(value, dict):
            return {key: self.resolve(each) for key, each in value.items()}
        return value


def read_verbatim_arguments(event: Mapping[str, Any]) -> dict[str, str]:
    """Call of the model -> its tool calls' arguments as the provider's answer has them, by id."""
    call = event.get("call")
    response = call.get("response") if isinstance(call, Mapping) else None
    choices = response.get("choices") if isinstance(response, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    return {
        each["id"]: each["function"]["arguments"]
        for each in calls or ()
        if isinstance(each, Mapping)
        and isinstance(each.get("function"), Mapping)
        and isinstance(each.get("id"), str)
        and isinstance(each["function"].get("arguments"), str)
    }


def _convert(message: Mapping[str, Any], arguments: Mapping[str, str]) -> Message:
    role = message["role"]
    if not isinstance(role, str):
        raise TypeError(f"a message's role is a {type(role).__name__}")
    if role == "tool":
        return {"role": role, "parts": [_convert_result(message)]}
    content = message.get("content")
    calls = message.get("tool_calls") or ()
    if isinstance(content, str):
        parts = [{"type": "text", "content": content}] if content or not calls else []
    else:
        parts = [_convert_part(part) for part in content or ()]
    parts += [_convert_call(call, arguments) for call in calls]
    return {"role": role, "parts": parts}


def _convert_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "content": part}
    kind = part.get("type")
    rest = {key: value for key, value in part.items() if value is not None}
    if kind == "text":
        text = rest.pop("text", "")
        rest.pop("type")
        return {"type": "text", "content": text, **({"meta": rest} if rest else {})}
    if kind == "reasoning":
        text = rest.pop("reasoning", "")
        rest.pop("type")
        return {"type": "reasoning", "content": text, "meta": rest}
    if kind == "image" and isinstance(rest.get("image"), str):
        return {"type": "image_url", "raw": {"image_url": {"url": rest["image"]}}}
    return {"type": str(kind), "raw": rest}


def _convert_call(call: Mapping[str, Any], arguments: Mapping[str, str]) -> dict[str, Any]:
    written = arguments.get(call["id"])
    if written is None:
        written = json.dumps(call.get("arguments"), ensure_ascii=False)  # as Inspect sends it
    part = {"type": "tool_call", "id": call["id"], "name": call["function"], "arguments": written}
    if call.get("parse_error"):
        part["meta"] = {"parse_error": call["parse_error"]}
    return part


def _convert_result(message: Mapping[str, Any]) -> dict[str, Any]:
    """Answer of a tool, as the model reads it: an error's text is what stands in its place."""
    content, error = message.get("content"), message.get("error")
    if isinstance(error, Mapping) and error.get("message"):
        content = f"Error: {error['message']}"
    elif isinstance(content, Sequence) and not isinstance(content, str):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) == len(content) == 1:
            content = texts[0]
    return {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
