"""Conversation -> steps of an ATIF document."""

import json
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.conversations import Conversation
from starpo_trace.convert.writers.stream import Row
from starpo_trace.convert.writers.times import format_time
from starpo_trace.messages import dump_json

_SOURCES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "agent"}
_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


@dataclass(slots=True, kw_only=True)
class StepWriter:
    """What the steps of a trajectory's conversations need to know of it."""

    turns: Sequence[Row]
    """Its turns."""
    prompts: Sequence[list[int] | None]
    """Token ids of each turn's whole prompt."""
    seen: set[str] = field(default_factory=set)
    """Messages that a document already holds."""

    def write_steps(self, conversation: Conversation) -> list[dict[str, Any]]:
        """Conversation -> its steps; a tool's results belong to the step that asked for them.

        Raises:
            UnwritableError: as `write_chat`, and `unwritable_part` for what is no text or image.
        """
        sampled = {
            turn["output_node"]: number
            for number, turn in enumerate(self.turns)
            if turn["output_node"] is not None
        }
        sources = iter(_list_sources(conversation))
        steps: list[dict[str, Any]] = []
        for message in conversation.write_chat():
            if message["role"] == "tool":
                _add_result(steps[-1], message)
                continue
            node = next(sources)
            turn = sampled.get(node)
            step = {"step_id": len(steps) + 1, **_write_message(message)}
            if turn is not None:
                step |= self._describe_turn(turn)
            if node in self.seen or (turn is None and step["source"] == "agent"):
                step["is_copied_context"] = True
            steps.append(step)
        self.seen.update(node["node_id"] for node in conversation.nodes)
        return steps

    def _describe_turn(self, number: int) -> dict[str, Any]:
        turn = self.turns[number]
        time = format_time(turn["started_ns"])
        described: dict[str, Any] = {} if time is None else {"timestamp": time}
        if turn["model"] is not None:
            described["model_name"] = turn["model"]
        described["llm_call_count"] = 1
        metrics = self._measure(turn, self.prompts[number])
        if metrics:
            described["metrics"] = metrics
        described["extra"] = {
            name: turn[name]
            for name in ("turn", "step", "step_kind", "finish_reason")
            if turn[name] is not None
        }
        return described

    def _measure(self, turn: Row, prompt: list[int] | None) -> dict[str, Any]:
        """Tokens of a turn; ids of masked tokens stand for nothing, so they are left out."""
        is_exact = turn["token_provenance"] == "exact"  # noqa: S105 (no password)
        has_logprobs = turn["logprob_provenance"] in {"exact", "estimated"}
        metrics = {
            "prompt_tokens": turn["input_tokens"],
            "completion_tokens": turn["output_tokens"],
            "prompt_token_ids": prompt if is_exact else None,
            "completion_token_ids": turn["response_token_ids"] if is_exact else None,
            "logprobs": turn["response_logprobs"] if is_exact and has_logprobs else None,
            "extra": None if turn["reward"] is None else {"reward": turn["reward"]},
        }
        return {name: value for name, value in metrics.items() if value is not None}


def _list_sources(conversation: Conversation) -> list[str]:
    """Nodes of the messages that are not only results of tools, as `write_chat` writes them."""
    found: list[str] = []
    for node, message in zip(conversation.nodes, conversation.read_messages(), strict=True):
        kinds = {part["type"] for part in message["parts"]}
        is_result = message["role"] in {"tool", "function"} or kinds == {"tool_call_response"}
        if not is_result:
            found.append(node["node_id"])
    return found


def _write_message(message: dict[str, Any]) -> dict[str, Any]:
    step: dict[str, Any] = {
        "source": _SOURCES[message["role"]],
        "message": _write_content(message["content"]),
    }
    if "reasoning_content" in message and step["source"] == "agent":
        step["reasoning_content"] = message["reasoning_content"]
    if "refusal" in message:
        step["message"] = step["message"] or message["refusal"]
    calls = [_write_call(call) for call in message.get("tool_calls", ())]
    if calls:
        step["tool_calls"] = calls
    return step


def _write_content(content: Any) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    return [_write_part(part) for part in content]


def _write_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image_url":
        raise UnwritableError("unwritable_part")
    url = part["image_url"].get("url")
    media = _guess_media(url)
    if media not in _IMAGE_TYPES:
        raise UnwritableError("unwritable_part")
    return {"type": "image", "source": {"media_type": media, "path": url}}


def _guess_media(url: Any) -> str | None:
    if not isinstance(url, str):
        return None
    if url.startswith("data:"):
        return url[5:].partition(";")[0]
    return mimetypes.guess_type(url.partition("?")[0])[0]


def _write_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object; their text too where that would not give it back."""
    text = call["function"]["arguments"]
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    written = {"tool_call_id": call["id"], "function_name": call["function"]["name"]}
    if not isinstance(arguments, dict):
        return {**written, "arguments": {}, "extra": {"arguments_text": text}}
    if dump_json(arguments) == text:
        return {**written, "arguments": arguments}
    return {**written, "arguments": arguments, "extra": {"arguments_text": text}}


def _add_result(step: dict[str, Any], message: dict[str, Any]) -> None:
    result = {"source_call_id": message["tool_call_id"], "content": message["content"]}
    step.setdefault("observation", {"results": []})["results"].append(result)
