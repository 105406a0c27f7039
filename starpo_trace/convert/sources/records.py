"""Records of a table, or JSON objects -> spans, by the backend whose names they have."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources import langfuse, mlflow, phoenix, spantable
from starpo_trace.convert.sources.fields import FAULTS, describe_fault, make_malformed, read_records
from starpo_trace.convert.sources.files import SourceFile

Spans = Iterator[SpanRow | MalformedSpan]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFormat:
    """Records that are known by the names of their fields."""

    name: str
    """What users call it."""
    has_names: Callable[[Collection[str]], bool]
    """Whether a record or table with these names has this form."""
    read: Callable[[Any, str], Spans]
    """Record and source -> its spans."""
    is_nested: bool = False
    """Its fields are lists and objects, of which pandas writes Python's form into CSV."""


def _each(read: Callable[[Mapping[str, Any], str], SpanRow | MalformedSpan]) -> Any:
    def read_one(record: Any, source: str) -> Spans:
        return read_records([record], lambda each: read(each, source), source)

    return read_one


def _read_frame_row(record: Any, source: str) -> Spans:
    try:
        yield from mlflow.read_traces(record, source)
    except FAULTS as error:
        yield make_malformed(record, source, describe_fault(error))


RECORD_FORMATS: Final = (
    RecordFormat(
        name="spans of Phoenix",
        has_names=phoenix.is_span,
        read=_each(phoenix.read_record),
        is_nested=True,
    ),
    RecordFormat(
        name="annotations of Phoenix",
        has_names=phoenix.is_annotation,
        read=_each(phoenix.read_record),
    ),
    RecordFormat(name="traces of MLflow", has_names=mlflow.is_frame_row, read=_read_frame_row),
    RecordFormat(
        name="observations of Langfuse",
        has_names=langfuse.is_observation,
        read=_each(langfuse.read_record),
    ),
    RecordFormat(
        name="scores of Langfuse", has_names=langfuse.is_score, read=_each(langfuse.read_record)
    ),
    RecordFormat(
        name="table of spans", has_names=spantable.is_span_table, read=_each(spantable.read_row)
    ),
)


_PAGE_FIELDS: Final = frozenset({"next_cursor", "meta"})
"""What a page of an API has beside its records."""


def find_format(names: Collection[str]) -> RecordFormat | None:
    """Names of a record's fields -> its format; None when no backend has them."""
    return next((form for form in RECORD_FORMATS if form.has_names(names)), None)


def holds_records(value: Any) -> bool:
    """Whether a JSON value is a record of these formats, a list of them, or a page of an API."""
    first = _first_record(value)
    if isinstance(value, Mapping) and value.get("data") == []:
        return not _PAGE_FIELDS.isdisjoint(value)  # there were none
    return first is not None and (
        phoenix.is_otlp_span(first) or find_format(first.keys()) is not None
    )


def _first_record(value: Any) -> Mapping[str, Any] | None:
    records = _list_records(value)
    first = records[0] if records else None
    return first if isinstance(first, Mapping) else None


def _list_records(value: Any) -> list[Any]:
    if isinstance(value, Mapping) and isinstance(value.get("data"), list):
        return value["data"]
    return value if isinstance(value, list) else [value]


def read_json_records(value: Any, file: SourceFile) -> Spans:
    """A JSON value that holds records -> their spans."""
    for record in _list_records(value):
        if isinstance(record, Mapping) and phoenix.is_otlp_span(record):
            yield from _each(phoenix.read_otlp_span)(record, file.source)
            continue
        form = find_format(record.keys()) if isinstance(record, Mapping) else None
        if form is None:
            yield make_malformed(record, file.source, "a record unlike the ones before it")
        else:
            yield from form.read(record, file.source)


def _is_langfuse(value: Any) -> bool:
    first = _first_record(value)
    return first is not None and (langfuse.is_trace(first) or langfuse.is_trace_row(first.keys()))


def _read_langfuse(value: Any, file: SourceFile) -> Spans:
    for record in _list_records(value):
        try:
            if langfuse.is_trace(record):
                yield from langfuse.read_trace(record, file.source)
            else:
                yield langfuse.read_record(record, file.source)
        except FAULTS as error:
            yield make_malformed(record, file.source, describe_fault(error))


def _is_mlflow(value: Any) -> bool:
    return mlflow.is_trace(value[0] if isinstance(value, list) and value else value)


def _read_mlflow(value: Any, file: SourceFile) -> Spans:
    for trace in value if isinstance(value, list) else [value]:
        yield from _read_frame_row(trace, file.source)


BACKEND_DOCUMENTS: Final = (
    ("traces of Langfuse", _is_langfuse, _read_langfuse),
    ("traces of MLflow", _is_mlflow, _read_mlflow),
    ("records of a backend", holds_records, read_json_records),
)
"""Name, test and reader of each form of JSON document."""
