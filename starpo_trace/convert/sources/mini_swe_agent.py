"""mini-swe-agent's `.traj.json` files -> runs.

`messages` is the chat as it was sent; what the provider answered (reasoning, usage, model) stands
beside each answer under `extra`. An action in the text of an answer stays text.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources.chats import (
    add_tool_result,
    index_calls,
    read_message,
    read_usage,
)
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.runfolders import name_run, name_trajectory
from starpo_trace.convert.sources.runids import hash_content
from starpo_trace.convert.sources.runs import Answer, RunFacts, RunWriter, read_each

FORM: Final = "mini-swe-agent"

_ENDS: Final = {
    "Submitted": "terminated",
    "LimitsExceeded": "truncated",
    "ContextWindowExceededError": "truncated",
    "TimeExceeded": "truncated",
    "UserInterruption": "abandoned",
    "KeyboardInterrupt": "abandoned",
}


def is_run(value: Any) -> bool:
    """Whether a document is such a file."""
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return False
    info = value.get("info")
    is_named = str(value.get("trajectory_format", "")).startswith(FORM)
    return is_named or (isinstance(info, dict) and "mini_version" in info)


def read_run(value: Any, file: SourceFile) -> Iterator[SpanRow | MalformedSpan]:
    """One file -> the spans of its run."""
    yield from read_each([value], lambda run: _read_run(run, file), source=file.source, what="run")


def _read_run(run: Mapping[str, Any], file: SourceFile) -> list[SpanRow]:
    info = run.get("info") or {}
    model = (info.get("config") or {}).get("model") or {}
    path = file.path
    instance = str(run.get("instance_id") or path.name.partition(".traj")[0])
    name = name_run(path.parent, instance)
    status = info.get("exit_status")
    facts = RunFacts(
        form=FORM,
        key=(name, instance, hash_content(run)),
        trajectory_id=name_trajectory(name, instance),
        task_id=instance,
        policy_id=model.get("model_name"),
        environment_name=FORM,
        environment_version=info.get("mini_version"),
        agent_name=FORM,
        end=_ENDS.get(status, "error") if status else "unknown",
        end_reason=status or None,
    )
    writer = RunWriter(facts, file.source)
    kwargs = model.get("model_kwargs") or {}
    sampling = {
        semconv.REQUEST_TEMPERATURE: kwargs.get("temperature"),
        semconv.REQUEST_TOP_P: kwargs.get("top_p"),
        semconv.REQUEST_MAX_TOKENS: kwargs.get("max_tokens"),
    }
    _write_messages(writer, run["messages"], sampling)
    return writer.build()


def _write_messages(writer: RunWriter, messages: list[Any], sampling: dict[str, Any]) -> None:
    calls: dict[str | None, dict[str, Any]] = {}
    for each in messages:
        message = read_message(each)
        if message["role"] == "assistant":
            answer = _read_answer(each, sampling)
            writer.answer(answer)
            index_calls(answer.message or message, calls)
        elif message["role"] == "tool":
            add_tool_result(writer, message, calls)
        else:
            writer.see([message])


def _read_answer(message: Mapping[str, Any], sampling: dict[str, Any]) -> Answer:
    """Answer and the provider's reply that is kept beside it."""
    extra = message.get("extra")
    response = extra.get("response") if isinstance(extra, Mapping) else None
    if not isinstance(response, Mapping):
        return Answer(message=read_message(message), attributes=sampling)
    choice = (response.get("choices") or [{}])[0]
    replied = choice.get("message") or {}
    reasoning = {
        name: replied[name]
        for name in ("reasoning_content", "reasoning")
        if isinstance(replied.get(name), str)
    }
    reason, created = choice.get("finish_reason"), response.get("created")
    return Answer(
        message=read_message({**reasoning, **message}),
        attributes={
            **sampling,
            semconv.RESPONSE_ID: response.get("id"),
            semconv.RESPONSE_MODEL: response.get("model"),
            semconv.RESPONSE_FINISH_REASONS: None if reason is None else (reason,),
            **read_usage(response.get("usage")),
        },
        started_ns=int(created * 10**9) if isinstance(created, int | float) else None,
    )
