"""Chat messages or steps, as users have them -> ActionPath: what was done and said, and no thoughts.

Thoughts are the model's own words about its deeds. They are dropped here, so that no evaluator can
take them for evidence. The same holds for calls that are only written into a text, and for results
of tools that the model itself wrote.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

_THOUGHT: Final = re.compile(
    r"<(think|thinking|thought|reasoning|scratchpad)\b[^>]*>.*?(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_THOUGHT_END: Final = re.compile(
    r"\A.*</(?:think|thinking|thought|reasoning)\s*>", re.DOTALL | re.I
)
_FAILED: Final = re.compile(r"\s*(?:error\b|exception\b|traceback \(most recent)", re.IGNORECASE)
_CALL_PARTS: Final = frozenset({"tool_call", "tool_use", "function_call"})
_RESULT_PARTS: Final = frozenset({"tool_call_response", "tool_result", "function_call_output"})
_CONTAINERS: Final = (Mapping, list, tuple)
_MAX_DEPTH: Final = 100
_CHAT_ROLES: Final = frozenset(
    {"system", "developer", "user", "assistant", "ai", "model", "tool", "function", "human"}
)
_STEP_KEYS: Final = frozenset(
    (
        *("tool", "tool_name", "tool_calls", "calls", "action", "observation", "result"),
        *("thought", "thinking", "reasoning", "text", "response", "answer", "final_answer"),
        "is_final",
    )
)


class MalformedPathError(ValueError):
    """What was given as a trajectory cannot be read as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that was made, or one that is expected."""

    name: str
    arguments: dict[str, Any] | None
    """None: of a call that was made, that they cannot be read; of an expected one, any will do."""
    is_ok: bool | None = None
    """None: nothing is known of how it went."""
    result: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStep:
    """One answer of the model: the calls it made, and what it said."""

    calls: tuple[ToolCall, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionPath:
    """A run without its thoughts."""

    steps: tuple[PathStep, ...]
    goal: str | None = None
    """The first message of the user."""
    num_orphan_results: int = 0
    """Results that belong to no call."""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Every call, in order."""
        return tuple(call for step in self.steps for call in step.calls)

    @property
    def final_text(self) -> str | None:
        """What the last step said; None when it only called tools."""
        return self.steps[-1].text if self.steps else None


def read_path(value: Any) -> ActionPath:
    """Messages (OpenAI, Anthropic, GenAI convention) or steps -> ActionPath.

    A step is a mapping with `tool_calls`, or `tool` (or `tool_name`) and `arguments` (or `args`); what came
    of it in `observation` or `result`, `error` or `success`; what was said in `text`.

    Raises:
        MalformedPathError: it is neither.

    >>> path = read_path([{"tool": "inventory", "args": {"sku": 7}, "observation": "3 left"}])
    >>> [(call.name, call.arguments, call.is_ok) for call in path.calls]
    [('inventory', {'sku': 7}, True)]
    """
    if isinstance(value, ActionPath):
        return value
    if isinstance(value, Mapping):
        for key in ("messages", "trajectory", "steps", "traj"):
            if isinstance(value.get(key), Sequence):
                return read_path(value[key])
        raise MalformedPathError("a mapping without `messages` or `steps`")
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise MalformedPathError(f"{type(value).__name__} where messages or steps were expected")
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise MalformedPathError(f"item {i} is {type(item).__name__}, not a message or step")
    is_chat = any("role" in item for item in value)
    return _read_chat(value) if is_chat else _read_steps(value)


def read_call(value: Any) -> ToolCall:
    """An expected call: a name, a mapping with `name` and `arguments` (or `args`, `kwargs`), a ToolCall.

    Raises:
        MalformedPathError: it is none of these.
    """
    if isinstance(value, ToolCall):
        return value
    if isinstance(value, str) and value:
        return ToolCall(name=value, arguments=None)
    if isinstance(value, Mapping):
        call = _read_call(value)
        given = _find_arguments(value)
        if given is not None and call.arguments is None:
            raise MalformedPathError(f"arguments of the expected call {call.name!r} are no object")
        return call if given is not None else replace(call, arguments=None)
    raise MalformedPathError(f"{value!r} is no expected call")


def drop_thoughts(text: str) -> str:
    """Text without what it says in `<think>` or the like.

    >>> drop_thoughts("<think>refund 4411</think> Sorry, no.")
    'Sorry, no.'
    """
    return _THOUGHT_END.sub("", _THOUGHT.sub("", text)).strip()


def looks_failed(result: str) -> bool:
    """Whether a tool's own answer says that the call failed: `Error: ...`, `{"error": ...}`."""
    if _FAILED.match(result):
        return True
    if not result.lstrip().startswith("{"):
        return False
    try:
        value = json.loads(result)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (bool(value.get("error")) or value.get("is_error") is True)


def _read_chat(messages: Sequence[Mapping[str, Any]]) -> ActionPath:
    steps: list[list[Any]] = []  # [call ids, calls, text] of each answer
    goal, num_orphans = None, 0
    for i, message in enumerate(messages):
        role = message.get("role")
        if role not in _CHAT_ROLES:
            raise MalformedPathError(f"message {i} has the role {role!r}")
        if role in {"assistant", "ai", "model"}:
            steps.append(_read_answer(message))
            continue
        if role == "user" and goal is None:
            goal = _read_text(message)
        for call_id, name, content, is_error in _list_results(message):
            num_orphans += not _give_result(steps, call_id, name, content, is_error=is_error)
    return ActionPath(
        steps=tuple(PathStep(calls=tuple(calls), text=text) for _, calls, text in steps),
        goal=goal,
        num_orphan_results=num_orphans,
    )


