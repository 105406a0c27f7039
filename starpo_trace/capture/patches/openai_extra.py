"""What OpenAI's answers say beside their content: usage, and what has no key of its own."""

from collections.abc import Mapping
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.capture.patches.plain import get_fields, to_plain
from starpo_trace.messages import Message

ANSWER_FIELDS: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "prompt_token_ids", "prompt_logprobs"}
)
"""What is recorded elsewhere, or spells the prompt token by token, where no secret is found."""


def add_extra(message: Message, fields: Mapping[str, Any], known: frozenset[str]) -> None:
    """Keep what an answer says beside what has a place of its own: tier, fingerprint, cost."""
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        if value is not None and name not in known:
            plain = to_plain(value)
            if type(plain) is dict:
                plain = {key: item for key, item in plain.items() if item is not None}
            if plain not in ({}, []):
                extra[name] = plain
    usage = fields.get("usage")
    if usage is not None and _says_more(get_fields(usage)):
        extra["usage"] = to_plain(usage)
    if extra:
        message["extra"] = {**message.get("extra", {}), **extra}


def read_usage(usage: Any) -> dict[str, int]:
    """Usage object of chat, responses or embeddings -> counts under their keys."""
    counts: dict[str, int] = {}
    if usage is not None:
        for name, value in get_fields(usage).items():
            if type(value) is int:
                if name in _USAGE_KEYS:
                    counts[_USAGE_KEYS[name]] = value
            elif value is not None and name in _USAGE_DETAIL_NAMES:
                for detail, count in get_fields(value).items():
                    if type(count) is int and detail in _USAGE_DETAIL_KEYS:
                        counts[_USAGE_DETAIL_KEYS[detail]] = count
    return counts


def _says_more(usage: Mapping[str, Any]) -> bool:
    """Whether a usage object holds anything that is under no key of its own."""
    for name, value in usage.items():
        if not value or name in _USAGE_KEYS or name == "total_tokens":
            continue
        if name not in _USAGE_DETAIL_NAMES:
            return True
        details = get_fields(value).items()
        if any(count and detail not in _USAGE_DETAIL_KEYS for detail, count in details):
            return True
    return False


_USAGE_KEYS: Final = {
    "prompt_tokens": semconv.USAGE_INPUT_TOKENS,
    "input_tokens": semconv.USAGE_INPUT_TOKENS,
    "completion_tokens": semconv.USAGE_OUTPUT_TOKENS,
    "output_tokens": semconv.USAGE_OUTPUT_TOKENS,
}
_USAGE_DETAIL_NAMES: Final = frozenset(
    {
        "prompt_tokens_details",
        "input_tokens_details",
        "completion_tokens_details",
        "output_tokens_details",
    }
)
_USAGE_DETAIL_KEYS: Final = {
    "cached_tokens": semconv.USAGE_CACHE_READ_TOKENS,
    "cache_write_tokens": semconv.USAGE_CACHE_WRITE_TOKENS,
    "reasoning_tokens": semconv.USAGE_REASONING_TOKENS,
}
