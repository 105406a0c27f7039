"""Files of every kind -> the same spans; damage is counted and neighbours are read."""

import gzip
import json
import os
import random
import shutil
import threading
import zipfile
from functools import partialmethod
from pathlib import Path

import polars as pl
import pytest
import zstandard
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, Status, StatusCode

from starpo_trace.convert.dataset import build_dataset, convert_sources
from starpo_trace.convert.otlp import MAX_TIME_NS, describe_fault
from starpo_trace.convert.sources import find_source_files, fingerprint_file, read_span_batches
from starpo_trace.errors import SourceError
from starpo_trace.store.segments import MAGIC, SegmentWriter, frame_record


@pytest.fixture
def request_message():
    """Two spans of the OTel SDK as one OTLP message: attributes of every type, event, link."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("my_scope")
    with tracer.start_as_current_span("outer") as outer:
        attributes = {"s": "ü", "i": -3, "f": 0.5, "b": True, "l": ["x", "y"]}
        with tracer.start_as_current_span(
            "inner", attributes=attributes, links=[Link(outer.get_span_context())]
        ) as inner:
            inner.add_event("gen_ai.evaluation.result", {"n": 1})
            inner.add_event("other", {"n": 2})
            inner.set_status(Status(StatusCode.ERROR, "boom"))
    provider.shutdown()
    return encode_spans(exporter.get_finished_spans())


def otlp_json(message) -> str:
    """OTLP JSON: as protobuf's JSON, but ids in hexadecimal digits."""
    fields = MessageToDict(message)
    spans = message.resource_spans[0].scope_spans[0].spans
    for fields_of, span in zip(
        fields["resourceSpans"][0]["scopeSpans"][0]["spans"], spans, strict=True
    ):
        fields_of["traceId"] = span.trace_id.hex()
        fields_of["spanId"] = span.span_id.hex()
        if span.parent_span_id:
            fields_of["parentSpanId"] = span.parent_span_id.hex()
        for link_of, link in zip(fields_of.get("links", ()), span.links, strict=True):
            link_of["traceId"] = link.trace_id.hex()
            link_of["spanId"] = link.span_id.hex()
    return json.dumps(fields)


def read_all(path):
    (file,) = find_source_files([path])
    batches = list(read_span_batches(file))
    return (
        [row for batch in batches for row in batch.rows],
        [span for batch in batches for span in batch.malformed],
        [damage for batch in batches for damage in batch.damaged],
    )


def write_length_prefixed(path, payloads):
    path.write_bytes(b"".join(len(p).to_bytes(4, "big") + p for p in payloads))


def test_every_format_gives_the_same_rows(tmp_path, request_message):
    """Segment, raw protobuf, length-prefixed protobuf, JSON lines, one JSON document, by any name."""
    payload = request_message.SerializeToString()
    text = otlp_json(request_message)
    (tmp_path / "a.otlp").write_bytes(MAGIC + frame_record(payload, 2))
    (tmp_path / "b.pb").write_bytes(payload)
    write_length_prefixed(tmp_path / "c.proto", [payload])
    (tmp_path / "d.jsonl").write_text(text + "\n")
    (tmp_path / "e.json").write_text(json.dumps(json.loads(text), indent=2))
    (tmp_path / "f.otlp").write_text(text + "\n")  # the name of our segments, and of others' files
    inner = request_message.resource_spans[0].scope_spans[0].spans[0]
    for name in ("a.otlp", "b.pb", "c.proto", "d.jsonl", "e.json", "f.otlp"):
        rows, malformed, damaged = read_all(tmp_path / name)
        assert (len(rows), malformed, damaged) == (2, [], [])
        row = rows[0]
        assert row.source == str(tmp_path / name)
        assert (row.name, row.scope, row.error) == ("inner", "my_scope", "boom")
        assert row.attributes == {"s": "ü", "i": -3, "f": 0.5, "b": True, "l": ["x", "y"]}
        assert row.parent_id == rows[1].span_id == inner.parent_span_id.hex()
        assert row.links == ((row.trace_id, rows[1].span_id),)
        assert (row.start_ns, row.end_ns) == (
            inner.start_time_unix_nano,
            inner.end_time_unix_nano,
        )
        assert [(event, values) for event, _, values in row.events] == [
            ("gen_ai.evaluation.result", {"n": 1})
        ]


