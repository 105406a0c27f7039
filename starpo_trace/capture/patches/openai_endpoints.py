"""Paths of OpenAI's API -> how their traffic is read."""

from typing import Final

from starpo_trace.capture.patches.openai_background import begin_fetch_call, begin_response_call
from starpo_trace.capture.patches.openai_chat import (
    ChatChunks,
    read_chat_request,
    read_chat_response,
)
from starpo_trace.capture.patches.openai_completions import (
    CompletionChunks,
    read_completion_answer,
    read_completion_request,
)
from starpo_trace.capture.patches.openai_embeddings import (
    read_embeddings_answer,
    read_embeddings_request,
    read_search_answer,
    read_search_path,
    read_search_request,
)
from starpo_trace.capture.patches.openai_responses import (
    ResponseEvents,
    read_compact_answer,
    read_compact_request,
    read_responses_answer,
    read_responses_request,
)
from starpo_trace.capture.patches.stainless import Endpoint

_CHAT: Final = Endpoint(
    read_request=read_chat_request,
    read_response=read_chat_response,
    make_accumulator=ChatChunks,
    answer_field="choices",
)
_RESPONSE: Final = Endpoint(
    read_request=read_responses_request,
    read_response=read_responses_answer,
    make_accumulator=ResponseEvents,
    answer_field="output",
    begin=begin_response_call,
)
_FETCH: Final = Endpoint(
    read_request=read_responses_request,
    read_response=read_responses_answer,
    make_accumulator=ResponseEvents,
    answer_field="output",
    begin=begin_fetch_call,
)
_COMPACT: Final = Endpoint(
    read_request=read_compact_request,
    read_response=read_compact_answer,
    answer_field="output",
)
_COMPLETION: Final = Endpoint(
    read_request=read_completion_request,
    read_response=read_completion_answer,
    make_accumulator=CompletionChunks,
    answer_field="choices",
)
_EMBEDDINGS: Final = Endpoint(
    read_request=read_embeddings_request,
    read_response=read_embeddings_answer,
    answer_field="data",
)
_SEARCH: Final = Endpoint(
    read_request=read_search_request,
    read_response=read_search_answer,
    answer_field="data",
    read_path=read_search_path,
)
_BY_LAST_WORD: Final = {
    "responses": _RESPONSE,
    "completions": _COMPLETION,
    "embeddings": _EMBEDDINGS,
}
_BY_WORDS: Final = {
    ("responses", "compact"): _COMPACT,
    ("responses", "cancel"): _FETCH,
    ("vector_stores", "search"): _SEARCH,
}


def find_endpoint(method: str, path: str) -> Endpoint | None:
    """Method in lower case and path -> how to read it; None for what is no call of a model."""
    if method == "post" and path.endswith("/chat/completions"):
        return _CHAT
    words = path.partition("?")[0].rstrip("/").split("/")
    if method == "get":
        return _FETCH if words[-2:-1] == ["responses"] else None
    if method != "post":
        return None
    for first in words[-3:-1]:  # the word before an id, or before the last word
        endpoint = _BY_WORDS.get((first, words[-1]))
        if endpoint is not None:
            return endpoint
    return _BY_LAST_WORD.get(words[-1])
