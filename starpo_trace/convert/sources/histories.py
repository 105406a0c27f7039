"""Messages as a recorded run had them -> what is new in each prompt, by hash.

A run is read in one go, so a history that only grows is hashed once, whatever its length.
"""

from collections.abc import Sequence
from typing import Any

from starpo_trace import semconv
from starpo_trace.capture.history import count_common_prefix
from starpo_trace.messages import Message, dump_json, extend_chain


class RunHistory:
    """The branch that the next call goes on from, and what the spans so far hold of it."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._chains: list[bytes] = []
        self._num_held = 0
        self._held: set[bytes] = set()

    @property
    def num_new(self) -> int:
        """Messages at the end that no span holds yet."""
        return len(self._messages) - self._num_held

    def extend(self, messages: Sequence[Message]) -> None:
        """Add what came next."""
        chain = self._chains[-1] if self._chains else b""
        for message in messages:
            chain = extend_chain(chain, message)
            self._messages.append(message)
            self._chains.append(chain)
            if chain in self._held:
                self._num_held = len(self._messages)

    def replace(self, messages: Sequence[Message]) -> None:
        """Take another history, of which the beginning may be the same."""
        length = count_common_prefix(self._messages, messages)
        del self._messages[length:], self._chains[length:]
        self._num_held = min(self._num_held, length)
        self.extend(messages[length:])

    def describe(self) -> dict[str, Any]:
        """The history so far -> attributes that hold what is new; from then on it is held."""
        held = self._num_held
        attributes: dict[str, Any] = {
            semconv.HISTORY_MODE: "delta",
            semconv.HISTORY_LENGTH: len(self._messages),
            semconv.INPUT_MESSAGES: dump_json(self._messages[held:]),
        }
        if self._chains:
            attributes[semconv.HISTORY_HASH] = self._chains[-1].hex()
        if held:
            attributes[semconv.HISTORY_BASE] = self._chains[held - 1].hex()
            attributes[semconv.HISTORY_BASE_LENGTH] = held
        self.hold()
        return attributes

    def hold(self) -> None:
        """Note that a span holds all of it."""
        self._held.update(self._chains[self._num_held :])
        self._num_held = len(self._messages)
