"""The store of a LlamaIndex workflow's Context -> what is recorded of it."""

import sys
from collections.abc import Mapping
from typing import Any, Final

_BOOKKEEPING: Final = frozenset(
    {
        *("memory", "scratchpad", "current_reasoning", "user_msg_str"),
        *("num_iterations", "max_iterations", "early_stopping_method"),
        *("num_tool_calls", "current_tool_calls", "formatted_input_with_state"),
        *("agents", "can_handoff_to", "next_agent", "handoff_output_prompt"),
    }
)
"""What agents keep there for themselves; messages are in the prompts."""


def read_store(store: Any) -> dict[str, Any] | None:
    """What a store in memory holds; None of another, which cannot be read without waiting."""
    held = getattr(store, "_state", None)  # of its older versions
    storage = getattr(store, "_memory_storage", None)
    if storage is not None:
        record = storage.load_sync()
        held = None if record is None else record.data
    if held is None:
        return None
    fields = {name: getattr(held, name) for name in type(held).model_fields}
    return fields | dict(held.items() if hasattr(held, "items") else {})


def write_state(store: Any, *, is_agent: bool) -> dict[str, Any] | None:
    """Store -> what JSON can hold of it; of an agent's, what is not its own bookkeeping."""
    held = read_store(store)
    if held is None:
        return None
    if is_agent:
        is_alone = len(held.get("agents", ())) < 2
        held = {name: value for name, value in held.items() if name not in _BOOKKEEPING}
        if is_alone:
            held.pop("current_agent_name", None)
        if not held.get("state"):
            held.pop("state", None)
    return {name: _write_value(value) for name, value in held.items()}


def _write_value(value: Any) -> Any:
    """Value of a state -> what JSON can hold.

    Messages are numbered, not listed: a merge patch would write the whole list again.
    """
    if isinstance(value, Mapping):
        return {key: _write_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        told = [_write_value(each) for each in value]
        is_numbered = any(_is_message(each) for each in value)
        return {str(index): each for index, each in enumerate(told)} if is_numbered else told
    dump = getattr(value, "model_dump", None)  # Pydantic's; a class has it too
    if dump is None or isinstance(value, type):
        return value
    try:
        return dump(exclude_none=True)
    except Exception:  # noqa: BLE001 (of the program's own: what cannot be written is shown)
        return repr(value)


def _is_message(value: Any) -> bool:
    types: Any = sys.modules.get("llama_index.core.base.llms.types")
    return types is not None and isinstance(value, types.ChatMessage)
