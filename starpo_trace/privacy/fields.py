"""Names and what stands under them -> the type of mask, or nothing.

A secret's name may be a field's (`{"password": ...}`), the first of two items (`["cookie", ...]`)
or a value beside it (`{"name": "API_KEY", "value": ...}`). What it names may be a list or an object:
then each text and number inside is judged, unless the object is a schema, which only describes.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from starpo_trace.privacy.assignments import classify_field, is_secret_value, name_mask

_SHORTEST_NUMBER: Final = 4
_NAME_FIELDS: Final = frozenset({"name", "key"})
_SCHEMA_TYPES: Final = frozenset(
    {"string", "number", "integer", "boolean", "array", "object", "null"}
)
_SCHEMA_FIELDS: Final = frozenset({"$ref", "anyOf", "oneOf", "allOf", "enum"})
_VALUES_OF_SCHEMAS: Final = frozenset({"value", "default", "const", "example", "examples"})
_PLAIN_WORD: Final = re.compile(r"[A-Za-z_.-]+")
_LAST_LETTERS: Final = "dtnyesDTNYES"  # of the names that `classify_field` knows
_GAP: Final = r"[\s\\nrt]{0,64}+"
_NAMES_IN_JSON: Final = tuple(
    re.compile(head + rf'{_GAP}"([^"\\]{{3,80}}+)(?<=[{_LAST_LETTERS}])\\{{0,7}}+"' + tail)
    for head, tail in (
        (r"\[", rf"{_GAP},"),
        *((rf'{end}\\{{0,7}}"{_GAP}:', "") for end in ("ame", "AME", "ey", "EY")),
    )
)


class FieldJudge:
    """What names say about values; the same for objects and for JSON text."""

    __slots__ = ("_deny_fields", "_is_allowed", "_secrets")

    def __init__(
        self, *, secrets: bool, deny_fields: Iterable[str], is_allowed: Callable[[str], bool]
    ) -> None:
        self._secrets = secrets
        self._deny_fields = frozenset(name.lower() for name in deny_fields)
        self._is_allowed = is_allowed

    def is_telling(self, name: str) -> bool:
        """Whether a field of this name needs a look at its value."""
        return name.lower() in self._deny_fields or name.lower() == "value" or bool(self.find(name))

    def find(self, name: Any) -> str | None:
        """Name, as text or bytes -> the family of secrets it names."""
        if not self._secrets:
            return None
        if isinstance(name, bytes):
            name = name.decode("latin-1")
        return classify_field(name) if isinstance(name, str) else None

    def is_denied(self, name: str) -> bool:
        """Whether the whole value goes, whatever it is."""
        return bool(self._deny_fields) and name.lower() in self._deny_fields

    def mask_leaf(self, family: str | None, value: Any) -> str | None:
        """The type of mask for a text, number or bytes under a secret's name."""
        if family is None:
            return None
        text = _read_leaf(value)
        if text is None or not is_secret_value(family, text) or self._is_allowed(text):
            return None
        return name_mask(family)

    def find_pair(self, items: Any) -> str | None:
        """Two items, the first a secret's name and the second not one more word -> its family."""
        family = self.find(items[0])
        text = None if family is None else _read_leaf(items[1])
        if text is None or _PLAIN_WORD.fullmatch(text):
            return None
        return family

    def find_named(self, fields: dict[Any, Any]) -> str | None:
        """Object with a `value` -> the family that its `name` or `key` says."""
        for key, item in fields.items():
            if isinstance(key, str) and key.lower() in _NAME_FIELDS and (found := self.find(item)):
                return found
        return None


def holds_names(text: str) -> bool:
    """Whether JSON text may hold a secret's name that is no field's."""
    pair, *fields = _NAMES_IN_JSON
    patterns = [pair]
    if "alue" in text or "VALUE" in text:
        patterns += fields
    return any(
        classify_field(match[1]) is not None
        for pattern in patterns
        for match in pattern.finditer(text)
    )


def is_schema(value: Any) -> bool:
    """Whether an object describes a value rather than holding it, as JSON Schema does."""
    if not isinstance(value, dict):
        return False
    kind = value.get("type")
    if isinstance(kind, str) and kind in _SCHEMA_TYPES:
        return True
    if isinstance(kind, list) and all(isinstance(k, str) and k in _SCHEMA_TYPES for k in kind):
        return bool(kind)
    return any(field in value for field in _SCHEMA_FIELDS) or (
        bool(value) and all(field in {"description", "title"} for field in value)
    )


def keep_family(family: str | None, name: Any, *, in_schema: bool) -> str | None:
    """Family of an object -> that of a field in it without a telling name."""
    return None if in_schema and name not in _VALUES_OF_SCHEMAS else family


def _read_leaf(value: Any) -> str | None:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return value.decode("latin-1")
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        return None
    text = repr(value)
    return text if len(text) >= _SHORTEST_NUMBER else None


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)
