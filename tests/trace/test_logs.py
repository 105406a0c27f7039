"""GenAI events that stand in log records: each finds its span, or has a reason."""

import gzip
import json
import random

import pytest
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace.cli import main
from starpo_trace.convert.dataset import build_dataset, convert_sources, scan_table
from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.otlplogs import decode_log_groups, is_log_message
from starpo_trace.errors import SourceError

TRACE = f"{5:032x}"
DETAILS = "gen_ai.client.inference.operation.details"
SAID = [{"role": "assistant", "parts": [{"type": "text", "content": "Three."}]}]
ASKED = [{"role": "user", "parts": [{"type": "text", "content": "how many?"}]}]


def write_value(value):
    """Python value -> OTLP JSON value."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [write_value(each) for each in value]}}
    return {"kvlistValue": {"values": write_map(value)}}


def write_map(values):
    return [{"key": key, "value": write_value(value)} for key, value in values.items()]


def span(number, attributes, *, parent=None, events=()):
    return {
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        "parentSpanId": "" if parent is None else f"{parent:016x}",
        "name": "chat",
        "startTimeUnixNano": str(number * 1_000),
        "endTimeUnixNano": str(number * 1_000 + 500),
        "attributes": write_map(attributes),
        "events": [{"name": name, "attributes": write_map(values)} for name, values in events],
    }


def record(number, name, *, attributes=None, body=None, time=1, old=False, **fields):
    """A log record of span `number`; `old`: the event's name is an attribute."""
    attributes = dict(attributes or {})
    if old:
        attributes["event.name"] = name
    return {
        "timeUnixNano": str(time),
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        "attributes": write_map(attributes),
        **({} if old else {"eventName": name}),
        **({} if body is None else {"body": write_value(body)}),
        **fields,
    }


def spans_json(*spans):
    return {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}]}]}


def logs_json(*records):
    scope = {"scope": {"name": "x"}, "logRecords": list(records)}
    return {"resourceLogs": [{"scopeLogs": [scope]}]}


def to_protobuf(value):
    """OTLP JSON -> the same in protobuf; ids are hexadecimal there, base64 in protobuf's JSON."""
    import base64

    from google.protobuf.json_format import ParseDict

    def fix(node):
        if isinstance(node, dict):
            return {
                key: base64.b64encode(bytes.fromhex(each)).decode()
                if key in {"traceId", "spanId", "parentSpanId"}
                else fix(each)
                for key, each in node.items()
            }
        return [fix(each) for each in node] if isinstance(node, list) else node

    kind = ExportLogsServiceRequest if "resourceLogs" in value else ExportTraceServiceRequest
    return ParseDict(fix(value), kind()).SerializeToString()


CALL = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


def details(number=1, **more):
    body = {"gen_ai.input.messages": ASKED, "gen_ai.output.messages": SAID}
    return record(number, DETAILS, attributes=body, **more)


