"""Spans whose meaning other spans change -> converted again, with what the others say."""

from typing import Final

import msgspec
import polars as pl

from starpo_trace import semconv
from starpo_trace.convert.fetched import join_fetched_answers
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.staging import Frames, concat_chunks, keep_spans, stage_rows

_DECODER: Final = msgspec.msgpack.Decoder(SpanRow)


def join_deferred(frames: Frames) -> Frames:
    """Frames of a partition -> the same, where calls have the answers that others fetched."""
    deferred = frames["deferred"]
    if not deferred.height:
        return frames
    own = [_DECODER.decode(span) for span in deferred["span"]]
    if not any(row.attributes.get(semconv.OPERATION_NAME) == "fetch_response" for row in own):
        return frames
    answered = _list_answered(frames)
    rows = [*own, *answered]
    joined = join_fetched_answers(rows)[: len(own)]
    changed = [(i, row) for i, row in enumerate(joined) if row is not own[i]]
    if not changed:
        return frames
    numbers = deferred["row"].gather([i for i, _ in changed])
    stay = frames["spans"].filter(~pl.col("row").is_in(numbers.implode()))
    return concat_chunks([keep_spans(frames, stay), stage_rows([row for _, row in changed])])


def _list_answered(frames: Frames) -> list[SpanRow]:
    """Calls that have their answer: what it takes to tell that a fetch is of one of them."""
    calls = (
        frames["calls"]
        .filter(pl.col("response_id").is_not_null())
        .join(frames["deferred"], on="row", how="anti")
        .join(frames["spans"], on="row", how="inner")
        .select("trace_id", "span_id", "trajectory_id", "response_id")
    )
    return [
        SpanRow(
            source="",
            trace_id=trace_id,
            span_id=span_id,
            attributes={
                semconv.RECORD: "llm",
                semconv.TRAJECTORY_ID: trajectory_id,
                semconv.RESPONSE_ID: response_id,
                semconv.RESPONSE_FINISH_REASONS: (),
            },
        )
        for trace_id, span_id, trajectory_id, response_id in calls.iter_rows()
    ]
