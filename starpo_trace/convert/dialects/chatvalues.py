"""What a model was given and gave, as a backend keeps it -> GenAI attributes.

A request or an answer of a provider's API, a list of messages, one message, or a text. A value of
another form says nothing of what the model saw, so it gives no messages: nothing is made up.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.patches import anthropic_messages
from starpo_trace.capture.patches.google_genai_content import read_contents, read_system, read_turn
from starpo_trace.capture.patches.openai_chat import read_chat_response
from starpo_trace.capture.patches.openai_extra import read_usage
from starpo_trace.capture.patches.openai_items import join_parts, read_items
from starpo_trace.convert.dialects.chatforms import is_message, is_tool_definition, read_messages
from starpo_trace.convert.dialects.flattened import PARAMETERS
from starpo_trace.messages import Message, dump_json

_WRAPPERS: Final = ("messages", "input", "contents", "prompt")
"""Fields of a request that hold the prompt."""


def translate_exchange(given: Any, gave: Any) -> dict[str, Any]:
    """Input and output of a call of a model -> GenAI attributes."""
    translated: dict[str, Any] = {}
    if (messages := read_prompt(given)) is not None:
        translated[keys.INPUT_MESSAGES] = dump_json(messages)
    tools = find_tools(given)
    if tools:
        translated[keys.TOOL_DEFINITIONS] = dump_json(tools)
    if isinstance(given, Mapping):
        if isinstance(given.get("model"), str):
            translated[keys.REQUEST_MODEL] = given["model"]
        translated |= {
            key: given[name] for name, key in PARAMETERS.items() if given.get(name) is not None
        }
    answer = read_answer(gave)
    return translated if answer is None else translated | _translate_answer(answer)


def _translate_answer(answer: LLMResponse) -> dict[str, Any]:
    found = {
        keys.OUTPUT_MESSAGES: list(answer.messages) or None,
        keys.PROMPT_TOKEN_IDS: answer.prompt_token_ids,
        keys.RESPONSE_TOKEN_IDS: answer.response_token_ids,
        keys.RESPONSE_LOGPROBS: answer.response_logprobs,
    }
    translated: dict[str, Any] = {
        key: dump_json(value) for key, value in found.items() if value is not None
    }
    if answer.finish_reasons:
        translated[keys.RESPONSE_FINISH_REASONS] = list(answer.finish_reasons)
    if answer.model:
        translated[keys.RESPONSE_MODEL] = answer.model
    return translated | dict(answer.usage or {})


def read_prompt(value: Any) -> list[Message] | None:
    """Input of a call -> messages; None where it does not tell what the model saw."""
    if isinstance(value, str):
        return [{"role": "user", "parts": [{"type": "text", "content": value}]}] if value else None
    if isinstance(value, list):
        return _read_list(value)
    if not isinstance(value, Mapping):
        return None
    if is_message(value):
        return read_messages([value])
    name = next((name for name in _WRAPPERS if value.get(name)), None)
    if name is None:
        return None
    held = value[name]
    if name == "contents" and not isinstance(held, str):
        messages: list[Message] | None = read_contents(held)
    else:
        messages = read_prompt(held)
    system = _find_system(value)
    return None if messages is None else [*system, *messages]


def _find_system(request: Mapping[str, Any]) -> list[Message]:
    """System instructions that stand beside the messages."""
    config = request.get("config")
    holders = [request, config] if isinstance(config, Mapping) else [request]
    for holder in holders:
        for name in ("system", "instructions", "system_instruction", "systemInstruction"):
            found = holder.get(name)
            if not found:
                continue
            if name == "system" and isinstance(found, list):
                return anthropic_messages.read_message({"role": "system", "content": found})
            if isinstance(found, str | Mapping):
                return read_system(found)
    return []


def _read_list(values: list[Any]) -> list[Message] | None:
    if len(values) == 1 and isinstance(values[0], list):  # LangChain's batch of one
        values = values[0]
    messages = [value for value in values if not is_tool_definition(value)]
    if not messages or not all(is_message(value) for value in messages):
        return None
    return read_messages(messages)


def find_tools(value: Any) -> list[Any] | None:
    """Definitions of tools in a request, or among its messages."""
    if isinstance(value, Mapping):
        tools = value.get("tools") or value.get("functions")
        if isinstance(tools, list):
            return tools
        return find_tools(value.get("messages"))
    if isinstance(value, list):
        return [each["content"] for each in value if is_tool_definition(each)] or None
    return None


def read_answer(value: Any) -> LLMResponse | None:
    """Output of a call -> answer; None where it does not tell what the model said."""
    if isinstance(value, str):
        part = {"type": "text", "content": value}
        return LLMResponse(messages=[{"role": "assistant", "parts": [part]}]) if value else None
    if isinstance(value, list):
        messages = _read_list(value)
        return None if messages is None else LLMResponse(messages=_as_answers(messages))
    if not isinstance(value, Mapping):
        return None
    for name, kind, read in _ANSWERS:
        if isinstance(value.get(name), kind) and (answer := read(value)) is not None:
            return answer
    return LLMResponse(messages=_as_answers(read_messages([value]))) if is_message(value) else None


def _as_answers(messages: list[Message]) -> list[Message]:
    """Messages of an output that the assistant said; the others were there before."""
    said = [message for message in messages if message["role"] == "assistant"]
    return said[-1:]


def _read_candidates(candidates: list[Any]) -> LLMResponse:
    contents = [each.get("content") or {} for each in candidates if isinstance(each, Mapping)]
    return LLMResponse(
        messages=[
            {"role": "assistant", "parts": read_turn(content.get("parts") or ())}
            for content in contents
        ],
        finish_reasons=[
            str(each["finishReason"])
            for each in candidates
            if isinstance(each, Mapping) and each.get("finishReason")
        ],
    )


def _read_generations(generations: list[Any]) -> LLMResponse | None:
    """LangChain's `LLMResult`: alternatives of each prompt of a batch."""
    first = generations[0] if generations else None
    first = first[0] if isinstance(first, list) and first else first
    if not isinstance(first, Mapping):
        return None
    return read_answer(first.get("message") or first.get("text"))


def _read_response(value: Mapping[str, Any]) -> LLMResponse | None:
    """An answer of the Responses API."""
    if value.get("object") != "response":
        return None
    parts = join_parts(read_items(value["output"]))
    return LLMResponse(
        model=value.get("model"),
        messages=[{"role": "assistant", "parts": parts}],
        usage=read_usage(value.get("usage")),
    )


def _read_anthropic(value: Mapping[str, Any]) -> LLMResponse | None:
    is_answer = value.get("type") == "message"
    return anthropic_messages.read_messages_response(value) if is_answer else None


_ANSWERS: Final[tuple[tuple[str, type, Callable[[Mapping[str, Any]], LLMResponse | None]], ...]] = (
    ("choices", list, read_chat_response),
    ("output", list, _read_response),
    ("content", list, _read_anthropic),
    ("candidates", list, lambda value: _read_candidates(value["candidates"])),
    ("generations", list, lambda value: _read_generations(value["generations"])),
    ("content", dict, lambda value: read_answer(value["content"])),  # of ADK
    ("messages", list, lambda value: read_answer(value["messages"])),
)
"""Field that an answer of some API has, its type, and who reads it; None: it is none of that API."""
