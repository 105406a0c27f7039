"""Credit rows -> OTLP/JSON, one request a trajectory: spans that link to what they are about.

A trajectory's credit is a trace of its own, as late rewards are: what it is about has long been
sent. Its first span links to the run's root, each other one to a call or a step, so that a viewer
of traces leads from a step to what it earned and back. `starpo_trace` rejects them as rewards.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from starpo_trace import semconv
from starpo_train.credit_table import CreditRow
from starpo_train.dataset import Manifest, scan_table

SPANS_FILE = "credit.jsonl"
_INTERNAL = 1
_SCOPE = "starpo_train"


def write_credit_spans(
    path: Path, rows: Sequence[CreditRow], manifest: Manifest, *, now_ns: int
) -> int:
    """Write a line for each trajectory; returns the number of spans.

    Every line is an `ExportTraceServiceRequest` in JSON, as the OpenTelemetry Collector's `file`
    exporter writes and any OTLP/HTTP endpoint takes.
    """
    roots = _read_roots(manifest)
    num_spans = 0
    with path.open("w", encoding="utf-8") as file:
        for key, found in groupby(rows, key=lambda row: row.trajectory_id):
            spans = list(_build_spans(list(found), roots.get(key), manifest.digest, now_ns))
            if spans:
                file.write(json.dumps(_wrap(spans), ensure_ascii=False) + "\n")
                num_spans += len(spans)
    return num_spans


def _build_spans(
    rows: list[CreditRow], root: tuple[str, str] | None, digest: str, now_ns: int
) -> Iterator[dict[str, Any]]:
    """Spans of one trajectory: of the run, where its first turn has credit, then of calls, steps."""
    first = rows[0]
    trace_id = _hash(first.trajectory_id, first.estimator, digest, str(now_ns), size=16)
    parent = None
    if root is not None and first.advantage is not None:
        parent = _hash(trace_id, "run", size=8)
        yield _make_span(first, root, (trace_id, parent, None), digest, now_ns, is_run=True)
    for row in rows:
        if row.trace_id is None or row.span_id is None or row.advantage is None:
            continue
        span_id = _hash(trace_id, row.trace_id, row.span_id, size=8)
        target = (row.trace_id, row.span_id)
        yield _make_span(row, target, (trace_id, span_id, parent), digest, now_ns, is_run=False)


def _make_span(
    row: CreditRow,
    target: tuple[str, str],
    own: tuple[str, str, str | None],
    digest: str,
    now_ns: int,
    *,
    is_run: bool,
) -> dict[str, Any]:
    trace_id, span_id, parent = own
    advantage = row.advantage or 0.0
    label = "earned" if advantage > 0 else "lost" if advantage < 0 else "even"
    attributes = {
        semconv.SCHEMA: semconv.SCHEMA_VERSION,
        semconv.RECORD: "credit",
        semconv.TRAJECTORY_ID: row.trajectory_id,
        semconv.TASK_ID: row.task_id,
        semconv.POLICY_ID: row.policy_id,
        semconv.STEP: None if is_run else row.step,
        semconv.STEP_KIND: None if is_run or row.kind == "step" else row.kind,
        semconv.EVALUATION_NAME: "credit",
        semconv.EVALUATION_VALUE: advantage,
        semconv.EVALUATION_LABEL: label,
        semconv.CREDIT_ESTIMATOR: row.estimator,
        semconv.CREDIT_REWARD: None if is_run else row.reward,
        semconv.CREDIT_RETURN: row.return_to_go,
        semconv.CREDIT_BASELINE: row.baseline,
        semconv.CREDIT_DATASET: digest,
    }
    span: dict[str, Any] = {
        "traceId": trace_id,
        "spanId": span_id,
        "name": "evaluate credit",
        "kind": _INTERNAL,
        "startTimeUnixNano": str(now_ns),
        "endTimeUnixNano": str(now_ns),
        "attributes": _encode(attributes),
        "links": [{"traceId": target[0], "spanId": target[1]}],
        "status": {},
    }
    if parent is not None:
        span["parentSpanId"] = parent
    return span


def _wrap(spans: list[dict[str, Any]]) -> dict[str, Any]:
    resource = {"attributes": _encode({"service.name": _SCOPE})}
    scopes = [{"scope": {"name": _SCOPE}, "spans": spans}]
    return {"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]}


def _encode(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """Attributes -> OTLP/JSON's list; 64-bit integers are strings there."""
    encoded = []
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float):
            encoded.append({"key": key, "value": {"doubleValue": value}})
        elif isinstance(value, int):
            encoded.append({"key": key, "value": {"intValue": str(value)}})
        else:
            encoded.append({"key": key, "value": {"stringValue": value}})
    return encoded


def _read_roots(manifest: Manifest) -> dict[str, tuple[str, str]]:
    """Trajectory id -> trace and span id of its root."""
    rows = (
        scan_table(manifest, "spans")
        .filter(pl.col("record").is_in(["trajectory", "agent"]))
        .sort("trajectory_id", pl.col("record") == "agent", maintain_order=True)
        .group_by("trajectory_id", maintain_order=True)
        .first()
        .select("trajectory_id", "trace_id", "span_id")
        .collect()
    )
    return {key: (trace_id, span_id) for key, trace_id, span_id in rows.iter_rows()}


def _hash(*parts: str, size: int) -> str:
    """An id that is the same for the same parts; never all zeros, which would be no id."""
    return blake2b("\0".join(parts).encode(), digest_size=size).hexdigest()
