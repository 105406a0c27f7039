"""Model text -> reasoning, content, tool calls.

The markup is what Qwen3, Hermes and many others are trained on: `<think>...</think>` around
reasoning and `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` around each call. A call
whose JSON cannot be read stays in the content, verbatim: nothing the model said is lost.
"""

import json
from dataclasses import dataclass, field
from typing import Literal

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"

Kind = Literal["reasoning", "content", "tool_call"]

_OPENS: dict[str, Kind] = {THINK_OPEN: "reasoning", CALL_OPEN: "tool_call"}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call the model asked for."""

    name: str
    arguments: str
    """Exactly the characters the model wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of model text with one meaning."""

    kind: Kind
    text: str = ""
    call: ToolCall | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """A whole model answer, taken apart."""

    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)


class AnswerParser:
    """Takes text as it comes and gives pieces as soon as their meaning is sure.

    Args:
        thinking: the prompt already opened a `<think>`, so the text begins inside it.
        tools: look for tool calls; without tools offered they are plain content.
    """

    def __init__(self, *, thinking: bool = False, tools: bool = True) -> None:
        self._kind: Kind = "reasoning" if thinking else "content"
        self._tools = tools
        self._buffer = ""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are complete with this text."""
        self._buffer += text
        pieces: list[Piece] = []
        while True:
            marker, position = self._next_marker()
            if marker is None:
                break
            pieces += self._pieces(self._buffer[:position], closed=True)
            self._buffer = self._buffer[position + len(marker) :]
            self._kind = _OPENS.get(marker, "content")
        if self._kind != "tool_call":
            sure = len(self._buffer) - self._held_back()
            pieces += self._pieces(self._buffer[:sure], closed=False)
            self._buffer = self._buffer[sure:]
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, once no more text will come."""
        pieces = self._pieces(self._buffer, closed=False)
        self._buffer = ""
        return pieces

    def _markers(self) -> tuple[str, ...]:
        if self._kind == "reasoning":
            return (THINK_CLOSE,)
        if self._kind == "tool_call":
            return (CALL_CLOSE,)
        return (THINK_OPEN, CALL_OPEN) if self._tools else (THINK_OPEN,)

    def _next_marker(self) -> tuple[str | None, int]:
        found = [(self._buffer.find(marker), marker) for marker in self._markers()]
        found = [(position, marker) for position, marker in found if position >= 0]
        if not found:
            return None, -1
        position, marker = min(found)
        return marker, position

    def _held_back(self) -> int:
        """How many of the last characters may be the beginning of a marker."""
        longest = max(map(len, self._markers())) - 1
        for length in range(min(longest, len(self._buffer)), 0, -1):
            tail = self._buffer[-length:]
            if any(marker.startswith(tail) for marker in self._markers()):
                return length
        return 0

    def _pieces(self, text: str, *, closed: bool) -> list[Piece]:
        if self._kind != "tool_call":
            return [Piece(kind=self._kind, text=text)] if text else []
        call = parse_tool_call(text) if closed else None
        if call is None:
            return [Piece(kind="content", text=CALL_OPEN + text + (CALL_CLOSE if closed else ""))]
        return [Piece(kind="tool_call", call=call)]


def parse_tool_call(text: str) -> ToolCall | None:
    """`{"name": ..., "arguments": {...}}` -> the call, or None when it is no such JSON.

    >>> parse_tool_call('{"name": "move", "arguments": {"to":  "up"}}').arguments
    '{"to":  "up"}'
    """
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):  # the latter: nested too deeply
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as a JSON string
        return ToolCall(name=call["name"], arguments=arguments)
    verbatim = _verbatim_value(text, "arguments")
    return ToolCall(name=call["name"], arguments=verbatim or json.dumps(arguments))


def _verbatim_value(text: str, key: str) -> str | None:
    """The characters of a top-level value of a valid JSON object; the last one when repeated."""
    position = text.index("{") + 1
    found = None
    while True:
        position = _skip_space(text, position)
        if text[position] == "}":
            return found
        name, position = _DECODER.raw_decode(text, position)
        position = _skip_space(text, position)
        start = _skip_space(text, position + 1)  # behind the colon
        _, position = _DECODER.raw_decode(text, start)
        if name == key:
            found = text[start:position]
        position = _skip_space(text, position)
        if text[position] == ",":
            position += 1


def _skip_space(text: str, position: int) -> int:
    while text[position] in " \t\r\n":
        position += 1
    return position


def join_pieces(pieces: list[Piece]) -> Answer:
    """Pieces of one answer -> the answer; newlines around reasoning and calls are layout."""
    answer = Answer()
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning").strip("\n")
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    answer.tool_calls = [piece.call for piece in pieces if piece.call is not None]
    if any(piece.kind == "reasoning" for piece in pieces):
        content = content.lstrip("\n")
    if answer.tool_calls:
        content = content.strip("\n")
    answer.reasoning = reasoning or None
    answer.content = content or (None if answer.tool_calls else "")
    return answer
