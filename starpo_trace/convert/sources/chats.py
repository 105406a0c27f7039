"""OpenAI chat messages, as benchmarks store them -> the calls, tools and observations of a run."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.convert.sources.runs import Answer, RunWriter
from starpo_trace.messages import Message, from_openai_chat

_FIELDS: Final = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"}
    | {"refusal", "function_call"}
)
_USAGE: Final = {
    semconv.USAGE_INPUT_TOKENS: ("prompt_tokens", "input_tokens"),
    semconv.USAGE_OUTPUT_TOKENS: ("completion_tokens", "output_tokens"),
}
_USAGE_DETAILS: Final = {
    semconv.USAGE_CACHE_READ_TOKENS: ("prompt_tokens_details", "cached_tokens"),
    semconv.USAGE_REASONING_TOKENS: ("completion_tokens_details", "reasoning_tokens"),
}


def read_message(message: Any) -> Message:
    """Chat message with whatever a program keeps beside it -> GenAI message.

    Raises:
        TypeError, AttributeError: it is none.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TypeError(f"a message is no object with a role, but {_describe(message)}")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise TypeError(f"a message's content is {_describe(content)}")
    fields = {name: value for name, value in message.items() if name in _FIELDS}
    return from_openai_chat(fields)


def read_usage(usage: Any) -> dict[str, int | None]:
    """OpenAI's usage object -> attributes; nothing where there is none."""
    if not isinstance(usage, Mapping):
        return {}
    found = {
        key: next((usage[name] for name in names if name in usage), None)
        for key, names in _USAGE.items()
    }
    for key, (part, name) in _USAGE_DETAILS.items():
        details = usage.get(part)
        found[key] = details.get(name) if isinstance(details, Mapping) else None
    return found


def index_calls(message: Message, known: dict[str | None, dict[str, Any]]) -> None:
    """Remember the calls of an answer by their ids."""
    known.update((part["id"], part) for part in message["parts"] if part["type"] == "tool_call")


def add_tool_result(
    writer: RunWriter, message: Message, known: Mapping[str | None, Mapping[str, Any]]
) -> None:
    """Message of a tool -> a step for each result, then seen by the model."""
    for part in message["parts"]:
        if part["type"] == "tool_call_response":
            call = known.get(part["id"], {})
            writer.tool_step(
                call.get("name") or message.get("name"),
                call_id=part["id"],
                arguments=call.get("arguments"),
                result=part["response"],
            )
    writer.see([message])


def write_chat(writer: RunWriter, messages: Iterable[Any]) -> None:
    """Chat of one model with its tools -> the run's calls, steps and observations.

    Raises:
        TypeError, AttributeError: a message is none.
    """
    known: dict[str | None, dict[str, Any]] = {}
    for each in messages:
        message = read_message(each)
        if message["role"] == "assistant":
            writer.answer(Answer(message=message))
            index_calls(message, known)
        elif message["role"] == "tool":
            add_tool_result(writer, message, known)
        else:
            writer.see([message])


def _describe(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