def _read_answer(message: Mapping[str, Any]) -> list[Any]:
    found = list(message.get("tool_calls") or ())
    if message.get("function_call"):
        found.append(message["function_call"])
    found += [part for part in _list_parts(message) if part.get("type") in _CALL_PARTS]
    if not all(isinstance(each, Mapping) for each in found):
        raise MalformedPathError("`tool_calls` holds something that is no call")
    ids = [each.get("id") or each.get("call_id") for each in found]
    return [ids, [_read_call(each) for each in found], _read_text(message)]


def _list_parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parts: list[Any] = []
    for key in ("parts", "content"):
        if isinstance(message.get(key), list):
            parts += message[key]
    return [part for part in parts if isinstance(part, Mapping)]


def _read_text(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    texts = [content] if isinstance(content, str) else []
    for part in _list_parts(message):
        if part.get("type") in {"text", "output_text", "input_text"}:
            text = part.get("text", part.get("content"))
            texts += [text] if isinstance(text, str) else []
    return drop_thoughts("\n".join(texts)) or None


def _list_results(message: Mapping[str, Any]) -> list[tuple[Any, Any, str, bool]]:
    """(call id, tool's name, result, says it failed) of each result in a message."""
    results = []
    for part in _list_parts(message):
        if part.get("type") in _RESULT_PARTS:
            key = part.get("id") or part.get("tool_use_id") or part.get("call_id")
            content = next((part[k] for k in ("response", "result", "content") if k in part), None)
            results.append((key, part.get("name"), _show(content), part.get("is_error") is True))
    if not results and message.get("role") in {"tool", "function"}:
        content = message.get("content")
        text = content if isinstance(content, str) else _read_text(message) or _show(content)
        results.append((message.get("tool_call_id"), message.get("name"), text, False))
    return results


def _give_result(
    steps: list[list[Any]], call_id: Any, name: Any, content: str, *, is_error: bool
) -> bool:
    """Put a result to its call: by id, else to the first that waits for one; False if none does."""
    for ids, calls, _ in reversed(steps):
        for k, call in enumerate(calls):
            fits = ids[k] == call_id if call_id is not None else name in {None, call.name}
            if fits and call.result is None:
                is_ok = call.is_ok is not False and not is_error and not looks_failed(content)
                calls[k] = replace(call, result=content, is_ok=is_ok)
                return True
        if call_id is None and calls:
            return False
    return False


def _read_steps(steps: Sequence[Mapping[str, Any]]) -> ActionPath:
    found = []
    for i, step in enumerate(steps):
        if not step.keys() & _STEP_KEYS:
            raise MalformedPathError(f"step {i} has none of {', '.join(sorted(_STEP_KEYS))}")
        calls = step.get("tool_calls") or step.get("calls") or ()
        action = step.get("action")
        if not isinstance(calls, Sequence) or not all(isinstance(c, str | Mapping) for c in calls):
            raise MalformedPathError(f"step {i}: `tool_calls` is no list of calls")
        calls = [{"name": call} if isinstance(call, str) else call for call in calls]
        if not calls and isinstance(action, Mapping):
            calls = [{**step, **action}]
        elif not calls and (step.get("tool") or step.get("tool_name")):
            calls = [step]
        elif len(calls) == 1:
            # what came of a step's only call is what came of the step
            calls = [{k: step[k] for k in ("observation", "error") if k in step} | dict(calls[0])]
        texts = [step.get(key) for key in ("text", "response", "answer", "final_answer")]
        text = next((text for text in texts if isinstance(text, str)), None)
        found.append(
            PathStep(
                calls=tuple(_read_call(call) for call in calls),
                text=(drop_thoughts(text) or None) if text else None,
            )
        )
    return ActionPath(steps=tuple(found))


def _read_call(value: Mapping[str, Any]) -> ToolCall:
    inner = value.get("function")
    source = inner if isinstance(inner, Mapping) else value
    name = next((source[k] for k in ("name", "tool", "tool_name") if source.get(k)), None)
    if not isinstance(name, str):
        raise MalformedPathError(f"a call without a name: {sorted(value)}")
    given = _find_arguments(source)
    arguments = {} if given is None else _read_arguments(given)
    outcome = next((value[k] for k in ("result", "observation") if value.get(k) is not None), None)
    result = None if outcome is None else _show(outcome)
    is_ok: bool | None = None if result is None else not looks_failed(result)
    if isinstance(value.get("success"), bool):
        is_ok = value["success"]
    if value.get("error") or value.get("is_error") is True or arguments is None:
        is_ok = False
    return ToolCall(name=name, arguments=arguments, is_ok=is_ok, result=result)


def _find_arguments(source: Mapping[str, Any]) -> Any:
    keys = ("arguments", "args", "kwargs", "input", "tool_input", "parameters", "tool_args")
    return next((source[key] for key in keys if source.get(key) is not None), None)


def _read_arguments(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return None
    return dict(value) if isinstance(value, Mapping) and not _is_too_deep(value) else None


def _is_too_deep(value: Any) -> bool:
    """Nested so deeply that comparing it would need more stack than there is."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [each.values() if isinstance(each, Mapping) else each for each in level]
        level = [item for items in inner for item in items if isinstance(item, _CONTAINERS)]
        if not level:
            return False
    return True


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
