"""Arguments + a tool's JSON schema -> valid, invalid, or not decided.

jsonschema decides; what is no schema, and what it refers to elsewhere, which is never fetched, leaves the
verdict open. `format` is ignored, as the standard says; OpenAPI's `nullable`, which tools use, allows null.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVerdict:
    """What a schema says of a value."""

    is_valid: bool | None
    """None: not decided."""
    reason: str = ""
    """What is wrong and where, or why it is open."""


VALID: Final = SchemaVerdict(is_valid=True)
_OPEN: Final = (
    SchemaError,
    Unresolvable,
    re.error,  # a pattern of another language
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,  # a schema that refers to itself, and gets no further
)


def check_schema(value: Any, schema: Any) -> SchemaVerdict:
    """Value and schema -> SchemaVerdict.

    >>> check_schema({"to": 3}, {"properties": {"to": {"type": "string"}}}).reason
    'to: type'
    """
    if not _is_schema(schema):
        return SchemaVerdict(is_valid=None, reason="no_schema")
    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        validator = extend(kind, {"type": _check_type})(schema, registry=Registry())
        error = best_match(validator.iter_errors(value))
    except _OPEN as error:
        return SchemaVerdict(is_valid=None, reason=type(error).__name__)
    if error is None:
        return VALID
    where = ".".join(map(str, error.absolute_path))
    keyword = str(error.validator or "false")
    return SchemaVerdict(is_valid=False, reason=f"{where}: {keyword}" if where else keyword)


def _is_schema(schema: Any) -> bool:
    return isinstance(schema, bool | Mapping)


def _check_type(validator: Any, types: Any, value: Any, schema: Any) -> Any:
    if value is None and schema.get("nullable") is True:
        return ()
    return Draft202012Validator.VALIDATORS["type"](validator, types, value, schema)
