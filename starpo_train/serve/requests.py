"""OpenAI chat-completions JSON -> a checked request.

Beside OpenAI's parameters: vLLM's `return_token_ids`. What this server does not implement is
refused and not ignored, so that nobody trains on samples that were drawn otherwise than asked.
"""

from dataclasses import dataclass
from typing import Any

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