def test_compressed_files_give_the_same_rows(tmp_path, request_message):
    """Whole files by gzip and zstd, and the Collector's messages, each compressed by itself."""
    payload = request_message.SerializeToString()
    text = otlp_json(request_message).encode()
    zstd = zstandard.ZstdCompressor().compress
    plain = {"a.otlp": MAGIC + frame_record(payload, 2), "b.pb": payload, "d.jsonl": text + b"\n"}
    for name, data in plain.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        (tmp_path / f"{name}.zst").write_bytes(zstd(data[:50]) + zstd(data[50:]))
    write_length_prefixed(tmp_path / "e.proto", [zstd(payload), zstd(payload)])
    write_length_prefixed(tmp_path / "f.json", [zstd(text), b"\x28\xb5\x2f\xfdxxxx", zstd(text)])
    write_length_prefixed(tmp_path / "g.proto.gz", [payload])
    compressed = (tmp_path / "g.proto.gz").read_bytes()
    (tmp_path / "g.proto.gz").write_bytes(gzip.compress(compressed))
    numbers = {"e.proto": (4, 0), "f.json": (4, 1)}
    files = find_source_files([tmp_path])
    assert len(files) == 9
    for file in files:
        rows, malformed, damaged = read_all(file.path)
        found = (len(rows), len(damaged))
        assert (found, malformed) == (numbers.get(file.path.name, (2, 0)), [])
        assert {row.name for row in rows} == {"inner", "outer"}


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_data_that_is_cut_is_damage(tmp_path, request_message, compress):
    """What can be read of it is; that something is missing is counted."""
    text = otlp_json(request_message).encode() + b"\n"
    path = tmp_path / "a.jsonl"
    noise = random.Random(0).randbytes(300_000).hex().encode() + b"\n"  # fills the buffers
    path.write_bytes(compress(text + noise + text)[:-100])
    rows, _, damaged = read_all(path)
    assert len(rows) == 2
    assert "compressed data is damaged or cut" in [each.reason[:33] for each in damaged]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_segment_that_is_cut_is_read_to_the_cut(tmp_path, request_message, compress):
    """Records before it are spans; the cut is counted once."""
    record = frame_record(request_message.SerializeToString(), 2)
    whole = compress(MAGIC + record)
    noise = frame_record(random.Random(0).randbytes(300_000), 2)
    path = tmp_path / "a.otlp.gz"
    path.write_bytes(compress(MAGIC + record + noise)[: len(whole) + 200_000])
    rows, _, damaged = read_all(path)
    assert (len(rows), [each.reason[:33] for each in damaged]) == (
        2,
        ["compressed data is damaged or cut"],
    )


def test_frames_before_a_damaged_one_are_read(tmp_path, request_message):
    """A small file whose end is garbage; messages that are cut, or of two frames."""
    text = otlp_json(request_message).encode() + b"\n"
    zstd = zstandard.ZstdCompressor().compress
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(text) + zstd(text) + b"garbage!!")
    rows, _, damaged = read_all(path)
    assert (len(rows), len(damaged)) == (4, 1)
    payload = request_message.SerializeToString()
    half = len(payload) // 2
    write_length_prefixed(tmp_path / "b.proto", [zstd(payload)[:-5], zstd(payload)])
    write_length_prefixed(
        tmp_path / "c.proto", [zstd(payload[:half]) + zstd(payload[half:]), zstd(payload)]
    )
    rows, _, damaged = read_all(tmp_path / "b.proto")
    assert (len(rows), [each.reason for each in damaged]) == (
        2,
        ["zstd data is damaged or cut: it ends within a frame"],
    )
    rows, _, damaged = read_all(tmp_path / "c.proto")
    assert (len(rows), damaged) == (4, [])


def test_store_folder_reads_open_segments(tmp_path, request_message):
    """A store's sealed and unsealed segments are all read, and named by the folder."""
    payload = request_message.SerializeToString()
    for name in ("1.otlp", "2.otlp.open"):
        (tmp_path / name).write_bytes(MAGIC + frame_record(payload, 2))
    files = find_source_files([tmp_path])
    assert [(file.path.name, file.source) for file in files] == [
        ("1.otlp", str(tmp_path)),
        ("2.otlp.open", str(tmp_path)),
    ]


def test_a_file_named_twice_is_read_once(tmp_path, request_message):
    """A folder and a file in it do not double the spans."""
    (tmp_path / "1.otlp").write_bytes(MAGIC)
    assert len(find_source_files([tmp_path, tmp_path / "1.otlp"])) == 1


