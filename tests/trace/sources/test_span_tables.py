"""Tables of spans as Parquet, CSV and Delta -> the rows that the same spans give as OTLP."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import polars as pl
import pytest
from comparing import convert
from deltalake import write_deltalake

from starpo_trace.convert.otlp import MAX_TIME_NS
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.errors import SourceError

TRACE, ROOT, CALL = "0123456789abcdef" * 2, "00000000000000a1", "00000000000000a2"
MESSAGES = '[{"role":"assistant","parts":[{"type":"text","content":"4"}]}]'
ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"2 + 2?"}]}]',
    "gen_ai.output.messages": MESSAGES,
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.request.temperature": 0.5,
    "gen_ai.response.finish_reasons": ["stop"],
}
EVENT = {"name": "gen_ai.evaluation.result", "time_ns": 6, "attributes": {"a": 1}}
ROW = {
    "trace_id": TRACE,
    "span_id": CALL,
    "parent_id": ROOT,
    "name": "chat",
    "scope": "my.scope",
    "start_ns": 1_000_000_005,
    "end_ns": 1_000_000_009,
    "status": "ERROR",
    "status_message": "boom",
    "attributes": json.dumps(ATTRIBUTES),
    "events": json.dumps([EVENT, {"name": "other", "time_ns": 7, "attributes": {}}]),
    "links": json.dumps([{"trace_id": TRACE, "span_id": ROOT}]),
    "resource": json.dumps({"service.name": "shop"}),
}


def as_texts(attributes):
    """What a map of texts holds of the attributes."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in attributes.items()}


def as_pairs(attributes):
    return [{"key": key, "value": value} for key, value in as_texts(attributes).items()]


def as_any_values(attributes):
    """As OTLP's structs, of which every row has all fields."""
    kinds = {str: "string_value", int: "int_value", float: "double_value"}
    empty = dict.fromkeys(("string_value", "int_value", "double_value", "array_value"))
    pairs = []
    for key, value in attributes.items():
        if isinstance(value, list):
            held = {"values": [{"string_value": each} for each in value]}
            pairs.append({"key": key, "value": {**empty, "array_value": held}})
        else:
            pairs.append({"key": key, "value": {**empty, kinds[type(value)]: value}})
    return pairs


def read_all(path):
    batches = [batch for file in find_source_files([path]) for batch in read_span_batches(file)]
    return (
        [row for batch in batches for row in batch.rows],
        [span for batch in batches for span in batch.malformed],
        [damage for batch in batches for damage in batch.damaged],
    )


def write_parquet(path, rows, **options):
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path, **options)
    return path


@pytest.mark.parametrize("form", [dict, as_pairs, as_any_values], ids=["json", "map", "structs"])
def test_a_parquet_table_gives_whole_spans(tmp_path, form):
    """Attributes as JSON text, as a map of texts, or as OTLP's structs are the same."""
    attributes = form(ATTRIBUTES)
    row = {**ROW, "attributes": json.dumps(attributes) if form is dict else attributes}
    rows, malformed, damaged = read_all(write_parquet(tmp_path / "a.parquet", [row]))
    (span,) = rows
    reasons = span.attributes.pop("gen_ai.response.finish_reasons")
    assert reasons in (["stop"], '["stop"]')
    assert span.attributes == {k: v for k, v in ATTRIBUTES.items() if not k.endswith("reasons")}
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, CALL, ROOT)
    assert (span.name, span.scope, span.error) == ("chat", "my.scope", "boom")
    assert (span.start_ns, span.end_ns) == (1_000_000_005, 1_000_000_009)
    assert span.events == (("gen_ai.evaluation.result", 6, {"a": 1}),)
    assert span.links == ((TRACE, ROOT),)
    assert span.resource == {"service.name": "shop"}
    assert (malformed, damaged) == ([], [])
    turns = convert(tmp_path / "a.parquet")["turns"]
    assert turns.select("text", "input_tokens", "temperature", "finish_reason").rows() == [
        ("4", 7, 0.5, "stop")
    ]


