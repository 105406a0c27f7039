"""Recorded action + the checkpoint's own at the same place -> what agrees, what is null and why."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starpo_trace.convert.writers.chatmessages import UnwritableError, write_tools
from starpo_train.evals.calls import ArgumentMode
from starpo_train.evals.matching import match_calls
from starpo_train.replay.actions import Action
from starpo_train.replay.schema import VALID, SchemaVerdict, check_schema

METRICS: Final = ("same_tool", "same_call", "valid", "same_decision")
"""Of every turn; 1, 0 or null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnComparison:
    """One recorded turn, and what the checkpoint does in its place."""

    recorded: Action
    asked: Action | None
    """None: it was not asked."""
    values: Mapping[str, bool | None]
    """Of each metric."""
    nulls: Mapping[str, str] = field(default_factory=dict)
    """Metric -> why it has no value."""
    invalid_because: str | None = None
    """What the tool's schema refuses."""
    recorded_valid: bool | None = None
    """What the same schemas say of the recorded calls."""


def skip_turn(recorded: Action, reason: str) -> TurnComparison:
    """A turn at which the checkpoint was not asked."""
    return TurnComparison(
        recorded=recorded,
        asked=None,
        values=dict.fromkeys(METRICS),
        nulls=dict.fromkeys(METRICS, reason),
    )


def compare_turn(
    recorded: Action,
    asked: Action,
    tool_definitions: str | None,
    *,
    arguments: ArgumentMode = "exact",
) -> TurnComparison:
    """Recorded action, the checkpoint's, tools as they were offered -> TurnComparison.

    Tools agree when the same ones are called equally often, in any order; calls when the arguments
    fit, too (`match_calls`). Where text was recorded there is no call to agree with, and whether
    another text is as good only a judge could say.
    """
    nulls: dict[str, str] = {}
    same_tool, same_call = None, None
    if not recorded.calls:
        nulls |= dict.fromkeys(("same_tool", "same_call"), "text_turn")
    else:
        called = asked.calls if asked.decision == "call" else ()
        same_tool = Counter(c.name for c in called) == Counter(c.name for c in recorded.calls)
        same_call = same_tool and match_calls(called, recorded.calls, arguments).unordered
        if same_tool and any(call.arguments is None for call in recorded.calls):
            same_call = None
            nulls["same_call"] = "recorded_arguments_unreadable"
    verdict = check_calls(asked, tool_definitions)
    if verdict.is_valid is None:
        nulls["valid"] = verdict.reason
    return TurnComparison(
        recorded=recorded,
        asked=asked,
        values={
            "same_tool": same_tool,
            "same_call": same_call,
            "valid": verdict.is_valid,
            "same_decision": asked.decision == recorded.decision,
        },
        nulls=nulls,
        invalid_because=verdict.reason if verdict.is_valid is False else None,
        recorded_valid=check_calls(recorded, tool_definitions).is_valid,
    )


def check_calls(action: Action, tool_definitions: str | None) -> SchemaVerdict:
    """Whether a client could carry out every call: the tool was offered, its schema is met.

    None: there is no call, or nothing to check it with.
    """
    if action.problem == "unreadable_call":
        return SchemaVerdict(is_valid=False, reason="unreadable_call")
    if action.decision != "call":
        return SchemaVerdict(is_valid=None, reason=action.problem or "no_call")
    schemas = _read_schemas(tool_definitions)
    if isinstance(schemas, str):
        return SchemaVerdict(is_valid=None, reason=schemas)
    undecided = VALID
    for call in action.calls:
        found = _check_call(call.name, call.arguments, schemas)
        if found.is_valid is False:
            return found
        undecided = found if undecided.is_valid and found.is_valid is None else undecided
    return undecided


def _check_call(
    name: str, arguments: dict[str, Any] | None, schemas: Mapping[str, Any]
) -> SchemaVerdict:
    if name not in schemas:
        return SchemaVerdict(is_valid=False, reason=f"{name}: not offered")
    if arguments is None:
        return SchemaVerdict(is_valid=False, reason=f"{name}: arguments are no JSON object")
    if schemas[name] is None:
        return SchemaVerdict(is_valid=None, reason="no_schema")
    found = check_schema(arguments, schemas[name])
    if found.is_valid is None:
        return SchemaVerdict(is_valid=None, reason="schema_undecided")
    return (
        found if found.is_valid else SchemaVerdict(is_valid=False, reason=f"{name}: {found.reason}")
    )


def _read_schemas(tool_definitions: str | None) -> dict[str, Any] | str:
    """Tool -> schema of its arguments; or why there is nothing to check with."""
    if not tool_definitions:
        return "no_tool_definitions"
    try:
        functions = [tool["function"] for tool in write_tools(json.loads(tool_definitions))]
    except UnwritableError as error:
        return str(error)
    except ValueError:
        return "tool_definitions_unreadable"
    return {function["name"]: function.get("parameters") for function in functions}
