"""Two JSON values -> a merge patch (RFC 7396), and back."""

import json
from typing import Any

import orjson


def make_merge_patch(old: Any, new: Any) -> Any:
    """Two JSON values -> the RFC 7396 patch from one to the other.

    Lossy where `new` holds nulls in objects, which a patch cannot say; the caller checks.

    Example: `make_merge_patch({"a": 1, "b": 2}, {"a": 1, "c": 3}) == {"b": None, "c": 3}`.
    """
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif type(old[key]) is not type(value) or old[key] != value:
            patch[key] = make_merge_patch(old[key], value)
    return patch


def apply_merge_patch(value: Any, patch: Any) -> Any:
    """Value and patch -> patched value (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge_patch(result.get(key), item)
    return result


def load_json(text: str) -> Any:
    """JSON text -> value, also where strings have lone surrogates."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # lone surrogates
        return json.loads(text)


def dump_canonical(value: Any) -> bytes:
    """JSON value -> the same bytes for equal values: sorted keys, no spaces."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
