"""Documents of the Agent Trajectory Interchange Format (ATIF, 1.0 to 1.8) -> span rows.

A document is an agent's span with a span for each of its model calls, as another library would have
recorded them: ATIF numbers no steps and anybody can write one, so its rewards count for nothing. A
step of the agent that was copied from another trajectory, or that no model gave, is read as history.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.convert.otlp import MAX_TIME_NS, DecodeError, SpanRow, describe_fault
from starpo_trace.mergepatch import dump_canonical
from starpo_trace.messages import Message, dump_json, extend_chain

_SCOPE: Final = "atif"
_ROLES: Final = {"system": "system", "user": "user", "agent": "assistant"}
_EVENT: Final = "gen_ai.evaluation.result"
_MAX_DEPTH: Final = 20
_IDENTITY: Final = {
    "task_id": keys.TASK_ID,
    "attempt": keys.ATTEMPT,
    "seed": keys.SEED,
    "policy_id": keys.POLICY_ID,
    "environment_name": keys.ENVIRONMENT_NAME,
    "environment_version": keys.ENVIRONMENT_VERSION,
    "cohort": keys.COHORT,
    "conversation_id": keys.CONVERSATION_ID,
}
"""What `starpo-trace write` puts under `extra` -> our keys."""


def holds_atif(value: Any) -> bool:
    """Whether a JSON value is such a document."""
    return isinstance(value, dict) and str(value.get("schema_version", "")).startswith("ATIF-")


def read_atif(document: dict[str, Any], source: str) -> Iterator[SpanRow]:
    """Document and where it was found -> its spans.

    Raises:
        DecodeError: a field is not what the format says, or it is nested too deeply.
    """
    try:
        digest = blake2b(dump_canonical(document), digest_size=16).hexdigest()
        trajectory = document.get("trajectory_id") or document.get("session_id") or digest
        reader = _Reader(source=source, trace_id=digest, trajectory_id=str(trajectory))
        return iter(reader.read(document, None, 0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"ATIF document: {describe_fault(error)}") from error


@dataclass(slots=True, kw_only=True)
class _Reader:
    """One file's document on its way to spans."""

    source: str
    """Where it was found."""
    trace_id: str
    """Its trace, a hash of the document."""
    trajectory_id: str
    """The trajectory of all its spans."""
    num_spans: int = 0
    """Spans so far, of which their ids are made."""
    rows: list[SpanRow] = field(default_factory=list)
    """The spans."""

    def read(self, document: dict[str, Any], parent: str | None, depth: int) -> list[SpanRow]:
        """A document, or one that another embeds -> the spans of both."""
        if depth > _MAX_DEPTH:
            raise RecursionError
        extra, agent = document.get("extra") or {}, document["agent"]
        steps = document["steps"]
        times = [at for step in steps if (at := _read_time(step.get("timestamp")))]
        span_id = self._make_id()
        attributes = {
            keys.OPERATION_NAME: "invoke_agent",
            keys.AGENT_NAME: agent.get("name"),
            **{key: extra.get(name) for name, key in _IDENTITY.items()},
        }
        start_ns = min(times, default=0)
        self._add(
            attributes,
            span_id=span_id,
            parent_id=parent,
            name=f"invoke_agent {agent.get('name')}",
            start_ns=start_ns,
            end_ns=max(times, default=0) or None,
            events=tuple(_read_rewards(extra, start_ns)),
        )
        self._read_steps(document, span_id)
        for each in document.get("subagent_trajectories") or ():
            self.read(each, span_id, depth + 1)
        return self.rows

    def _read_steps(self, document: dict[str, Any], parent: str) -> None:
        agent = document["agent"]
        tools = agent.get("tool_definitions")
        common = {keys.TOOL_DEFINITIONS: dump_json(tools) if tools else None}
        new: list[Message] = []
        base, length = b"", 0
        for step in document["steps"]:
            message = _read_message(step)
            if _is_call(step):
                chain = base
                for each in new:
                    chain = extend_chain(chain, each)
                start_ns = _read_time(step.get("timestamp"))
                model = step.get("model_name") or agent.get("model_name")
                history = _describe_history(new, base, length, chain)
                self._add(
                    {**common, **history, **_describe_call(step, message, model)},
                    span_id=self._make_id(),
                    parent_id=parent,
                    name="chat" if model is None else f"chat {model}",
                    start_ns=start_ns,
                    end_ns=start_ns or None,
                )
                base, length, new = extend_chain(chain, message), length + len(new) + 1, []
            else:
                new.append(message)
            new += _read_observation(step)

    def _add(self, attributes: dict[str, Any], **fields: Any) -> None:
        given = {keys.TRAJECTORY_ID: self.trajectory_id, **attributes}
        self.rows.append(
            SpanRow(
                source=self.source,
                trace_id=self.trace_id,
                scope=_SCOPE,
                attributes={key: value for key, value in given.items() if value is not None},
                **fields,
            )
        )

    def _make_id(self) -> str:
        self.num_spans += 1
        return f"{self.num_spans:016x}"


