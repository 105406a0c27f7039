"""Sources -> dataset on disk: manifest, accounting, versions, kills, digest, split, bad input."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import blake2b, sha256

import polars as pl
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace import semconv
from starpo_trace.convert.dataset import build_dataset
from starpo_trace.convert.forget import forget
from starpo_trace.convert.manifest import lock_output, read_manifest, scan_table
from starpo_trace.errors import ConfigError, DatasetError, SourceError
from starpo_trace.schema import TABLES
from starpo_trace.store.segments import MAGIC, frame_record

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}


def encode(rows) -> bytes:
    """Span rows -> one OTLP message, a scope per span."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for row in rows:
        scope = resource.scope_spans.add()
        scope.scope.name = row.scope
        span = scope.spans.add()
        span.trace_id = bytes.fromhex(row.trace_id)
        span.span_id = bytes.fromhex(row.span_id)
        span.parent_span_id = bytes.fromhex(row.parent_id or "")
        span.name = row.name
        span.start_time_unix_nano, span.end_time_unix_nano = row.start_ns, row.end_ns
        for trace_id, span_id in row.links:
            link = span.links.add()
            link.trace_id, link.span_id = bytes.fromhex(trace_id), bytes.fromhex(span_id)
        for key, value in row.attributes.items():
            kind = {str: "string_value", int: "int_value", float: "double_value"}[type(value)]
            pair = span.attributes.add()
            pair.key = key
            setattr(pair.value, kind, value)
    return request.SerializeToString()


def write_store(folder, batches) -> None:
    folder.mkdir(exist_ok=True)
    records = b"".join(frame_record(encode(rows), len(rows)) for rows in batches)
    (folder / "1.otlp").write_bytes(MAGIC + records)


def make_rows(spans, count=6) -> list:
    """`count` trajectories of one call and a reward, two attempts per task."""
    rows = []
    for i in range(count):
        root = spans.root(
            f"t{i}", num_steps=1, **{semconv.TASK_ID: f"task{i // 2}", semconv.ATTEMPT: i % 2}
        )
        call = spans.call(root, 0, [USER], ANSWER, delta=False)
        rows += [root, call, spans.reward(root, float(i % 2), **{semconv.REWARD_ID: f"r{i}"})]
    return rows


def test_manifest_by_hand(tmp_path, spans):
    """Counts, accounting, versions and source hashes of a small store."""
    rows = make_rows(spans)
    stranger = spans.row({"http.method": "GET"}, scope="http")
    write_store(tmp_path / "store", [rows, [stranger, rows[0]]])
    manifest = build_dataset([tmp_path / "store"], tmp_path / "dataset")
    assert manifest == read_manifest(tmp_path / "dataset")
    accounting = manifest.accounting
    assert (accounting.spans_read, accounting.spans_used, accounting.duplicates) == (20, 18, 1)
    assert accounting.spans_rejected_by_reason == {"not_an_agent_span": 1}
    assert accounting.is_closed
    assert manifest.counts == {
        "trajectories": 6,
        "turns": 6,
        "messages": 12,
        "states": 0,
        "rewards": 6,
        "spans": 18,
        "rejected": 1,
    }
    assert manifest.usable_for == {"rl": 0, "sft": 6, "none": 0}
    file = tmp_path / "store" / "1.otlp"
    data = file.read_bytes()
    assert manifest.sources == [
        {
            "path": str(file),
            "source": str(tmp_path / "store"),
            "bytes": len(data),
            "sha256": sha256(data).hexdigest(),
            "changed_ns": file.stat().st_mtime_ns,
            "spans": 20,
            "malformed": 0,
            "damaged": 0,
            "damage": [],
        }
    ]
    assert {name: table["version"] for name, table in manifest.tables.items()} == dict.fromkeys(
        TABLES, 0
    )
    trajectories = scan_table(tmp_path / "dataset", "trajectories").collect()
    assert trajectories.sort("trajectory_id")["reward"].to_list() == [0.0, 1.0] * 3


def test_digest_ignores_order_batches_and_place(tmp_path, spans):
    """Shuffled, duplicated, split over files elsewhere: the same rows, the same digest."""
    rows = make_rows(spans)
    write_store(tmp_path / "store", [rows])
    expected = build_dataset([tmp_path / "store"], tmp_path / "dataset")
    for seed in range(5):
        shuffled = rows + rows[:3]
        random.Random(seed).shuffle(shuffled)
        folder = tmp_path / f"store{seed}"
        write_store(folder, [shuffled[i : i + 4] for i in range(0, len(shuffled), 4)])
        actual = build_dataset([folder], tmp_path / f"dataset{seed}")
        assert actual.digest == expected.digest
        assert actual.accounting.duplicates == 3
    rows[1].attributes[semconv.REQUEST_MODEL] = "other"
    write_store(tmp_path / "store", [rows])
    assert build_dataset([tmp_path / "store"], tmp_path / "other").digest != expected.digest


