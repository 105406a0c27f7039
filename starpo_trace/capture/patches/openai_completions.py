"""OpenAI text completions (also vLLM's and SGLang's) -> `LLMRequest` and `LLMResponse`."""

from collections.abc import Mapping
from typing import Any, Final

from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_chat import (
    read_ids,
    read_ids_from_tokens,
    read_parameters,
)
from starpo_trace.capture.patches.openai_extra import ANSWER_FIELDS, add_extra, read_usage
from starpo_trace.capture.patches.plain import get_fields
from starpo_trace.messages import Message

_RECORDED_ELSEWHERE: Final = frozenset({"model", "prompt", "stream"})
_LOGPROB_LISTS: Final = ("tokens", "token_logprobs")
_GROWING_FIELDS: Final = frozenset({"text", "token_ids", "logprobs", "pieces"})
_CHOICE_FIELDS: Final = _GROWING_FIELDS | {
    *("index", "finish_reason", "prompt_token_ids", "prompt_logprobs")
}


def read_completion_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request; each prompt is a message of the user's."""
    prompt = body.get("prompt")
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int):
        prompt = [prompt]
    return LLMRequest(
        model=str(body.get("model", "")),
        messages=[_read_prompt(each) for each in prompt or ()],
        operation="text_completion",
        parameters=read_parameters(body, _RECORDED_ELSEWHERE),
        **server,
    )


def _read_prompt(prompt: Any) -> Message:
    if isinstance(prompt, str):
        return {"role": "user", "parts": [{"type": "text", "content": prompt}]}
    return {"role": "user", "parts": [{"type": "token_ids", "raw": prompt}]}


def read_completion_answer(completion: Any) -> LLMResponse:
    """Answer, as the SDK's object or a mapping -> response."""
    top = get_fields(completion)
    choices = [get_fields(choice) for choice in top.get("choices") or ()]
    first = choices[0] if choices else {}
    lists = {} if first.get("logprobs") is None else get_fields(first["logprobs"])
    tokens, logprobs = (lists.get(name) for name in _LOGPROB_LISTS)
    token_ids = read_ids(first.get("token_ids"))
    if logprobs and logprobs[0] is None:  # the first token of a prompt that is repeated (`echo`)
        tokens = logprobs = token_ids = None
    if token_ids is None and tokens:
        token_ids = read_ids_from_tokens(tokens)
    prompt_ids = first.get("prompt_token_ids")
    messages = [_read_choice(choice) for choice in choices]
    if messages:
        add_extra(messages[0], top, ANSWER_FIELDS)
    return LLMResponse(
        id=top.get("id"),
        model=top.get("model"),
        messages=messages,
        finish_reasons=[
            choice["finish_reason"] for choice in choices if choice.get("finish_reason")
        ],
        usage=read_usage(top.get("usage")),
        prompt_token_ids=read_ids(
            top.get("prompt_token_ids") if prompt_ids is None else prompt_ids
        ),
        response_token_ids=token_ids,
        response_logprobs=None if logprobs is None else list(logprobs),
        response_tokens=None if tokens is None else list(tokens),
    )


def _read_choice(choice: Mapping[str, Any]) -> Message:
    message: Message = {
        "role": "assistant",
        "parts": [{"type": "text", "content": choice.get("text") or ""}],
    }
    if choice.get("finish_reason") is not None:
        message["finish_reason"] = choice["finish_reason"]
    add_extra(message, choice, _CHOICE_FIELDS, has_more_usage=False)
    return message


class CompletionChunks:
    """Chunks of a streamed text completion, put together."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        fields = get_fields(chunk)
        self._top.update(
            (name, value)
            for name, value in fields.items()
            if value is not None and name != "choices"
        )
        for position, choice in enumerate(fields.get("choices") or ()):
            choice_fields = get_fields(choice)
            index = choice_fields.get("index", position)
            _extend_choice(self._choices.setdefault(index, {"pieces": []}), choice_fields)

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        choices = [
            {**choice, "text": "".join(choice["pieces"])}
            for _, choice in sorted(self._choices.items())
        ]
        return read_completion_answer({**self._top, "choices": choices})


def _extend_choice(choice: dict[str, Any], chunk: Mapping[str, Any]) -> None:
    choice["pieces"].append(chunk.get("text") or "")
    choice.update(
        (name, value)
        for name, value in chunk.items()
        if value is not None and name not in _GROWING_FIELDS
    )
    if chunk.get("token_ids") is not None:
        choice.setdefault("token_ids", []).extend(chunk["token_ids"])
    if chunk.get("logprobs") is not None:
        lists = choice.setdefault("logprobs", {})
        fields = get_fields(chunk["logprobs"])
        for name in _LOGPROB_LISTS:
            if fields.get(name) is not None:
                lists.setdefault(name, []).extend(fields[name])
