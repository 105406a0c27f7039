"""Attributes flattened by index -> nested values, and OpenInference's messages -> GenAI messages.

OpenInference, traceAI and older OpenLLMetry write a list of messages as one attribute per leaf
(`llm.input_messages.0.message.role`). The first two share the form of a message; where they differ
is in the names around it, which each of their modules has as a table.
"""

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from starpo_trace import semconv as keys
from starpo_trace.capture.patches.openai_chat import read_chat_response
from starpo_trace.capture.patches.openai_extra import read_usage
from starpo_trace.capture.patches.openai_items import join_parts, read_items
from starpo_trace.convert.dialects.content import read_json
from starpo_trace.messages import dump_json

Part = dict[str, Any]

_OWN_NAMES: Final = ("starpo.", "gen_ai.", "error.")
"""Names that are read as they are, whoever wrote the span."""
_SYSTEM: Final = "gen_ai.system_instructions"
_LEAF: Final = ""
"""Where a value stands that other attributes go deeper than."""
_TEXT_TYPES: Final = frozenset({"text", "input_text", "output_text", "reasoning"})
_KNOWN_CONTENT: Final = frozenset({"type", "text"})
OPERATION_OF_KIND: Final[Mapping[str, str]] = {
    "LLM": "chat",
    "AGENT": "invoke_agent",
    "CHAIN": "invoke_workflow",
    "TOOL": "execute_tool",
    "RETRIEVER": "retrieval",
    "RERANKER": "retrieval",
    "VECTOR_DB": "retrieval",
    "EMBEDDING": "embeddings",
    "GUARDRAIL": "plan",
    "EVALUATOR": "plan",
    "PROMPT": "plan",
    "CONVERSATION": "invoke_workflow",
    "WORKFLOW": "invoke_workflow",
    "ENTRY": "invoke_workflow",
    "UNKNOWN": "plan",
}
"""Span kinds of OpenInference and traceAI -> GenAI operations; `plan` is a step like any other."""
STEP_KIND_OF_KIND: Final[Mapping[str, str]] = {"GUARDRAIL": "verifier", "EVALUATOR": "verifier"}
_COUNTS: Final = (keys.USAGE_INPUT_TOKENS, keys.USAGE_OUTPUT_TOKENS)
"""What an instrumentor counted comes before what the server's answer says."""
PARAMETERS: Final[Mapping[str, str]] = {
    "temperature": keys.REQUEST_TEMPERATURE,
    "top_p": keys.REQUEST_TOP_P,
    "top_k": keys.REQUEST_TOP_K,
}


def gather(attributes: Mapping[str, Any], prefix: str) -> Any:
    """Attributes below `prefix` -> nested lists and objects; None when there are none.

    Indices are numbers, so that `10` comes after `9`; holes in them close.
    """
    tree: dict[str, Any] = {}
    start = f"{prefix}."
    for name, value in attributes.items():
        if not name.startswith(start):
            continue
        node = tree
        *path, last = name[len(start) :].split(".")
        for step in path:
            below = node.get(step)
            if not isinstance(below, dict):
                below = node[step] = {} if below is None else {_LEAF: below}
            node = below
        if isinstance(node.get(last), dict):
            node[last][_LEAF] = value
        else:
            node[last] = value
    return _close(tree) if tree else None


def _close(node: Any) -> Any:
    """Objects whose names are all numbers -> lists; without recursion deeper than the names are."""
    if not isinstance(node, dict):
        return node
    if all(name.isdigit() for name in node):
        return [_close(node[name]) for name in sorted(node, key=int)]
    return {name: _close(value) for name, value in node.items()}


