"""Span rows -> the frames of a chunk: every span converted by itself, whatever the others say.

A chunk is bounded, so that reading needs the memory of one chunk, however many spans there are.
Chunks that have to wait lie on disk as Arrow files, uncompressed, and are mapped into memory.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from starpo_trace import semconv
from starpo_trace.convert import contentrefs
from starpo_trace.convert.columns import columns_to_frame
from starpo_trace.convert.dialects import adot, convert_span
from starpo_trace.convert.dialects.canonical import FRAMES, CanonicalSpan, Columns, Rejection
from starpo_trace.convert.joins import needs_others, strip_unread
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.limits import CUT_PREFIX, is_cut

Frames = dict[str, pl.DataFrame]
"""Frames by name, see `starpo_trace.convert.dialects.canonical.FRAMES`."""

CHUNK_SPANS: Final = 32_768
"""Spans after which a chunk is full."""
CHUNK_BYTES: Final = 128 << 20
"""Characters of text after which it is full."""

_EMPTY_ROWS: Final = {name: dict.fromkeys(columns) for name, columns in FRAMES.items()}
_RUN_COLUMNS: Final = frozenset(FRAMES["runs"]) - {"row"}
_NOTED: Final = (
    "redacted",
    "reward_refused",
    "partial_content",
    adot.ORDER_LOST,
    *contentrefs.REASONS,
)
"""What only the recording process, or an earlier stage, knows of a run."""
_SHORT: Final = len(CUT_PREFIX)
"""Texts so short hold no mark of a cut."""
_ENCODER: Final = msgspec.msgpack.Encoder()


class ChunkBuilder:
    """Gathers spans until a chunk is full."""

    def __init__(self) -> None:
        # The values of each frame, row after row: a column is every nth of them, which is three
        # times as quick as transposing rows.
        self._values: dict[str, list[Any]] = {name: [] for name in FRAMES}
        self.num_spans = 0
        """Spans gathered."""
        self.num_bytes = 0
        """Characters of their texts."""

    @property
    def is_full(self) -> bool:
        """Whether another chunk should be begun."""
        return self.num_spans >= CHUNK_SPANS or self.num_bytes >= CHUNK_BYTES

    def add_batch(self, rows: Iterable[SpanRow], num_bytes: int | None) -> None:
        """Convert spans; `num_bytes` is the size of their texts where none of them is cut."""
        for row in rows:
            self.add(row, is_searched=num_bytes is not None)
        self.num_bytes += num_bytes or 0

    def add(self, row: SpanRow, *, is_searched: bool = False) -> None:
        """Convert a span and keep its rows; its texts are searched for cuts where they were not."""
        number = self.num_spans
        span = convert_span(row)
        if needs_others(row, span):
            self._defer(number, row)
        self._append(number, row, span, is_searched=is_searched)
        self.num_spans += 1

    def _defer(self, number: int, row: SpanRow) -> None:
        try:
            encoded = _ENCODER.encode(strip_unread(row))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return  # what cannot be kept stays as it was read
        self.num_bytes += len(encoded)
        self._values["deferred"] += (number, encoded)

    def build(self) -> Frames:
        """What was gathered -> frames, in the order of the spans."""
        return {
            name: columns_to_frame(
                {column: values[i :: len(FRAMES[name])] for i, column in enumerate(FRAMES[name])},
                FRAMES[name],
            )
            for name, values in self._values.items()
        }

    def _append(
        self, number: int, row: SpanRow, span: CanonicalSpan | Rejection, *, is_searched: bool
    ) -> None:
        link = row.links[0] if row.links else (None, None)
        if isinstance(span, Rejection):
            told = (None, span.reason, span.detail, False, *[None] * 4, False, None, None)
        else:
            told = _describe(span)
            self._append_rows(number, span)
        self._values["spans"] += (
            number,
            row.trace_id,
            row.span_id,
            row.parent_id,
            row.name,
            row.source,
            row.scope,
            row.start_ns,
            row.end_ns,
            self._find_flags(row, is_searched=is_searched),
            len(row.links),
            *link,
            *told,
        )

    def _append_rows(self, number: int, span: CanonicalSpan) -> None:
        columns = span.columns
        if not _RUN_COLUMNS.isdisjoint(columns):
            run = {name: columns[name] for name in _RUN_COLUMNS if name in columns}
            self._append_row("runs", number, run)
        if span.call is not None:
            self._append_row("calls", number, span.call)
        for node in span.nodes:
            self._append_row("nodes", number, node)
        for state in span.states:
            self._append_row("states", number, state)
        for reward in span.rewards:
            self._append_row("rewards", number, reward)

    def _append_row(self, name: str, number: int, row: Columns) -> None:
        full = _EMPTY_ROWS[name] | row
        full["row"] = number
        if len(full) != len(_EMPTY_ROWS[name]):  # one value too many would shift all columns
            raise TypeError(f"{name} has no column {', '.join(row.keys() - FRAMES[name].keys())}")
        self._values[name] += full.values()

    def _find_flags(self, row: SpanRow, *, is_searched: bool) -> str | None:
        """What is amiss with a span; texts that were not searched are counted on the way."""
        flags: list[str] = []
        if row.end_ns is not None and row.end_ns < row.start_ns:
            flags.append("skewed_clock")
        if row.num_dropped:
            flags.append("dropped_attributes")
        attributes = row.attributes
        for value in () if is_searched else attributes.values():
            if type(value) is str and (length := len(value)) > _SHORT:
                self.num_bytes += length
                if CUT_PREFIX in value and is_cut(value) and "content_truncated" not in flags:
                    flags.append("content_truncated")
        if semconv.USABLE_FOR_REASONS in attributes:
            noted = attributes[semconv.USABLE_FOR_REASONS]
            if isinstance(noted, (list, tuple)):
                flags += [reason for reason in _NOTED if reason in noted]
        return ",".join(flags) if flags else None


def stage_rows(rows: Sequence[SpanRow]) -> Frames:
    """Span rows -> one chunk."""
    builder = ChunkBuilder()
    for row in rows:
        builder.add(row)
    return builder.build()


def write_chunk(frames: Frames, folder: Path) -> None:
    """Chunk -> its files in a new folder."""
    folder.mkdir(parents=True)
    for name, frame in frames.items():
        if frame.height:
            frame.write_ipc(folder / f"{name}.arrow", compression="uncompressed")


def read_chunk(folder: Path, trace_ids: pl.DataFrame | None = None) -> Frames:
    """Folder of a chunk -> its frames, only of these traces (column `trace_id`) where given."""
    frames = {}
    for name, columns in FRAMES.items():
        path = folder / f"{name}.arrow"
        frames[name] = (
            pl.scan_ipc(path, glob=False).collect()  # not read_ipc, to which `[` is a pattern
            if path.exists()
            else columns_to_frame({column: [] for column in columns}, columns)
        )
    return frames if trace_ids is None else select_traces(frames, trace_ids)


def select_traces(frames: Frames, trace_ids: pl.DataFrame) -> Frames:
    """Chunk -> the spans of these traces (column `trace_id`), numbered as before."""
    spans = frames["spans"].join(trace_ids, on="trace_id", how="semi", maintain_order="left")
    return keep_spans(frames, spans)


def keep_spans(frames: Frames, spans: pl.DataFrame) -> Frames:
    """Frames and the spans to keep of them -> frames of these spans alone."""
    if spans.height == frames["spans"].height:
        return {**frames, "spans": spans}
    rows = spans.select("row")
    return {
        name: spans
        if name == "spans"
        else frame.join(rows, on="row", how="semi", maintain_order="left")
        for name, frame in frames.items()
    }


def concat_chunks(chunks: Sequence[Frames]) -> Frames:
    """Chunks -> one, sorted by trace and span, rows numbered in this order."""
    offset = 0
    shifted: dict[str, list[pl.DataFrame]] = {name: [] for name in FRAMES}
    for frames in chunks:
        for name, frame in frames.items():
            shifted[name].append(frame.with_columns(pl.col("row") + offset) if offset else frame)
        last = frames["spans"]["row"].max()
        offset += 0 if last is None else int(last) + 1  # pyright: ignore[reportArgumentType]
    merged = {
        name: pl.concat(several, how="vertical") if len(several) != 1 else several[0]
        for name, several in shifted.items()
    }
    return number_spans(merged, merged["spans"].sort("trace_id", "span_id", "row"))


def number_spans(frames: Frames, spans: pl.DataFrame) -> Frames:
    """Frames and their spans in a new order -> rows numbered from 0 in this order."""
    # An index into an array is several times as quick as a join.
    last = frames["spans"]["row"].max()
    size = 0 if last is None else int(last) + 1  # pyright: ignore[reportArgumentType]
    numbers = pl.repeat(None, size, dtype=pl.Int64, eager=True)
    numbers = numbers.scatter(spans["row"], pl.int_range(spans.height, eager=True))
    is_whole = spans.height == frames["spans"].height
    numbered: Frames = {}
    for name, frame in frames.items():
        found = spans if name == "spans" else frame
        found = found.with_columns(row=numbers.gather(found["row"]))
        numbered[name] = found if is_whole else found.drop_nulls("row")
    return numbered


def _describe(span: CanonicalSpan) -> tuple[Any, ...]:
    columns = span.columns
    return (
        span.record,
        None,
        None,
        columns.get("is_ours", False),
        columns.get("trajectory_id") or None,  # an empty name is none
        columns.get("conversation_id") or None,
        columns.get("step"),
        columns.get("step_kind"),
        span.call is not None and bool(span.call["has_input"]),
        columns.get("tool_name"),
        columns.get("tool_call_id"),
    )