def write_form(folder, form, spans, logs):
    """Spans and log records as files of the Collector, in one of its forms."""
    folder.mkdir()
    if form == "json":
        (folder / "traces.json").write_text(json.dumps(spans) + "\n")
        (folder / "logs.json").write_text(json.dumps(logs) + "\n")
    elif form == "one file":
        text = json.dumps(logs) + "\n" + json.dumps(spans) + "\n"
        (folder / "all.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    elif form == "document":
        (folder / "traces.json").write_text(json.dumps(spans, indent=1))
        (folder / "logs.json").write_text(json.dumps(logs, indent=1))
    elif form == "protobuf":
        (folder / "traces.pb").write_bytes(to_protobuf(spans))
        (folder / "logs.pb").write_bytes(to_protobuf(logs))
    else:
        compress = zstandard.ZstdCompressor().compress if "zstd" in form else lambda data: data
        data = b""
        for value in (logs, spans, logs_json()):
            is_json = form == "prefixed zstd json"
            payload = compress(json.dumps(value).encode() if is_json else to_protobuf(value))
            data += len(payload).to_bytes(4, "big") + payload
        (folder / "all.bin").write_bytes(data)


@pytest.mark.parametrize(
    "form",
    [
        "json",
        "one file",
        "document",
        "protobuf",
        "prefixed",
        "prefixed zstd",
        "prefixed zstd json",
    ],
)
def test_records_find_their_spans_in_every_form(tmp_path, form):
    """Before their span or after, in its file or another; counts close."""
    logs = logs_json(details(1), details(9), record(1, "app.started"))
    write_form(tmp_path / "in", form, spans_json(span(1, CALL)), logs)
    conversion = convert_sources([tmp_path / "in"])
    assert conversion.tables["turns"]["text"].to_list() == ["Three."]
    assert conversion.tables["messages"].sort("depth")["role"].to_list() == ["user", "assistant"]
    accounting = conversion.accounting
    assert accounting.is_closed
    assert (accounting.spans_read, accounting.spans_used, accounting.duplicates) == (4, 2, 0)
    assert accounting.spans_rejected_by_reason == {"log_without_span": 1, "not_an_agent_log": 1}
    assert accounting.damaged_records == 0


LEGACY = [
    ("gen_ai.system.message", {"content": "Be brief."}),
    ("gen_ai.user.message", {"content": "how many?"}),
    (
        "gen_ai.choice",
        {
            "index": 1,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Four."},
        },
    ),
    (
        "gen_ai.choice",
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Three."},
        },
    ),
]


@pytest.mark.parametrize("old", [False, True])
def test_a_record_for_each_message(tmp_path, old):
    """In the order of their times; answers in the order of their index."""
    records = [
        record(1, name, body=body, time=time, old=old)
        for time, (name, body) in enumerate(LEGACY, start=1)
    ]
    random.Random(1).shuffle(records)
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps(logs_json(*records)) + "\n" + json.dumps(spans_json(span(1, CALL))))
    tables = convert_sources([path]).tables
    assert tables["turns"]["text"].to_list() == ["Three."]
    assert tables["turns"]["finish_reason"].to_list() == ["stop"]
    roles = tables["messages"].sort("depth")["role"].to_list()
    assert roles == ["system", "user", "assistant", "assistant"]


def test_semantic_kernels_bodies_are_json_texts(tmp_path):
    """The whole message as text, the event's name as an attribute, `response.finish_reason`."""
    message = {"role": "user", "content": "how many?"}
    choice = {"message": {"role": "assistant", "content": "Three."}, "finish_reason": "stop"}
    text = json.dumps(choice)
    logs = logs_json(
        record(1, "gen_ai.user.message", body=json.dumps(message), old=True),
        record(1, "gen_ai.choice", body=text, old=True, time=2),
        record(2, "gen_ai.prompt", body="1 + 2 =", old=True),
        record(2, "gen_ai.choice", body='{"message":{"content":"3"}}', old=True, time=2),
    )
    completion = {"gen_ai.operation.name": "text_completions"}
    path = tmp_path / "all.jsonl"
    spans = spans_json(span(1, CALL), span(2, completion))
    path.write_text(json.dumps(spans) + "\n" + json.dumps(logs))
    turns = convert_sources([path]).tables["turns"]
    assert turns["text"].to_list() == ["Three.", "3"]
    assert turns["finish_reason"].to_list() == ["stop", None]


def adot(prompt, said, number=1):
    body = {
        "input": {"messages": [{"role": role, "content": content} for role, content in prompt]},
        "output": {"messages": [{"role": role, "content": content} for role, content in said]},
    }
    return record(number, "strands.telemetry.tracer", body=body)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([("user", "how many?"), ("system", "Be brief.")], [("assistant", "Three.")]),
        (
            [
                ("system", {"content": '[{"text": "Be brief."}]'}),
                ("user", {"content": '[{"text": "how many?"}]'}),
            ],
            [("assistant", {"message": '[{"text": "Three."}]', "finish_reason": "end_turn"})],
        ),
        (
            [("system", '[{"type": "text", "content": "Be brief."}]'), ("user", json.dumps(ASKED))],
            [("assistant", json.dumps(SAID))],
        ),
    ],
)
def test_what_adot_takes_off_spans_comes_back(tmp_path, prompt, said):
    """Texts, attributes of events, and whole attributes as JSON text."""
    path = tmp_path / "all.jsonl"
    logs = logs_json(adot(prompt, said))
    path.write_text(json.dumps(spans_json(span(1, CALL))) + "\n" + json.dumps(logs))
    tables = convert_sources([path]).tables
    assert tables["messages"].sort("depth")["role"].to_list() == ["system", "user", "assistant"]
    assert tables["turns"]["text"].to_list() == ["Three."]