def test_structs_bytes_and_names_of_otlp(tmp_path):
    """Ids as bytes, times as timestamps, status, scope, events, links and resource as structs."""
    row = {
        "trace_id": bytes.fromhex(TRACE),
        "span_id": bytes.fromhex(CALL),
        "parent_span_id": b"",
        "name": "chat",
        "instrumentation_scope": {"name": "my.scope", "version": "1"},
        "start_time": pl.Series([1_767_323_045_000_000_001]).cast(pl.Datetime("ns", "UTC"))[0],
        "end_time_unix_nano": 1_767_323_045_000_000_009,
        "status": {"code": 2, "message": "boom"},
        "attributes": as_pairs(ATTRIBUTES),
        "events": [{"name": "gen_ai.x", "time_unix_nano": 6, "attributes": as_pairs({"a": "b"})}],
        "links": [{"trace_id": bytes.fromhex(TRACE), "span_id": bytes.fromhex(ROOT)}],
        "resource": {"attributes": as_pairs({"service.name": "shop"})},
    }
    rows, malformed, _ = read_all(write_parquet(tmp_path / "a.parquet", [row]))
    assert malformed == []
    (span,) = rows
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, CALL, None)
    assert (span.scope, span.error) == ("my.scope", "boom")
    assert (span.start_ns // 1000, span.end_ns) == (
        1_767_323_045_000_000,
        1_767_323_045_000_000_009,
    )
    assert span.events == (("gen_ai.x", 6, {"a": "b"}),)
    assert span.links == ((TRACE, ROOT),)
    assert span.resource == {"service.name": "shop"}


def test_a_table_of_clickhouse_exporter(tmp_path):
    """Its own names, a duration, and a list for each field of events and links."""
    row = {
        "Timestamp": "2026-01-02 03:04:05.000000007",
        "TraceId": TRACE,
        "SpanId": CALL,
        "ParentSpanId": "",
        "SpanName": "chat",
        "ScopeName": "my.scope",
        "Duration": 9,
        "StatusCode": "Error",
        "StatusMessage": "boom",
        "SpanAttributes": as_texts(ATTRIBUTES),
        "ResourceAttributes": {"service.name": "shop"},
        "Events.Name": ["gen_ai.x", "y"],
        "Events.Timestamp": ["2026-01-02 03:04:05", "2026-01-02 03:04:05"],
        "Events.Attributes": [{"a": "b"}, {}],
        "Links.TraceId": [TRACE],
        "Links.SpanId": [ROOT],
    }
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    rows, _, _ = read_all(path)
    (span,) = rows
    assert (span.start_ns, span.end_ns) == (1_767_323_045_000_000_007, 1_767_323_045_000_000_016)
    assert (span.name, span.error, span.parent_id) == ("chat", "boom", None)
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert span.events == (("gen_ai.x", 1_767_323_045_000_000_000, {"a": "b"}),)
    assert span.links == ((TRACE, ROOT),)


def test_a_csv_table(tmp_path):
    """Fields without text are no values; a line of another length is damage."""
    path = tmp_path / "a.csv"
    pl.DataFrame([ROW, {**ROW, "span_id": ROOT, "parent_id": ""}]).write_csv(path)
    with path.open("a") as stream:
        stream.write("1,2\n")
    rows, malformed, damaged = read_all(path)
    assert [(row.span_id, row.parent_id) for row in rows] == [(CALL, ROOT), (ROOT, None)]
    assert rows[0].attributes == ATTRIBUTES
    assert (malformed, [each.reason for each in damaged]) == (
        [],
        ["a line of more or fewer fields"],
    )


def test_missing_columns_are_named(tmp_path):
    """A table of something else is refused with what it lacks."""
    path = write_parquet(tmp_path / "a.parquet", [{"trace_id": TRACE, "name": "x", "cost": 1}])
    words = "without the columns span_id, parent_id, start_ns, end_ns, attributes; a table of"
    with pytest.raises(SourceError, match=words) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trace_id": "zz"}, "trace id 'zz' is not 32"),
        ({"span_id": None}, "an id is NoneType"),
        ({"start_ns": -1}, "negative time -1"),
        ({"attributes": "{"}, "Expecting property name"),
        ({"attributes": "[1]"}, "an attribute in the list has no `key`"),
        ({"events": '{"name"'}, "Expecting ':'"),
        ({"links": "[7]"}, "a link is int"),
    ],
)
def test_a_broken_row_is_malformed_and_its_neighbours_are_read(tmp_path, change, words):
    """Its reason says what is wrong."""
    table = [{**ROW, "span_id": ROOT}, {**ROW, **change}, ROW]
    rows, malformed, damaged = read_all(write_parquet(tmp_path / "a.parquet", table))
    assert ([row.span_id for row in rows], damaged) == ([ROOT, CALL], [])
    assert words in malformed[0].detail


