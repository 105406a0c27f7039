"""Span of LangSmith's OpenTelemetry exporter -> canonical span, through GenAI attributes.

`gen_ai.prompt` and `gen_ai.completion` are no beginnings of names here but hold a run's whole inputs
and outputs as JSON: what the SDK was called with (OpenAI, Anthropic), or LangChain's serialised
messages. `langsmith.trace.session_name` is the project, no conversation.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects import genai
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.dialects.flattened import PARAMETERS, read_raw_answer
from starpo_trace.convert.dialects.plainmessages import read_plain_message
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.messages import dump_json

_KIND: Final = "langsmith.span.kind"
_NAME: Final = "langsmith.trace.name"
_INPUTS: Final = "gen_ai.prompt"
_OUTPUTS: Final = "gen_ai.completion"
_OPERATION_OF_KIND: Final = {
    "llm": "chat",
    "chain": "invoke_workflow",
    "tool": "execute_tool",
    "retriever": "retrieval",
    "embedding": "embeddings",
    "prompt": "plan",
    "parser": "plan",
}
_CONVERSATIONS: Final = tuple(
    f"langsmith.metadata.{name}" for name in ("session_id", "conversation_id", "thread_id")
)
_PARAMETERS_OF_METADATA: Final = {
    keys.REQUEST_TEMPERATURE: "langsmith.metadata.ls_temperature",
}


def matches(span: SpanRow) -> bool:
    """Whether the span has LangSmith's kind."""
    return _KIND in span.attributes


def convert(span: SpanRow) -> CanonicalSpan | Rejection:
    """LangSmith span -> canonical span.

    Raises:
        ValueError, TypeError: an attribute has a value that cannot be read.
    """
    attributes = dict(span.attributes)
    kind = str(attributes[_KIND])
    operation = _OPERATION_OF_KIND.get(kind, kind)
    attributes[keys.OPERATION_NAME] = operation
    conversation = next((attributes[name] for name in _CONVERSATIONS if name in attributes), None)
    if conversation is not None:
        attributes.setdefault(keys.CONVERSATION_ID, conversation)
    for own, name in _PARAMETERS_OF_METADATA.items():
        if name in attributes:
            attributes.setdefault(own, attributes[name])
    if operation == "invoke_workflow":
        attributes.setdefault(keys.AGENT_NAME, attributes.get(_NAME))
    elif operation == "execute_tool":
        attributes.setdefault(keys.TOOL_CALL_ARGUMENTS, attributes.get(_INPUTS))
        attributes.setdefault(keys.TOOL_CALL_RESULT, attributes.get(_OUTPUTS))
    elif operation == "chat":
        found = _read_call(_load(attributes.get(_INPUTS)), _load(attributes.get(_OUTPUTS)))
        attributes = {**found, **attributes}
    return genai.convert(replace(span, attributes=attributes))


def _load(value: Any) -> dict[str, Any]:
    """JSON text of an object; what else there is stands under `""`.

    Raises:
        ValueError: it is no JSON.
    """
    if value is None:
        return {}
    found = read_json(value)
    return found if isinstance(found, dict) else {"": found}


def _read_call(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    prompt = [read_plain_message(each, "user") for each in _list_prompt(inputs)]
    said = [read_plain_message(each, "assistant") for each in _list_answers(outputs)]
    system = inputs.get("system")
    if system is not None:  # Anthropic's
        prompt = [read_plain_message({"content": system}, "system"), *prompt]
    found: dict[str, Any] = {}
    if prompt:
        found[keys.INPUT_MESSAGES] = dump_json(prompt)
    if said:
        found[keys.OUTPUT_MESSAGES] = dump_json(said)
    if isinstance(inputs.get("tools"), list):
        found[keys.TOOL_DEFINITIONS] = dump_json(inputs["tools"])
    found |= {key: inputs[name] for name, key in PARAMETERS.items() if name in inputs}
    return found | read_raw_answer(outputs, said, found)


def _list_prompt(inputs: Mapping[str, Any]) -> list[Any]:
    """Messages of the inputs: OpenAI's, or LangChain's list of lists; also a plain prompt."""
    messages = inputs.get("messages")
    if isinstance(messages, list):
        return messages[0] if messages and isinstance(messages[0], list) else messages
    prompts = inputs.get("prompts", inputs.get("prompt", inputs.get("input")))
    prompts = prompts if isinstance(prompts, list) else [prompts]
    return [each if isinstance(each, dict) else {"content": each} for each in prompts if each]


def _list_answers(outputs: Mapping[str, Any]) -> list[Any]:
    choices = outputs.get("choices")
    if isinstance(choices, list):
        return [_answer_of(each) for each in choices]
    generations = outputs.get("generations")
    if isinstance(generations, list):  # LangChain: for each prompt its alternatives
        first = generations[0] if generations and isinstance(generations[0], list) else generations
        return [_answer_of(each) for each in first]
    whole = outputs.get("message", outputs.get("output", outputs.get("", outputs)))
    if isinstance(whole, str):
        return [{"content": whole}]
    if isinstance(whole, list):
        return whole
    is_message = isinstance(whole, dict) and not {"content", "kwargs", "tool_calls"}.isdisjoint(
        whole
    )
    return [whole] if is_message else []


def _answer_of(choice: Any) -> Any:
    if not isinstance(choice, dict):
        raise TypeError(f"an answer is {type(choice).__name__}, no object")
    said = choice.get("message")
    if not isinstance(said, dict):
        return {"content": choice.get("text")}
    reason = choice.get("finish_reason")
    return said if reason is None else {**said, "finish_reason": reason}
