"""Anthropic stream events -> one answer, as far as it came."""

from collections.abc import Mapping
from typing import Any

from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.patches.anthropic_messages import read_messages_response
from starpo_trace.capture.patches.plain import get_fields, to_plain


class MessageEvents:
    """Events of a streamed answer, put together."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, _BlockPieces] = {}
        self._has_final_usage = False

    def add(self, chunk: Any) -> None:
        """Take one event in."""
        fields = get_fields(chunk)
        kind = fields.get("type")
        if kind == "content_block_delta":
            block = self._blocks.get(fields["index"])
            if block is not None:
                block.add(get_fields(fields["delta"]))
        elif kind == "content_block_start":
            self._blocks[fields["index"]] = _BlockPieces(to_plain(fields["content_block"]))
        elif kind == "message_start":
            self._top = dict(to_plain(fields["message"]))
            self._usage = dict(self._top.get("usage") or {})
        elif kind == "message_delta":
            self._add_end(to_plain(chunk))
        elif kind == "message_stop" and len(fields) > 1:  # Bedrock's counts and times
            known = {"type", "message"}
            self._top.update((name, value) for name, value in fields.items() if name not in known)

    def _add_end(self, event: Mapping[str, Any]) -> None:
        """Take in what is known only at the end: the reason it ended for, and the usage."""
        self._has_final_usage = True
        for name, value in (event.get("usage") or {}).items():
            if value is not None:
                self._usage[name] = value
        self._top.update(event.get("delta") or {})
        self._top.update(
            (name, value) for name, value in event.items() if name not in {"type", "delta", "usage"}
        )

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        if not self._top:
            return LLMResponse()
        usage = self._usage
        if not self._has_final_usage:  # until then the server counts only what it has sent
            usage = {name: count for name, count in usage.items() if "output" not in name}
        content = [self._blocks[index].build() for index in sorted(self._blocks)]
        content = [*(self._top.get("content") or ()), *content]
        return read_messages_response({**self._top, "usage": usage, "content": content})


class _BlockPieces:
    """One content block of a streamed answer: as it began, and its deltas."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self._block = dict(start)
        self._texts: dict[str, list[str]] = {}

    def add(self, delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if name == "type" or value is None:
                continue
            if type(value) is str:
                texts = self._texts.get(name)
                if texts is None:
                    self._texts[name] = [value]
                else:
                    texts.append(value)
            elif name == "citation":
                citations = self._block.get("citations") or []
                self._block["citations"] = [*citations, to_plain(value)]
            else:
                self._block[name] = to_plain(value)

    def build(self) -> dict[str, Any]:
        block = dict(self._block)
        for name, texts in self._texts.items():
            if name == "partial_json":
                block["input_text"] = "".join(texts)
            else:
                block[name] = (block.get(name) or "") + "".join(texts)
        return block
