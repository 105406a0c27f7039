"""Span rows -> a file of the Collector's JSON lines."""

import json
from pathlib import Path

from starpo_trace.convert.otlp import SpanRow


def to_json(row: SpanRow) -> dict:
    """Span row -> OTLP JSON span."""
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue", bool: "boolValue"}
    return {
        "traceId": row.trace_id,
        "spanId": row.span_id,
        "parentSpanId": row.parent_id or "",
        "name": row.name,
        "startTimeUnixNano": str(row.start_ns),
        "endTimeUnixNano": str(row.end_ns),
        "attributes": [
            {"key": key, "value": {kinds[type(value)]: value}}
            for key, value in row.attributes.items()
        ],
        "links": [{"traceId": trace, "spanId": span} for trace, span in row.links],
    }


def write_lines(path: Path, rows: list[SpanRow], size: int = 5) -> None:
    """Rows -> Collector lines of `size` spans, each scope by itself."""
    lines = []
    for start in range(0, len(rows), size):
        scopes = [
            {"scope": {"name": row.scope}, "spans": [to_json(row)]}
            for row in rows[start : start + size]
        ]
        lines.append(json.dumps({"resourceSpans": [{"scopeSpans": scopes}]}))
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("\n".join(lines) + "\n")
