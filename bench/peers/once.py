"""What happens once in a process, or over a whole agent run: a child that measures and ends.

    python -m peers.once SETUP import [callgrind]
    python -m peers.once SETUP bytes

`import` is what importing and switching on an instrumentation costs a program that has the OpenAI
SDK, the OpenTelemetry SDK and wrapt loaded already, and then what the first call costs, for which
some of them load the rest. `bytes` is the size of each call's spans in
OTLP protobuf, while an agent's history grows from 2 messages to 200.
"""

import json
import sys
import time
from typing import Any

import openai
import opentelemetry.sdk._logs
import opentelemetry.sdk.trace.export
import wrapt  # noqa: F401 (loaded by every one of them)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from peers.counter import Callgrind
from peers.setups import SETUPS, Setup


def measure_import(setup: Setup, counter: Callgrind | None) -> dict[str, Any]:
    """CPU times and modules; under callgrind the instructions lie between three marks."""
    from peers.workload import SHORT_MESSAGES, Workload

    workload = Workload()
    workload.call(SHORT_MESSAGES)  # the SDK loads much when first used
    assert openai.AsyncOpenAI(api_key="none").chat.completions
    provider = TracerProvider(shutdown_on_exit=False)
    logger_provider = opentelemetry.sdk._logs.LoggerProvider(shutdown_on_exit=False)
    modules_before = set(sys.modules)
    if counter is not None:
        counter.start()
        counter.mark()
    started_s = time.process_time()
    setup.start(provider, logger_provider)
    cpu_s = time.process_time() - started_s
    if counter is not None:
        counter.mark()
    added = set(sys.modules) - modules_before
    started_s = time.process_time()
    workload.call(SHORT_MESSAGES)
    first_call_s = time.process_time() - started_s
    if counter is not None:
        counter.mark()
    return {
        "cpu_ms": 1e3 * cpu_s,
        "modules": len(added),
        "first_call_cpu_ms": 1e3 * first_call_s,
        "first_call_modules": len(set(sys.modules) - modules_before) - len(added),
    }


class SizedSpans(SpanExporter):
    """Adds up the size of what is exported."""

    num_bytes = 0

    def export(self, spans: Any) -> SpanExportResult:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        for span in spans:
            SizedSpans.num_bytes += encode_spans([span]).ByteSize()
        return SpanExportResult.SUCCESS


def measure_bytes(setup: Setup) -> list[dict[str, int]]:
    """Messages in the history and bytes exported, call by call."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    from peers.workload import Workload, run_trajectory

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(SizedSpans()))
    workload = Workload()
    setup.start(provider, None)
    calls = []
    with run_trajectory(is_wanted=setup.uses_trajectory):
        for messages in workload.grow_history(2):
            num_bytes_before = SizedSpans.num_bytes
            workload.call(messages)
            num_bytes = SizedSpans.num_bytes - num_bytes_before
            calls.append({"messages": len(messages), "bytes": num_bytes})
            if len(messages) >= 200:
                return calls
    raise AssertionError("the history never grew to 200 messages")


def main() -> None:
    setup = SETUPS[sys.argv[1]]
    if sys.argv[2] == "bytes":
        print(json.dumps(measure_bytes(setup)))
    else:
        counter = Callgrind() if sys.argv[3:] == ["callgrind"] else None
        print(json.dumps(measure_import(setup, counter)))


if __name__ == "__main__":
    main()
