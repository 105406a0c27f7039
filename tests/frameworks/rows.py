"""A dataset and its spans -> what two recordings of one program must have in common.

Ids and times are left out; where an id stands inside of a text it is replaced.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from starpo_trace import semconv
from starpo_trace.convert.dataset import build_dataset, convert_rows, scan_table
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.schema import TABLES

_LEFT_OUT: Final = {
    *("trace_id", "span_id", "source", "trajectory_id"),
    "hash",  # of a state, whose ids are replaced
    "digest",  # of the rows, with their ids
}
_ID: Final = re.compile(
    r"\b[0-9]+\.[0-9]{4,}(?:e-[0-9]+)?\b|\b1[78][0-9]{8}\b|\b0x[0-9a-f]+\b"  # times, addresses
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
    r"|\b[0-9a-f]{32}\b|\b[0-9a-f]{16}\b"
)
_SPAN_FIELDS: Final = (
    *("trace_id", "span_id", "parent_id", "name", "scope"),
    *("start_ns", "end_ns", "attributes"),
)
_TOOL: Final = (
    semconv.TOOL_NAME,
    semconv.TOOL_CALL_ID,
    semconv.TOOL_CALL_ARGUMENTS,
    semconv.TOOL_CALL_RESULT,
)


def read_tables(store: Path, dataset: Path) -> dict[str, list[dict[str, Any]]]:
    """Store -> every table of its export, row by row, and the tools that ran."""
    manifest = build_dataset([store], dataset)
    assert manifest.accounting.is_closed
    raw = {name: scan_table(dataset, name).collect().to_dicts() for name in TABLES}
    return _tell_tables(raw) | {"tools": _list_tools(store)}


def convert_spans(spans: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Spans of one provider -> every table, row by row."""
    rows = [
        SpanRow(
            source="one",
            **{name: span[name] for name in _SPAN_FIELDS},
            events=tuple((name, time_ns, fields) for name, time_ns, fields in span["events"]),
        )
        for span in spans
    ]
    return _tell_tables({name: table.to_dicts() for name, table in convert_rows(rows).items()})


def _tell_tables(raw: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    numbers = _number_trajectories(raw)
    return {
        name: sorted(
            (_tell_row(row, numbers) for row in rows), key=lambda row: json.dumps(row, default=str)
        )
        for name, rows in raw.items()
    }


def _number_trajectories(raw: Mapping[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Runs by what they were asked, which does not depend on which of them came first."""
    asked: dict[str, list[str]] = {row["trajectory_id"]: [] for row in raw["trajectories"]}
    for row in raw["messages"]:
        asked[row["trajectory_id"]].append(row["node_id"])
    order = sorted(asked, key=lambda trajectory_id: sorted(asked[trajectory_id]))
    return {trajectory_id: number for number, trajectory_id in enumerate(order)}


def mask_ids(text: str) -> str:
    """Text -> the same without ids and times."""
    return _ID.sub("ID", text)


def _tell_row(row: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    told = {
        name: mask_ids(value) if isinstance(value, str) else value
        for name, value in row.items()
        if name not in _LEFT_OUT and not name.endswith("_ns")
    }
    return {"run": numbers.get(row.get("trajectory_id", "")), **told}


def read_spans(store: Path) -> list[SpanRow]:
    """Spans of a store, by their start."""
    files = find_source_files([store])
    rows = [row for file in files for batch in read_span_batches(file) for row in batch.rows]
    return sorted(rows, key=lambda row: row.start_ns)


def _list_tools(store: Path) -> list[dict[str, Any]]:
    tools = [
        {key: span.attributes.get(key) for key in _TOOL}
        for span in read_spans(store)
        if span.attributes.get(semconv.RECORD) == "step"
    ]
    return sorted(tools, key=str)


def tell_spans(spans: list[dict[str, Any]]) -> list[str]:
    """Another library's spans -> what each is and where it lies, without ids and times."""
    index = {span["span_id"]: span for span in spans}
    traces = {span["trace_id"]: [] for span in spans}
    for span in spans:
        traces[span["trace_id"]].append(_find_path(span, index))
    told = [
        {
            **{key: span[key] for key in ("name", "kind", "scope", "status")},
            "attributes": span["attributes"],
            "path": _find_path(span, index),
            "trace": sorted(traces[span["trace_id"]]),
            "events": [[name, fields] for name, _, fields in span["events"]],
        }
        for span in spans
    ]
    return sorted(mask_ids(json.dumps(each, sort_keys=True)) for each in told)


def _find_path(span: dict[str, Any], index: Mapping[str, dict[str, Any]]) -> list[str]:
    """Names of a span and of those above it; the last is a question mark if it was not written."""
    path = [span["name"]]
    while span["parent_id"] is not None:
        above = index.get(span["parent_id"])
        if above is None:
            return [*path, "?"]
        path.append(above["name"])
        span = above
    return path
