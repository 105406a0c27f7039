"""OpenAI chat requests, answers and chunks -> `LLMRequest` and `LLMResponse`.

Answers come as the SDK's typed objects or as plain mappings; fields that the SDK does not know
(reasoning, token ids) are kept by both.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_extra import ANSWER_FIELDS, add_extra, read_all_usage
from starpo_trace.capture.patches.plain import get_fields, get_sent_fields, to_plain
from starpo_trace.messages import REASONING_FIELDS, Message, dump_json, from_openai_chat

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

NUMBER_KEYS: Final = {
    "temperature": semconv.REQUEST_TEMPERATURE,
    "top_p": semconv.REQUEST_TOP_P,
    "frequency_penalty": semconv.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.REQUEST_PRESENCE_PENALTY,
}
INTEGER_KEYS: Final = {
    "max_tokens": semconv.REQUEST_MAX_TOKENS,
    "max_completion_tokens": semconv.REQUEST_MAX_TOKENS,
    "max_output_tokens": semconv.REQUEST_MAX_TOKENS,
    "seed": semconv.REQUEST_SEED,
    "n": semconv.REQUEST_CHOICE_COUNT,
    "top_k": semconv.REQUEST_TOP_K,
}
_RECORDED_ELSEWHERE: Final = frozenset({"model", "messages", "tools", "functions", "stream"})
_TAKEN_FIELDS: Final = ANSWER_FIELDS - {"usage"}
_CHOICE_FIELDS: Final = frozenset(
    {
        "index",
        "message",
        "delta",
        "finish_reason",
        "logprobs",
        "token_ids",
        "prompt_token_ids",
        "meta_info",
    }
)
"""The same of a choice."""
_PIECEWISE_FIELDS: Final = _CHOICE_FIELDS - {"finish_reason"}
_SAID_AT_FIRST: Final = ("id", "model", "prompt_token_ids")
"""Fields of chunks of which the first counts."""
_SAID_ONCE: Final = frozenset({"role", "id", "type", "name"})
"""Fields of a delta that are said once, not piece by piece."""
_TEXT_FIELDS: Final = frozenset(
    {"content", *REASONING_FIELDS, "refusal", "arguments", "input", "transcript", "data"}
)
"""Fields of a delta that are pieces of a text; others may be said again with each delta."""
_GET_TOKEN: Final = attrgetter("token")
_GET_LOGPROB: Final = attrgetter("logprob")
_TOKEN_ID_PREFIX: Final = "token_id:"  # noqa: S105 (vLLM's return_tokens_as_token_ids)


def read_parameters(
    body: Mapping[str, Any], recorded_elsewhere: frozenset[str]
) -> "dict[str, AttributeValue]":
    """Body -> sampling parameters under their keys, and every other one as JSON under one key."""
    parameters: dict[str, AttributeValue] = {}
    others: dict[str, Any] = {}
    for name, value in body.items():
        if name in recorded_elsewhere or value is None:
            continue
        kind = type(value)
        if name in NUMBER_KEYS and (kind is float or kind is int):
            parameters[NUMBER_KEYS[name]] = float(value)
        elif name in INTEGER_KEYS and kind is int:
            parameters[INTEGER_KEYS[name]] = value
        elif name in {"stop", "stop_sequences"}:
            texts = (value,) if kind is str else value
            parameters[semconv.REQUEST_STOP_SEQUENCES] = tuple(str(text) for text in texts)
        elif name == "reasoning_effort" and kind is str:
            parameters[semconv.REQUEST_REASONING_LEVEL] = value
        else:
            others[name] = value
    if others:
        parameters[semconv.REQUEST_PARAMETERS] = dump_json(others)
    return parameters


def read_chat_request(server: "Mapping[str, Any]", body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    return LLMRequest(
        model=str(body.get("model", "")),
        messages=[from_openai_chat(get_fields(message)) for message in body.get("messages") or ()],
        tool_definitions=body.get("tools") or body.get("functions") or None,
        parameters=read_parameters(body, _RECORDED_ELSEWHERE),
        **server,
    )


def read_chat_response(completion: Any) -> LLMResponse:
    """Answer, as the SDK's object or a mapping -> response."""
    top = get_fields(completion)
    choices = [get_fields(choice) for choice in top.get("choices") or ()]
    first = choices[0] if choices else {}
    tokens, logprobs = _read_logprobs(first.get("logprobs"))
    token_ids = read_ids(first.get("token_ids"))
    if token_ids is None and tokens is not None:
        token_ids = read_ids_from_tokens(tokens)
    if token_ids is None and "meta_info" in first:
        token_ids, logprobs = _read_meta_info(first["meta_info"], logprobs)
    prompt_ids = top.get("prompt_token_ids")
    messages = [_read_message(choice) for choice in choices]
    usage, has_more_usage = read_all_usage(top.get("usage"))
    if messages:
        add_extra(messages[0], top, ANSWER_FIELDS, has_more_usage=has_more_usage)
    return LLMResponse(
        id=top.get("id"),
        model=top.get("model"),
        messages=messages,
        finish_reasons=[
            choice["finish_reason"] for choice in choices if choice.get("finish_reason")
        ],
        usage=usage,
        prompt_token_ids=read_ids(
            first.get("prompt_token_ids") if prompt_ids is None else prompt_ids
        ),
        response_token_ids=token_ids,
        response_logprobs=logprobs,
        response_tokens=tokens,
    )


