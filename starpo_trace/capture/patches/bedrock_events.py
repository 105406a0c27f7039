"""Events of a Bedrock stream, taken from the wire -> one answer, as far as it came."""

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import orjson

from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.patches.bedrock_converse import Part, make_response, read_block, to_wire
from starpo_trace.capture.patches.streams import ChunkAccumulator, RecordedIterator
from starpo_trace.messages import dump_json


class RecordedEvents(RecordedIterator):
    """Stands in for the iterator of raw messages inside an `EventStream`."""


class WireEvents:
    """Raw messages of a Converse stream -> its events."""

    def __init__(self, accumulator: ChunkAccumulator) -> None:
        self._accumulator = accumulator
        self.build_response = accumulator.build_response

    def add(self, chunk: Any) -> None:
        """Take one raw message in."""
        kind = chunk.headers.get(":event-type")
        if kind is not None:  # no exception, and no initial response
            self._add_event(kind, orjson.loads(chunk.payload or b"{}"))

    def _add_event(self, kind: str, fields: Any) -> None:
        self._accumulator.add({kind: fields})


class InvokeEvents(WireEvents):
    """Raw messages of an InvokeModel stream -> the model's own events."""

    def _add_event(self, kind: str, fields: Any) -> None:
        if kind == "chunk":
            self._accumulator.add(orjson.loads(b64decode(fields["bytes"])))


class ConverseEvents:
    """Events of a streamed answer, each `{its type: its fields}`, put together."""

    def __init__(self, request_id: str | None = None) -> None:
        self._top: dict[str, Any] = {"ResponseMetadata": {"RequestId": request_id}}
        self._blocks: dict[int, _BlockPieces] = {}
        self._has_message = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take one event in."""
        for kind, fields in chunk.items():
            if kind == "contentBlockDelta":
                self._find_block(fields).add(fields.get("delta") or {})
            elif kind == "contentBlockStart":
                self._find_block(fields).start(fields.get("start") or {})
            elif kind == "messageStart":
                self._has_message = True
            elif kind in {"messageStop", "metadata"}:
                self._top.update(fields)

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        parts = [self._blocks[index].build() for index in sorted(self._blocks)]
        self._top.pop("p", None)  # padding
        return make_response(self._top, parts if parts or self._has_message else None)

    def _find_block(self, fields: Mapping[str, Any]) -> "_BlockPieces":
        return self._blocks.setdefault(fields.get("contentBlockIndex", 0), _BlockPieces())


class _BlockPieces:
    """One content block of a streamed answer: as it began, and its deltas."""

    def __init__(self) -> None:
        self._start: Mapping[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}

    def start(self, start: Mapping[str, Any]) -> None:
        self._start = start

    def add(self, delta: Mapping[str, Any]) -> None:
        for kind, value in delta.items():
            if kind == "text":
                self._add_text("text", value)
            elif kind == "toolUse":
                self._add_text("input", value.get("input", ""))
            elif kind == "reasoningContent":
                for name, piece in value.items():
                    self._add_text(f"reasoning {name}", piece)
            else:  # citations, server tools' results, images
                values = value if isinstance(value, list) else [value]
                self._lists.setdefault(kind, []).extend(to_wire(values))

    def _add_text(self, name: str, text: str) -> None:
        self._texts.setdefault(name, []).append(text)

    def build(self) -> Part:
        redacted = self._texts.pop("reasoning redactedContent", ())
        if redacted:
            content = {"redactedContent": b"".join(map(b64decode, redacted))}
            return read_block({"reasoningContent": content}, "assistant")
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        if "toolUse" in self._start:
            part = self._build_tool_use(texts.get("input", ""))
        elif "toolResult" in self._start:
            result = {**self._start["toolResult"], "content": self._lists.pop("toolResult", [])}
            part = read_block({"toolResult": result}, "assistant")
        elif "text" in texts or not (texts or self._start or self._lists):
            part = read_block({"text": texts.get("text", "")}, "assistant")
        elif texts:
            part = _build_reasoning(texts)
        else:
            part = {"type": next(iter({**self._start, **self._lists})), "raw": dict(self._start)}
        if self._lists:
            part.setdefault("meta", {}).update(self._lists)
        return part

    def _build_tool_use(self, text: str) -> Part:
        """Tool call whose arguments are what the program makes of the streamed text."""
        part = read_block({"toolUse": self._start["toolUse"]}, "assistant")
        try:
            part["arguments"] = dump_json(json.loads(text or "{}"))
        except ValueError:  # cut off, or never JSON
            part["arguments"] = text
        if text and part["arguments"] != text:
            part.setdefault("meta", {})["raw"] = text
        return part


def _build_reasoning(texts: Mapping[str, str]) -> Part:
    text = {"text": texts.get("reasoning text", "")}
    if "reasoning signature" in texts:
        text["signature"] = texts["reasoning signature"]
    return read_block({"reasoningContent": {"reasoningText": text}}, "assistant")
