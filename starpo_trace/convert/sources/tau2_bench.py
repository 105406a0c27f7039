"""tau2-bench's result files -> runs.

A file is one document: `info` of the model and the domain, and `simulations`, each with `messages`
between agent, user and their tools. The agent's system prompt is no message of it, so no prompt has
one. Tools that the simulated user calls are steps that the agent does not see.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources.chats import index_calls, read_message, read_usage
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.isotimes import read_time
from starpo_trace.convert.sources.runids import hash_content
from starpo_trace.convert.sources.runs import Answer, RunFacts, RunWriter, read_each
from starpo_trace.convert.sources.verdicts import Verdict
from starpo_trace.messages import Message, dump_json

FORM: Final = "tau2-bench"

_ENDS: Final = {
    "user_stop": "terminated",
    "agent_stop": "terminated",
    "max_steps": "truncated",
    "timeout": "truncated",
    "too_many_errors": "truncated",
    "context_window_exceeded": "truncated",
    "agent_error": "error",
    "user_error": "error",
    "infrastructure_error": "error",
    "unexpected_error": "error",
}


def holds_runs(value: Any) -> bool:
    """Whether a document is a result file."""
    if not isinstance(value, dict) or not isinstance(value.get("simulations"), list):
        return False
    info = value.get("info")
    return isinstance(info, dict) and "agent_info" in info and "environment_info" in info


def read_runs(value: Any, file: SourceFile) -> Iterator[SpanRow | MalformedSpan]:
    """Result file -> the spans of its runs."""
    info, source = value["info"], file.source
    yield from read_each(
        value["simulations"],
        lambda run: _read_run(run, info, source),
        source=source,
        what="simulation",
    )


def _read_run(run: Mapping[str, Any], info: Mapping[str, Any], source: str) -> list[SpanRow]:
    messages = run["messages"]
    if not isinstance(messages, list):
        raise TypeError("it has no list `messages`; runs by voice (`ticks`) are not read")
    domain = info["environment_info"].get("domain_name")
    agent, reason = info["agent_info"], run.get("termination_reason")
    facts = RunFacts(
        form=FORM,
        key=(agent.get("llm"), domain, hash_content(run)),
        task_id=f"{domain}/{run['task_id']}",
        attempt=run.get("trial"),
        seed=run.get("seed"),
        policy_id=agent.get("llm"),
        environment_name=f"{FORM} {domain}",
        environment_version=info.get("git_commit"),
        agent_name=agent.get("implementation"),
        end=_ENDS.get(str(reason), "unknown"),
        end_reason=reason,
        started_ns=read_time(run.get("start_time")),
        ended_ns=read_time(run.get("end_time")),
    )
    writer = RunWriter(facts, source)
    llm_args = agent.get("llm_args") or {}
    _write_messages(writer, messages, {semconv.REQUEST_TEMPERATURE: llm_args.get("temperature")})
    reward = run.get("reward_info")
    if isinstance(reward, Mapping):
        writer.reward(Verdict(value=reward["reward"], low=0.0, high=1.0))
    return writer.build()


def _write_messages(writer: RunWriter, messages: list[Any], sampling: dict[str, Any]) -> None:
    calls: dict[str | None, dict[str, Any]] = {}
    for number, item in enumerate(_flatten(messages)):
        message = _convert(item)
        is_users = item.get("requestor") == "user"
        if item["role"] == "assistant" and not (number == 0 and _is_greeting(item)):
            writer.answer(_make_answer(item, message, sampling))
            index_calls(message, calls)
        elif item["role"] == "tool":
            _write_result(writer, item, message, calls, is_users=is_users)
        elif item["role"] == "user" and item.get("tool_calls"):
            index_calls(message, calls)
        else:
            writer.see([message])


def _write_result(
    writer: RunWriter,
    item: Mapping[str, Any],
    message: Message,
    calls: Mapping[str | None, Mapping[str, Any]],
    *,
    is_users: bool,
) -> None:
    call = calls.get(item.get("id"), {})
    writer.tool_step(
        call.get("name"),
        call_id=item.get("id"),
        arguments=call.get("arguments"),
        result=item.get("content"),
        kind="other" if is_users else "tool",
        error="error" if item.get("error") else None,
        started_ns=read_time(item.get("timestamp")),
    )
    if not is_users:
        writer.see([message])


def _flatten(messages: list[Any]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        several = message.get("tool_messages")
        yield from several if isinstance(several, list) else [message]


def _is_greeting(item: Mapping[str, Any]) -> bool:
    """Whether a first message is the fixed one that no model made."""
    return not item.get("usage") and not item.get("raw_data") and not item.get("tool_calls")


def _convert(item: Mapping[str, Any]) -> Message:
    """tau2's message -> GenAI message; arguments as the model wrote them where that was kept."""
    replied = _read_reply(item)
    written = {
        call["id"]: call["function"]["arguments"]
        for call in replied.get("tool_calls") or ()
        if isinstance(call["function"]["arguments"], str)
    }
    fields: dict[str, Any] = {"role": item["role"], "content": item.get("content")}
    if item["role"] == "tool":
        fields["tool_call_id"] = item.get("id")
    if isinstance(replied.get("reasoning_content"), str):
        fields["reasoning_content"] = replied["reasoning_content"]
    if item.get("tool_calls"):
        fields["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": written.get(call.get("id")) or dump_json(call["arguments"]),
                },
            }
            for call in item["tool_calls"]
        ]
    return read_message(fields)


def _read_reply(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The provider's own message, where tau2 kept it."""
    message = _read_choice(item).get("message")
    return message if isinstance(message, Mapping) else {}


def _read_choice(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the provider answered: a choice, or a response with one."""
    raw = item.get("raw_data")
    if not isinstance(raw, Mapping):
        return {}
    choices = raw.get("choices")
    return choices[0] if isinstance(choices, list) and choices else raw


def _make_answer(item: Mapping[str, Any], message: Message, sampling: dict[str, Any]) -> Answer:
    reason = _read_choice(item).get("finish_reason")
    attributes = {
        **sampling,
        semconv.RESPONSE_FINISH_REASONS: None if reason is None else (reason,),
        **read_usage(item.get("usage")),
    }
    return Answer(
        message=message, attributes=attributes, started_ns=read_time(item.get("timestamp"))
    )
