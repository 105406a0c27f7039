"""OpenAI Responses requests, answers and events -> `LLMRequest` and `LLMResponse`."""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_chat import read_parameters
from starpo_trace.capture.patches.openai_extra import add_extra, read_usage
from starpo_trace.capture.patches.openai_items import join_parts, read_items
from starpo_trace.capture.patches.plain import get_fields, to_plain
from starpo_trace.messages import Message, dump_json

_RECORDED_ELSEWHERE: Final = frozenset(
    {"model", "input", "instructions", "tools", "stream", "previous_response_id", "conversation"}
)
_ANSWER_FIELDS: Final = frozenset(
    {
        *("id", "object", "created_at", "completed_at", "model", "output", "status", "error"),
        *("incomplete_details", "usage", "conversation", "previous_response_id", "output_text"),
        *("instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "prompt"),
        *("metadata", "store", "background", "truncation", "top_logprobs", "user"),
        *("max_output_tokens", "max_tool_calls", "include", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""What is recorded elsewhere, or repeats the request; the sampling that was used does neither."""
_UNFINISHED: Final = frozenset({None, "queued", "in_progress"})
_MAX_REMEMBERED: Final = 4096

_instructions: OrderedDict[str, bytes | None] = OrderedDict()
"""Hash of the instructions that a response, or a conversation's last one, was given.

The server keeps a history without its instructions, so a request sends them each time. Where they
are those of the turn before, they are no new message.
"""


def read_responses_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    sent = body.get("input")
    messages = read_items([{"role": "user", "content": sent}] if type(sent) is str else sent or ())
    conversation = body.get("conversation")
    if isinstance(conversation, Mapping):
        conversation = conversation.get("id")
    instructions = body.get("instructions")
    base_id = body.get("previous_response_id") or conversation
    is_rebased = False
    if base_id is None or _instructions.get(base_id) != _hash_instructions(instructions):
        is_rebased = base_id is not None
        if instructions is not None:
            messages.insert(0, _read_instructions(instructions))
    parameters = read_parameters(body, _RECORDED_ELSEWHERE)
    effort = get_fields(body.get("reasoning") or {}).get("effort")
    if isinstance(effort, str):
        parameters[semconv.REQUEST_REASONING_LEVEL] = effort
    if conversation is not None:
        parameters[semconv.CONVERSATION_ID] = str(conversation)
    return LLMRequest(
        model=str(body.get("model") or ""),
        messages=messages,
        tool_definitions=body.get("tools") or None,
        parameters=parameters,
        previous_response_id=body.get("previous_response_id"),
        conversation_id=conversation,
        is_rebased=is_rebased,
        **server,
    )


def read_responses_answer(response: Any) -> LLMResponse:
    """Answer, as the SDK's object or a mapping -> response."""
    top = get_fields(response)
    output = [to_plain(item) for item in top.get("output") or ()]
    reason = _read_finish_reason(top)
    message: Message = {"role": "assistant", "parts": join_parts(read_items(output))}
    if reason is not None:
        message["finish_reason"] = reason
    add_extra(message, top, _ANSWER_FIELDS)
    tokens, logprobs = _read_logprobs(output)
    error_type, error_message = _read_error(top)
    _remember_instructions(top)
    return LLMResponse(
        id=top.get("id"),
        model=top.get("model"),
        messages=[message] if message["parts"] else [],
        finish_reasons=[] if reason is None else [reason],
        usage=read_usage(top.get("usage")),
        response_tokens=tokens,
        response_logprobs=logprobs,
        error_type=error_type,
        error_message=error_message,
    )


def read_compact_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body of a request to compact a history -> request."""
    request = read_responses_request(server, body)
    request.operation = "compact"
    return request


def read_compact_answer(response: Any) -> LLMResponse:
    """Compacted history -> response: the compaction; what stays as it was is under `"extra"`."""
    top = get_fields(response)
    output = [to_plain(item) for item in top.get("output") or ()]
    kept = [item for item in output if item.get("type") != "compaction"]
    compacted = read_items(item for item in output if item.get("type") == "compaction")
    for message in compacted:
        message["extra"] = {"kept": kept}
    return LLMResponse(id=top.get("id"), messages=compacted, usage=read_usage(top.get("usage")))


class ResponseEvents:
    """Events of a streamed answer, put together; also when they stop half-way."""

    def __init__(self) -> None:
        self._response: Any = None
        self._is_whole = False
        self._items: dict[int, Any] = {}
        self._done: set[int] = set()
        self._pieces: dict[tuple[int, str, int], list[str]] = {}
        self._logprobs: dict[tuple[int, str, int], list[Any]] = {}
        self._error: Mapping[str, Any] | None = None

    def add(self, chunk: Any) -> None:
        """Take one event in."""
        fields = get_fields(chunk)
        kind = fields.get("type")
        place = _DELTAS.get(kind)
        if place is not None:
            self._add_delta(fields, *place)
        elif kind in {"response.output_item.added", "response.output_item.done"}:
            index = fields.get("output_index", len(self._items))
            self._items[index] = fields.get("item")
            if kind == "response.output_item.done":
                self._done.add(index)
        elif kind == "error":
            self._error = fields
        elif fields.get("response") is not None:
            self._response = fields["response"]
            status = get_fields(self._response).get("status")
            self._is_whole = kind in _LAST_EVENTS or status not in _UNFINISHED
        elif kind is None and "data" in fields:  # openai 1.66 wraps what it does not know
            self.add(fields["data"])

    def _add_delta(self, fields: Mapping[str, Any], name: str, index_name: str) -> None:
        key = (fields.get("output_index", 0), name, fields.get(index_name) or 0)
        delta = fields.get("delta")
        pieces = self._pieces.get(key)
        if pieces is None:
            pieces = self._pieces[key] = []
        if type(delta) is str:
            pieces.append(delta)
        logprobs = fields.get("logprobs")
        if logprobs:
            self._logprobs.setdefault(key, []).extend(to_plain(logprobs))

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        top = dict(get_fields(self._response))
        if not self._is_whole or not top.get("output"):
            top["output"] = self._build_output()
        if self._error is not None:
            top["error"] = self._error
        return read_responses_answer(top)

    def _build_output(self) -> list[Any]:
        output = {index: to_plain(item) for index, item in self._items.items()}
        for key, pieces in self._pieces.items():
            index, name, position = key
            if index in self._done:
                continue
            item: dict[str, Any] = output.setdefault(index, _make_item(name))
            text = "".join(pieces)
            if name in _WHOLE_TEXTS:
                item[name] = text
                continue
            field, kind, text_name = _PARTS[name]
            part: dict[str, Any] = {"type": kind, text_name: text}
            if key in self._logprobs:
                part["logprobs"] = self._logprobs[key]
            parts = item.get(field) or []
            item[field] = parts if isinstance(parts, list) else []
            item[field][position : position + 1] = [part]
        return [output[index] for index in sorted(output)]


_DELTAS: Final[Mapping[Any, tuple[str, str]]] = {
    "response.output_text.delta": ("text", "content_index"),
    "response.refusal.delta": ("refusal", "content_index"),
    "response.reasoning_text.delta": ("reasoning", "content_index"),
    "response.reasoning_summary_text.delta": ("summary", "summary_index"),
    "response.function_call_arguments.delta": ("arguments", "output_index"),
    "response.mcp_call_arguments.delta": ("arguments", "output_index"),
    "response.custom_tool_call_input.delta": ("input", "output_index"),
    "response.code_interpreter_call_code.delta": ("code", "output_index"),
}
"""Event -> what its text is a piece of, and the field that says of which one."""
_WHOLE_TEXTS: Final = {
    "arguments": "function_call",
    "input": "custom_tool_call",
    "code": "code_interpreter_call",
}
"""Texts that are a field of their item -> type of the item."""
_PARTS: Final = {
    "text": ("content", "output_text", "text"),
    "refusal": ("content", "refusal", "refusal"),
    "reasoning": ("content", "reasoning_text", "text"),
    "summary": ("summary", "summary_text", "text"),
}
"""Texts that are in a list of their item -> list, type of the part, its field."""
_LAST_EVENTS: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)


def _make_item(name: str) -> dict[str, Any]:
    """Item of which only pieces were received, as of a stream taken up again."""
    if name in _WHOLE_TEXTS:
        return {"type": _WHOLE_TEXTS[name]}
    is_message = name in {"text", "refusal"}
    return {"type": "message", "role": "assistant"} if is_message else {"type": "reasoning"}


def _read_finish_reason(top: Mapping[str, Any]) -> str | None:
    """Why it is incomplete, or its last status; None while it goes on."""
    status = top.get("status")
    if status in _UNFINISHED:
        return None
    details = top.get("incomplete_details")
    reason = None if details is None else get_fields(details).get("reason")
    return reason or status


def _read_error(top: Mapping[str, Any]) -> tuple[str | None, str | None]:
    error = top.get("error")
    if error is None:
        return ("failed" if top.get("status") == "failed" else None), None
    fields = get_fields(error)
    return str(fields.get("code") or fields.get("type") or "error"), fields.get("message")


def _read_logprobs(output: list[Any]) -> tuple[list[str] | None, list[float | None] | None]:
    """Output items -> texts and log-probabilities of the tokens of its text."""
    entries = [
        entry
        for item in output
        if item.get("type") == "message"
        for part in item.get("content") or ()
        for entry in part.get("logprobs") or ()
    ]
    if not entries:
        return None, None
    return [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]


def _read_instructions(instructions: Any) -> Message:
    if isinstance(instructions, str):
        return {"role": "system", "parts": [{"type": "text", "content": instructions}]}
    return {"role": "system", "parts": join_parts(read_items(instructions))}


def _hash_instructions(instructions: Any) -> bytes | None:
    if instructions is None:
        return None
    text = dump_json(to_plain(instructions))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _remember_instructions(top: Mapping[str, Any]) -> None:
    conversation = top.get("conversation")
    ids = [top.get("id"), None if conversation is None else get_fields(conversation).get("id")]
    for each in ids:
        if isinstance(each, str):
            _instructions[each] = _hash_instructions(top.get("instructions"))
            _instructions.move_to_end(each)
    while len(_instructions) > _MAX_REMEMBERED:
        _instructions.popitem(last=False)
