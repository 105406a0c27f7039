"""OpenTelemetry GenAI span, with or without our `starpo.*` keys -> canonical span.

Old names of a key are read where the conventions renamed it. Content may sit in span attributes
(JSON text), in the event `gen_ai.client.inference.operation.details` (structured), or in older
events, one for each message.
"""

import math
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects.canonical import RECORDS, CanonicalSpan, Columns, Rejection
from starpo_trace.convert.dialects.content import (
    Output,
    read_history,
    read_ids,
    read_json,
    read_logprobs,
    read_output,
    text_or_none,
)
from starpo_trace.convert.dialects.legacyevents import read_message_events
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_RECORD_OF_OPERATION: Final = {
    "chat": "llm",
    "generate_content": "llm",
    "text_completion": "llm",
    "invoke_agent": "agent",
    "invoke_workflow": "agent",
    "create_agent": "agent",
    "execute_tool": "step",
    "retrieval": "step",
    "embeddings": "step",
    "fetch_response": "step",
    "plan": "step",
    "create_memory": "step",
    "search_memory": "step",
    "update_memory": "step",
    "upsert_memory": "step",
    "delete_memory": "step",
}
_STEP_KIND_OF_OPERATION: Final = {"execute_tool": "tool", "retrieval": "retriever"}
_STREAM_FAILURES: Final = frozenset({"cut", "closed", "dropped", "cancelled", "error"})
_DETAILS_EVENT: Final = "gen_ai.client.inference.operation.details"
_EVALUATION_EVENT: Final = "gen_ai.evaluation.result"
_INPUT_USAGE: Final = (keys.USAGE_INPUT_TOKENS, "gen_ai.usage.prompt_tokens")
_OUTPUT_USAGE: Final = (keys.USAGE_OUTPUT_TOKENS, "gen_ai.usage.completion_tokens")
_CONVERSATIONS: Final = (
    keys.CONVERSATION_ID,
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.conversation_id",
    "traceloop.association.properties.thread_id",
)
_SAMPLING: Final = {
    keys.REQUEST_TEMPERATURE: "temperature",
    keys.REQUEST_TOP_P: "top_p",
    keys.REQUEST_TOP_K: "top_k",
}
_TOKEN_KEYS: Final = frozenset(
    {
        keys.PROMPT_TOKEN_IDS,
        keys.PROMPT_TOKEN_IDS_BASE_STEP,
        keys.PROMPT_TOKEN_IDS_BASE_LENGTH,
        keys.RESPONSE_TOKEN_IDS,
        keys.RESPONSE_LOGPROBS,
    }
)
_INT64_MAX: Final = 2**63 - 1
_MAX_STEP: Final = 2**31 - 1


