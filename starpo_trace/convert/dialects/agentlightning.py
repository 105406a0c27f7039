"""Span of agent-lightning 0.3 -> canonical span, through OpenLLMetry's older form.

Rewards are annotation spans, the first of several is the primary one; what they judge is said by
attributes to match (`starpo_trace.convert.joins` finds it), else it is the whole rollout. Calls are
spans of AgentOps, which flatten messages and have a child span for each call of a tool that the
answer asks for; agent-lightning adds the token ids.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai, openllmetry
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Columns, Rejection
from starpo_trace.convert.dialects.content import read_json, valid_text
from starpo_trace.convert.dialects.flattened import gather
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_PREFIX: Final = "agentlightning."
_ANNOTATION: Final = "agentlightning.annotation"
_REWARD: Final = "agentlightning.reward"
_OLD_REWARD: Final = "reward"
_OUTPUT: Final = "agentlightning.operation.output."
_REQUEST_TYPE: Final = "gen_ai.request.type"
_KIND: Final = "agentops.span.kind"
_OPERATION_OF_KIND: Final = {
    "session": "invoke_workflow",
    "agent": "invoke_agent",
    "workflow": "invoke_workflow",
    "task": "plan",
    "operation": "plan",
    "tool": "execute_tool",
}
_PROMPT_IDS: Final = ("prompt_token_ids", f"{_OUTPUT}prompt_token_ids")
_RESPONSE_IDS: Final = (
    "response_token_ids",
    f"{_OUTPUT}response_token_ids.0",
    f"{_OUTPUT}choices.0.token_ids",
    f"{_OUTPUT}choices.0.provider_specific_fields.token_ids",
)
_LOGPROBS: Final = "logprobs.content"
_OTHER_KINDS: Final = ("openinference.span.kind", "gen_ai.span.kind", "fi.span.kind")
_TOOL_CALL: Final = "tool.call.id"
_RENAMED: Final = {"gen_ai.request.functions.": "llm.request.functions."}


def matches(span: SpanRow) -> bool:
    """Whether agent-lightning or AgentOps wrote it."""
    attributes = span.attributes
    return (
        span.name.startswith(_PREFIX)
        or _KIND in attributes
        or (_REQUEST_TYPE in attributes and keys.OPERATION_NAME not in attributes)
        or (
            not any(name in attributes for name in _OTHER_KINDS)
            and any(name in attributes for name in (*_PROMPT_IDS, *_RESPONSE_IDS))
        )
    )


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """Agent-lightning span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    if span.name == _ANNOTATION:
        return _convert_annotation(span)
    attributes = span.attributes
    kind = str(attributes.get(_KIND, "")).rpartition(".")[2].lower()
    if is_requested_call(span):
        return Rejection(reason="part_of_call", detail="the call that asked for it holds it")
    if kind and _REQUEST_TYPE not in attributes:
        return _convert_entity(span, kind)
    if span.name == "agentlightning.operation" and not _holds_call(attributes):
        name = attributes.get("agentlightning.operation.name")
        return genai.convert(
            replace(span, attributes={keys.OPERATION_NAME: "plan", keys.TOOL_NAME: name})
        )
    if not _holds_call(attributes):
        return Rejection(reason="unknown_operation", detail=span.name)
    return openllmetry.convert(replace(span, attributes=_translate_call(attributes)))


def is_requested_call(span: SpanRow) -> bool:
    """Whether it says of a call of the model which tool was asked for, and is no run of the tool."""
    return span.name.startswith("tool_call.") and _TOOL_CALL in span.attributes


def _holds_call(attributes: Mapping[str, Any]) -> bool:
    names = (*_PROMPT_IDS, *_RESPONSE_IDS, _REQUEST_TYPE, "gen_ai.prompt.0.role")
    return any(name in attributes for name in names)


def _translate_call(attributes: Mapping[str, Any]) -> dict[str, Any]:
    translated = dict(attributes)
    for old, new in _RENAMED.items():
        for name in attributes:
            if name.startswith(old):
                translated[new + name.removeprefix(old)] = attributes[name]
    for own, names in (
        (keys.PROMPT_TOKEN_IDS, _PROMPT_IDS),
        (keys.RESPONSE_TOKEN_IDS, _RESPONSE_IDS),
    ):
        ids = next((attributes[name] for name in names if name in attributes), None)
        if ids is not None:
            translated.setdefault(own, dump_json(ids) if isinstance(ids, (list, tuple)) else ids)
    logprobs = read_json(attributes.get(_LOGPROBS))
    if isinstance(logprobs, list) and all(isinstance(each, dict) for each in logprobs):
        found = dump_json([each.get("logprob") for each in logprobs])
        translated.setdefault(keys.RESPONSE_LOGPROBS, found)
    return translated


def _convert_entity(span: SpanRow, kind: str) -> CanonicalSpan | Rejection:
    """AgentOps' decorated function; before 0.3 a reward is what such a function returned."""
    attributes = span.attributes
    value = _read_old_reward(attributes)
    if value is not None:
        return _make_rewards(span, [{"name": "reward", "value": value}])
    operation = _OPERATION_OF_KIND.get(kind, kind)
    found: dict[str, Any] = {keys.OPERATION_NAME: operation}
    if operation in {"invoke_agent", "invoke_workflow"}:
        names = ("agent.name", "operation.name", "agentops.entity.name")
        found[keys.AGENT_NAME] = next((attributes[n] for n in names if n in attributes), None)
    return genai.convert(replace(span, attributes=found))


def _read_old_reward(attributes: Mapping[str, Any]) -> Any:
    for name in ("agentops.task.output", "agentops.entity.output"):
        try:
            found = json.loads(attributes.get(name) or "null")
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(found, dict) and found.get("type") == "reward":
            return found.get("value")
    return None


def _convert_annotation(span: SpanRow) -> CanonicalSpan | Rejection:
    found = gather(span.attributes, _REWARD)
    dimensions = found if isinstance(found, list) else []
    if not dimensions and _OLD_REWARD in span.attributes:
        dimensions = [{"name": "primary", "value": span.attributes[_OLD_REWARD]}]
    if not dimensions:
        return Rejection(reason="unknown_operation", detail="an annotation without a reward")
    return _make_rewards(span, dimensions)


def _make_rewards(span: SpanRow, dimensions: list[Any]) -> CanonicalSpan | Rejection:
    rewards = [
        _make_row(span, number, each)
        for number, each in enumerate(dimensions)
        if isinstance(each, dict)
    ]
    if not any(row["value"] is not None for row in rewards):
        return Rejection(reason="reward_value", detail=f"no finite number in {dimensions!r}"[:500])
    columns = genai.span_columns({}, "reward")
    return CanonicalSpan(record="reward", columns=columns, rewards=tuple(rewards))


def _make_row(span: SpanRow, number: int, dimension: Mapping[str, Any]) -> Columns:
    name = valid_text(str(dimension.get("name") or f"reward_{number}"))
    is_of_call = bool(span.links)
    return {
        "reward_id": f"{span.trace_id}:{span.span_id}:{number}",
        "name": name,
        "value": genai.read_number(dimension.get("value")),
        "scope": "turn" if is_of_call else "trajectory",
        "kind": "process" if is_of_call else "outcome",
        "time_ns": span.start_ns,
        "recorded_by_us": False,
    }