def test_flipped_segment_record_is_counted(tmp_path, request_message):
    """One damaged record, and the spans of its neighbours."""
    record = frame_record(request_message.SerializeToString(), 2)
    flipped = bytearray(record)
    flipped[len(record) // 2] ^= 1
    (tmp_path / "1.otlp").write_bytes(MAGIC + record + bytes(flipped) + record)
    rows, _, damaged = read_all(tmp_path / "1.otlp")
    assert (len(rows), len(damaged)) == (4, 1)


def test_damaged_json_line_is_counted(tmp_path, request_message):
    """Lines before and after a torn one are read, also when the first is torn."""
    text = otlp_json(request_message)
    for lines in ([text, text[:50], text], [text[:50], text, text]):
        path = tmp_path / "spans.jsonl"
        path.write_text("\n".join(lines))
        rows, _, damaged = read_all(path)
        assert (len(rows), len(damaged)) == (4, 1)


def test_marks_and_empty_lines_before_json_are_no_damage(tmp_path, request_message):
    """A byte order mark, and empty lines, before lines and before one whole document."""
    text = otlp_json(request_message)
    for document in (f"{text}\n{text}", json.dumps(json.loads(text), indent=1)):
        for before in ("\ufeff", "\n \r\n", "\ufeff\n"):
            path = tmp_path / "spans.jsonl"
            path.write_text(before + document, encoding="utf-8")
            rows, _, damaged = read_all(path)
            assert (len(rows), len(damaged)) == (2 + 2 * ("\n{" in document), 0)


def test_half_a_character_costs_no_neighbour(tmp_path, request_message):
    """Texts that are cut between two surrogates hold an escape that is no character."""
    text = otlp_json(request_message)
    path = tmp_path / "spans.jsonl"
    path.write_text(text.replace("\\u00fc", r"a\ud83d \ud83d\ude00 \\ud83d \ude00\ud83d"))
    rows, _, damaged = read_all(path)
    assert damaged == []
    values = [row.attributes["s"] for row in rows if "s" in row.attributes]
    assert values == ["a\ufffd \U0001f600 \\ud83d \ufffd\ufffd"]


def test_files_of_a_folder_that_are_none_of_ours_are_named(tmp_path, request_message):
    """Their neighbours are read; a file that has only just been begun is no damage."""
    (tmp_path / "spans.jsonl").write_text(otlp_json(request_message))
    (tmp_path / "begun.jsonl").touch()
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}")[:6])
    (tmp_path / "key.bin").write_bytes(b"\x00\x01\x02")
    manifest = build_dataset([tmp_path], tmp_path / "dataset")
    assert (manifest.accounting.spans_read, manifest.accounting.is_closed) == (2, True)
    assert manifest.accounting.damaged_records == 2
    named = [each.removeprefix(f"{tmp_path}/")[:30] for each in manifest.accounting.damage]
    assert named == ["cut.json.gz: compressed data i", "key.bin: binary data, 3 bytes:"]


def test_a_foreign_table_or_archive_in_a_folder_is_damage(tmp_path, request_message):
    """A folder's other files are read; what is named itself is refused."""
    folder = tmp_path / "spans"
    folder.mkdir()
    (folder / "spans.jsonl").write_text(otlp_json(request_message))
    pl.DataFrame({"prompt": ["x"]}).write_parquet(folder / "prompts.parquet")
    with zipfile.ZipFile(folder / "notes.eval", "w") as archive:
        archive.writestr("notes.txt", "x")
    manifest = build_dataset([folder], tmp_path / "dataset")
    assert (manifest.accounting.spans_read, manifest.accounting.is_closed) == (2, True)
    named = [each.removeprefix(f"{folder}/")[:30] for each in manifest.accounting.damage]
    assert named == ["notes.eval: a zip archive, but", "prompts.parquet: a table witho"]
    for name, words in (
        ("notes.eval", "a zip archive, but"),
        ("prompts.parquet", "a table without"),
    ):
        with pytest.raises(SourceError, match=f"{name}: {words}"):
            build_dataset([folder / name], tmp_path / name)


