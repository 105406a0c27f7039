"""Conversation of one of Claude's agents -> its turns, one for each answer of the model.

The stream has an answer as one message per block, under one id; it is over when something else
follows.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.exchange import LLMRequest, LLMResponse, StreamOutcome
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.patches.anthropic_events import MessageEvents
from starpo_trace.capture.patches.anthropic_messages import read_message, read_messages_response

if TYPE_CHECKING:
    from starpo_trace.capture.agents import Scope
    from starpo_trace.messages import Message

_ANSWER_FIELDS: Final = ("id", "type", "role", "model", "stop_reason")


class Turn:
    """An answer of a model, as far as it came."""

    def __init__(self, answer: Mapping[str, Any], call: Call | None, *, is_stream: bool) -> None:
        self.id = answer.get("id")
        self.call = call
        self.events = MessageEvents() if is_stream else None
        """The same answer in pieces, where the program asked for them."""
        self.blocks: list[Any] = []
        self.ended_ns = 0
        self.is_aborted = False
        self._top = {name: answer[name] for name in _ANSWER_FIELDS if name in answer}
        self._usage = dict(answer.get("usage") or {})
        self._usage.pop("output_tokens", None)  # counted when the answer began

    def learn_end(self, result: Mapping[str, Any], *, is_only: bool) -> None:
        """Take from the run's result what it tells of the last answer, or of the only one."""
        self._top["stop_reason"] = result.get("stop_reason")
        output_tokens = (result.get("usage") or {}).get("output_tokens")
        if is_only and output_tokens:
            self._usage["output_tokens"] = output_tokens

    def read(self) -> LLMResponse:
        """What was answered."""
        if self.events is not None:
            response = self.events.build_response()
        else:
            top = {**self._top, "content": self.blocks, "usage": self._usage}
            response = read_messages_response(top)
        response.ended_ns = self.ended_ns or None
        if not any(message["parts"] for message in response.messages):
            response.messages = ()
        return response


class Thread:
    """One agent: its conversation so far, and the answer that comes."""

    def __init__(self, system: str | None, *, is_whole: bool) -> None:
        self.context: Context | None = None
        self.scope: Scope | None = None
        """Of a sub-agent."""
        self.turn: Turn | None = None
        self.is_resumed = False
        """Whether its conversation began before what is known."""
        self.num_turns = 0
        self._is_whole = is_whole
        """Whether every block of its answers is in the stream."""
        self._system = system
        self._messages: list[Message] = []
        self._pending: list[Message] = []
        """What came while an answer was not over."""
        self._latest_ns = time.time_ns()
        self.forget()

    def forget(self) -> None:
        """Begin the conversation anew."""
        self._messages = read_message({"role": "system", "content": self._system or ""})
        if not self._system:
            self._messages = []

    def add(self, message: Mapping[str, Any]) -> None:
        """Go on with a message to the model."""
        target = self._messages if self.turn is None else self._pending
        target += read_message(message)
        self._latest_ns = time.time_ns()

    def open_turn(
        self, answer: Mapping[str, Any], session_id: str | None, *, is_stream: bool = False
    ) -> Turn:
        """The turn of an answer, begun if it is another one than before."""
        if self.turn is None or self.turn.id != answer.get("id"):
            self.end_turn()
            request = LLMRequest(
                provider="anthropic",
                model=str(answer.get("model", "")),
                messages=list(self._messages),
                is_stream=is_stream,
                is_partial=True,
                conversation_id=session_id if self.is_resumed else None,
                is_rebased=True,
                started_ns=self._latest_ns,
            )
            with attach(self.context):
                call = begin_call(lambda: request)
            self.turn = Turn(answer, call, is_stream=is_stream)
            self.num_turns += 1
        self.turn.ended_ns = self._latest_ns = time.time_ns()
        return self.turn

    def end_turn(self, *, is_left: bool = False) -> None:
        """The answer is over; or left, and nobody knows whether there would have been more."""
        turn, self.turn = self.turn, None
        if turn is None:
            return
        response = turn.read()
        outcome: StreamOutcome | None = None if self._is_whole else "dropped"
        if turn.is_aborted or (is_left and not (self._pending or response.finish_reasons)):
            outcome = "cancelled"
        elif turn.events is not None:
            outcome = "exhausted"
        if turn.call is not None:
            turn.call.finish(response, outcome=outcome)
        parts = [part for message in response.messages for part in message["parts"]]
        if parts:
            self._messages.append({"role": "assistant", "parts": parts})
        self._messages += self._pending
        self._pending = []


@contextmanager
def attach(context: Context | None) -> Iterator[None]:
    """Make a Context current in a block, if there is one."""
    attachment = None if context is None else Attachment(context)
    try:
        yield
    finally:
        if attachment is not None:
            attachment.detach()
