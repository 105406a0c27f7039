"""OpenAI embeddings and vector store searches -> retrieval steps; vectors are not recorded."""

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.patches.openai_chat import read_parameters
from starpo_trace.capture.patches.openai_extra import read_usage
from starpo_trace.capture.patches.plain import get_fields, to_plain

_RECORDED_ELSEWHERE: Final = frozenset({"model", "input", "query"})
_BYTES_PER_NUMBER: Final = 4


def read_embeddings_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body as sent -> request."""
    return LLMRequest(
        model=str(body.get("model", "")),
        messages=(),
        operation="embeddings",
        parameters=read_parameters(body, _RECORDED_ELSEWHERE),
        is_retrieval=True,
        query=body.get("input"),
        **server,
    )


def read_embeddings_answer(answer: Any) -> LLMResponse:
    """Answer, as the SDK's object or a mapping -> response."""
    top = get_fields(answer)
    data = top.get("data") or ()
    vector = get_fields(data[0]).get("embedding") if data else None
    return LLMResponse(
        model=top.get("model"),
        usage=read_usage(top.get("usage")),
        num_dimensions=_count_dimensions(vector),
    )


def _count_dimensions(vector: Any) -> int | None:
    if vector is None:
        return None
    if isinstance(vector, str):  # base64 of 32-bit numbers
        return (len(vector) * 3 // 4 - vector.count("=")) // _BYTES_PER_NUMBER
    return len(vector)


def read_search_request(server: Mapping[str, Any], body: Mapping[str, Any]) -> LLMRequest:
    """Server and body of a vector store search -> request."""
    return LLMRequest(
        model="",
        messages=(),
        operation="retrieval",
        parameters=read_parameters(body, _RECORDED_ELSEWHERE),
        is_retrieval=True,
        query=body.get("query"),
        **server,
    )


def read_search_path(path: str) -> Mapping[str, AttributeValue]:
    """`/vector_stores/{id}/search` -> the store's id."""
    return {semconv.DATA_SOURCE_ID: path.rstrip("/").split("/")[-2]}


def read_search_answer(answer: Any) -> LLMResponse:
    """Found pieces, as the SDK's page or a mapping -> response."""
    return LLMResponse(documents=to_plain(get_fields(answer).get("data") or []))