def test_times_beyond_the_column_are_cut(tmp_path):
    """An unsigned time above 2^63 does not overflow."""
    table = pl.DataFrame([ROW]).with_columns(end_ns=pl.lit(2**64 - 1, dtype=pl.UInt64))
    table.write_parquet(tmp_path / "a.parquet")
    rows, _, _ = read_all(tmp_path / "a.parquet")
    assert rows[0].end_ns == MAX_TIME_NS


def test_a_damaged_parquet_file_is_damage(tmp_path):
    """It is counted, and files beside it are read."""
    path = write_parquet(tmp_path / "a.parquet", [ROW] * 9)
    data = path.read_bytes()
    write_parquet(tmp_path / "b.parquet", [ROW])
    for broken in (data[:-9], data[:40] + bytes(200) + data[240:], b"PAR1", b"PAR1" * 99):
        path.write_bytes(broken)
        rows, _, damaged = read_all(tmp_path)
        assert len(rows) == 1
        assert [each.reason[:32] for each in damaged] == ["Parquet data is damaged or cut: "]


def test_a_delta_table_is_read_at_its_newest_version(tmp_path):
    """Files that were overwritten are still in the folder, and are not read."""
    table = tmp_path / "spans"
    frame = pl.DataFrame([{**ROW, "day": "2026-01-02 x"}])
    write_deltalake(table, frame, partition_by=["day"])
    write_deltalake(table, frame.with_columns(span_id=pl.lit("c" * 16)), mode="overwrite")
    write_deltalake(table, frame.with_columns(span_id=pl.lit("d" * 16)), mode="append")
    rows, malformed, damaged = read_all(table)
    assert sorted(row.span_id for row in rows) == ["c" * 16, "d" * 16]
    assert (malformed, damaged) == ([], [])
    assert {row.source for row in rows} == {str(table)}
    assert convert(table)["turns"]["text"].to_list() == ["4", "4"]


def test_delta_tables_that_cannot_be_read_say_why(tmp_path):
    """Partitioned by a column of spans, without rows, with deleted rows apart, or with a broken log."""
    by_scope, empty, broken, deleted = (tmp_path / name for name in "abcd")
    write_deltalake(by_scope, pl.DataFrame([ROW]), partition_by=["scope"])
    write_deltalake(empty, pl.DataFrame([ROW]).clear())
    (broken / "_delta_log").mkdir(parents=True)
    write_deltalake(
        deleted, pl.DataFrame([ROW]), configuration={"delta.enableDeletionVectors": "true"}
    )
    for path, words in (
        (by_scope, "partitioned by scope"),
        (empty, "without rows"),
        (broken, "cannot be read as a Delta table"),
        (deleted, "with deletionVectors"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            find_source_files([path])
        assert str(path) in str(caught.value)


def test_a_table_of_another_dataset_is_refused(tmp_path):
    """A dataset's own tables are no spans."""
    write_deltalake(tmp_path / "t", pl.DataFrame({"trajectory_id": ["x"], "reward": [1.0]}))
    with pytest.raises(SourceError, match="without the columns trace_id"):
        read_all(tmp_path / "t")


READ = """
import sys
from pathlib import Path
from starpo_trace.convert.sources import find_source_files, read_span_batches
(file,) = find_source_files([Path(sys.argv[1])])
num_rows = max_rows = 0
for batch in read_span_batches(file):
    num_rows += len(batch.rows)
    max_rows = max(max_rows, len(batch.rows))
status = Path("/proc/self/status").read_text()
print(num_rows, max_rows, status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory: Linux only")
def test_memory_holds_a_slice_and_not_the_table(tmp_path):
    """A table of 240 MB of text in groups of 20 MB takes at most 160 MB more than one of 4 MB."""
    random = Random(0)
    peaks = {}
    for num_rows in (200, 12_000):
        texts = [random.randbytes(5_000).hex() * 2 for _ in range(num_rows)]
        attributes = [json.dumps({**ATTRIBUTES, "input.value": text}) for text in texts]
        frame = pl.DataFrame([ROW]).select(pl.all().repeat_by(num_rows).explode())
        path = tmp_path / f"{num_rows}.parquet"
        frame.with_columns(attributes=pl.Series(attributes)).write_parquet(
            path, row_group_size=1000
        )
        done = subprocess.run(
            [sys.executable, "-c", READ, path], capture_output=True, text=True, check=True
        )
        found, largest, peak_kb = map(int, done.stdout.split())
        assert (found, largest <= 256) == (num_rows, True)
        peaks[num_rows] = peak_kb
    assert peaks[12_000] - peaks[200] < 160_000
