"""Spans whose meaning other spans change -> converted again, with what the others say."""

from collections import defaultdict
from typing import Final

import msgspec
import polars as pl
from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.fetched import join_fetched_answers
from starpo_trace.convert.joins import Neighbours, SpanKey, join_rows
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.staging import Frames, concat_chunks, keep_spans, stage_rows

_DECODER: Final = msgspec.msgpack.Decoder(SpanRow)


def join_deferred(frames: Frames) -> Frames:
    """Frames of a partition -> the same, where spans have what others know of them.

    Log records that a span has now are left out.
    """
    deferred = frames["deferred"]
    if not deferred.height:
        return frames
    # Where it was read is not among what is kept of a span, for copies differ in it.
    sources = deferred.join(frames["spans"], on="row", how="left", maintain_order="left")["source"]
    own = [
        replace(_DECODER.decode(span), source=source or "")
        for span, source in zip(deferred["span"], sources, strict=True)
    ]
    rows = _join_fetched(frames, own)
    dropped: set[int] = set()
    if any(semconv.RECORD not in row.attributes for row in own):
        found = join_rows(rows, _list_neighbours(frames))
        rows, dropped = found.rows, found.joined
    changed = [i for i, row in enumerate(rows) if row is not own[i] and i not in dropped]
    if not changed and not dropped:
        return frames
    numbers = deferred["row"].gather(sorted({*changed, *dropped}))
    stay = frames["spans"].filter(~pl.col("row").is_in(numbers.implode()))
    return concat_chunks([keep_spans(frames, stay), stage_rows([rows[i] for i in changed])])


def _join_fetched(frames: Frames, own: list[SpanRow]) -> list[SpanRow]:
    if not any(row.attributes.get(semconv.OPERATION_NAME) == "fetch_response" for row in own):
        return own
    return join_fetched_answers([*own, *_list_answered(frames)])[: len(own)]


def _list_neighbours(frames: Frames) -> Neighbours:
    spans = frames["spans"].filter(~pl.col("span_id").str.contains("#", literal=True))
    neighbours = Neighbours()
    names = ("trace_id", "span_id", "parent_id", "conversation_id")
    for trace_id, span_id, parent_id, conversation_id in spans.select(names).iter_rows():
        neighbours.parents[(trace_id, span_id)] = parent_id
        if conversation_id is not None:
            neighbours.groups.setdefault(trace_id, conversation_id)
    tools = spans.filter(pl.col("record") == "step", pl.col("step_kind") == "tool")
    neighbours.tools.update(tools.select("trace_id", "span_id").iter_rows())
    answers: dict[str, list[SpanKey]] = defaultdict(list)
    calls = (
        frames["calls"]
        .filter(pl.col("response_id").is_not_null())
        .join(spans, on="row", how="inner")
        .sort("start_ns", "trace_id", "span_id")
        .select("response_id", "trace_id", "span_id")
    )
    for response_id, trace_id, span_id in calls.iter_rows():
        answers[response_id].append((trace_id, span_id))
    neighbours.answers = answers
    return neighbours


def _list_answered(frames: Frames) -> list[SpanRow]:
    """Calls that have their answer: what it takes to tell that a fetch is of one of them."""
    calls = (
        frames["calls"]
        .filter(pl.col("response_id").is_not_null())
        .join(frames["deferred"], on="row", how="anti")
        .join(frames["spans"].filter("is_ours"), on="row", how="inner")
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