def translate_span(attributes: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Attributes of OpenInference's kind -> GenAI attributes.

    Args:
        attributes: Of one span.
        names: What the dialect calls `kind`, `input`, `output`, `tools`, `parameters`, and GenAI
            keys -> its names for them.
    """
    kind = str(attributes.get(names["kind"], "UNKNOWN")).upper()
    translated: dict[str, Any] = {
        name: value for name, value in attributes.items() if name.startswith(_OWN_NAMES)
    }
    translated |= {
        own: attributes[name] for own, name in names.items() if "." in own and name in attributes
    }
    translated[keys.OPERATION_NAME] = OPERATION_OF_KIND.get(kind, kind.lower())
    if kind in STEP_KIND_OF_KIND:
        translated[keys.STEP_KIND] = STEP_KIND_OF_KIND[kind]
    if kind == "LLM":
        call = _translate_call(attributes, names)
        said = {key: call.pop(key) for key in _COUNTS if key in call}
        translated = said | translated | call
        if gather(attributes, names["input"]):
            translated.pop(_SYSTEM, None)  # the first message says it
    elif kind == "TOOL":
        translated |= _translate_tool(attributes)
    return {key: value for key, value in translated.items() if value is not None}


def _translate_call(attributes: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    messages = {
        own: [read_message(_get(each, "message")) for each in gather(attributes, name) or ()]
        for own, name in (
            (keys.INPUT_MESSAGES, names["input"]),
            (keys.OUTPUT_MESSAGES, names["output"]),
        )
    }
    _add_texts(attributes, messages)
    output = _read_object(attributes.get("output.value"))
    if output.get("object") == "response":
        messages = _join_items(messages, output)
    translated: dict[str, Any] = {key: dump_json(found) for key, found in messages.items() if found}
    tools = [read_schema(_get(each, "tool")) for each in gather(attributes, names["tools"]) or ()]
    tools = [tool for tool in tools if tool is not None]
    if tools:
        translated[keys.TOOL_DEFINITIONS] = dump_json(tools)
    parameters = _read_object(attributes.get(names["parameters"]))
    translated |= {key: parameters[name] for name, key in PARAMETERS.items() if name in parameters}
    if isinstance(output.get("choices"), list) and not messages[keys.OUTPUT_MESSAGES]:
        messages[keys.OUTPUT_MESSAGES] = list(read_chat_response(output).messages)
        translated[keys.OUTPUT_MESSAGES] = dump_json(messages[keys.OUTPUT_MESSAGES])
    if isinstance(output.get("usage"), dict):
        translated |= read_usage(output["usage"])
    return translated | read_raw_answer(output, messages[keys.OUTPUT_MESSAGES], translated)


def _add_texts(attributes: Mapping[str, Any], messages: dict[str, list[dict[str, Any]]]) -> None:
    """Prompt and answers of a text completion, which are no messages."""
    for key, role, prefix, path in (
        (keys.INPUT_MESSAGES, "user", "llm.prompts", "prompt"),
        (keys.OUTPUT_MESSAGES, "assistant", "llm.choices", "completion"),
    ):
        found = gather(attributes, prefix)
        if found is None:
            found = attributes.get(prefix)
        for each in () if messages[key] or not isinstance(found, list) else found:
            inner = _get(each, path)
            text = inner.get("text") if isinstance(inner, dict) else each
            if isinstance(text, str):
                messages[key].append({"role": role, "parts": [{"type": "text", "content": text}]})


def _join_items(
    messages: Mapping[str, list[dict[str, Any]]], response: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """A call of the Responses API, flattened as a message for each item -> one for each turn.

    Several messages of an answer would be alternatives; and traceAI calls reasoning a text.
    """
    items = response.get("output")
    parts = join_parts(read_items(items)) if isinstance(items, list) else []
    said = [{"role": "assistant", "parts": parts}] if parts else messages[keys.OUTPUT_MESSAGES]
    return {
        keys.INPUT_MESSAGES: _join_turns(messages[keys.INPUT_MESSAGES]),
        keys.OUTPUT_MESSAGES: _join_turns(said),
    }


def _join_turns(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "assistant":
            parts = [*joined[-1]["parts"], *message["parts"]]
            joined[-1] = {**joined[-1], "parts": parts}
        else:
            joined.append(message)
    return joined


def read_raw_answer(
    answer: Mapping[str, Any], messages: Sequence[dict[str, Any]], known: Mapping[str, Any]
) -> dict[str, Any]:
    """A server's answer kept as text -> what the flattened messages lack of it.

    That is a chat completion's reasoning, token ids and log-probabilities (vLLM), arguments word
    for word, and the reason why it ended.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return {}
    choice = choices[0]
    found: dict[str, Any] = {}
    if isinstance(choice.get("finish_reason"), str):
        found[keys.RESPONSE_FINISH_REASONS] = [choice["finish_reason"]]
    for own, value in (
        (keys.PROMPT_TOKEN_IDS, answer.get("prompt_token_ids") or choice.get("prompt_token_ids")),
        (keys.RESPONSE_TOKEN_IDS, choice.get("token_ids")),
        (keys.RESPONSE_LOGPROBS, _read_logprobs(choice.get("logprobs"))),
    ):
        if isinstance(value, list):
            found[own] = dump_json(value)
    said = choice.get("message")
    reasoning = None
    if isinstance(said, dict):
        reasoning = said.get("reasoning_content") or said.get("reasoning")
    if isinstance(reasoning, str) and messages and not _has_reasoning(messages[0]):
        first = {**messages[0], "parts": [{"type": "reasoning", "content": reasoning}]}
        first["parts"] += messages[0]["parts"]
        found[keys.OUTPUT_MESSAGES] = dump_json([first, *messages[1:]])
    return {
        key: value
        for key, value in found.items()
        if key not in known or key == keys.OUTPUT_MESSAGES
    }


def _read_logprobs(logprobs: Any) -> list[Any] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        return None
    return [each.get("logprob") for each in content]


def _has_reasoning(message: Mapping[str, Any]) -> bool:
    return any(part["type"] == "reasoning" for part in message["parts"])


def _translate_tool(attributes: Mapping[str, Any]) -> dict[str, Any]:
    arguments = attributes.get("tool.parameters", attributes.get("input.value"))
    result = attributes.get("output.value")
    call_id = attributes.get("tool_call.id", attributes.get("tool.id"))
    told = _read_object(result)
    if call_id is None and "tool_call_id" in told:  # LangChain's ToolMessage
        call_id = told["tool_call_id"]
        result = told.get("content", result)
    return {
        keys.TOOL_NAME: attributes.get("tool.name", attributes.get("tool_call.function.name")),
        keys.TOOL_CALL_ID: call_id,
        keys.TOOL_CALL_ARGUMENTS: _as_text(arguments),
        keys.TOOL_CALL_RESULT: _as_text(result),
    }


def read_message(message: Any) -> dict[str, Any]:
    """A message of OpenInference's form -> GenAI message.

    Raises:
        TypeError: it is no object.
    """
    if not isinstance(message, dict):
        raise TypeError(f"a message is {type(message).__name__}, no object")
    role = str(message.get("role") or "assistant")
    calls = [_read_call(_get(each, "tool_call")) for each in message.get("tool_calls") or ()]
    parts: list[Part] = []
    if role == "tool" or message.get("tool_call_id") is not None:
        response = message.get("content")
        if response is None:
            found = _read_contents(message, calls)
            texts = [part["content"] for part in found if part["type"] == "text"]
            # An image is part of what the model saw.
            response = "".join(texts) if len(texts) == len(found) else found
        call_id = message.get("tool_call_id")
        parts.append({"type": "tool_call_response", "id": call_id, "response": response})
    else:
        parts += _read_contents(message, calls)
    parts += calls
    if message.get("function_call_name") is not None:
        arguments = message.get("function_call_arguments_json")
        parts.append(_make_call(None, message["function_call_name"], arguments))
    result: dict[str, Any] = {"role": role, "parts": parts}
    if message.get("name") is not None:
        result["name"] = message["name"]
    return result


def _read_contents(message: Mapping[str, Any], calls: list[Part]) -> list[Part]:
    """Content as a text, a list of texts, or parts in order; calls named in it leave `calls`."""
    contents = message.get("contents")
    if not isinstance(contents, list):
        content = message.get("content")
        texts = content if isinstance(content, list) else [content]
        return [{"type": "text", "content": _as_text(text)} for text in texts if text is not None]
    parts: list[Part] = []
    for each in contents:
        content = _get(each, "message_content")
        if not isinstance(content, dict):
            raise TypeError(f"a content is {type(content).__name__}, no object")
        kind = str(content.get("type", "text"))
        if kind == "tool_use":
            parts += _take_call(calls, content.get("id"))
        elif kind in _TEXT_TYPES:
            name = "reasoning" if kind == "reasoning" else "text"
            part: Part = {"type": name, "content": _as_text(content.get("text")) or ""}
            meta = {key: value for key, value in content.items() if key not in _KNOWN_CONTENT}
            parts.append({**part, "meta": meta} if meta else part)
        else:
            parts.append({"type": kind, "raw": content})
    return parts


def _take_call(calls: list[Part], call_id: Any) -> list[Part]:
    found = [call for call in calls if call["id"] == call_id][:1]
    for call in found:
        calls.remove(call)
    return found


def _read_call(call: Any) -> Part:
    function = _get(call, "function")
    function = function if isinstance(function, dict) else {}
    part = _make_call(_get(call, "id"), function.get("name"), function.get("arguments"))
    signature = call.get("reasoning_signature") if isinstance(call, dict) else None
    return part if signature is None else {**part, "meta": {"signature": signature}}


def _make_call(call_id: Any, name: Any, arguments: Any) -> Part:
    return {
        "type": "tool_call",
        "id": call_id,
        "name": name,
        "arguments": "" if arguments is None else _as_text(arguments),
    }


def read_schema(tool: Any) -> Any:
    """A tool as `{"json_schema": text}` or by itself -> its definition; None for none."""
    schema = tool.get("json_schema", tool) if isinstance(tool, dict) else tool
    try:
        return read_json(schema)
    except ValueError:
        return schema


def _read_object(value: Any) -> dict[str, Any]:
    """JSON text -> the object it holds, also as Python prints one; `{}` for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        is_printed = value.startswith("{'")  # traceAI, of the Responses API
        try:
            value = ast.literal_eval(value) if is_printed else read_json(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return {}
    return value if isinstance(value, dict) else {}


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