def matches(span: SpanRow) -> bool:
    """Whether the span names a GenAI operation as its kind, or is one of ours."""
    attributes = span.attributes
    if keys.RECORD in attributes:
        return True
    # traceAI and some OpenLLMetry versions write the operation too, beside flattened messages.
    flattened = (
        "gen_ai.span.kind",
        "fi.span.kind",
        "gen_ai.prompt.0.role",
        "gen_ai.completion.0.role",
        "gen_ai.completion.0.content",
        "openinference.span.kind",
    )
    return keys.OPERATION_NAME in attributes and not any(key in attributes for key in flattened)


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """GenAI span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    attributes = _merge_details(span)
    record = _record_of(attributes)
    if isinstance(record, Rejection):
        return record
    columns = span_columns(attributes, record)
    rewards = []
    if span.events:
        rewards = [
            read_evaluation(event, time_ns, record)
            for name, time_ns, event in span.events
            if name == _EVALUATION_EVENT
        ]
    call = None
    nodes: tuple[Columns, ...] = ()
    states: tuple[Columns, ...] = ()
    if record == "llm":
        call, nodes = _call_columns(span, attributes)
        columns["step_kind"] = columns["step_kind"] or _call_kind(call)
    elif record == "observation":
        nodes = read_history(attributes).nodes
    elif record == "step":
        kind = _STEP_KIND_OF_OPERATION.get(attributes.get(keys.OPERATION_NAME, ""), "other")
        columns["step_kind"] = columns["step_kind"] or kind
        columns["tool_name"] = text_or_none(attributes.get(keys.TOOL_NAME))
        columns["tool_call_id"] = text_or_none(attributes.get(keys.TOOL_CALL_ID))
    elif record == "state":
        if attributes.get(keys.STATE_VALUE, attributes.get(keys.STATE_DIFF)) is None:
            return Rejection(reason="no_content", detail="a state recorded with content off")
        states = (_state_columns(attributes),)
    elif record == "reward":
        reward = _reward_columns(span, attributes)
        if reward["value"] is None:
            value = attributes.get(keys.EVALUATION_VALUE)
            return Rejection(reason="reward_value", detail=f"{value!r} is not a finite number")
        rewards.append(reward)
    return CanonicalSpan(
        record=record,
        columns=columns,
        call=call,
        nodes=nodes,
        states=states,
        rewards=tuple(rewards),
    )


def _record_of(attributes: dict[str, Any]) -> str | Rejection:
    record = attributes.get(keys.RECORD)
    if record is not None:
        if record in RECORDS:
            return record
        if record == "credit":  # computed from rewards: it must not come back as one
            return Rejection(reason="credit", detail=str(attributes.get(keys.CREDIT_ESTIMATOR)))
        return Rejection(reason="unknown_record", detail=str(record))
    operation = attributes.get(keys.OPERATION_NAME)
    record = _RECORD_OF_OPERATION.get(str(operation))
    return record or Rejection(reason="unknown_operation", detail=str(operation))


def _merge_details(span: SpanRow) -> dict[str, Any]:
    details: dict[str, Any] = {}
    for name, _, event in span.events:
        if name == _DETAILS_EVENT:  # Strands writes one for each attribute
            details |= event
    if details:
        return {**details, **span.attributes}
    if span.events and keys.RECORD not in span.attributes:
        return {**read_message_events(span.events), **span.attributes}
    return span.attributes


def span_columns(attributes: dict[str, Any], record: str) -> Columns:
    """GenAI attributes -> what the span says of itself and of its run, where it says anything."""
    columns: Columns = {
        "is_ours": keys.RECORD in attributes,
        "trajectory_id": text_or_none(attributes.get(keys.TRAJECTORY_ID)),
        "step": _step(attributes.get(keys.STEP)),
        "step_kind": text_or_none(attributes.get(keys.STEP_KIND)),
    }
    for name in _CONVERSATIONS:
        if name in attributes:
            columns["conversation_id"] = text_or_none(attributes[name])
            break
    if not _RUN_KEYS.isdisjoint(attributes):
        for key, (column, read) in _RUN_COLUMNS.items():
            if key in attributes and (value := read(attributes[key])) is not None:
                columns[column] = value
        if record != "trajectory":
            columns.pop("end", None)
    return columns


def _call_columns(span: SpanRow, attributes: dict[str, Any]) -> tuple[Columns, tuple[Columns, ...]]:
    history = read_history(attributes)
    output = read_output(attributes, history)
    get = attributes.get
    call: Columns = {
        "model": text_or_none(get(keys.RESPONSE_MODEL) or get(keys.REQUEST_MODEL)),
        "finish_reason": _finish_reason(attributes, output),
        "outcome": _outcome(span, attributes),
        "history_length": history.length,
        "base_node": history.base_node,
        "input_node": history.last_node,
        "output_node": output.node_id,
        "has_input": history.is_recorded,
        "input_tokens": _first_int(attributes, _INPUT_USAGE),
        "output_tokens": _first_int(attributes, _OUTPUT_USAGE),
        "reasoning": output.reasoning,
        "text": output.text,
        "tool_calls": output.tool_calls,
        "tool_definitions": _json_text(get(keys.TOOL_DEFINITIONS)),
        "prompt_base_length": 0,
    }
    if keys.RESPONSE_ID in attributes:
        call["response_id"] = text_or_none(attributes[keys.RESPONSE_ID])
    if span.error is not None or keys.ERROR_TYPE in attributes:
        call["error"] = _error(span, attributes)
    for key, column in _SAMPLING.items():
        if key in attributes:
            call[column] = read_number(attributes[key])
    if not _TOKEN_KEYS.isdisjoint(attributes):
        call |= _token_columns(attributes)
    return call, history.nodes + output.nodes


def _token_columns(attributes: dict[str, Any]) -> Columns:
    response_ids = read_ids(attributes.get(keys.RESPONSE_TOKEN_IDS))
    logprobs = read_logprobs(attributes.get(keys.RESPONSE_LOGPROBS))
    if response_ids is None or logprobs is None or len(logprobs) != len(response_ids):
        logprobs = None
    return {
        "prompt_ids": read_ids(attributes.get(keys.PROMPT_TOKEN_IDS)),
        "prompt_base_step": _int(attributes.get(keys.PROMPT_TOKEN_IDS_BASE_STEP)),
        "prompt_base_length": _int(attributes.get(keys.PROMPT_TOKEN_IDS_BASE_LENGTH)) or 0,
        "response_ids": response_ids,
        "response_logprobs": logprobs,
    }


def _call_kind(call: Columns) -> str:
    return "planner" if call["tool_calls"] or call["tool_definitions"] is None else "finalizer"


def _state_columns(attributes: dict[str, Any]) -> Columns:
    return {
        "name": text_or_none(attributes.get(keys.STATE_NAME)) or "state",
        "hash": text_or_none(attributes.get(keys.STATE_HASH)),
        "value": text_or_none(attributes.get(keys.STATE_VALUE)),
        "base": text_or_none(attributes.get(keys.STATE_BASE)),
        "diff": text_or_none(attributes.get(keys.STATE_DIFF)),
    }


def _reward_columns(span: SpanRow, attributes: dict[str, Any]) -> Columns:
    scope = text_or_none(attributes.get(keys.REWARD_SCOPE)) or "trajectory"
    kind = "outcome" if scope == "trajectory" else "process"
    name = text_or_none(attributes.get(keys.EVALUATION_NAME)) or "reward"
    return {
        "reward_id": text_or_none(attributes.get(keys.REWARD_ID))
        or f"{span.trace_id}:{span.span_id}",
        "name": name,
        "value": read_number(attributes.get(keys.EVALUATION_VALUE)),
        "scope": scope,
        "kind": text_or_none(attributes.get(keys.REWARD_KIND)) or kind,
        "source": text_or_none(attributes.get(keys.REWARD_SOURCE)),
        "min": read_number(attributes.get(keys.REWARD_MIN)),
        "max": read_number(attributes.get(keys.REWARD_MAX)),
        "step": _int(attributes.get(keys.REWARD_STEP)),
        "recorded_step": _int(attributes.get(keys.REWARD_STEP)),
        "recorded_task_id": text_or_none(attributes.get(keys.TASK_ID)),
        "signature": text_or_none(attributes.get(keys.REWARD_SIGNATURE)),
        "signed_ns": _int(attributes.get(keys.REWARD_SIGNED_NS)),
        "verifier_digest": text_or_none(attributes.get(keys.REWARD_VERIFIER_DIGEST)),
        "judge_id": text_or_none(attributes.get(keys.REWARD_JUDGE_ID)),
        "judge_prompt_hash": text_or_none(attributes.get(keys.REWARD_JUDGE_PROMPT_HASH)),
        "explanation": text_or_none(attributes.get(keys.EVALUATION_EXPLANATION)),
        "time_ns": span.start_ns,
        "recorded_by_us": span.scope == keys.SCOPE_NAME,
    }


def read_evaluation(event: dict[str, Any], time_ns: int, record: str) -> Columns:
    """Evaluation event on a span of a record kind -> its row of `rewards`."""
    # Anybody may add such an event to a span, so it never counts as recorded by us.
    scope = "trajectory" if record in {"trajectory", "agent"} else "turn"
    name = text_or_none(event.get(keys.EVALUATION_NAME)) or "evaluation"
    return {
        "reward_id": None,
        "name": name,
        "value": read_number(event.get(keys.EVALUATION_VALUE)),
        "scope": scope,
        "kind": "outcome" if scope == "trajectory" else "process",
        "explanation": text_or_none(event.get(keys.EVALUATION_EXPLANATION)),
        "time_ns": time_ns,
        "recorded_by_us": False,
    }


def _finish_reason(attributes: dict[str, Any], output: Output) -> str | None:
    reasons = attributes.get(keys.RESPONSE_FINISH_REASONS)
    if isinstance(reasons, str):
        reasons = read_json(reasons) if reasons.startswith("[") else [reasons]
    if reasons:
        return text_or_none(reasons[0])
    return text_or_none(attributes.get("gen_ai.response.finish_reason")) or output.finish_reason


def _outcome(span: SpanRow, attributes: dict[str, Any]) -> str:
    outcome = attributes.get(keys.STREAM_OUTCOME)
    if outcome in _STREAM_FAILURES:
        return str(outcome)
    error_type = attributes.get(keys.ERROR_TYPE)
    if error_type and "Cancelled" in str(error_type):
        return "cancelled"
    return "error" if span.error is not None or error_type else "ok"


def _error(span: SpanRow, attributes: dict[str, Any]) -> str | None:
    parts = [str(part) for part in (attributes.get(keys.ERROR_TYPE), span.error) if part]
    return ": ".join(parts) or None


def _json_text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else dump_json(value)


def _int(value: Any) -> int | None:
    return value if type(value) is int and -_INT64_MAX <= value <= _INT64_MAX else None


def _step(value: Any) -> int | None:
    step = _int(value)
    if step is not None and not 0 <= step <= _MAX_STEP:
        raise ValueError(f"step {step} is none")
    return step


def _first_int(attributes: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        if name in attributes and (value := _int(attributes[name])) is not None:
            return value
    return None


def read_number(value: Any) -> float | None:
    """Value -> finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


_RUN_COLUMNS: Final = {
    keys.PART: ("part", text_or_none),
    keys.PART_BASE: ("part_base", _int),
    keys.PART_PARENT: ("part_parent", text_or_none),
    keys.PART_AFTER: ("part_after", _int),
    "enduser.id": ("user_id", text_or_none),
    "user.id": ("user_id", text_or_none),
    keys.AGENT_NAME: ("agent_name", text_or_none),
    keys.TASK_ID: ("task_id", text_or_none),
    keys.ATTEMPT: ("attempt", _int),
    keys.SEED: ("seed", _int),
    keys.POLICY_ID: ("policy_id", text_or_none),
    keys.ENVIRONMENT_NAME: ("environment_name", text_or_none),
    keys.ENVIRONMENT_VERSION: ("environment_version", text_or_none),
    keys.COHORT: ("cohort", text_or_none),
    keys.TRAJECTORY_END: ("end", text_or_none),
    keys.TRAJECTORY_NUM_STEPS: ("num_steps", _int),
}
_RUN_KEYS: Final = frozenset(_RUN_COLUMNS)