class ChatChunks:
    """Chunks of a streamed answer, put together."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _ChoiceParts] = {}
        self._texts: list[str] | None = None
        """Pieces of choice 0's text, once there is one."""

    def add(self, chunk: Any) -> None:
        """Take one chunk in, by a short way if it holds a piece of one text and nothing else."""
        texts = self._texts
        if texts is not None:
            try:
                fields = chunk.__dict__
                [choice] = fields["choices"]
                choice_fields = choice.__dict__
                delta = choice_fields["delta"]
                content = delta.__dict__["content"]
                if (
                    content is not None
                    and len(delta.__pydantic_fields_set__) == 1
                    and fields["usage"] is None
                    and choice_fields["finish_reason"] is None
                    and choice_fields["logprobs"] is None
                    and not choice_fields["index"]
                    and not choice.__pydantic_extra__
                ):
                    texts.append(content)
                    return
            except (AttributeError, KeyError, ValueError):  # parsed JSON, or of another shape
                pass
        self._add_any(chunk)

    def _add_any(self, chunk: Any) -> None:
        fields = get_fields(chunk)
        top = self._top
        for name in _SAID_AT_FIRST:
            if not top.get(name):  # Azure's first chunk has empty ones
                top[name] = fields.get(name)
        for name, value in fields.items():
            if value is not None and name not in _TAKEN_FIELDS:
                is_growing = isinstance(value, dict) and isinstance(top.get(name), dict)
                top[name] = {**top[name], **value} if is_growing else value
        for position, choice in enumerate(fields.get("choices") or ()):
            choice_fields = get_fields(choice)
            index = choice_fields.get("index", position)
            parts = self._choices.get(index)
            if parts is None:
                parts = self._choices[index] = _ChoiceParts()
            parts.add(choice_fields)
            if index == 0:
                self._texts = parts.texts

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        choices = [self._choices[index].build() for index in sorted(self._choices)]
        return read_chat_response({**self._top, "choices": choices})


