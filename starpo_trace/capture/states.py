"""A framework's own state -> a `state` of the trajectory, where it has changed."""

from collections.abc import Mapping
from typing import Any

import orjson
from opentelemetry.context import Context

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import current_trajectory
from starpo_trace.capture.patches.base import MISSING
from starpo_trace.capture.steps import state
from starpo_trace.guard import Guard
from starpo_trace.messages import dump_json


def record_data(value: Any, name: str, within: Context | None = None) -> None:
    """Record an object of the program's own, if it is data: what JSON holds, dataclasses, models.

    One that also has a client, a lock or a function is no state but what the program works with.

    Args:
        value: the object.
        name: which state it is.
        within: the Context of the run, where that is not current.
    """
    with Guard("recording a state"):
        told = _read_data(value)
        if told is not MISSING and told is not None:
            record_change(told, name, within)


def record_fields(values: Any, name: str, within: Context | None = None) -> None:
    """Record a framework's mapping, without what is no data and what the framework keeps to itself.

    Args:
        values: the mapping; anything else is no state.
        name: which state it is.
        within: the Context of the run, where that is not current.
    """
    with Guard("recording a state"):
        if isinstance(values, Mapping):
            told = {key: _read_data(each) for key, each in values.items() if str(key)[:1] != "_"}
            told = {key: each for key, each in told.items() if each is not MISSING}
            record_change(told, name, within)


def record_change(value: Any, name: str, within: Context | None = None) -> None:
    """Record a state, unless it is what was recorded last under its name; an empty one is none."""
    with Guard("recording a state"):
        attachment = None if within is None else Attachment(within)
        try:
            _record_change(value, name)
        finally:
            if attachment is not None:
                attachment.detach()


def _record_change(value: Any, name: str) -> None:
    trajectory = current_trajectory()
    if trajectory is None:
        return
    text = dump_json(value)
    last = trajectory.last_states.get(name)
    if text == last or (last is None and not value):
        return
    trajectory.last_states[name] = text
    state(value, name)


def _read_data(value: Any) -> Any:
    """Value -> what JSON holds of it; MISSING where some of it is no data."""
    try:
        text = orjson.dumps(value, default=_dump_model, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError):
        return MISSING
    return orjson.loads(text)


def _dump_model(value: Any) -> Any:
    """Pydantic's model, or a set -> plain data.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, set | frozenset):
        return sorted(value)
    dump = getattr(value, "model_dump", None)
    if dump is None or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is no data")
    return dump()
