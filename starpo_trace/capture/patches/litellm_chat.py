"""LiteLLM's arguments and answers, which are OpenAI's in form -> `LLMRequest`, `LLMResponse`.

They are LiteLLM's translation. Where it calls an SDK that is recorded too, what that SDK sent and
received takes their place.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_chat import (
    ChatChunks,
    read_chat_request,
    read_chat_response,
)
from starpo_trace.capture.patches.openai_completions import read_completion_request
from starpo_trace.capture.patches.openai_embeddings import (
    read_embeddings_answer,
    read_embeddings_request,
)
from starpo_trace.capture.patches.openai_responses import read_responses_request
from starpo_trace.capture.patches.plain import get_fields, to_plain
from starpo_trace.messages import Message

_SENT: Final = frozenset(
    {
        *("model", "messages", "prompt", "input", "tools", "functions", "stream"),
        *(
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "n",
            "best_of",
            "seed",
            "stop",
            "stream_options",
        ),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "dimensions", "echo"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "response_format", "tool_choice", "function_call"),
        *("parallel_tool_calls", "modalities", "prediction", "audio", "verbosity", "thinking"),
        *("reasoning", "reasoning_effort", "web_search_options", "service_tier", "store", "user"),
        *("suffix", "encoding_format", "input_type", "extra_body", "safe_prompt", "include"),
        *("instructions", "previous_response_id", "conversation", "text", "truncation"),
        *("background", "max_tool_calls", "prompt_cache_key", "safety_identifier"),
    }
)
"""Arguments that say what is asked; among the others are keys and credentials."""
_ANSWER_FIELDS: Final = (
    *("id", "model", "usage", "prompt_token_ids"),
    *("service_tier", "system_fingerprint"),
)
_CHOICE_FIELDS: Final = ("index", "finish_reason", "logprobs", "token_ids")
_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_text": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "bedrock_mantle": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "codestral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "ollama_chat": "ollama",
    "text-completion-openai": "openai",
    "text-completion-codestral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "watsonx_text": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""LiteLLM's names -> GenAI's, where they differ."""


def read_chat_arguments(arguments: Mapping[str, Any]) -> LLMRequest:
    """Arguments of `completion` -> request."""
    server, body = _split_arguments(arguments)
    body["messages"] = [to_plain(message) for message in body.get("messages") or ()]
    request = read_chat_request(server, body)
    request.messages = [_name_thinking(message) for message in request.messages]
    return request


def read_completion_arguments(arguments: Mapping[str, Any]) -> LLMRequest:
    """Arguments of `text_completion` -> request."""
    return read_completion_request(*_split_arguments(arguments))


def read_embedding_arguments(arguments: Mapping[str, Any]) -> LLMRequest:
    """Arguments of `embedding` -> request."""
    return read_embeddings_request(*_split_arguments(arguments))


def read_responses_arguments(arguments: Mapping[str, Any]) -> LLMRequest:
    """Arguments of `responses` -> request."""
    server, body = _split_arguments(arguments)
    body["input"] = to_plain(body.get("input"))
    return read_responses_request(server, body)


def read_chat_model_response(answer: Any) -> LLMResponse:
    """`ModelResponse` -> response."""
    return _name_all(read_chat_response(_read_wire_fields(answer, "message")))


def read_embedding_response(answer: Any) -> LLMResponse:
    """`EmbeddingResponse` -> response."""
    response = read_embeddings_answer(answer)
    response.usage = _drop_guesses(response.usage)
    return response


class ChatModelChunks(ChatChunks):
    """Chunks of a streamed answer, put together."""

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        super().add(_read_wire_fields(chunk, "delta"))

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        return _name_all(super().build_response())


def _read_wire_fields(answer: Any, content: str) -> dict[str, Any]:
    """LiteLLM's object -> the fields of it that a server sent; `content` holds a choice's."""
    top = get_fields(answer)
    wire = {name: top[name] for name in _ANSWER_FIELDS if top.get(name) is not None}
    wire["choices"] = choices = []
    for choice in top.get("choices") or ():
        fields = get_fields(choice)
        message = to_plain(fields.get(content)) or {}
        specific = message.pop("provider_specific_fields", None) or {}
        others = {k: v for k, v in specific.items() if v is not None and k not in message}
        choices.append(
            {
                **{name: fields[name] for name in _CHOICE_FIELDS if fields.get(name) is not None},
                **(fields.get("provider_specific_fields") or {}),
                content: {**message, **others},
            }
        )
    return wire