class _ChoiceParts:
    """Pieces of one choice of a streamed answer."""

    def __init__(self) -> None:
        self._delta = _Pieces()
        self._fields: dict[str, Any] = {}
        self._lists: dict[str, list[Any]] = {}

    @property
    def texts(self) -> list[str] | None:
        return self._delta.get_texts("content")

    def add(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        if delta is not None:
            self._delta.add(get_sent_fields(delta))
        for name, value in choice.items():
            if value is not None and name not in _PIECEWISE_FIELDS:
                self._fields[name] = value
        logprobs = choice.get("logprobs")
        if logprobs is not None:
            fields = get_fields(logprobs)
            self._extend("logprobs", fields.get("content") or fields.get("refusal"))
        if "token_ids" in choice:
            self._extend("token_ids", choice["token_ids"])

    def _extend(self, name: str, values: Any) -> None:
        if values is not None:
            self._lists.setdefault(name, []).extend(values)

    def build(self) -> dict[str, Any]:
        logprobs = self._lists.get("logprobs")
        return {
            **self._fields,
            "message": {"role": "assistant", **self._delta.build()},
            "token_ids": self._lists.get("token_ids"),
            "logprobs": None if logprobs is None else {"content": logprobs},
        }


class _Pieces:
    """Deltas of one object, field by field: text is appended, lists with indices are joined."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._values: dict[str, Any] = {}
        self._objects: dict[str, _Pieces] = {}
        self._tool_calls: dict[int, _Pieces] = {}
        self._renumbered: dict[int, int] = {}

    def get_texts(self, name: str) -> list[str] | None:
        return self._texts.get(name)

    def add(self, delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if value is None or name == "index":
                continue
            if type(value) is str and name not in _SAID_ONCE:
                texts = self._texts.get(name)
                if texts is None:
                    self._texts[name] = [value]
                else:
                    texts.append(value)
            else:
                self._add_other(name, value)

    def _add_other(self, name: str, value: Any) -> None:
        if name == "tool_calls":
            for call in value:
                self._add_tool_call(get_fields(call))
        elif name in _SAID_ONCE:
            self._values.setdefault(name, value)
        elif isinstance(value, list):
            self._values[name] = [*self._values.get(name, ()), *value]
        elif name in {"function", "function_call", "custom", "audio"}:
            self._objects.setdefault(name, _Pieces()).add(get_fields(value))
        else:
            self._values[name] = value

    def _add_tool_call(self, call: Mapping[str, Any]) -> None:
        index = call.get("index")
        if index is None:  # some servers send none: a new id begins a new call
            is_new = call.get("id") is not None or not self._tool_calls
            index = len(self._tool_calls) - (0 if is_new else 1)
        elif index in self._tool_calls and self._begins_another(call, index):
            # Some number every call 0; pieces without an id belong to the last one.
            self._renumbered[index] = max(self._tool_calls) + 1
        index = self._renumbered.get(index, index)
        self._tool_calls.setdefault(index, _Pieces()).add(call)

    def _begins_another(self, call: Mapping[str, Any], index: int) -> bool:
        """Whether a piece begins another call than the one with its index: other id, and a name."""
        call_id = call.get("id")
        known = self._tool_calls[self._renumbered.get(index, index)]._values.get("id")
        if not call_id or call_id == known or known is None:
            return False
        function = call.get("function")
        return function is not None and bool(get_fields(function).get("name"))

    def build(self) -> dict[str, Any]:
        built = dict(self._values)
        for name, texts in self._texts.items():
            is_repeated = name not in _TEXT_FIELDS and len(set(texts)) == 1
            built[name] = texts[0] if is_repeated else "".join(texts)
        built.update({name: pieces.build() for name, pieces in self._objects.items()})
        if self._tool_calls:
            calls = self._tool_calls
            built["tool_calls"] = [calls[index].build() for index in sorted(calls)]
        return built


def _read_message(choice: Mapping[str, Any]) -> Message:
    wire = choice.get("message")
    message = from_openai_chat({} if wire is None else to_plain(wire))
    finish_reason = choice.get("finish_reason")
    if finish_reason is not None:
        message["finish_reason"] = finish_reason
    add_extra(message, choice, _CHOICE_FIELDS, has_more_usage=False)
    return message


def read_ids(ids: Any) -> list[int] | None:
    """Token ids, where the server gave any."""
    return list(ids) if isinstance(ids, (list, tuple)) else None


def _read_logprobs(logprobs: Any) -> tuple[list[str] | None, list[float | None] | None]:
    """Log-probabilities of choice 0 -> texts and values of its tokens."""
    if logprobs is None:
        return None, None
    fields = get_fields(logprobs)
    content = fields.get("content") or fields.get("refusal")
    if content is None:
        return None, None
    try:
        return list(map(_GET_TOKEN, content)), list(map(_GET_LOGPROB, content))
    except AttributeError:  # parsed JSON
        return [entry["token"] for entry in content], [entry["logprob"] for entry in content]


def _read_meta_info(
    meta_info: Any, logprobs: list[float | None] | None
) -> tuple[list[int] | None, list[float | None] | None]:
    """SGLang's `return_meta_info`: triples of log-probability, id and text -> ids, values."""
    triples = None if meta_info is None else get_fields(meta_info).get("output_token_logprobs")
    if not triples:
        return None, logprobs
    return [triple[1] for triple in triples], [triple[0] for triple in triples]


def read_ids_from_tokens(tokens: list[str]) -> list[int] | None:
    """Ids that vLLM writes in place of the tokens' texts when asked to."""
    if not tokens or not all(token.startswith(_TOKEN_ID_PREFIX) for token in tokens):
        return None
    return [int(token.removeprefix(_TOKEN_ID_PREFIX)) for token in tokens]
