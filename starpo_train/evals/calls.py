"""Expected call + call -> how far they are the same."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, Literal, get_args

from starpo_train.evals.path import ToolCall

ArgumentMode = Literal["exact", "ignore", "subset", "superset", "keys"]
Arguments = ArgumentMode | Callable[[dict[str, Any], dict[str, Any]], bool | float]
"""A mode, or `compare(expected, actual)` -> 0 to 1."""

ARGUMENT_MODES: Final = get_args(ArgumentMode)


def canonical_json(value: Any) -> str:
    """JSON that is equal where values are: keys sorted, 1.0 written as 1; true is not 1.

    >>> canonical_json({"b": 1.0, "a": [True]}) == canonical_json({"a": [True], "b": 1})
    True
    >>> canonical_json(True) == canonical_json(1)
    False
    """
    return json.dumps(
        _canonize(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )


def hash_state(value: Any) -> str:
    """SHA-256 of a state's canonical JSON."""
    return sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def check_arguments(arguments: Arguments) -> Arguments:
    """The mode itself, if there is such a mode.

    Raises:
        ValueError: there is not.
    """
    if not callable(arguments) and arguments not in ARGUMENT_MODES:
        raise ValueError(
            f"arguments {arguments!r}: must be one of {', '.join(ARGUMENT_MODES)} or a function"
        )
    return arguments


def compare_calls(expected: ToolCall, actual: ToolCall, arguments: Arguments) -> float:
    """1 when `actual` is the expected call, 0 when not; between, where a function says so.

    A call that is known to have failed is not one that was made: it did nothing.
    """
    if expected.name != actual.name or actual.is_ok is False or actual.arguments is None:
        return 0.0
    if expected.arguments is None:
        return 1.0
    if callable(arguments):
        weight = float(arguments(expected.arguments, actual.arguments))
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"comparing arguments gave {weight}: must be from 0 to 1")
        return weight
    return float(_is_same(expected.arguments, actual.arguments, arguments))


def _is_same(expected: dict[str, Any], actual: dict[str, Any], mode: ArgumentMode) -> bool:
    if mode == "ignore":
        return True
    if mode == "keys":
        return expected.keys() == actual.keys()
    if mode == "subset":
        return _holds(expected, actual)
    if mode == "superset":
        return _holds(actual, expected)
    return canonical_json(expected) == canonical_json(actual)


def _holds(whole: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether every argument of `part` is in `whole`, with the same value."""
    return all(
        name in whole and canonical_json(whole[name]) == canonical_json(value)
        for name, value in part.items()
    )


def _canonize(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonize(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
