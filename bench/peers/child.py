"""One instrumented process that runs blocks of calls on request.

    python -m peers.child SETUP [callgrind]

Requests come as lines of JSON on standard input (`{"row": "short", "num_calls": 20}`), answers go
as lines of JSON to standard output. Under callgrind each block lies between two marks.
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from peers.counter import Callgrind
from peers.setups import SETUPS
from peers.workload import Workload, run_trajectory

NEVER_MS = 3_600_000  # batches leave at the end of a block, not by the clock


class NoSpans(SpanExporter):
    """Takes spans and does nothing."""

    num_spans = 0

    def export(self, spans: Any) -> SpanExportResult:
        NoSpans.num_spans += len(spans)
        return SpanExportResult.SUCCESS


class NoLogs:
    """Takes log records and does nothing."""

    def export(self, batch: Any) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Do nothing."""
        return True


def main() -> None:
    setup = SETUPS[sys.argv[1]]
    counter = Callgrind() if sys.argv[2:] == ["callgrind"] else None
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(NoSpans(), schedule_delay_millis=NEVER_MS))
    logger_provider = LoggerProvider(shutdown_on_exit=False)
    logger_provider.add_log_record_processor(
        BatchLogRecordProcessor(NoLogs(), schedule_delay_millis=NEVER_MS)
    )
    workload = Workload()
    setup.start(provider, logger_provider)
    is_started = False

    def run_block(row: str, num_calls: int) -> None:
        with run_trajectory(is_wanted=setup.uses_trajectory):
            workload.rows[row](num_calls)
        provider.force_flush()
        logger_provider.force_flush()

    for line in sys.stdin:
        request = json.loads(line)
        row, num_calls = request["row"], request["num_calls"]
        if counter is not None and not is_started and not request.get("is_warm_up"):
            is_started = True
            counter.start()
        gc.collect()  # so that each block begins in the same state
        num_spans_before = NoSpans.num_spans
        if counter is not None and is_started:
            counter.mark()
        started_s = time.process_time()
        run_block(row, num_calls)
        cpu_s = time.process_time() - started_s
        if counter is not None and is_started:
            counter.mark()
        answer = {
            "cpu_s": cpu_s,
            "num_spans": NoSpans.num_spans - num_spans_before,
            "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