def test_json_lines_of_no_known_form_are_not_called_broken(tmp_path):
    """They are JSON lines; what they lack is a form that is known."""
    (tmp_path / "a.jsonl").write_text('{"messages": []}\n{"messages": []}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl: line 1: neither JSON lines of a known form"):
        build_dataset([tmp_path], tmp_path / "dataset")


def test_damage_is_named_where_nothing_else_was_found(tmp_path):
    """So that whoever exports it knows which file to look at."""
    (tmp_path / "a.json").write_text("hello")
    with pytest.raises(SourceError, match=r"no spans in 1 file.*a\.json: text, 5 bytes"):
        build_dataset([tmp_path], tmp_path / "dataset")
    with pytest.raises(SourceError, match=r"a\.json: text, 5 bytes"):
        build_dataset([tmp_path / "a.json"], tmp_path / "dataset")


def test_torn_length_prefixed_tail_is_counted(tmp_path, request_message):
    """What is whole before the tear is read."""
    payload = request_message.SerializeToString()
    path = tmp_path / "spans.proto"
    write_length_prefixed(path, [payload, payload])
    path.write_bytes(path.read_bytes()[:-3])
    rows, _, damaged = read_all(path)
    assert (len(rows), [damage.reason for damage in damaged]) == (2, ["torn_tail"])


@pytest.mark.parametrize(
    "change",
    [
        {"traceId": "00" * 16},
        {"traceId": "zz" * 16},
        {"spanId": "1234"},
        {"spanId": None},
        {"startTimeUnixNano": "-5"},
        {"attributes": [{"value": {"intValue": "1"}}]},
        {"attributes": [{"key": "a", "value": {"intValue": "many"}}]},
        {"attributes": 7},
    ],
)
def test_malformed_span_is_set_aside(tmp_path, request_message, change):
    """One span with impossible fields does not take its neighbour along."""
    fields = json.loads(otlp_json(request_message))
    fields["resourceSpans"][0]["scopeSpans"][0]["spans"][0].update(change)
    path = tmp_path / "spans.jsonl"
    path.write_text(json.dumps(fields))
    rows, malformed, damaged = read_all(path)
    assert ([row.name for row in rows], len(malformed), damaged) == (["outer"], 1, [])


def test_times_beyond_the_column_are_cut(tmp_path, request_message):
    """An unsigned time above 2^63 does not overflow, and zero means never ended."""
    span = request_message.resource_spans[0].scope_spans[0].spans[0]
    span.start_time_unix_nano = 2**64 - 1
    span.end_time_unix_nano = 0
    (tmp_path / "a.pb").write_bytes(request_message.SerializeToString())
    rows, _, _ = read_all(tmp_path / "a.pb")
    assert (rows[0].start_ns, rows[0].end_ns) == (MAX_TIME_NS, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.pb", b"\x28\xb5\x2f\xfdxxxx", "compressed data is damaged or cut"),
        ("a.json", b"\x1f\x8bxxxx", "compressed data is damaged or cut"),
        ("a.json", gzip.compress(b"hello" * 99, mtime=0)[:-9], "neither"),
        ("a.json", b"hello", "neither"),
    ],
)
def test_unusable_file_says_what_to_do(tmp_path, name, content, message):
    """Empty, compressed and foreign files are named in the error."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


def test_missing_path_and_empty_folder(tmp_path):
    """The error names the path."""
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SourceError, match=str(path)):
            find_source_files([path])
    with pytest.raises(SourceError, match="no source given"):
        find_source_files([])


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    """Where the system refuses whatever lies in it, as it does for all users but root."""
    may_look = {name: getattr(Path, name) for name in ("is_dir", "iterdir")}

    def refuse(name, path):
        if path != tmp_path or name == "iterdir":
            raise PermissionError(13, "Permission denied", str(path))
        return may_look[name](path)

    for name in may_look:
        monkeypatch.setattr(Path, name, partialmethod(lambda path, name: refuse(name, path), name))
    with pytest.raises(SourceError, match=f"{tmp_path}: cannot be read: Permission denied"):
        find_source_files([tmp_path])


def test_a_folder_without_spans_says_where_to_look(tmp_path):
    """Folders in it are named, then files of other names; a pipe has to be saved first."""
    with pytest.raises(SourceError, match="has the agent run with tracing on"):
        find_source_files([tmp_path])
    (tmp_path / "spans.csv").write_text("trace_id")
    with pytest.raises(SourceError, match="name the files that hold spans"):
        find_source_files([tmp_path])
    (tmp_path / "monday").mkdir()
    with pytest.raises(SourceError, match=r"name the folders in it that hold spans, as .*/monday"):
        find_source_files([tmp_path])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder; save it as a file first"):
        find_source_files([tmp_path / "pipe"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"import sys", "text, 10 bytes: neither"),
        ("clé 0123456789abcdef".encode() * 9, "text, 189 bytes: neither"),
        (b"\x00\xff\x10", "binary data, 3 bytes: neither"),
    ],
)
def test_foreign_file_is_described_and_not_quoted(tmp_path, content, words):
    """The error says what kind of file it is and shows none of it: it may hold keys."""
    (tmp_path / "x.json").write_bytes(content)
    [file] = find_source_files([tmp_path / "x.json"])
    with pytest.raises(SourceError, match=words) as caught:
        list(read_span_batches(file))
    assert not [word for word in ("import", "clé", "0123", "ff 10") if word in str(caught.value)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("traceId"), "traceId is missing"),
        (TypeError("no text"), "a value has the wrong type (no text)"),
        (ValueError("negative time -1"), "negative time -1"),
    ],
)
def test_fault_in_a_span_is_said_in_words(error, words):
    """The detail of a rejected span names no Python exception."""
    assert describe_fault(error) == words


def test_a_segment_sealed_while_it_is_read(tmp_path, request_message):
    """Between any two looks at it: it is read under its new name, as what it is."""
    record = frame_record(request_message.SerializeToString(), 2)

    def write_segment():
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        writer = SegmentWriter(folder)
        writer.append(record)
        return folder, writer

    folder, writer = write_segment()
    (file,) = find_source_files([folder])
    writer.seal()
    assert fingerprint_file(file.path).path == str(writer.path)
    assert sum(len(batch.rows) for batch in read_span_batches(file)) == 2
    folder, writer = write_segment()
    (file,) = find_source_files([folder])
    batches = read_span_batches(file)
    writer.seal()
    assert sum(len(batch.rows) for batch in batches) == 2
    writer.path.unlink()
    for read in (lambda: list(read_span_batches(file)), lambda: fingerprint_file(file.path)):
        with pytest.raises(SourceError, match=r"\.otlp\.open: was removed meanwhile"):
            read()


def test_export_beside_agents_that_come_and_go(tmp_path, request_message):
    """Segments are made and sealed all the while; no build fails, and none counts a span twice."""
    store = tmp_path / "store"
    store.mkdir()
    record = frame_record(request_message.SerializeToString(), 2)
    is_over = threading.Event()
    written = [SegmentWriter(store)]
    written[0].append(record)

    def write():
        while not is_over.is_set() and len(written) < 1000:
            writer = SegmentWriter(store)
            writer.append(record)
            written.append(writer)
            written[-2].seal()

    agent = threading.Thread(target=write)
    agent.start()
    try:
        for _ in range(20):
            read = convert_sources([store])
            sizes = [file["bytes"] for file in read.sources]
            assert read.accounting.is_closed
            num_written = sum(size == len(MAGIC) + len(record) for size in sizes)
            assert 2 * num_written <= read.accounting.spans_read <= 2 * len(sizes)
    finally:
        is_over.set()
        agent.join()


def test_an_attribute_without_a_text_as_key_costs_one_span(tmp_path, request_message):
    """The span is malformed; its neighbour is read."""
    document = json.loads(otlp_json(request_message))
    spans = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans[0]["attributes"] = [{"key": 5, "value": {"stringValue": "x"}}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    build = convert_sources([path])
    assert build.accounting.spans_read == 2
    assert sorted(build.tables["rejected"]["reason"]) == ["malformed_span", "not_an_agent_span"]


def test_no_span_of_an_older_or_odd_container_is_lost(tmp_path, request_message):
    """The names of before OTLP 1.0 are read; what holds no list of spans is a malformed one."""
    document = json.loads(otlp_json(request_message))
    [group] = document["resourceSpans"]
    [scope_group] = group.pop("scopeSpans")
    group["instrumentationLibrarySpans"] = [
        {"instrumentationLibrary": scope_group["scope"], "spans": scope_group["spans"][:1]},
    ]
    group["scopeSpans"] = {"spans": scope_group["spans"][1:]}
    document["resourceSpans"] += [{"scopeSpans": ["odd"]}, "odder"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    [file] = find_source_files([path])
    batches = list(read_span_batches(file))
    rows = [row for batch in batches for row in batch.rows]
    malformed = [each for batch in batches for each in batch.malformed]
    assert (len(rows), {row.scope for row in rows}, len(malformed)) == (2, {"my_scope", ""}, 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [("loop.otlp.open", "cannot be read"), ("gone", "is a link to a file that is not there")],
)
def test_links_that_lead_nowhere_are_named(tmp_path, target, message):
    """A loop of links, and one to a file that was removed."""
    (tmp_path / "loop.otlp.open").symlink_to(target)
    with pytest.raises(SourceError, match=f"loop.otlp.open: {message}"):
        convert_sources([tmp_path])
