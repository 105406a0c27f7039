"""Parquet and CSV files -> batches of spans, some rows at a time.

What a table is of, its columns say: spans, or a backend's export (`records`). Parquet is read a
slice after the other, so that memory holds the rows of one slice and not the table.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from starpo_trace.convert.sources.batches import (
    ForeignFileError,
    SpanBatch,
    make_batch,
    make_damage,
)
from starpo_trace.convert.sources.compression import list_faults, open_spans
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.records import RecordFormat, find_format
from starpo_trace.convert.sources.spantable import REQUIRED, list_missing

if TYPE_CHECKING:
    import polars as pl

PARQUET_MAGIC: Final = b"PAR1"

_BATCH_ROWS: Final = 256
_SLICE_BYTES: Final = 1 << 22
"""Of the file; what it holds may be ten times as much."""
_MAX_SLICE_ROWS: Final = 1 << 13
_MAX_FIELD_CHARS: Final = 1 << 30
_MAX_HEADER_BYTES: Final = 1 << 16


def read_parquet_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """Parquet file -> a batch for some rows.

    Raises:
        ForeignFileError: its columns are those of no table of spans.
    """
    import polars as pl

    try:
        table = pl.scan_parquet(_open_parquet(file.path))
        form = _choose_format(table.collect_schema().names())
        num_rows = table.select(pl.len()).collect().item()
        num_slice_rows = _choose_slice(num_rows, file.path.stat().st_size)
        for offset in range(0, num_rows, num_slice_rows):
            frame = table.slice(offset, num_slice_rows).collect()
            yield from _read_frame(frame, form, file)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield make_damage(file.path, 0, f"Parquet data is damaged or cut: {first}")


def _choose_slice(num_rows: int, num_bytes: int) -> int:
    """How many rows to read at once: few large ones, more small ones, for each look costs time."""
    wanted = num_rows * _SLICE_BYTES // max(num_bytes, 1)
    return min(max(wanted, _BATCH_ROWS), _MAX_SLICE_ROWS)


def _open_parquet(path: Path) -> Path | IO[bytes]:
    """The file, or what it holds when it is compressed as a whole."""
    with open_spans(path) as stream:
        return (
            path if isinstance(stream.name, str) and _is_plain(path) else io.BytesIO(stream.read())
        )


def _is_plain(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC


def _read_frame(frame: "pl.DataFrame", form: RecordFormat, file: SourceFile) -> Iterator[SpanBatch]:
    for slice_of in frame.iter_slices(_BATCH_ROWS):
        yield make_batch(
            span
            for record in slice_of.iter_rows(named=True)
            for span in form.read(record, file.source)
        )


def is_csv_head(path: Path) -> bool:
    """Whether a text file begins with the names of a known table's columns."""
    return find_format(_read_header(path)) is not None


def _read_header(path: Path) -> list[str]:
    try:
        with open_spans(path) as stream:
            line = stream.readline(_MAX_HEADER_BYTES)
        return next(csv.reader([line.decode("utf-8-sig")]), [])
    except (UnicodeDecodeError, csv.Error, *list_faults()):
        return []


def read_csv_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """CSV file with a line of names -> a batch for some rows; fields without text are no values."""
    form = _choose_format(_read_header(file.path))
    if form.is_nested:
        raise ForeignFileError(
            f"{form.name} as CSV, in which lists are no longer whole; save them as Parquet or JSON "
            "lines"
        )
    csv.field_size_limit(_MAX_FIELD_CHARS)
    with open_spans(file.path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        rows = csv.DictReader(text)
        try:
            for row in rows:
                if None in row or None in row.values():
                    yield make_damage(
                        file.path, rows.line_num, "a line of more or fewer fields", "line"
                    )
                    continue
                record: dict[str, Any] = {name: value or None for name, value in row.items()}
                yield make_batch(form.read(record, file.source))
        except csv.Error as error:
            yield make_damage(file.path, rows.line_num, f"not CSV: {error}", "line")


def _choose_format(names: list[str]) -> RecordFormat:
    form = find_format(names)
    if form is None:
        raise ForeignFileError(
            f"a table without the columns {', '.join(list_missing(names))}; a table of spans needs "
            f"{', '.join(REQUIRED)} (docs/sources.md), and it is no export of Phoenix, MLflow or "
            "Langfuse"
        )
    return form