def _is_call(step: dict[str, Any]) -> bool:
    return (
        step["source"] == "agent"
        and step.get("is_copied_context") is not True
        and step.get("llm_call_count") != 0
    )


def _read_message(step: dict[str, Any]) -> Message:
    """A step -> the message that it is, without the observation."""
    parts: list[dict[str, Any]] = []
    if step.get("reasoning_content") is not None:
        parts.append({"type": "reasoning", "content": step["reasoning_content"]})
    calls = step.get("tool_calls") or ()
    content = step["message"]
    if content != "" or not calls:
        parts += _read_content(content)
    for call in calls:
        text = (call.get("extra") or {}).get("arguments_text")
        arguments = dump_json(call["arguments"]) if text is None else text
        parts.append(
            {
                "type": "tool_call",
                "id": call["tool_call_id"],
                "name": call["function_name"],
                "arguments": arguments,
            }
        )
    return {"role": _ROLES[step["source"]], "parts": parts}


def _read_content(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [_read_part(part) for part in content]


def _read_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "content": part["text"]}
    source = part["source"]
    return {
        "type": "uri",
        "modality": part["type"],
        "mime_type": source["media_type"],
        "uri": source["path"],
    }


def _read_observation(step: dict[str, Any]) -> list[Message]:
    """What a step brought about -> a tool's message for each result; a user's without a call."""
    messages: list[Message] = []
    for result in (step.get("observation") or {}).get("results") or ():
        content, call = result.get("content"), result.get("source_call_id")
        if call is not None:
            response = _read_content(content) if isinstance(content, list) else content
            part = {"type": "tool_call_response", "id": call, "response": response}
            messages.append({"role": "tool", "parts": [part]})
        elif content is not None:
            messages.append({"role": "user", "parts": _read_content(content)})
    return messages


def _describe_history(new: list[Message], base: bytes, length: int, chain: bytes) -> dict[str, Any]:
    return {
        keys.HISTORY_MODE: "delta",
        keys.HISTORY_BASE: base.hex() or None,
        keys.HISTORY_BASE_LENGTH: length or None,
        keys.HISTORY_HASH: chain.hex() or None,
        keys.HISTORY_LENGTH: length + len(new),
        keys.INPUT_MESSAGES: dump_json(new),
    }


def _describe_call(step: dict[str, Any], message: Message, model: Any) -> dict[str, Any]:
    metrics = step.get("metrics") or {}
    extra = step.get("extra") or {}
    reason = extra.get("finish_reason")
    return {
        keys.OPERATION_NAME: "chat",
        keys.STEP_KIND: extra.get("step_kind"),
        keys.REQUEST_MODEL: model,
        keys.OUTPUT_MESSAGES: dump_json([message]),
        keys.RESPONSE_FINISH_REASONS: None if reason is None else [reason],
        keys.USAGE_INPUT_TOKENS: metrics.get("prompt_tokens"),
        keys.USAGE_OUTPUT_TOKENS: metrics.get("completion_tokens"),
        keys.PROMPT_TOKEN_IDS: _dump(metrics.get("prompt_token_ids")),
        keys.RESPONSE_TOKEN_IDS: _dump(metrics.get("completion_token_ids")),
        keys.RESPONSE_LOGPROBS: _dump(metrics.get("logprobs")),
    }


def _dump(numbers: Any) -> str | None:
    return None if numbers is None else dump_json(numbers)


def _read_rewards(extra: dict[str, Any], time_ns: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for each in extra.get("rewards") or ():
        attributes = {
            keys.EVALUATION_NAME: each.get("name"),
            keys.EVALUATION_VALUE: each.get("value"),
            keys.EVALUATION_EXPLANATION: each.get("explanation"),
        }
        yield _EVENT, time_ns, attributes


def _read_time(text: Any) -> int:
    """ISO 8601 (UTC where it names no zone) -> Unix time in ns; 0 for none."""
    if text is None:
        return 0
    at = datetime.fromisoformat(text)
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.fromtimestamp(0, UTC)
    whole = since.days * 86_400 + since.seconds
    return min(max(whole * 1_000_000_000 + since.microseconds * 1000, 0), MAX_TIME_NS)
