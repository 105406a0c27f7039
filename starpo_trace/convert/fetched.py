"""Answers that another request fetched -> the calls that asked for them.

A background run may be asked for by one process and fetched by another; each records what it saw.
The call gets the answer, so that the dataset has one turn, and the fetch stays as a step.
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.otlp import SpanRow

_ANSWER_KEYS: Final = (
    semconv.OUTPUT_MESSAGES,
    semconv.RESPONSE_MODEL,
    semconv.RESPONSE_FINISH_REASONS,
    semconv.RESPONSE_TOKENS,
    semconv.RESPONSE_LOGPROBS,
    semconv.USAGE_INPUT_TOKENS,
    semconv.USAGE_OUTPUT_TOKENS,
    semconv.USAGE_CACHE_READ_TOKENS,
    semconv.USAGE_CACHE_WRITE_TOKENS,
    semconv.USAGE_REASONING_TOKENS,
    semconv.ERROR_TYPE,
)


def is_unanswered_or_fetch(row: SpanRow) -> bool:
    """Whether a span may get its answer from another, or be the one that fetched it."""
    attributes = row.attributes
    if semconv.RESPONSE_ID not in attributes or semconv.RECORD not in attributes:
        return False
    is_fetch = attributes.get(semconv.OPERATION_NAME) == "fetch_response"
    return is_fetch or semconv.RESPONSE_FINISH_REASONS not in attributes


def join_fetched_answers(rows: Sequence[SpanRow]) -> list[SpanRow]:
    """Span rows -> as many, where fetched answers stand in the calls that asked for them."""
    fetches = {
        key: i
        for i, row in enumerate(rows)
        if row.attributes.get(semconv.OPERATION_NAME) == "fetch_response"
        and (key := _read_key(row.attributes)) is not None
    }
    joined = list(rows)
    for i, row in enumerate(rows) if fetches else ():
        key = _read_key(row.attributes)
        fetch = None if key is None else fetches.get(key)
        if fetch is None or fetch == i:
            continue
        if row.attributes.get(semconv.OPERATION_NAME) == "fetch_response":
            continue
        if semconv.RESPONSE_FINISH_REASONS not in row.attributes:
            joined[i] = _add_answer(row, rows[fetch])
        step = {semconv.RECORD: "step", semconv.STEP_KIND: "other"}
        joined[fetch] = replace(rows[fetch], attributes={**rows[fetch].attributes, **step})
    return joined


def _read_key(attributes: dict[str, Any]) -> tuple[str, str] | None:
    """Trajectory and response id of a call of ours."""
    if attributes.get(semconv.RECORD) != "llm":
        return None
    trajectory = attributes.get(semconv.TRAJECTORY_ID)
    response = attributes.get(semconv.RESPONSE_ID)
    return None if trajectory is None or response is None else (str(trajectory), str(response))


def _add_answer(call: SpanRow, fetch: SpanRow) -> SpanRow:
    attributes = {
        key: value for key, value in call.attributes.items() if key != semconv.STREAM_OUTCOME
    }
    attributes |= {key: fetch.attributes[key] for key in _ANSWER_KEYS if key in fetch.attributes}
    return replace(call, attributes=attributes, error=fetch.error)
