"""Text of an answer, columns of a recorded turn -> Action: what was done there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starpo_train.evals.calls import canonical_json
from starpo_train.evals.path import MalformedPathError, ToolCall, drop_thoughts, read_path
from starpo_train.serve.toolparse import CALL_OPEN, AnswerParser, join_pieces

Decision = Literal["call", "answer", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What one answer does."""

    calls: tuple[ToolCall, ...] = ()
    text: str | None = None
    problem: Literal["cut", "unreadable_call", "empty"] | None = None
    """Why it does nothing that could be carried out."""

    @property
    def decision(self) -> Decision:
        """Calls tools and goes on, or answers and calls none."""
        if self.problem is not None:
            return "neither"
        return "call" if self.calls else "answer"


def read_action(text: str, *, thinking: bool = False, is_cut: bool = False) -> Action:
    """Text that a model wrote -> Action; thoughts are none.

    One that was cut has decided nothing yet, and one with a call that cannot be read, no client
    could carry out.

    >>> read_action('<tool_call>{"name": "go", "arguments": {"to": "up"}}</tool_call>').decision
    'call'
    """
    parser = AnswerParser(thinking=thinking)
    answer = join_pieces(parser.feed(text) + parser.finish())
    said = drop_thoughts(answer.content or "") or None
    if is_cut:
        return Action(text=said, problem="cut")
    if CALL_OPEN in (said or ""):
        return Action(text=said, problem="unreadable_call")
    made = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
    return _build_action(made, said)


def read_recorded(calls: Sequence[Mapping[str, Any]] | None, text: str | None) -> Action:
    """Columns `tool_calls` and `text` of a turn -> Action."""
    return _build_action(calls or (), drop_thoughts(text or "") or None)


def is_same_action(written: Action, recorded: Action) -> bool:
    """Whether a recorded answer, read from its tokens, is the recorded one: calls, and words."""
    if written.decision != recorded.decision:
        return False
    if not recorded.calls:
        return written.text == recorded.text
    return [_key(call) for call in written.calls] == [_key(call) for call in recorded.calls]


def _build_action(calls: Sequence[Mapping[str, Any]], text: str | None) -> Action:
    try:
        made = read_path([{"tool_calls": list(calls)}]).steps[0].calls
    except MalformedPathError:  # a call of no name
        return Action(text=text, problem="unreadable_call")
    return Action(calls=made, text=text, problem=None if made or text else "empty")


def _key(call: ToolCall) -> tuple[str, str]:
    return call.name, canonical_json(call.arguments)
