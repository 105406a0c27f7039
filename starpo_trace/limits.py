"""JSON text over a limit -> JSON text within it.

A cut in the middle would leave no JSON at all, so whole strings are replaced, the longest first, by
a mark that says how many bytes it stands for and what their hash was. Where that is not enough,
whole fields of an object give way, and at last everything.
"""

import json
import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final

from starpo_trace.messages import dump_json

CUT_PREFIX: Final = "[starpo:cut "
"""How every mark begins."""
_MARK: Final = re.compile(r"\[starpo:cut \d+ bytes, blake2b [0-9a-f]{32}\]")
_MARK_BYTES: Final = 80
"""More than any mark takes: a shorter value is not worth replacing."""
_MAX_DEPTH: Final = 200

_Place = tuple[int, Any, Any]
"""Size in bytes, container, key in it."""


def limit_json(text: str, max_bytes: int) -> str:
    """Text within `max_bytes` as it is; larger JSON with its longest strings replaced by marks.

    Text that is no JSON is replaced whole. The result is longer than `max_bytes` only where that
    is less than the 80 bytes of a mark.

    Example: `limit_json('["xxx...", "y"]', 100)` is
    `'["[starpo:cut 5000 bytes, blake2b 1b4e...]","y"]'`.
    """
    if len(text) * 4 <= max_bytes:  # no character takes more than four bytes
        return text
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= max_bytes:
        return text
    try:
        value = json.loads(text)  # orjson would round integers beyond 64 bits
        _check_depth(value)
    except (ValueError, RecursionError):
        return _make_mark(data)
    return _limit_value(value, max_bytes)


def is_cut(text: str) -> bool:
    """Whether a text holds a mark of `limit_json`."""
    return CUT_PREFIX in text and _MARK.search(text) is not None


def _limit_value(value: Any, max_bytes: int) -> str:
    holder = [value]
    excess = _size(value) - max_bytes
    excess = _cut_places(_find_strings(holder), excess, lambda text: text)
    if excess > 0 and isinstance(value, dict):
        fields = ((_size(item), value, key) for key, item in value.items())
        excess = _cut_places(fields, excess, dump_json)
    if excess > 0:
        holder[0] = _make_mark(_encode(dump_json(value)))
    return dump_json(holder[0])


def _cut_places(places: Iterator[_Place], excess: int, as_text: Callable[[Any], str]) -> int:
    """Replace the largest values by marks until nothing is in excess; returns what still is."""
    for size, container, key in sorted(places, key=lambda place: place[0], reverse=True):
        if excess <= 0 or size <= _MARK_BYTES:
            break
        mark = _make_mark(_encode(as_text(container[key])))
        container[key] = mark
        excess -= size - len(mark) - 2
    return excess


def _find_strings(root: list[Any]) -> Iterator[_Place]:
    waiting: list[Any] = [root]
    while waiting:
        container = waiting.pop()
        for key, item in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(item, str):
                yield _size(item), container, key
            elif isinstance(item, (list, dict)):
                waiting.append(item)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        containers = [each for each in level if isinstance(each, (list, dict))]
        if not containers:
            return
        level = [
            item
            for each in containers
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    raise RecursionError("nested too deeply")


def _size(value: Any) -> int:
    return len(_encode(dump_json(value)))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _make_mark(data: bytes) -> str:
    digest = blake2b(data, digest_size=16).hexdigest()
    return f"{CUT_PREFIX}{len(data)} bytes, blake2b {digest}]"
