"""Log records over the receiver: stored beside the spans, and read into them by `export`."""

import json

import pytest
from opentelemetry._logs import LogRecord as ApiLogRecord
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from starpo_trace.collect.decode import JSON, PROTOBUF, decode_request
from starpo_trace.collect.limits import DEFAULT_LIMITS
from starpo_trace.collect.refusals import RefusedError
from starpo_trace.collect.signals import LOGS
from starpo_trace.convert.dataset import build_dataset, scan_table
from starpo_trace.convert.otlplogs import decode_any_protobuf, is_log_message

ASKED = [{"role": "user", "parts": [{"type": "text", "content": "how many?"}]}]
SAID = [{"role": "assistant", "parts": [{"type": "text", "content": "Three."}]}]
TRACE = "5" * 32
RECORD = {
    "timeUnixNano": "7",
    "observedTimeUnixNano": 8,
    "severityNumber": "SEVERITY_NUMBER_INFO",
    "severityText": "INFO",
    "body": {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": "1"}}]}},
    "attributes": [{"key": "k", "value": {"stringValue": "v"}}],
    "droppedAttributesCount": 1,
    "flags": 1,
    "traceId": TRACE,
    "spanId": "6" * 16,
    "eventName": "gen_ai.client.inference.operation.details",
}


def document(*records):
    return {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "s"}, "logRecords": [*records]}]}]}


def decode_json(content):
    return decode_request(json.dumps(content).encode(), JSON, DEFAULT_LIMITS, LOGS)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_an_agent_logs_is_what_its_spans_said(start, helpers, tmp_path, protocol):
    """The SDK's own exporters send both; the answer is in a log record alone."""
    receiver = start()
    if protocol == "http":
        base = f"http://127.0.0.1:{receiver.http}"
        spans, logs = HttpSpans(f"{base}/v1/traces"), HttpLogs(f"{base}/v1/logs")
    else:
        base = f"127.0.0.1:{receiver.grpc}"
        spans, logs = GrpcSpans(base, insecure=True), GrpcLogs(base, insecure=True)
    tracing, logging = TracerProvider(), LoggerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    logging.add_log_record_processor(SimpleLogRecordProcessor(logs))
    details = {"gen_ai.input.messages": ASKED, "gen_ai.output.messages": SAID}
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    with tracing.get_tracer("t").start_as_current_span("chat m", attributes=attributes):
        logging.get_logger("t").emit(
            ApiLogRecord(event_name="gen_ai.client.inference.operation.details", attributes=details)
        )
    logging.get_logger("t").emit(ApiLogRecord(body="a line of the program's own"))
    tracing.shutdown()
    logging.shutdown()
    stats = helpers.read_stats(receiver.http)
    assert stats["spans"] == {"accepted": 1, "acknowledged": 1, "rejected": 0}
    assert stats["log_records"] == {"accepted": 2, "acknowledged": 2, "rejected": 0}
    assert stats["store"]["records"] == 3
    manifest = build_dataset([receiver.store], tmp_path / "dataset")
    assert manifest.accounting.is_closed
    assert manifest.accounting.spans_rejected_by_reason == {"not_an_agent_log": 1}
    turn = scan_table(tmp_path / "dataset", "turns").collect().row(0, named=True)
    assert (turn["text"], turn["model"]) == ("Three.", "m")


def test_every_field_arrives(helpers):
    """JSON gives the message that protobuf would have been."""
    decoded = decode_json(document(RECORD))
    (record,) = (
        ExportLogsServiceRequest.FromString(decoded.payload)
        .resource_logs[0]
        .scope_logs[0]
        .log_records
    )
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (7, 8)
    assert (record.severity_number, record.severity_text, record.flags) == (9, "INFO", 1)
    assert record.body.kvlist_value.values[0].value.int_value == 1
    assert (record.attributes[0].key, record.dropped_attributes_count) == ("k", 1)
    assert (record.trace_id.hex(), record.span_id.hex()) == (TRACE, "6" * 16)
    assert record.event_name == RECORD["eventName"]
    again = decode_request(decoded.payload, PROTOBUF, DEFAULT_LIMITS, LOGS)
    assert (again.payload, again.num_records) == (decoded.payload, 1)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"traceId": "55"}, "traceId: '55' is not 32 hexadecimal digits"),
        ({"body": {"intValue": "x"}}, "body.intValue: 'x' is not a whole number"),
        ({"body": {"stringValue": "x" * (DEFAULT_LIMITS.max_attribute_bytes + 1)}}, "body: more"),
        ({"severityNumber": "LOUD"}, "severityNumber: 'LOUD' is not a whole number"),
    ],
)
def test_a_bad_record_is_left_out_alone(fields, fault):
    """It is named by its path, and its neighbour is stored."""
    decoded = decode_json(document({**RECORD, **fields}, RECORD))
    assert (decoded.num_records, decoded.num_rejected) == (1, 1)
    assert decoded.message.startswith(f"resourceLogs[0].scopeLogs[0].logRecords[0].{fault}")


def test_spans_are_no_log_records(helpers):
    """Sent to the wrong path, they are refused with the right one."""
    body = helpers.make_request(1).SerializeToString()
    with pytest.raises(RefusedError, match="a span, no log record; send it to /v1/traces"):
        decode_request(body, PROTOBUF, DEFAULT_LIMITS, LOGS)


def test_an_empty_record_is_of_no_use():
    """Nothing would tell that its request held logs."""
    with pytest.raises(RefusedError, match=r"no log record can be used: .*\[0\]: is empty"):
        decode_json(document({}))
    with pytest.raises(RefusedError, match="OTLP JSON spells it resourceLogs"):
        decode_json({"resource_logs": []})


def test_a_partial_success_counts_log_records(start, helpers):
    """In the field that OTLP has for them, in JSON too."""
    receiver = start()
    bad = {**RECORD, "spanId": "6"}
    for kind, read in (
        (JSON, lambda body: json.loads(body)["partialSuccess"]["rejectedLogRecords"]),
        (
            PROTOBUF,
            lambda body: str(
                ExportLogsServiceResponse.FromString(body).partial_success.rejected_log_records
            ),
        ),
    ):
        body = json.dumps(document(bad, RECORD)).encode()
        if kind == PROTOBUF:
            request = ExportLogsServiceRequest.FromString(decode_json(document(RECORD)).payload)
            record = request.resource_logs[0].scope_logs[0].log_records.add()
            record.CopyFrom(request.resource_logs[0].scope_logs[0].log_records[0])
            record.span_id = b"six"
            body = request.SerializeToString()
        answer = helpers.post(receiver.http, body, path="/v1/logs", kind=kind)
        assert (answer.status, read(answer.body)) == (200, "1")


def test_log_records_are_told_from_spans_behind_empty_groups():
    """What the first group does not say, a later one does."""
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add()
    request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=1, event_name="e")
    payload = request.SerializeToString()
    assert is_log_message(payload)
    assert [row.name for row in decode_any_protobuf(payload, "s")] == ["e"]
