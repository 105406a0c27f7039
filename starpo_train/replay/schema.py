"""Arguments + a tool's JSON schema -> valid, invalid, or not decided.

The part of JSON Schema (2020-12) that tools' parameters are written in. Keywords that are known and
not implemented leave the verdict open, unless the others already refuse the value; such as the
standard does not know are ignored, as it says, and so is `format`.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starpo_train.evals.calls import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVerdict:
    """What a schema says of a value."""

    is_valid: bool | None
    """None: not decided."""
    reason: str = ""
    """What is wrong and where, or the keyword that leaves it open."""


VALID: Final = SchemaVerdict(is_valid=True)
_MOST_REFERENCES: Final = 64

UNDECIDED: Final = frozenset(
    {"if", "contains", "prefixItems", "propertyNames", "multipleOf", "patternProperties"}
    | {"dependentRequired", "dependentSchemas", "dependencies", "nullable", "$dynamicRef"}
    | {"unevaluatedProperties", "unevaluatedItems"}
)
"""Keywords that may refuse a value and are not implemented."""


def check_schema(value: Any, schema: Any) -> SchemaVerdict:
    """Value and schema -> SchemaVerdict.

    >>> check_schema({"to": 3}, {"properties": {"to": {"type": "string"}}}).reason
    'to: type'
    """
    return _check(value, schema, _Place(root=schema))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where in the value and the schema a check stands."""

    root: Any
    path: tuple[str, ...] = ()
    num_references: int = 0

    def enter(self, key: Any) -> "_Place":
        """The place of a property or an item; what refers to itself has got on with the value."""
        return _Place(root=self.root, path=(*self.path, str(key)))

    def follow(self) -> "_Place":
        """The same place of the value, behind a reference."""
        return _Place(root=self.root, path=self.path, num_references=self.num_references + 1)

    def say(self, is_valid: bool | None, keyword: str) -> SchemaVerdict:  # noqa: FBT001
        """A verdict on this place."""
        if is_valid:
            return VALID
        where = ".".join(self.path)
        return SchemaVerdict(is_valid=is_valid, reason=f"{where}: {keyword}" if where else keyword)


def _check(value: Any, schema: Any, place: _Place) -> SchemaVerdict:
    if isinstance(schema, bool):
        return place.say(schema, "false")
    if not isinstance(schema, Mapping):
        return place.say(None, "no_schema")
    return _all_of(_check_keyword(value, key, schema, place) for key in schema)


def _check_keyword(value: Any, key: str, schema: Mapping[str, Any], place: _Place) -> SchemaVerdict:
    if key in UNDECIDED:
        return place.say(None, key)
    operand = schema[key]
    try:
        if key in _APPLICATORS:
            return _APPLICATORS[key](value, operand, schema, place)
        if key in _ASSERTIONS:
            return place.say(_ASSERTIONS[key](value, operand), key)
    except (TypeError, ValueError, AttributeError, re.error):  # the schema itself is wrong
        return place.say(None, key)
    return VALID


def _all_of(verdicts: Iterable[SchemaVerdict]) -> SchemaVerdict:
    """Invalid if any is; else open if any is."""
    undecided = VALID
    for verdict in verdicts:
        if verdict.is_valid is False:
            return verdict
        if verdict.is_valid is None and undecided.is_valid:
            undecided = verdict
    return undecided


def _check_any(value: Any, schemas: Any, _: Any, place: _Place) -> SchemaVerdict:
    found = [_check(value, schema, place).is_valid for schema in schemas]
    return place.say(True if True in found else None if None in found else False, "anyOf")


def _check_one(value: Any, schemas: Any, _: Any, place: _Place) -> SchemaVerdict:
    found = [_check(value, schema, place).is_valid for schema in schemas]
    if found.count(True) > 1:
        return place.say(False, "oneOf")
    return place.say(None if None in found else True in found, "oneOf")


def _check_not(value: Any, schema: Any, _: Any, place: _Place) -> SchemaVerdict:
    found = _check(value, schema, place).is_valid
    return place.say(None if found is None else not found, "not")