def test_rebuild_is_a_new_version(tmp_path, spans):
    """Late spans give version 1; a reader with the old manifest still sees version 0."""
    rows = make_rows(spans)
    output = tmp_path / "dataset"
    write_store(tmp_path / "store", [rows[:9]])
    build_dataset([tmp_path / "store"], output)
    old = scan_table(output, "trajectories")
    write_store(tmp_path / "store", [rows])
    manifest = build_dataset([tmp_path / "store"], output)
    assert manifest.tables["trajectories"]["version"] == 1
    assert old.collect().height == 3
    assert scan_table(output, "trajectories").collect().height == 6


def test_split_is_by_task(tmp_path, spans):
    """Both attempts of a task are on one side, by the hash of the task id."""
    rows = make_rows(spans, count=40)
    write_store(tmp_path / "store", [rows])
    build_dataset([tmp_path / "store"], tmp_path / "dataset", test_fraction=0.5)
    table = scan_table(tmp_path / "dataset", "trajectories").collect()
    per_task = table.group_by("task_id").agg(pl.col("split").n_unique())
    assert per_task["split"].to_list() == [1] * 20
    expected = {
        task: "test"
        if int.from_bytes(blake2b(task.encode(), digest_size=8).digest(), "big") < 2**63
        else "train"
        for task in table["task_id"]
    }
    assert dict(table.select("task_id", "split").iter_rows()) == expected
    assert set(expected.values()) == {"train", "test"}


