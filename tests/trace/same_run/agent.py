"""A small real agent on the OpenAI SDK under one instrumentation; prints its spans and log records.

python agent.py SETUP BASE_URL     (SETUP as in bench/peers/setups.py)
"""

import json
import sys

import openai
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from peers.setups import SETUPS

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": "Units of an article.",
            "parameters": {"type": "object", "properties": {"sku": {"type": "string"}}},
        },
    }
]
STOCK = {"A7": "3", "B8": "0"}


def play(client):
    """Ask, run the tools that the model asked for, ask again."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how many?"},
    ]
    while True:
        answer = client.chat.completions.create(
            model="m",
            messages=messages,
            tools=TOOLS,
            temperature=0.5,
            top_p=0.75,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        said = answer.choices[0].message
        calls = said.tool_calls or ()
        message = {"role": "assistant", "content": said.content}
        if not calls:
            return
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in calls
        ]
        messages.append(message)
        for call in calls:
            sku = json.loads(call.function.arguments)["sku"]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": STOCK[sku]})


def describe_span(span):
    """What a span row holds."""
    return {
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "name": span.name,
        "scope": span.instrumentation_scope.name,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "attributes": dict(span.attributes),
        "events": [(event.name, event.timestamp, dict(event.attributes)) for event in span.events],
    }


def write_value(value):
    """Python value -> OTLP JSON value."""
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, (int, float)):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, (list, tuple)):
        return {"arrayValue": {"values": [write_value(each) for each in value]}}
    return {"kvlistValue": {"values": write_map(value)}}


def write_map(values):
    return [{"key": key, "value": write_value(value)} for key, value in values.items()]


def describe_record(record):
    """OTLP JSON of a log record."""
    return {
        "traceId": f"{record.trace_id:032x}",
        "spanId": f"{record.span_id:016x}",
        "eventName": record.event_name or "",
        "timeUnixNano": str(record.timestamp or record.observed_timestamp),
        "attributes": write_map(record.attributes),
        "body": write_value(record.body),
    }


def main():
    name, base_url = sys.argv[1:]
    exporter, records = InMemorySpanExporter(), InMemoryLogRecordExporter()
    provider, logger_provider = TracerProvider(), LoggerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(records))
    SETUPS[name].start(provider, logger_provider)
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    with provider.get_tracer("agent").start_as_current_span("run"):
        play(client)
    provider.force_flush()
    spans = [describe_span(span) for span in exporter.get_finished_spans()]
    logs = [describe_record(each.log_record) for each in records.get_finished_logs()]
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]}
    sys.stdout.write(json.dumps({"spans": spans, "logs": logs}, default=dict))


if __name__ == "__main__":
    main()
