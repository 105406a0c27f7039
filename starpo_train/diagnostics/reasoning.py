"""Ids of a sampled turn -> which of them are its reasoning, by the tags of the model's template.

Suffix: T tokens of one row.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from starpo_train.chattemplate import ChatTemplate, TemplateRefusalError

_TAG_AT_START: Final = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_PROMPT_TAIL: Final = 32
"""Tokens at a prompt's end in which its opening tag is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningTags:
    """What stands around reasoning."""

    opening: str = "<think>"
    closing: str = "</think>"


def find_reasoning_tags(tokenizer: Any) -> ReasoningTags:
    """Tags that the chat template writes around reasoning; `<think>` where it writes none.

    A message with a sentinel as its reasoning is rendered, and what stands around it is taken.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ReasoningTags()
    template = ChatTemplate(tokenizer)
    asked = [{"role": "user", "content": "zquser"}]
    answer = {"role": "assistant", "content": "zqanswer", "reasoning_content": "zqwhy"}
    try:
        prompt = template.render(asked, None, asks=True)
        text = template.render([*asked, answer], None, asks=False)
    except TemplateRefusalError:
        return ReasoningTags()
    before, _, rest = text.partition("zqwhy")
    between, found, _ = rest.partition("zqanswer")
    if not found or not between.strip():
        return ReasoningTags()
    opening = before[len(prompt) :].strip() if before.startswith(prompt) else ""
    if not opening:  # the template opens it in the prompt
        opening = (before.split() or [""])[-1]
    closing = between.strip()
    if (tag := _TAG_AT_START.match(closing)) is not None:
        closing = tag.group()
    return ReasoningTags(opening=opening, closing=closing) if opening else ReasoningTags()


def find_reasoning(
    tokenizer: Any, ids_T: np.ndarray, *, start: int, end: int, tags: ReasoningTags
) -> tuple[int, int] | None:
    """First and last + 1 token of the reasoning of a turn sampled at `start:end`; None without any.

    The opening tag may end the prompt or be sampled. A token that is part of a tag, and white space
    beside one, is no reasoning. Without a closing tag it goes on to the turn's end.
    """
    pieces = [_decode(tokenizer, [token]) for token in ids_T[start:end].tolist()]
    text = "".join(pieces)
    opened, closed = text.find(tags.opening), text.find(tags.closing)
    tail = _decode(tokenizer, ids_T[max(0, start - _PROMPT_TAIL) : start].tolist())
    if opened < 0 and closed < 0 and not tail.rstrip().endswith(tags.opening):
        return None
    begins = opened + len(tags.opening) if opened >= 0 and (closed < 0 or opened < closed) else 0
    ends = len(text) if closed < 0 else closed
    edges = np.cumsum([0, *map(len, pieces)])
    inside = [
        place
        for place, piece in enumerate(pieces)
        if edges[place] >= begins and edges[place + 1] <= ends and piece.strip()
    ]
    return (start + inside[0], start + inside[-1] + 1) if inside else None


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