@pytest.mark.slow
def test_killed_builds_leave_the_last_version(tmp_path, spans):
    """SIGKILL at random points of a rebuild: the old dataset reads as before, the next works."""
    rows = make_rows(spans)
    store, output = tmp_path / "store", tmp_path / "dataset"
    write_store(store, [rows])
    manifest = build_dataset([store], output)
    program = (
        "import sys; from pathlib import Path; from starpo_trace import dataset\n"
        "print('ready', flush=True)\n"
        "while True: dataset.build_dataset([Path(sys.argv[1])], Path(sys.argv[2]))"
    )
    waits_s = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(store), str(output)], stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(waits_s.uniform(0.0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
        found = read_manifest(output)
        assert (found.digest, found.counts) == (manifest.digest, manifest.counts)
        heights = {name: scan_table(output, name).collect().height for name in TABLES}
        assert heights == manifest.counts
    assert build_dataset([store], output).digest == manifest.digest


def test_half_written_first_build_is_no_dataset_and_can_be_redone(tmp_path, spans):
    """Tables without a manifest are not read, and do not stand in the way."""
    write_store(tmp_path / "store", [make_rows(spans)])
    output = tmp_path / "dataset"
    build_dataset([tmp_path / "store"], output)
    (output / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="no manifest"):
        read_manifest(output)
    assert build_dataset([tmp_path / "store"], output).tables["turns"]["version"] == 1


def test_only_one_build_at_a_time(tmp_path, spans):
    """A second build of the same folder says so instead of mixing tables."""
    write_store(tmp_path / "store", [make_rows(spans)])
    with lock_output(tmp_path / "dataset"), pytest.raises(DatasetError, match="another build"):
        build_dataset([tmp_path / "store"], tmp_path / "dataset")


def test_bad_outputs_are_refused_and_untouched(tmp_path, spans):
    """A file, or a folder with somebody's files, stays as it is."""
    write_store(tmp_path / "store", [make_rows(spans)])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    with pytest.raises(DatasetError, match="is a file"):
        build_dataset([tmp_path / "store"], tmp_path / "file")
    with pytest.raises(DatasetError, match=r"not a dataset .*thesis\.tex"):
        build_dataset([tmp_path / "store"], tmp_path / "folder")
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["d [1]", "d*", "d?", "d{1,2}", "d#1", "50%"])
def test_a_name_is_no_pattern(tmp_path, spans, name):
    """Characters that stand for others in patterns are characters here, in every build."""
    write_store(tmp_path / "store", [make_rows(spans, count=2)])
    build_dataset([tmp_path / "store"], tmp_path / "d1")
    for count in (2, 4):  # the second brings the first up to date
        write_store(tmp_path / "store", [make_rows(spans, count=count)])
        build_dataset([tmp_path / "store"], tmp_path / name)
        assert scan_table(tmp_path / name, "trajectories").collect().height == count
    forget(tmp_path / name, [("trajectory", "t0")])
    assert scan_table(tmp_path / name, "trajectories").collect().height == 3
    assert scan_table(tmp_path / "d1", "trajectories").collect().height == 2


@pytest.mark.parametrize("name", ["a%20b", "a\\b"])
def test_names_that_delta_misreads_are_refused(tmp_path, spans, name):
    """`%20` would be a blank to it, and its tables would lie in another folder."""
    write_store(tmp_path / "store", [make_rows(spans)])
    with pytest.raises(DatasetError, match="read as another character"):
        build_dataset([tmp_path / "store"], tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_sources_without_spans_are_refused(tmp_path):
    """An empty segment names the store; nothing is written."""
    write_store(tmp_path / "store", [])
    with pytest.raises(SourceError, match="no spans in 1 file"):
        build_dataset([tmp_path / "store"], tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_bad_fraction_is_refused(tmp_path):
    """A percentage instead of a fraction is named."""
    with pytest.raises(ConfigError, match=r"test_fraction is 20"):
        build_dataset([tmp_path], tmp_path / "dataset", test_fraction=20)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema_version": "0"}', '{"schema_version": "3"}']
)
def test_bad_manifest_is_refused(tmp_path, content):
    """Torn, foreign or older manifests give an error that names the file."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_manifest_is_plain_json(tmp_path, spans):
    """The keys that other programs read."""
    write_store(tmp_path / "store", [make_rows(spans)])
    build_dataset([tmp_path / "store"], tmp_path / "dataset")
    fields = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert sorted(fields) == [
        "accounting",
        "counts",
        "created",
        "curation",
        "digest",
        "forgotten",
        "index",
        "parameters",
        "schema_version",
        "shards",
        "signatures",
        "sources",
        "starpo_version",
        "tables",
        "usable_for",
    ]


@pytest.mark.parametrize("damage", ["change", "remove", "log", "table"])
def test_table_that_does_not_match_is_refused(tmp_path, spans, damage):
    """A changed or lost file, version or table gives one line, not a reader's traceback."""
    write_store(tmp_path / "store", [make_rows(spans)])
    manifest = build_dataset([tmp_path / "store"], tmp_path / "dataset")
    turns = tmp_path / "dataset" / "turns"
    ((name, digest),) = manifest.tables["turns"]["files"].items()
    content = (turns / name).read_bytes()
    assert digest == blake2b(content, digest_size=16).hexdigest()
    if damage == "change":
        (turns / name).write_bytes(content[:-1] + b"?")
    elif damage == "remove":
        (turns / name).unlink()
    elif damage == "log":
        next((turns / "_delta_log").glob("*.json")).unlink()
    else:
        shutil.rmtree(turns)
    message = (
        r"dataset/turns: version 0 does not match manifest\.json; export again with --full \(.+\)$"
    )
    with pytest.raises(DatasetError, match=message):
        scan_table(tmp_path / "dataset", "turns")
    assert scan_table(tmp_path / "dataset", "messages").collect().height


def test_manifest_without_files_is_read(tmp_path, spans):
    """The first datasets named no files; a folder name with a space is no matter."""
    write_store(tmp_path / "store", [make_rows(spans)])
    dataset = tmp_path / "data set"
    build_dataset([tmp_path / "store"], dataset)
    assert scan_table(dataset, "turns").collect().height == 6
    fields = json.loads((dataset / "manifest.json").read_text())
    for table in fields["tables"].values():
        del table["files"]
    (dataset / "manifest.json").write_text(json.dumps(fields))
    assert scan_table(dataset, "turns").collect().height == 6


def test_full_disk_leaves_nothing_half_written(tmp_path, spans):
    """One line says what to do; without an earlier dataset not even the folder stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        write_store(tmp_path / "store", [make_rows(spans)])
        with pytest.raises(DatasetError, match=r"dataset: disk full; nothing of this build counts"):
            build_dataset([tmp_path / "store"], disk / "dataset")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_refused_write_keeps_the_last_dataset(tmp_path, spans, monkeypatch):
    """A build that cannot write its manifest leaves the one before it readable."""
    write_store(tmp_path / "store", [make_rows(spans)])
    before = build_dataset([tmp_path / "store"], tmp_path / "dataset")
    lock = tmp_path / "dataset" / ".build.lock"
    inode = lock.stat().st_ino

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starpo_trace.convert.dataset.write_manifest", refuse)
    with pytest.raises(DatasetError, match=r"disk full; .* the last dataset is intact; free space"):
        build_dataset([tmp_path / "store"], tmp_path / "dataset")
    assert read_manifest(tmp_path / "dataset") == before
    assert scan_table(tmp_path / "dataset", "turns").collect().height == 6
    assert lock.stat().st_ino == inode  # held to the end: others may only begin after the removal


def test_unknown_trusted_source_is_refused(tmp_path):
    """A mistyped source would silently leave every reward out."""
    with pytest.raises(ConfigError, match="trust_sources has usr; use environment, user"):
        build_dataset([tmp_path], tmp_path / "dataset", trust_sources=["usr"])


def test_manifest_errors_are_in_words(tmp_path):
    """What is missing is named, not the exception that tripped over it."""
    (tmp_path / "spans.jsonl").write_text("{}")
    with pytest.raises(DatasetError, match=r"spans\.jsonl: is a file and no dataset; build one"):
        read_manifest(tmp_path / "spans.jsonl")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match="no schema version, this starpo reads 3"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": "3", "tables": {}}')
    with pytest.raises(DatasetError, match=r"manifest\.json: lacks accounting, counts, created"):
        read_manifest(tmp_path)