def test_adot_beside_a_span_of_openinference(tmp_path):
    """The span keeps its kind and loses its messages, whatever its dialect."""
    path = tmp_path / "all.jsonl"
    kind = {"openinference.span.kind": "LLM", "llm.model_name": "m-1"}
    logs = logs_json(adot([("user", "how many?")], [("assistant", "Three.")]))
    path.write_text(json.dumps(spans_json(span(1, kind))) + "\n" + json.dumps(logs))
    (turn,) = convert_sources([path]).tables["turns"].to_dicts()
    assert (turn["text"], turn["model"]) == ("Three.", "m-1")


def test_adots_prompts_without_an_order_are_no_prompts(tmp_path):
    """Earlier answers stand among the outputs; where they were in the prompt, nothing says."""
    logs = logs_json(
        adot(
            [("user", "how many?"), ("tool", "3")], [("assistant", "Looking."), ("assistant", "3.")]
        )
    )
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps(spans_json(span(1, CALL))) + "\n" + json.dumps(logs))
    (run,) = convert_sources([path]).tables["trajectories"].to_dicts()
    assert run["usable_for"] == "none"
    assert "content_order_lost" in run["reasons"]


def test_evaluations_in_records(tmp_path):
    """In the span's context, or by the answer's id in its trace; of no trace it is nobody's."""
    score = {"gen_ai.evaluation.name": "good", "gen_ai.evaluation.score.value": 0.5}
    named = {**score, "gen_ai.evaluation.name": "better", "gen_ai.response.id": "r-1"}
    logs = logs_json(
        record(1, "gen_ai.evaluation.result", attributes=score),
        record(1, "gen_ai.evaluation.result", attributes=named, spanId=""),
        record(1, "gen_ai.evaluation.result", attributes=named, traceId="", spanId=""),
        record(2, "gen_ai.evaluation.result", attributes={**named, "gen_ai.response.id": "r-2"}),
    )
    path = tmp_path / "all.jsonl"
    call = {**CALL, "gen_ai.response.id": "r-1"}
    path.write_text(json.dumps(logs) + "\n" + json.dumps(spans_json(span(1, call))))
    conversion = convert_sources([path])
    rewards = conversion.tables["rewards"].sort("name")
    assert rewards.select("name", "value", "turn").rows() == [("better", 0.5, 0), ("good", 0.5, 0)]
    reasons = {"log_without_span": 1, "reward_target_missing": 1}
    assert conversion.accounting.spans_rejected_by_reason == reasons


def test_copies_of_records_count_as_copies(tmp_path):
    """A record delivered twice, and one that says what a span's event says already."""
    body = {"content": "how many?"}
    event = ("gen_ai.user.message", body)
    path = tmp_path / "all.jsonl"
    logs = logs_json(
        record(1, "gen_ai.user.message", body=body), record(1, "gen_ai.user.message", body=body)
    )
    spans = spans_json(span(1, CALL, events=[event]))
    path.write_text(json.dumps(spans) + "\n" + json.dumps(logs))
    conversion = convert_sources([path])
    assert conversion.tables["messages"].sort("depth")["role"].to_list() == ["user"]
    accounting = conversion.accounting
    assert (accounting.spans_used, accounting.duplicates, accounting.is_closed) == (2, 1, True)


