"""Parts of an item -> the same without the agent's thoughts."""

import re
from collections.abc import Mapping
from typing import Any, Final

_KINDS: Final = frozenset(
    {"reasoning", "reasoning_content", "thinking", "thinking_blocks", "thought", "thoughts"}
)
_TAG: Final = "think|thinking|thought|thoughts|reasoning|scratchpad"
_CLOSED: Final = re.compile(rf"<({_TAG})>.*?</\1>", re.DOTALL | re.IGNORECASE)
_OPEN: Final = re.compile(rf"<(?:{_TAG})>.*\Z", re.DOTALL | re.IGNORECASE)
_CLOSING: Final = re.compile(rf"\A.*</(?:{_TAG})>", re.DOTALL | re.IGNORECASE)
"""Where the template opened the thought in the prompt, the answer has only its end."""
_REACT: Final = re.compile(
    r"^[ \t]*(?:Thought|Thoughts|Thinking|Reasoning)(?:[ \t]+\d+)?[ \t]*:.*?"
    r"(?=^[ \t]*(?:Action|Action Input|Observation|Final Answer|Answer|Finish)(?:[ \t]+\d+)?[ \t]*:|\Z)",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
"""ReAct: a thought goes up to the action, observation or answer behind it."""


def drop_thoughts(text: str) -> str:
    r"""Text of the agent -> without thoughts between tags or behind `Thought:`.

    >>> drop_thoughts("<think>easy</think>Booked.")
    'Booked.'
    >>> drop_thoughts("Thought: I should look.\nAction: search[lamp]")
    'Action: search[lamp]'
    """
    shown = _CLOSED.sub("", text)
    shown = _CLOSING.sub("", _OPEN.sub("", shown))
    return _REACT.sub("", shown).strip() if shown != text or _REACT.search(text) else text


def drop_reasoning(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parts -> without reasoning fields and parts; in the agent's texts, without thoughts.

    An event of anybody but the agent keeps its text: `Thought:` in a user's message is the user's.
    """
    written = {"answer", "plan"}
    return {
        name: drop_thoughts(value) if name in written and isinstance(value, str) else _drop(value)
        for name, value in parts.items()
    }


def _drop(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_drop(item) for item in value if not _is_reasoning(item)]
    if not isinstance(value, Mapping):
        return value
    kept = {key: _drop(item) for key, item in value.items() if key not in _KINDS}
    if value.get("by", value.get("role")) == "assistant":
        for key in ("text", "content"):
            if isinstance(kept.get(key), str):
                kept[key] = drop_thoughts(kept[key])
    return kept


def _is_reasoning(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("type") in _KINDS
