"""Text -> token ids, fast for texts that mostly repeat each other.

A prompt is rendered anew for every turn, and most of it was in the last one. Tokenizers cut a text at
its special tokens first, so what lies between them has the same ids wherever it stands; each piece
is tokenized once. Whether a tokenizer keeps to that is checked on whole texts (`check`).
"""

import re
from typing import Any, Final

import numpy as np

_MOST_CHARACTERS: Final = 1 << 25
"""Kept pieces; then they are forgotten."""


class Retokenizer:
    """Tokenizes texts, piece by piece as long as that is the same."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        names = sorted(map(str, tokenizer.added_tokens_encoder), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        control = sorted(map(str, tokenizer.all_special_tokens), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, control))) if control else None
        self._kept: dict[str, list[int]] = {}
        self._num_kept = 0

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32; nothing is added in front or behind."""
        if self._special is None:
            return np.asarray(self._tokenize(text), dtype=np.int32)
        ids: list[int] = []
        for piece in self._special.split(text):
            if piece:
                ids += self._encode_piece(piece)
        return np.asarray(ids, dtype=np.int32)

    def check(self, text: str) -> bool:
        """Compare with tokenizing a text as one; if it differs, no text is cut from now on."""
        if self._special is None:
            return True
        if np.array_equal(self.encode(text), np.asarray(self._tokenize(text), dtype=np.int32)):
            return True
        self._special = None
        self._kept.clear()
        return False

    def has_control_token(self, text: str) -> bool:
        """Whether a text holds the name of a special token, which becomes that token."""
        return self._control is not None and self._control.search(text) is not None

    def _encode_piece(self, piece: str) -> list[int]:
        ids = self._kept.get(piece)
        if ids is None:
            ids = self._tokenize(piece)
            self._num_kept += len(piece)
            if self._num_kept > _MOST_CHARACTERS:
                self._kept.clear()
                self._num_kept = len(piece)
            self._kept[piece] = ids
        return ids

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