ODD = [
    {"traceId": "xyz"},
    {"spanId": "12"},
    {"attributes": 3},
    {"timeUnixNano": "soon"},
    {"body": "text"},
    7,
    None,
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_records_are_counted(odd):
    """A record that cannot be read has a row that says why; its neighbours are read."""
    bad = {**record(1, "x"), **odd} if isinstance(odd, dict) else odd
    value = logs_json(bad, record(2, DETAILS))
    kinds = [type(each) for each in decode_log_groups(value, "file")]
    assert kinds == [MalformedSpan, SpanRow]


def test_malformed_bodies_have_a_reason(tmp_path):
    """A body of ADOT's form without messages in it; spans are not hurt."""
    body = {"input": {"messages": [3]}, "output": {"messages": []}}
    path = tmp_path / "all.jsonl"
    logs = logs_json(record(1, "x", body=body))
    path.write_text(json.dumps(spans_json(span(1, CALL))) + "\n" + json.dumps(logs))
    conversion = convert_sources([path])
    assert conversion.accounting.spans_rejected_by_reason == {"malformed_log": 1}
    assert conversion.tables["turns"].height == 1


def test_messages_of_spans_and_of_records_are_told_apart():
    """By the first record's first field; random and cut bytes are spans, whose reader judges."""
    assert is_log_message(to_protobuf(logs_json(details())))
    assert is_log_message(to_protobuf(logs_json({"severityText": "INFO"})))
    assert not is_log_message(to_protobuf(spans_json(span(1, CALL))))
    assert not is_log_message(to_protobuf(spans_json()))
    assert not is_log_message(b"")
    whole = to_protobuf(logs_json(details()))
    noise = random.Random(3)
    for end in range(len(whole)):
        is_log_message(whole[:end])
    for _ in range(2_000):
        is_log_message(noise.randbytes(40))


def test_records_alone_are_no_dataset_of_runs(tmp_path):
    """Every one is rejected by name."""
    path = tmp_path / "logs.json"
    path.write_text(json.dumps(logs_json(details())))
    build_dataset([path], tmp_path / "out")
    assert scan_table(tmp_path / "out", "rejected").collect()["reason"].to_list() == [
        "log_without_span"
    ]
    path.write_text(json.dumps({"resourceLogs": []}))
    with pytest.raises(SourceError, match="no spans"):
        convert_sources([path])


def test_from_the_command_line(tmp_path, capsys):
    """Two files named one after the other."""
    (tmp_path / "t.json").write_text(json.dumps(spans_json(span(1, CALL))))
    (tmp_path / "l.json").write_text(json.dumps(logs_json(details())))
    arguments = [str(tmp_path / "l.json"), str(tmp_path / "t.json"), "-o", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 0
    assert scan_table(tmp_path / "out", "turns").collect()["text"].to_list() == ["Three."]


def test_records_that_come_later_bring_a_dataset_up_to_date(tmp_path):
    """The run is built again with them, and the result is that of a full build."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t.json").write_text(json.dumps(spans_json(span(1, CALL))))
    before = build_dataset([tmp_path / "in"], tmp_path / "out")
    (tmp_path / "in" / "l.json").write_text(json.dumps(logs_json(details(), record(1, "other"))))
    after = build_dataset([tmp_path / "in"], tmp_path / "out")
    whole = build_dataset([tmp_path / "in"], tmp_path / "whole")
    assert scan_table(tmp_path / "out", "turns").collect()["text"].to_list() == ["Three."]
    assert before.digest != after.digest == whole.digest
    assert after.accounting == whole.accounting
    assert after.accounting.spans_used == 2
    assert after.accounting.is_closed


def test_many_records_of_no_trace_are_alone(tmp_path):
    """A service's own log beside its traces: each record has its reason, none is tied to another."""
    records = [record(0, "app", body=f"line {i}", traceId="", spanId="") for i in range(200)]
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps(logs_json(*records)) + "\n" + json.dumps(spans_json(span(1, CALL))))
    conversion = convert_sources([path])
    assert conversion.accounting.spans_rejected_by_reason == {"not_an_agent_log": 200}
    assert conversion.tables["rejected"]["trace_id"].n_unique() == 200
