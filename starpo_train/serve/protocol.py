"""OpenAI chat-completions JSON <-> generation requests and answers, with vLLM's extra fields.

`return_token_ids` adds `prompt_token_ids` (top level; first chunk of a stream) and
`choices[].token_ids` (per chunk in a stream). `logprobs` adds `choices[].logprobs.content`, of the
raw logits at temperature 1 as vLLM's default is.
"""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from starpo_train.serve.toolparse import Answer, Piece, ToolCall

MAX_TOP_LOGPROBS = 20

_ROLES = ("system", "developer", "user", "assistant", "tool")
_IGNORED = frozenset(
    {"user", "metadata", "store", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
    | {"reasoning_effort", "verbosity", "service_tier", "chat_template_kwargs"}
)
"""Accepted without effect: they change nothing about which tokens are likely here."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "auto", "none"),
}
"""Parameters that are not implemented, with the values that ask for nothing."""
_KNOWN = frozenset(
    {"model", "messages", "stream", "stream_options", "tools", "temperature", "top_p", "seed"}
    | {"max_tokens", "max_completion_tokens", "stop", "logprobs", "top_logprobs"}
    | {"return_token_ids", "skip_special_tokens"}
)


class RequestError(Exception):
    """A request that is answered with an OpenAI error object."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A valid chat-completions request."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    stream: bool = False
    include_usage: bool = False
    """A stream's last chunk tells how many tokens were used."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    """None: up to the context's end."""
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    return_token_ids: bool = False


def parse_chat_request(body: Any) -> ChatRequest:
    """Request body -> checked request.

    Raises:
        RequestError: what is wrong, where, and what is allowed.
    """
    if not isinstance(body, dict):
        raise RequestError("the request body must be a JSON object")
    _refuse_unsupported(body)
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError(f"model must be a string, got {model!r}", param="model")
    stream = _boolean(body, "stream")
    logprobs = _boolean(body, "logprobs")
    top_logprobs = _integer(body, "top_logprobs", least=0, most=MAX_TOP_LOGPROBS) or 0
    if top_logprobs and not logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    max_tokens = _integer(body, "max_completion_tokens", least=1)
    tools = _check_tools(body.get("tools"))
    return ChatRequest(
        model=model,
        messages=_check_messages(body.get("messages")),
        tools=None if body.get("tool_choice") == "none" else tools,
        stream=stream,
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        temperature=_number(body, "temperature", least=0.0, most=2.0),
        top_p=_number(body, "top_p", least=0.0, most=1.0, open_at_least=True),
        seed=_integer(body, "seed", least=-(2**63), most=2**63 - 1),
        max_tokens=max_tokens or _integer(body, "max_tokens", least=1),
        stop=_check_stop(body.get("stop")),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        return_token_ids=_boolean(body, "return_token_ids"),
    )


def _refuse_unsupported(body: dict[str, Any]) -> None:
    for key, value in body.items():
        if key in _NEUTRAL:
            if value not in _NEUTRAL[key]:
                raise RequestError(
                    f"{key}={value!r} is not supported by this server; leave it out", param=key
                )
        elif key not in _KNOWN and key not in _IGNORED:
            raise RequestError(f"unknown parameter {key!r}; leave it out", param=key)


def _boolean(body: dict[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{key} must be true or false, got {value!r}", param=key)
    return bool(value)


def _integer(body: dict[str, Any], key: str, *, least: int, most: int | None = None) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    valid = isinstance(value, int) and not isinstance(value, bool)
    if not valid or value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"between {least} and {most}"
        raise RequestError(f"{key} must be an integer {limit}, got {value!r}", param=key)
    return value


def _number(
    body: dict[str, Any], key: str, *, least: float, most: float, open_at_least: bool = False
) -> float:
    """A number with default 1."""
    value = body.get(key)
    if value is None:
        return 1.0
    valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not valid or not least <= value <= most or (open_at_least and value == least):
        bound = "above" if open_at_least else "from"
        raise RequestError(
            f"{key} must be a number {bound} {least:g} up to {most:g}, got {value!r}", param=key
        )
    return float(value)


def _check_stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise RequestError(f"stop must be non-empty strings, got {stop!r}", param="stop")
    return tuple(strings)


def _check_tools(tools: Any) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise RequestError(f"tools must be a list, got {type(tools).__name__}", param="tools")
    for position, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(
                f"tools[{position}] must be "
                '{"type": "function", "function": {"name": ..., "parameters": ...}}',
                param=f"tools[{position}]",
            )
    return tools or None


def _check_messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", param="messages")
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}", param=where)
        _check_content(message.get("content"), where)
        for call in message.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise RequestError(f"{where}.tool_calls has no function name", param=where)
            if not isinstance(function.get("arguments"), str):
                raise RequestError(
                    f"{where}.tool_calls: function.arguments must be a JSON string", param=where
                )
    return messages


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be text", param=where)
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(
                f"{where}.content holds a {kind!r} part; this server takes text only", param=where
            )


def build_error(error: RequestError) -> dict[str, Any]:
    """Error -> OpenAI error JSON."""
    kind = {404: "not_found_error", 500: "server_error", 503: "server_error"}.get(
        error.status, "invalid_request_error"
    )
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


def build_logprobs(tokens: list[tuple[str, float, list[tuple[str, float]]]]) -> dict[str, Any]:
    """(token text, logprob, likeliest) of each token -> `logprobs` of a choice."""
    return {
        "content": [
            {
                **_logprob_entry(text, logprob),
                "top_logprobs": [_logprob_entry(*entry) for entry in top],
            }
            for text, logprob, top in tokens
        ]
    }


def _logprob_entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def build_usage(num_prompt: int, num_answer: int) -> dict[str, int]:
    """Token counts -> `usage`."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
    }


class ResponseBuilder:
    """Builds the response, or the chunks, to one request."""

    def __init__(self, request: ChatRequest, prompt_ids: list[int]) -> None:
        self._request = request
        self._prompt_ids = prompt_ids
        self._id = uuid.uuid4().hex
        self._num_calls = 0
        self._first = True

    def build_response(
        self,
        answer: Answer,
        *,
        token_ids: list[int],
        logprobs: dict[str, Any] | None,
        finish_reason: str,
    ) -> dict[str, Any]:
        """A whole answer -> `chat.completion`."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.reasoning is not None:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [self._tool_call(call) for call in answer.tool_calls]
            finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        choice = {
            "index": 0,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        response = {
            **self._envelope("chat.completion"),
            "choices": [choice],
            "usage": build_usage(len(self._prompt_ids), len(token_ids)),
        }
        if self._request.return_token_ids:
            choice["token_ids"] = token_ids
            response["prompt_token_ids"] = self._prompt_ids
        return response

    def build_chunk(
        self,
        pieces: list[Piece],
        *,
        token_ids: list[int],
        logprobs: dict[str, Any] | None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """What came out since the last chunk -> `chat.completion.chunk`."""
        delta: dict[str, Any] = {}
        if self._first:
            delta = {"role": "assistant", "content": ""}
        for key, kind in (("reasoning_content", "reasoning"), ("content", "content")):
            text = "".join(piece.text for piece in pieces if piece.kind == kind)
            if text:
                delta[key] = text
        calls = [piece.call for piece in pieces if piece.call is not None]
        if calls:
            delta["tool_calls"] = [
                {"index": self._num_calls + offset, **self._tool_call(call)}
                for offset, call in enumerate(calls)
            ]
            self._num_calls += len(calls)
        if finish_reason == "stop" and self._num_calls:
            finish_reason = "tool_calls"
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        if self._request.return_token_ids:
            choice["token_ids"] = token_ids
            if self._first:
                chunk["prompt_token_ids"] = self._prompt_ids
        self._first = False
        return chunk

    def build_usage_chunk(self, num_answer: int) -> dict[str, Any]:
        """The chunk behind the last one when usage was asked for."""
        usage = build_usage(len(self._prompt_ids), num_answer)
        return {**self._envelope("chat.completion.chunk"), "choices": [], "usage": usage}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._id}",
            "object": kind,
            "created": int(time.time()),
            "model": self._request.model,
        }

    def _tool_call(self, call: ToolCall) -> dict[str, Any]:
        return {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
