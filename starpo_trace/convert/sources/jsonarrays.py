"""JSON array -> its elements, one at a time, so that a large file needs the memory of one of them.

Where the text of an element is broken, reading goes on at the next that has the form looked for.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, cast

from starpo_trace.convert.sources.compression import list_faults

if TYPE_CHECKING:
    from io import BufferedReader

_PIECE: Final = 1 << 20
_SPACE: Final = re.compile(r"[\s,]*")
_BETWEEN: Final = re.compile(r",\s*(?=\{)")
_MAX_TRIALS: Final = 100_000
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A stretch of the array that is no JSON."""

    reason: str
    """What is wrong with it."""


def iterate_elements(stream: IO[bytes], is_wanted: Callable[[Any], bool]) -> Iterator[Any | Broken]:
    """Stream of a JSON array -> its elements, and what is broken; nothing where it is no array.

    `is_wanted` says of a value whether it is an element, to go on at after a broken one.
    """
    text = _Text(stream)
    text.fill()
    if not text.skip_opening():
        return
    while not text.is_closed():
        try:
            value, is_utf8 = text.decode()
        except (ValueError, RecursionError) as error:
            yield Broken(reason=f"an element is broken, or the file ends in it: {error}")
            if not text.seek_next(is_wanted):
                return
            continue
        yield value if is_utf8 else Broken(reason="an element is not in UTF-8")
    if text.has_more():
        yield Broken(reason="there is more behind the end of the array")


class _Text:
    """What was read of the stream and not decoded yet."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = cast("BufferedReader", stream)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._fault: Exception | None = None
        self._buffer = ""
        self._at = 0

    def fill(self) -> bool:
        """Read on by at least as much as there is; False at the end.

        Raises:
            EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError: compressed data is damaged
                from here on.
        """
        if self._fault is not None:
            raise self._fault
        wanted = max(_PIECE, len(self._buffer) - self._at)
        pieces, num_read = [], 0
        try:
            # `read1` hands over what it has before it raises.
            while num_read < wanted and (piece := self._stream.read1(_PIECE)):
                pieces.append(piece)
                num_read += len(piece)
        except list_faults() as error:
            self._fault = error
        more = self._decoder.decode(b"".join(pieces), final=num_read < wanted)
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        if not more and self._fault is not None:
            raise self._fault
        return bool(more)

    def skip_opening(self) -> bool:
        """Go behind the array's bracket, if there is one."""
        self._skip_space()
        if self._buffer[self._at : self._at + 1] != "[":
            return False
        self._at += 1
        return True

    def is_closed(self) -> bool:
        """Whether the array ends here."""
        self._skip_space()
        while self._at == len(self._buffer):
            if not self.fill():
                return False  # the next decoding says that something is missing
            self._skip_space()
        return self._buffer[self._at] == "]"

    def has_more(self) -> bool:
        """Whether something stands behind the array's end."""
        self._at += 1
        self._skip_space()
        while self._at == len(self._buffer):
            if not self.fill():
                return False
            self._skip_space()
        return True

    def decode(self) -> tuple[Any, bool]:
        """The next element, and whether it was UTF-8.

        Raises:
            ValueError, RecursionError: it is broken.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except ValueError:
                if not self.fill():
                    raise
                continue
            # A number or word may go on behind what was read.
            if end == len(self._buffer) and self.fill():
                continue
            text = self._buffer[self._at : end]
            self._at = end
            return value, text.isascii() or _is_utf8(text)

    def seek_next(self, is_wanted: Callable[[Any], bool]) -> bool:
        """Go to the next wanted element behind a broken one."""
        for trial, found in enumerate(_BETWEEN.finditer(self._buffer, self._at)):
            if trial >= _MAX_TRIALS:
                break
            try:
                value, _ = _DECODER.raw_decode(self._buffer, found.end())
            except (ValueError, RecursionError):
                continue
            if is_wanted(value):
                self._at = found.end()
                return True
        return False

    def _skip_space(self) -> None:
        found = _SPACE.match(self._buffer, self._at)
        self._at = found.end() if found else self._at


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
