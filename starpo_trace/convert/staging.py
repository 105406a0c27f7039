"""Span rows -> the frames of a chunk: every span converted by itself, whatever the others say.

A chunk is bounded, so that reading needs the memory of one chunk, however many spans there are.
Chunks that have to wait lie on disk as Arrow files, uncompressed, and are mapped into memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from starpo_trace import semconv
from starpo_trace.convert import contentrefs
from starpo_trace.convert.columns import columns_to_frame
from starpo_trace.convert.dialects import adot, convert_span
from starpo_trace.convert.dialects.canonical import FRAMES, CanonicalSpan, Rejection
from starpo_trace.convert.joins import needs_others, strip_unread
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.limits import CUT_PREFIX, is_cut

Frames = dict[str, pl.DataFrame]
"""Frames by name, see `starpo_trace.convert.dialects.canonical.FRAMES`."""

CHUNK_SPANS: Final = 32_768
"""Spans after which a chunk is full."""
CHUNK_BYTES: Final = 128 << 20
"""Characters of text after which it is full."""

_NAMES: Final = {name: tuple(columns) for name, columns in FRAMES.items()}
_RUN_COLUMNS: Final = frozenset(FRAMES["runs"]) - {"row"}
_NOTED: Final = ("redacted", "reward_refused", adot.ORDER_LOST, *contentrefs.REASONS)
"""What only the recording process, or an earlier stage, knows of a run."""
_SHORT: Final = len(CUT_PREFIX)
"""Texts so short hold no mark of a cut."""
_ENCODER: Final = msgspec.msgpack.Encoder()


class ChunkBuilder:
    """Gathers spans until a chunk is full."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in FRAMES}
        self.num_bytes = 0

    @property
    def num_spans(self) -> int:
        """Spans gathered."""
        return len(self._rows["spans"])

    @property
    def is_full(self) -> bool:
        """Whether another chunk should be begun."""
        return self.num_spans >= CHUNK_SPANS or self.num_bytes >= CHUNK_BYTES

    def add(self, row: SpanRow) -> None:
        """Convert a span and keep its rows."""
        number = self.num_spans
        span = convert_span(row)
        if needs_others(row, span):
            self._defer(number, row)
        self._append(number, row, span)

    def _defer(self, number: int, row: SpanRow) -> None:
        try:
            encoded = _ENCODER.encode(strip_unread(row))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return  # what cannot be kept stays as it was read
        self.num_bytes += len(encoded)
        self._rows["deferred"].append((number, encoded))

    def build(self) -> Frames:
        """What was gathered -> frames, in the order of the spans."""
        return {
            name: columns_to_frame(_transpose(_NAMES[name], rows), FRAMES[name])
            for name, rows in self._rows.items()
        }

    def _append(self, number: int, row: SpanRow, span: CanonicalSpan | Rejection) -> None:
        link = row.links[0] if row.links else (None, None)
        if isinstance(span, Rejection):
            told = (None, span.reason, span.detail, False, None, None, None, None, False)
        else:
            told = _describe(span)
            self._append_rows(number, span)
        self._rows["spans"].append(
            (
                number,
                row.trace_id,
                row.span_id,
                row.parent_id,
                row.name,
                row.source,
                row.scope,
                row.start_ns,
                row.end_ns,
                self._find_flags(row),
                len(row.links),
                *link,
                *told,
            )
        )

    def _append_rows(self, number: int, span: CanonicalSpan) -> None:
        rows = self._rows
        if not _RUN_COLUMNS.isdisjoint(span.columns):
            rows["runs"].append((number, *map(span.columns.get, _NAMES["runs"][1:])))
        if span.call is not None:
            rows["calls"].append((number, *map(span.call.get, _NAMES["calls"][1:])))
        for name, several in (
            ("nodes", span.nodes),
            ("states", span.states),
            ("rewards", span.rewards),
        ):
            for each in several:
                rows[name].append((number, *map(each.get, _NAMES[name][1:])))

    def _find_flags(self, row: SpanRow) -> str | None:
        """What is amiss with a span; its texts are counted on the way."""
        flags = []
        if row.end_ns is not None and row.end_ns < row.start_ns:
            flags.append("skewed_clock")
        if row.num_dropped:
            flags.append("dropped_attributes")
        attributes = row.attributes
        for value in attributes.values():
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
            pl.read_ipc(path)
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
    numbers = spans.select("row").with_row_index("number").cast(pl.Int64)
    numbered: Frames = {"spans": spans.with_columns(row=numbers["number"])}
    for name, frame in frames.items():
        if name == "spans":
            continue
        numbered[name] = (
            frame.join(numbers, on="row", how="inner", maintain_order="left")
            .with_columns(row=pl.col("number"))
            .select(frame.columns)
        )
    return numbered


def _describe(span: CanonicalSpan) -> tuple[Any, ...]:
    columns = span.columns
    return (
        span.record,
        None,
        None,
        columns.get("is_ours", False),
        columns.get("trajectory_id"),
        columns.get("conversation_id"),
        columns.get("step"),
        columns.get("step_kind"),
        span.call is not None and bool(span.call["has_input"]),
    )


def _transpose(names: Sequence[str], rows: list[tuple[Any, ...]]) -> Mapping[str, Sequence[Any]]:
    if not rows:
        return dict.fromkeys(names, ())
    return dict(zip(names, zip(*rows, strict=True), strict=True))
