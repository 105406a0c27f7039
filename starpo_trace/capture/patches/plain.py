"""SDKs' typed objects -> the plain values they were made from, without what the SDK added."""

from collections.abc import Mapping
from typing import Any, Final

_SCALARS: Final = frozenset({str, int, float, bool, type(None), bytes})


def get_fields(value: Any) -> Mapping[str, Any]:
    """Object or mapping -> its fields by name, one level deep, unknown ones included.

    Looked up in the object's own dictionaries: a missing attribute of a pydantic model is slow.
    """
    if type(value) is dict:
        return value
    try:
        extra = value.__pydantic_extra__
        fields = value.__dict__
    except AttributeError:
        if isinstance(value, Mapping):
            return value
        return getattr(value, "__dict__", {})
    return {**fields, **extra} if extra else fields


def get_sent_fields(value: Any) -> Mapping[str, Any]:
    """`get_fields`, without what was not on the wire where that is cheap to tell."""
    if type(value) is not dict:
        try:
            sent, fields = value.__pydantic_fields_set__, value.__dict__
            if len(sent) < len(fields) and not value.__pydantic_extra__:
                return {name: fields[name] for name in sent}
        except (AttributeError, KeyError):
            pass
    return get_fields(value)


def to_plain(value: Any) -> Any:
    """Object -> JSON-like value: unset defaults and values parsed by the SDK are left out."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return {key: to_plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [to_plain(item) for item in value]
    set_names = getattr(value, "__pydantic_fields_set__", None)
    if isinstance(set_names, set):
        plain = {
            name: item if item is None or type(item) is str else to_plain(item)
            for name, item in value.__dict__.items()
            if name in set_names and name not in _PARSED_NAMES
        }
        extra = value.__pydantic_extra__
        if extra:
            plain.update({name: to_plain(item) for name, item in extra.items()})
        return plain
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


_PARSED_NAMES: Final = frozenset({"parsed", "parsed_arguments", "output_parsed"})
"""What SDKs add when they parse an answer into the program's own classes."""
