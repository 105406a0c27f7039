"""Value that JSON encoders refuse -> JSON text of what of it can be written.

The last resort of `dump_json`: cycles, nesting without end, integers too long to print, NaN beside
integers of more than 64 bits, objects that cannot describe themselves.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final

_MAX_DEPTH: Final = 100
_CYCLE: Final = "<cycle>"
_DEEP: Final = "<nested too deeply>"


def dump_refused(value: Any, describe: Callable[[Any], str]) -> str:
    """Value -> compact JSON text, whatever it holds.

    `json` writes most of what orjson does not; else it is copied first. NaN is null as for orjson.
    """
    try:
        return json.dumps(value, default=describe, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # odd keys, NaN, cycles, depth
        pass
    try:
        plain = _make_plain(value, describe, ())
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (the user's own code)
        plain = object.__repr__(value)
    return json.dumps(plain, separators=(",", ":"), allow_nan=False)


def _make_plain(  # noqa: PLR0911 - one kind of value a line
    value: Any, describe: Callable[[Any], str], above: tuple[int, ...]
) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _make_plain_integer(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, dict | list | tuple):
        return describe(value)
    if id(value) in above:
        return _CYCLE
    if len(above) >= _MAX_DEPTH:
        return _DEEP
    above = (*above, id(value))
    if isinstance(value, dict):
        return {
            _make_key(key, describe): _make_plain(item, describe, above)
            for key, item in list(value.items())
        }
    return [_make_plain(item, describe, above) for item in value]


def _make_plain_integer(value: int) -> int | str:
    try:
        str(value)
    except ValueError:  # longer than Python prints
        return f"<integer of {value.bit_length()} bits>"
    return value


def _make_key(key: Any, describe: Callable[[Any], str]) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        plain = _make_plain(key, describe, ())
        return plain if isinstance(plain, str) else json.dumps(plain)
    return describe(key)
