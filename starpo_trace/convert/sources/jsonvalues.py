"""JSON text -> value, whoever wrote it."""

import json
from typing import Any

import orjson


def parse_json(text: bytes) -> Any:
    """JSON text -> value, also with NaN and integers of any length, as Python writes them.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
