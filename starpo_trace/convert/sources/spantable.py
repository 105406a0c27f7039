"""Rows of a table of spans -> span rows.

The columns are those of `SpanRow`; names that OpenTelemetry's own fields and ClickHouse's exporter
give them are read too. Attributes are JSON text, a map, or a list of key-value structs.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from starpo_trace.convert.dialects.content import read_json
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    read_attributes,
    read_error,
    read_events,
    read_id,
    read_links,
    read_ns,
)

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "trace_id": ("trace_id", "traceId", "TraceId"),
    "span_id": ("span_id", "spanId", "SpanId"),
    "parent_id": ("parent_id", "parent_span_id", "parentSpanId", "ParentSpanId"),
    "name": ("name", "span_name", "SpanName"),
    "scope": ("scope", "scope_name", "instrumentation_scope", "ScopeName"),
    "start_ns": (
        "start_ns",
        "start_time_unix_nano",
        "startTimeUnixNano",
        "start_time",
        "Timestamp",
    ),
    "end_ns": ("end_ns", "end_time_unix_nano", "endTimeUnixNano", "end_time"),
    "status": ("status", "status_code", "StatusCode"),
    "status_message": ("status_message", "StatusMessage"),
    "attributes": ("attributes", "span_attributes", "SpanAttributes"),
    "events": ("events",),
    "links": ("links",),
    "resource": ("resource", "resource_attributes", "ResourceAttributes"),
    "duration_ns": ("duration_ns", "Duration"),
    "num_dropped": ("dropped_attributes_count", "droppedAttributesCount"),
}
"""Column -> names it may have."""
_EVENT_LISTS: Final = {
    "name": "Events.Name",
    "time": "Events.Timestamp",
    "attributes": "Events.Attributes",
}
_LINK_LISTS: Final = {"trace_id": "Links.TraceId", "span_id": "Links.SpanId"}
"""What ClickHouse's exporter has as a list of each field."""
REQUIRED: Final = ("trace_id", "span_id", "parent_id", "name", "start_ns", "end_ns", "attributes")
"""Columns without which spans are no trajectory; `duration_ns` stands for `end_ns`."""


def list_missing(names: Collection[str]) -> list[str]:
    """Names of a table's columns -> the required ones it lacks."""
    found = {column for column, others in COLUMNS.items() if not set(others).isdisjoint(names)}
    if "duration_ns" in found:
        found.add("end_ns")
    return [column for column in REQUIRED if column not in found]


def is_span_table(names: Collection[str]) -> bool:
    """Whether a table with these columns is one of spans."""
    return not list_missing(names)


def read_row(record: Mapping[str, Any], source: str) -> SpanRow:
    """A row -> span row.

    Raises:
        ValueError, TypeError: a field cannot be read.
    """
    fields = {
        column: next((record[name] for name in names if record.get(name) is not None), None)
        for column, names in COLUMNS.items()
    }
    status = _read_struct(fields["status"], "code")
    message = fields["status_message"]
    if message is None and isinstance(fields["status"], Mapping):
        message = fields["status"].get("message")
    resource = _read_struct(fields["resource"], "attributes")
    start_ns, end_ns = (read_ns(record, COLUMNS[column]) for column in ("start_ns", "end_ns"))
    if not end_ns and fields["duration_ns"] is not None:
        end_ns = start_ns + int(fields["duration_ns"])
    parent_id = fields["parent_id"]
    return SpanRow(
        source=source,
        trace_id=read_id(fields["trace_id"], TRACE_DIGITS),
        span_id=read_id(fields["span_id"], SPAN_DIGITS),
        parent_id=(read_id(parent_id, SPAN_DIGITS) or None) if parent_id else None,
        name=str(fields["name"] or ""),
        scope=str(_read_struct(fields["scope"], "name") or ""),
        start_ns=start_ns,
        end_ns=end_ns or None,
        error=read_error(status, message),
        num_dropped=int(fields["num_dropped"] or 0),
        attributes=read_attributes(fields["attributes"]),
        events=read_events(fields["events"] or _join_lists(record, _EVENT_LISTS)),
        links=read_links(fields["links"] or _join_lists(record, _LINK_LISTS)),
        resource=read_attributes(resource),
    )


def _join_lists(record: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    lists = {field: record[name] for field, name in names.items() if record.get(name)}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _read_struct(value: Any, name: str) -> Any:
    """A struct, also as JSON text, that holds the value under this name -> the value."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = read_json(value)
    return value[name] if isinstance(value, Mapping) and name in value else value
