"""Token ids -> text, one token at a time, up to a stop string."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""Stands at the end of a decoded text while a character's bytes are incomplete."""


class TextBuilder:
    """Builds the text of one answer.

    A short window of tokens is decoded again with each new one, because what a token adds can
    depend on its neighbours (spaces, characters of several tokens).
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._window = 0
        self._read = 0
        self._pending = ""
        self.stopped = False
        """A stop string was reached; the text ends before it."""

    def push(self, token_id: int) -> str:
        """The text that is sure to belong to the answer with this token."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        if after.endswith(REPLACEMENT) or len(after) <= len(before):
            return ""
        self._window, self._read = self._read, len(self._ids)
        self._pending += after[len(before) :]
        return self._take()

    def hold(self, token_id: int) -> None:
        """Take a token without decoding it yet."""
        self._ids.append(token_id)

    def finish(self) -> str:
        """The rest, once no more tokens will come."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        self._pending += after[len(before) :]
        text = self._take()
        rest, self._pending = self._pending, ""
        return text if self.stopped else text + rest

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _take(self) -> str:
        hits = [self._pending.find(stop) for stop in self._stop if stop in self._pending]
        if hits:
            self.stopped = True
            text, self._pending = self._pending[: min(hits)], ""
            return text
        held = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        sure = len(self._pending) - held
        text, self._pending = self._pending[:sure], self._pending[sure:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