def _name_all(response: LLMResponse) -> LLMResponse:
    response.messages = [_name_thinking(message) for message in response.messages]
    response.usage = _drop_guesses(response.usage)
    return response


def _split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments -> server, and what is asked of it."""
    body = {name: value for name, value in arguments.items() if name in _SENT}
    body["tools"] = to_plain(body.get("tools"))
    extra = body.pop("extra_body", None)
    if isinstance(extra, Mapping):
        body.update(extra)
    provider, body["model"] = _split_model(str(arguments.get("model", "")), arguments)
    base_url = arguments.get("api_base") or arguments.get("base_url")
    parts = urlsplit(base_url) if isinstance(base_url, str) else None
    server = {
        "provider": "litellm" if provider is None else _PROVIDERS.get(provider, provider),
        "is_routed": provider is not None,
        "is_passed_on": True,
        "address": None if parts is None else parts.hostname,
        "port": None if parts is None else parts.port,
        "is_stream": arguments.get("stream") is True,
    }
    return server, body


def _split_model(model: str, arguments: Mapping[str, Any]) -> tuple[str | None, str]:
    """LiteLLM's model name -> its provider, where it is said or well known, and the model."""
    litellm = sys.modules["litellm"]
    provider = arguments.get("custom_llm_provider")
    first, slash, rest = model.partition("/")
    if slash and first in litellm.provider_list:
        return str(provider or first), rest
    if isinstance(provider, str):
        return provider, model
    known = litellm.model_cost.get(model)
    return (known or {}).get("litellm_provider"), model


def _name_thinking(message: Message) -> Message:
    """Thinking blocks of Anthropic's -> reasoning parts with their signatures."""
    blocks = message.get("extra", {}).get("thinking_blocks")
    if not blocks:
        return message
    extra = {name: value for name, value in message["extra"].items() if name != "thinking_blocks"}
    parts = [part for part in message["parts"] if part["type"] != "reasoning"]
    thoughts = map(_read_thinking, _join_blocks(blocks))
    named: Message = {**message, "parts": [*thoughts, *parts]}
    del named["extra"]
    if extra:
        named["extra"] = extra
    return named


def _join_blocks(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks, streamed in pieces perhaps, of which the last has the signature -> whole blocks."""
    whole: list[dict[str, Any]] = []
    for block in blocks:
        last = whole[-1] if whole else {"signature": ""}
        is_piece = block.get("type") == last.get("type") == "thinking" and "signature" not in last
        if is_piece:
            text = (last.get("thinking") or "") + (block.get("thinking") or "")
            whole[-1] = {**last, **block, "thinking": text}
        else:
            whole.append(dict(block))
    return whole


_NOT_THOUGHT: Final = frozenset({"type", "thinking", "index"})
"""The last is LiteLLM's, of a stream."""


def _read_thinking(block: Mapping[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "reasoning", "content": block.get("thinking") or ""}
    meta = {name: value for name, value in block.items() if name not in _NOT_THOUGHT}
    if block.get("type") != "thinking":
        meta["type"] = block.get("type")
    if meta:
        part["meta"] = meta
    return part


def _drop_guesses(usage: Mapping[str, int]) -> Mapping[str, int]:
    """LiteLLM writes 0 where the server said nothing."""
    return {key: count for key, count in usage.items() if count or key not in _NEVER_ZERO}


_NEVER_ZERO: Final = frozenset(
    {
        *(semconv.USAGE_INPUT_TOKENS, semconv.USAGE_OUTPUT_TOKENS, semconv.USAGE_REASONING_TOKENS),
        *(semconv.USAGE_CACHE_READ_TOKENS, semconv.USAGE_CACHE_WRITE_TOKENS),
    }
)
