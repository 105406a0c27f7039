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


def add_extra(
    message: Message,
    fields: Mapping[str, Any],
    known: frozenset[str],
    *,
    has_more_usage: bool | None = None,
) -> None:
    """Keep what an answer says beside what has a place of its own: tier, fingerprint, cost."""
    extra: dict[str, Any] = {}
    for name in fields.keys() - known:
        value = fields[name]
        if value is not None:
            plain = to_plain(value)
            if type(plain) is dict:
                plain = {key: item for key, item in plain.items() if item is not None}
            if plain not in ({}, []):
                extra[name] = plain
    if has_more_usage is None:
        has_more_usage = read_all_usage(fields.get("usage"))[1]
    if has_more_usage:
        extra["usage"] = to_plain(fields["usage"])
    if extra:
        message["extra"] = {**message.get("extra", {}), **extra}


def read_usage(usage: Any) -> dict[str, int]:
    """Usage object of chat, responses or embeddings -> counts under their keys."""
    return read_all_usage(usage)[0]


def read_all_usage(usage: Any) -> tuple[dict[str, int], bool]:
    """`read_usage`, and whether the object says anything that is under no key of its own."""
    counts: dict[str, int] = {}
    has_more = False
    for name, value in () if usage is None else get_fields(usage).items():
        if value is None:
            continue
        if name in _USAGE_DETAIL_NAMES:
            for detail, count in get_fields(value).items():
                if detail in _USAGE_DETAIL_KEYS and type(count) is int:
                    counts[_USAGE_DETAIL_KEYS[detail]] = count
                elif count:
                    has_more = True
        elif name in _USAGE_KEYS and type(value) is int:
            counts[_USAGE_KEYS[name]] = value
        elif value and name != "total_tokens":
            has_more = True
    return counts, has_more


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
