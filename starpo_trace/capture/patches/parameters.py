"""Sampling parameters as a provider names them -> semantic-convention attributes."""

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.messages import dump_json

_FLOAT_KEYS: Final = frozenset(
    {
        semconv.REQUEST_TEMPERATURE,
        semconv.REQUEST_TOP_P,
        semconv.REQUEST_FREQUENCY_PENALTY,
        semconv.REQUEST_PRESENCE_PENALTY,
    }
)
_TEXT_KEYS: Final = frozenset({semconv.REQUEST_REASONING_LEVEL})


def take_parameters(
    values: Mapping[str, Any], keys: Mapping[str, str], into: dict[str, AttributeValue]
) -> dict[str, Any]:
    """Put the values that `keys` names into `into`; the others are returned as they are."""
    others: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        key = keys.get(name)
        converted = None if key is None else _convert(key, value)
        if key is None or converted is None:
            others[name] = value
        else:
            into[key] = converted
    return others


def put_others(others: Mapping[str, Any], into: dict[str, AttributeValue]) -> None:
    """Put what has no key of its own under one key, as JSON."""
    if others:
        into[semconv.REQUEST_PARAMETERS] = dump_json(others)


def _convert(key: str, value: Any) -> AttributeValue | None:
    """Value of the type that the key has; None when it is of another kind."""
    kind = type(value)
    if key in _FLOAT_KEYS:
        return float(value) if kind is float or kind is int else None
    if key == semconv.REQUEST_STOP_SEQUENCES:
        texts = (value,) if kind is str else value
        is_texts = isinstance(texts, (list, tuple)) and all(type(text) is str for text in texts)
        return tuple(texts) if is_texts else None
    if key in _TEXT_KEYS:
        return value if kind is str else None
    return value if kind is int else None
