"""JSON-like values -> the same, masked at every depth.

Values come from an agent's own state: they may hold cycles, be changed by another thread meanwhile,
or raise when looked at. What cannot be searched is masked.
"""

from typing import TYPE_CHECKING, Any, Final

import orjson

from starpo_trace.messages import dump_json
from starpo_trace.privacy.matching import make_mask

if TYPE_CHECKING:
    from starpo_trace.privacy.redactor import Redactor

_FAILED: Final = make_mask("error")
_MAX_DEPTH: Final = 128


class ValueRedactor:
    """One walk through one value."""

    __slots__ = ("_depth", "_redactor", "_seen")

    def __init__(self, redactor: "Redactor") -> None:
        self._redactor = redactor
        self._depth = 0
        self._seen: dict[int, tuple[Any, Any]] = {}

    def redact(self, value: Any) -> Any:
        """The same object if clean, else a masked copy."""
        kind = type(value)
        if kind is str:
            return self._redactor.redact_string(value)
        if value is None or kind is bool:
            return value
        if kind is int or kind is float:
            return self._redact_number(value) if self._redactor.searches_numbers else value
        try:
            return self._redact_object(value)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - fails closed
            return self._redactor.fail("searching a value", error)

    def _redact_object(self, value: Any) -> Any:
        known = self._seen.get(id(value))
        if known is not None:
            return known[1]
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        self._seen[id(value)] = (value, _FAILED)  # what a cycle finds
        self._depth += 1
        try:
            result = self._redact_children(value)
        finally:
            self._depth -= 1
        self._seen[id(value)] = (value, result)  # keeps both alive, so that ids stay theirs
        return result

    def _redact_children(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._redact_dict(value)
        if isinstance(value, list | tuple):
            items = [self.redact(item) for item in value]
            if len(items) == len(value) and all(map(_is, items, value)):
                return value
            return items if isinstance(value, list) else tuple(items)
        return self._redact_other(value)

    def _redact_dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        changes: dict[Any, tuple[Any, Any]] = {}
        for key, item in value.items():
            new_key, new_item = self._redact_field(key, item)
            if new_key is not key or new_item is not item:
                changes[key] = (new_key, new_item)
        if not changes:
            return value
        copy: dict[Any, Any] = {}
        for key, item in value.items():
            new_key, new_item = changes.get(key, (key, item))
            copy[key if new_key is key else _make_unique(new_key, copy)] = new_item
        return copy

    def _redact_field(self, key: Any, item: Any) -> tuple[Any, Any]:
        if type(key) is not str:
            return self.redact(key), self.redact(item)
        new_key = self._redactor.redact_text(key)
        name = self._redactor.mask_field(key, item if isinstance(item, str) else None)
        if name is None or item is None:
            return new_key, self.redact(item)
        mask = make_mask(name)
        if item == mask:
            return new_key, item
        self._redactor.count((name,))
        return new_key, mask

    def _redact_number(self, value: float) -> Any:
        text = repr(value)
        redacted = self._redactor.redact_text(text)
        return value if redacted is text else redacted

    def _redact_other(self, value: Any) -> Any:
        """Objects that are no JSON are searched as what would be written of them."""
        text = str.__str__(value) if isinstance(value, str) else dump_json(value)
        if isinstance(value, str):
            redacted = self._redactor.redact_string(text)
            return value if redacted is text else redacted
        redacted = self._redactor.redact_json(text)
        return value if redacted is text else orjson.loads(redacted)


def _make_unique(key: Any, taken: dict[Any, Any]) -> Any:
    """Two keys with the same mask stay two fields."""
    number, unique = 1, key
    while unique in taken:
        number += 1
        unique = f"{key}#{number}"
    return unique


def _is(first: object, second: object) -> bool:
    return first is second