def _check_reference(value: Any, reference: Any, _: Any, place: _Place) -> SchemaVerdict:
    if not reference.startswith("#") or place.num_references >= _MOST_REFERENCES:
        return place.say(None, "$ref")
    found = place.root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            return place.say(None, "$ref")
        found = found[key]
    return _check(value, found, place.follow())


def _check_properties(value: Any, properties: Any, _: Any, place: _Place) -> SchemaVerdict:
    if not isinstance(value, Mapping):
        return VALID
    return _all_of(
        _check(value[name], schema, place.enter(name))
        for name, schema in properties.items()
        if name in value
    )


def _check_additional(
    value: Any, operand: Any, schema: Mapping[str, Any], place: _Place
) -> SchemaVerdict:
    if not isinstance(value, Mapping):
        return VALID
    if "patternProperties" in schema:
        return place.say(None, "patternProperties")
    rest = [name for name in value if name not in schema.get("properties", {})]
    if operand is False and rest:
        return place.enter(rest[0]).say(False, "additionalProperties")
    return _all_of(_check(value[name], operand, place.enter(name)) for name in rest)


def _check_items(
    value: Any, operand: Any, schema: Mapping[str, Any], place: _Place
) -> SchemaVerdict:
    if not isinstance(value, list):
        return VALID
    if "prefixItems" in schema:
        return place.say(None, "prefixItems")
    return _all_of(_check(item, operand, place.enter(i)) for i, item in enumerate(value))


_Applicator = Callable[[Any, Any, Mapping[str, Any], _Place], SchemaVerdict]
_APPLICATORS: Final[dict[str, _Applicator]] = {
    "allOf": lambda value, all_of, _, place: _all_of(_check(value, s, place) for s in all_of),
    "anyOf": _check_any,
    "oneOf": _check_one,
    "not": _check_not,
    "$ref": _check_reference,
    "properties": _check_properties,
    "additionalProperties": _check_additional,
    "items": _check_items,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    # no float of an int: what a model writes may be too large for one
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
}


def _is_of_type(value: Any, types: Any) -> bool | None:
    names = [types] if isinstance(types, str) else types
    if any(name in _TYPES and _TYPES[name](value) for name in names):
        return True
    return False if all(name in _TYPES for name in names) else None


def _bound(
    applies: Callable[[Any], bool],
    measure: Callable[[Any], float],
    compare: Callable[[Any, Any], bool],
) -> Callable[[Any, Any], bool | None]:
    """An assertion on a size or a number; of an operand that is no number nothing is said."""

    def check(value: Any, operand: Any) -> bool | None:
        if not applies(value):
            return True
        return compare(measure(value), operand) if _is_number(operand) else None

    return check


def _itself(value: Any) -> float:
    return value


def _is_unique(value: Any, operand: Any) -> bool:
    if not isinstance(value, list) or operand is not True:
        return True
    return len({canonical_json(item) for item in value}) == len(value)


_ASSERTIONS: Final[dict[str, Callable[[Any, Any], bool | None]]] = {
    "type": _is_of_type,
    "enum": lambda value, ones: canonical_json(value) in {canonical_json(one) for one in ones},
    "const": lambda value, one: canonical_json(value) == canonical_json(one),
    "required": lambda value, names: (
        not isinstance(value, Mapping) or all(name in value for name in names)
    ),
    "pattern": lambda value, text: not isinstance(value, str) or bool(re.search(text, value)),
    "uniqueItems": _is_unique,
    "minimum": _bound(_is_number, _itself, operator.ge),
    "maximum": _bound(_is_number, _itself, operator.le),
    "exclusiveMinimum": _bound(_is_number, _itself, operator.gt),
    "exclusiveMaximum": _bound(_is_number, _itself, operator.lt),
    "minLength": _bound(_TYPES["string"], len, operator.ge),
    "maxLength": _bound(_TYPES["string"], len, operator.le),
    "minItems": _bound(_TYPES["array"], len, operator.ge),
    "maxItems": _bound(_TYPES["array"], len, operator.le),
    "minProperties": _bound(_TYPES["object"], len, operator.ge),
    "maxProperties": _bound(_TYPES["object"], len, operator.le),
}
