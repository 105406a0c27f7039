"""What the receiver takes: spans, and the log records that instrumentations write beside them.

Both are groups by resource of groups by scope of records, under the same field numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from starpo_trace.collect.checks import Tally, check_log_record, check_span
from starpo_trace.collect.jsonfields import LOG_RECORD, SPAN, Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One kind of record that OTLP carries."""

    name: str
    """What a record is called."""
    path: str
    """Where OTLP/HTTP sends it."""
    service: str
    """The service of OTLP/gRPC, below `opentelemetry.proto.collector`."""
    request: Any
    """Message of an export."""
    response: Any
    """Message of its answer."""
    record: Any
    """Message of a record."""
    levels: tuple[str, str, str]
    """Fields that hold the groups, the scopes and the records."""
    json_levels: tuple[str, str, str]
    """The same in JSON."""
    rejected: tuple[str, str]
    """Field of a partial success that counts records left out, and the same in JSON."""
    check: Callable[[Any, Tally], None]
    """Counts a record's values and looks at its ids."""
    fields: Fields
    """Fields of a record in JSON."""


TRACES: Final = Signal(
    name="span",
    path="/v1/traces",
    service="trace.v1.TraceService",
    request=ExportTraceServiceRequest,
    response=ExportTraceServiceResponse,
    record=Span,
    levels=("resource_spans", "scope_spans", "spans"),
    json_levels=("resourceSpans", "scopeSpans", "spans"),
    rejected=("rejected_spans", "rejectedSpans"),
    check=check_span,
    fields=SPAN,
)
LOGS: Final = Signal(
    name="log record",
    path="/v1/logs",
    service="logs.v1.LogsService",
    request=ExportLogsServiceRequest,
    response=ExportLogsServiceResponse,
    record=LogRecord,
    levels=("resource_logs", "scope_logs", "log_records"),
    json_levels=("resourceLogs", "scopeLogs", "logRecords"),
    rejected=("rejected_log_records", "rejectedLogRecords"),
    check=check_log_record,
    fields=LOG_RECORD,
)
SIGNALS: Final = (TRACES, LOGS)
