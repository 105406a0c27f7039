"""JSON-like values -> the same, masked at every depth.

Values come from an agent's own state: they may hold cycles, be changed by another thread meanwhile,
or raise when looked at. What cannot be searched is masked.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import orjson

from starpo_trace.messages import dump_json
from starpo_trace.privacy.fields import is_schema, keep_family
from starpo_trace.privacy.matching import make_mask

if TYPE_CHECKING:
    from starpo_trace.privacy.redactor import Redactor

_FAILED: Final = make_mask("error")
_MAX_DEPTH: Final = 128
_NUMBERS: Final = frozenset({int, float})


class ValueRedactor:
    """One walk through one value."""

    __slots__ = ("_clean", "_depth", "_family", "_fields", "_plain_keys", "_redactor", "_seen")

    def __init__(self, redactor: "Redactor") -> None:
        self._redactor = redactor
        self._clean = redactor.clean_strings
        self._plain_keys = redactor.plain_keys
        self._fields = redactor.fields
        self._family: str | None = None  # of secrets, said by a name around what is looked at
        self._depth = 0
        self._seen: dict[tuple[int, str | None], tuple[Any, Any]] = {}

    def redact(self, value: Any) -> Any:  # noqa: PLR0911 - the quick ways out come first
        """The same object if clean, else a masked copy."""
        kind = type(value)
        if kind is str and self._family is None:
            return value if hash(value) in self._clean else self._redactor.redact_string(value)
        if value is None or kind is bool:
            return value
        if kind in _NUMBERS and self._family is None and not self._redactor.searches_numbers:
            return value
        known = self._seen.get((id(value), self._family))
        if known is not None:
            return known[1]
        try:
            name = self._fields.mask_leaf(self._family, value)
            if name is not None:
                return self._mask(value, name)
            if kind is str:
                return self._redactor.redact_string(value)
            return self._redact_number(value) if kind in _NUMBERS else self._redact_object(value)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - fails closed
            return self._redactor.fail("searching a value", error)

    def _redact_under(self, family: str | None, value: Any) -> Any:
        """Value under a name that says what it holds."""
        outer, self._family = self._family, family
        try:
            return self.redact(value)
        finally:
            self._family = outer

    def _mask(self, value: Any, name: str) -> Any:
        mask = make_mask(name)
        if value == mask:
            return value
        self._redactor.count((name,))
        return mask

    def _redact_object(self, value: Any) -> Any:
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        seen = (id(value), self._family)
        self._seen[seen] = (value, _FAILED)  # what a cycle finds
        self._depth += 1
        try:
            if isinstance(value, dict):
                result = self._redact_dict(value)
            elif isinstance(value, list | tuple):
                result = self._redact_items(value)
            else:
                result = self._redact_other(value)
        finally:
            self._depth -= 1
        self._seen[seen] = (value, result)  # keeps both alive, so that ids stay theirs
        return result

    def _redact_items(self, value: list[Any] | tuple[Any, ...]) -> Any:
        items = list(value)  # another thread may change the original
        is_clean = True
        family = self._fields.find_pair(items) if len(items) == 2 else None
        for index, item in enumerate(items):
            is_named = index == 1 and family is not None
            new_item = self._redact_under(family, item) if is_named else self.redact(item)
            if new_item is not item:
                items[index] = new_item
                is_clean = False
        if is_clean:
            return value
        return items if isinstance(value, list) else tuple(items)

    def _redact_dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        clean, redact = self._clean, self.redact
        plain_keys = self._plain_keys if self._family is None else ()
        in_schema = self._family is not None and is_schema(value)
        changes: dict[Any, tuple[Any, Any]] = {}
        for key, item in value.items():
            if type(key) is str and key in plain_keys:
                if type(item) is str and hash(item) in clean:
                    continue
                new_key, new_item = key, redact(item)
            else:
                new_key = self._redact_name(key)
                new_item = self._redact_field(key, item, value, in_schema=in_schema)
            if new_key is not key or new_item is not item:
                changes[key] = (new_key, new_item)
        return _copy_with(value.items(), changes) if changes else value

    def _redact_name(self, key: Any) -> Any:
        if type(key) is str:
            return self._redactor.redact_key(key)
        return self._redact_under(None, key)

    def _redact_field(self, key: Any, item: Any, owner: dict[Any, Any], *, in_schema: bool) -> Any:
        family = self._fields.find(key)
        if isinstance(key, str):
            if self._fields.is_denied(key):
                return item if item is None else self._mask(item, "field")
            if family is None and key.lower() == "value":
                family = self._fields.find_named(owner)
        if family is None:
            family = keep_family(self._family, key, in_schema=in_schema)
        return self._redact_under(family, item)

    def _redact_number(self, value: float) -> Any:
        text = repr(value)
        redacted = self._redactor.redact_text(text)
        return value if redacted is text else redacted

    def _redact_other(self, value: Any) -> Any:
        """Objects that are no JSON are searched as what would be written of them."""
        if isinstance(value, str):
            text = str.__str__(value)
            redacted = self._redactor.redact_string(text)
            return value if redacted is text else redacted
        text = dump_json(value)
        if self._family is not None:
            plain = list(value) if isinstance(value, set | frozenset) else orjson.loads(text)
            redacted = self.redact(plain)
            return value if redacted is plain else redacted
        redacted = self._redactor.redact_json(text)
        return value if redacted is text else orjson.loads(redacted)


def _copy_with(
    items: Iterable[tuple[Any, Any]], changes: dict[Any, tuple[Any, Any]]
) -> dict[Any, Any]:
    """Fields with their changes; two keys with the same mask stay two fields."""
    copy: dict[Any, Any] = {}
    for key, item in items:
        new_key, new_item = changes.get(key, (key, item))
        number, unique = 1, new_key
        while new_key is not key and unique in copy:
            number += 1
            unique = f"{new_key}#{number}"
        copy[unique] = new_item
    return copy
