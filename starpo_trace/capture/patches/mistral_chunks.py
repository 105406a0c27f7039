"""Chunks of a Mistral stream -> one answer, as far as it came."""

from collections.abc import Mapping
from typing import Any

from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.patches.mistral_chat import NO_ID, read_completion_response
from starpo_trace.capture.patches.plain import get_fields, to_plain


class CompletionChunks:
    """Chunks of a streamed answer, put together."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _ChoicePieces] = {}

    def add(self, chunk: Any) -> None:
        """Take one event in."""
        data = to_plain(get_fields(chunk).get("data"))
        if not isinstance(data, dict):
            return
        for name in ("id", "model", "usage"):
            if data.get(name) is not None:
                self._top[name] = data[name]
        for choice in data.get("choices") or ():
            self._choices.setdefault(choice.get("index", 0), _ChoicePieces()).add(choice)

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        choices = [self._choices[index].build() for index in sorted(self._choices)]
        return read_completion_response({**self._top, "choices": choices})


class _ChoicePieces:
    """Pieces of one choice of a streamed answer."""

    def __init__(self) -> None:
        self._chunks: list[dict[str, Any]] = []
        self._has_list = False
        self._has_content = False
        self._tool_calls: list[dict[str, Any]] = []
        self._others: dict[str, Any] = {}
        self._finish_reason: str | None = None
        self._logprobs: dict[str, list[Any]] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") or {}
        self._add_content(delta.get("content"))
        for call in delta.get("tool_calls") or ():
            self._add_tool_call(call)
        for name, value in delta.items():
            if value is not None and name not in {"content", "tool_calls", "index"}:
                self._others[name] = value
        if choice.get("finish_reason") is not None:
            self._finish_reason = choice["finish_reason"]
        for name in ("logprobs", "prompt_logprobs"):
            content = (choice.get(name) or {}).get("content")
            if content is not None:
                self._logprobs.setdefault(name, []).extend(content)

    def _add_content(self, content: Any) -> None:
        if isinstance(content, str):
            self._has_content = True
            if content:
                self._add_chunk({"type": "text", "text": content})
        elif content is not None:
            self._has_content = self._has_list = True
            for chunk in content:
                self._add_chunk(chunk)

    def _add_chunk(self, chunk: Mapping[str, Any]) -> None:
        """Join pieces of one kind that follow each other."""
        kind = chunk.get("type")
        last = self._chunks[-1] if self._chunks else {}
        if kind == last.get("type") == "text":
            last["pieces"].append(chunk.get("text") or "")
        elif kind == last.get("type") == "thinking":
            last["thinking"] += chunk.get("thinking") or ()
            last.update((name, value) for name, value in chunk.items() if name not in last)
        elif kind == "text":
            self._chunks.append({**chunk, "pieces": [chunk.get("text") or ""]})
        elif kind == "thinking":
            self._chunks.append({**chunk, "thinking": list(chunk.get("thinking") or ())})
        else:
            self._chunks.append(dict(chunk))

    def _add_tool_call(self, call: Mapping[str, Any]) -> None:
        """Append to the tool call that this one continues, if it does."""
        call_id, function = call.get("id", NO_ID), call.get("function") or {}
        for known in self._tool_calls:
            is_same = known["index"] == call.get("index", 0) and call_id in {known["id"], NO_ID}
            arguments = function.get("arguments")
            if is_same and isinstance(arguments, str) and known["pieces"] is not None:
                known["pieces"].append(arguments)
                return
        arguments = function.get("arguments")
        self._tool_calls.append(
            {
                "id": call_id,
                "index": call.get("index", 0),
                "function": dict(function),
                "pieces": [arguments] if isinstance(arguments, str) else None,
            }
        )

    def build(self) -> dict[str, Any]:
        return {
            "message": {
                **self._others,
                "content": self._build_content(),
                "tool_calls": self._build_tool_calls(),
            },
            "finish_reason": self._finish_reason,
            **{name: {"content": content} for name, content in self._logprobs.items()},
        }

    def _build_tool_calls(self) -> list[dict[str, Any]]:
        calls = []
        for call in self._tool_calls:
            function = call["function"]
            if call["pieces"] is not None:
                function = {**function, "arguments": "".join(call["pieces"])}
            calls.append({"id": call["id"], "function": function})
        return calls

    def _build_content(self) -> Any:
        """A text when nothing but texts came, else chunks."""
        if not self._chunks:
            return "" if self._has_content else None
        chunks = []
        for chunk in self._chunks:
            if "pieces" in chunk:
                others = {k: v for k, v in chunk.items() if k not in {"pieces", "text"}}
                chunks.append({**others, "text": "".join(chunk["pieces"])})
            else:
                chunks.append(chunk)
        return chunks if self._has_list else chunks[0]["text"]
