"""Buckets of a server that speaks S3 -> the dataset that the same files in a folder give."""

import gzip
import json
import shutil
import subprocess
import sys

import polars as pl
import pytest
import zstandard
from bucket_server import NAME, URL, watch_requests
from deltalake import DeltaTable, write_deltalake
from otlp_lines import write_lines

from starpo_trace.convert.dataset import build_dataset, convert_sources, scan_table
from starpo_trace.convert.manifest import BUILD_FOLDER, read_manifest
from starpo_trace.convert.reading import plan_reading
from starpo_trace.convert.sources import find_source_files, hold_copies
from starpo_trace.errors import SourceError
from starpo_trace.schema import TABLES

INSTANCE = "django__django-1"


def write_table(path, rows):
    """Span rows -> a table of spans, as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_table(rows).write_parquet(path)


def make_table(rows):
    columns = ("trace_id", "span_id", "parent_id", "name", "scope", "start_ns", "end_ns")
    return pl.DataFrame(
        [
            {
                **{name: getattr(row, name) for name in columns},
                "attributes": json.dumps(row.attributes),
                "links": json.dumps([{"trace_id": t, "span_id": s} for t, s in row.links]),
            }
            for row in rows
        ],
        infer_schema_length=None,
    )


def same_tables(dataset, other):
    """Whether two datasets hold the same rows, wherever they were read."""
    for name in TABLES:
        tables = []
        for each in (dataset, other):
            table = scan_table(each, name).drop("source", strict=False).collect()
            tables.append(table.sort([c for c, kind in table.schema.items() if kind != pl.List]))
        if not tables[0].equals(tables[1]):
            return False
    return True


def write_everything(folder, lines, make_run):
    """A folder of every kind of file, with what a folder also holds and what is not read."""
    zstd = zstandard.ZstdCompressor().compress
    files = {
        "collector.json": lines(0),
        "later.jsonl.gz": gzip.compress(lines(1)),
        "last.json.zst": zstd(lines(2)),
        "of spaces and ü.jsonl": lines(3),
        "year=2026/month=05/day=04/traces.json": lines(4),
        "year=2026/month=05/day=05/traces.json.gz": gzip.compress(lines(5)),
        "elsewhere/not-read.json": lines(6),
        "notes.txt": b"not read",
        "manifest.json": b"not read either",
        "begun.json": b"",
        "foreign.bin": b"\xff\xfe\x00\x01",
        f"exp/trajs/{INSTANCE}/{INSTANCE}.traj": json.dumps(make_traj()).encode(),
        f"exp/logs/run_evaluation/r1/m/{INSTANCE}/report.json": json.dumps(
            {"patch_successfully_applied": True, "resolved": True}
        ).encode(),
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_table(folder / "table.parquet", make_run(7))


def make_traj():
    history = [
        {"role": "system", "content": "You are an engineer.", "agent": "main"},
        {"role": "user", "content": "Mend it.", "agent": "main"},
        {"role": "assistant", "content": "done", "agent": "main"},
    ]
    steps = [{"response": "done", "observation": ""}]
    return {"trajectory": steps, "history": history, "info": {"exit_status": "submitted"}}


@pytest.mark.parametrize("executor", ["serial", "process"])
def test_a_bucket_gives_the_dataset_of_the_folder(bucket, tmp_path, lines, make_run, executor):
    """All forms, compressed or not, part folders, benchmark's runs with their reports, damage."""
    write_everything(tmp_path / "traces", lines, make_run)
    bucket.put_folder(tmp_path / "traces", "team/traces")
    bucket.put("team/traces/", b"")
    bucket.put("team/traces-of-others/other.json", lines(8))
    expected = build_dataset([tmp_path / "traces"], tmp_path / "expected")
    manifest = build_dataset([f"{URL}/team/traces"], tmp_path / "dataset", executor=executor)
    assert manifest.digest == expected.digest
    assert manifest.counts == expected.counts
    assert same_tables(tmp_path / "dataset", tmp_path / "expected")
    assert manifest.accounting.is_closed
    assert manifest.accounting.damaged_records == expected.accounting.damaged_records == 1
    names = {"run-0", "run-1", "run-2", "run-3", "run-4", "run-5", "run-7", f"exp/{INSTANCE}"}
    trajectories = scan_table(tmp_path / "dataset", "trajectories").collect()
    assert set(trajectories["trajectory_id"]) == names
    assert trajectories.filter(trajectory_id=f"exp/{INSTANCE}")["reward"].to_list() == [1.0]


def test_lineage_names_the_bucket_and_never_the_copy(bucket, tmp_path, lines):
    """URLs, sizes, ETags and hashes stand in the manifest; the copies are gone."""
    data = lines(0)
    bucket.put("a/one.json", data)
    bucket.put("a/bad.bin", b"\xff\xfe")
    manifest = build_dataset([f"{URL}/a/"], tmp_path / "dataset")
    bad, one = manifest.sources
    assert (one["path"], one["source"]) == (f"{URL}/a/one.json", f"{URL}/a/")
    assert (one["bytes"], one["spans"], bad["damaged"]) == (len(data), 4, 1)
    stored = bucket.client.head_object(Bucket=NAME, Key="a/one.json")
    assert one["etag"] == stored["ETag"]
    assert one["changed_ns"] == int(stored["LastModified"].timestamp()) * 10**9
    assert manifest.accounting.damage[0].startswith(f"{URL}/a/bad.bin: ")
    for name in ("trajectories", "spans"):
        columns = scan_table(tmp_path / "dataset", name).collect()
        assert set(columns["source"]) == {f"{URL}/a/"}
    assert not (tmp_path / "dataset" / BUILD_FOLDER).exists()
    assert BUILD_FOLDER not in (tmp_path / "dataset" / "manifest.json").read_text()


def test_a_bucket_is_mixed_with_folders_and_other_buckets(bucket, tmp_path, lines):
    """One object by its URL, a prefix, a folder; what is named twice is read once."""
    bucket.put("one.json", lines(0))
    bucket.put("more/two.json", lines(1))
    bucket.put("more/three.json", lines(2))
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "four.json").write_bytes(lines(3))
    sources = [f"{URL}/one.json", tmp_path / "local", f"{URL}/more", f"{URL}/more/two.json", URL]
    conversion = convert_sources(sources)
    assert [entry["spans"] for entry in conversion.sources] == [4, 4, 4, 4]
    assert conversion.accounting.spans_used == 16


def test_an_unchanged_bucket_costs_a_listing(bucket, tmp_path, lines):
    """New and changed objects alone are fetched; one that is gone takes its runs with it."""
    for number in range(5):
        bucket.put(f"t/{number}.json", lines(number))
    dataset = tmp_path / "dataset"

    def rebuild():
        with watch_requests() as requests:
            manifest = build_dataset([f"{URL}/t"], dataset)
        fresh = build_dataset([f"{URL}/t"], tmp_path / "fresh", full=True)
        assert manifest.digest == fresh.digest
        assert manifest.counts == fresh.counts
        assert manifest.accounting == fresh.accounting
        return requests.downloads()

    assert rebuild() == [f"t/{number}.json" for number in range(5)]
    assert rebuild() == []
    late = lines(5)
    bucket.put("t/5.json", late)
    assert rebuild() == ["t/5.json"]
    bucket.put("t/5.json", late)  # written again
    assert rebuild() == []
    bucket.put("t/4.json", lines(44))
    assert rebuild() == ["t/4.json"]
    bucket.delete("t/0.json")
    assert rebuild() == []
    ids = scan_table(dataset, "trajectories").collect()["trajectory_id"]
    assert set(ids) == {"run-1", "run-2", "run-3", "run-44", "run-5"}


def test_a_late_reward_fetches_the_object_of_its_run(bucket, tmp_path, make_run):
    """An unchanged object is fetched again where its run is built again, and no other."""
    runs = [make_run(number) for number in range(6)]
    for number, rows in enumerate(runs):
        write_lines(tmp_path / "lines.json", rows[:-1] if number == 3 else rows)
        bucket.put(f"t/{number}.json", (tmp_path / "lines.json").read_bytes())
    build_dataset([f"{URL}/t"], tmp_path / "dataset")
    write_lines(tmp_path / "lines.json", runs[3][-1:])
    bucket.put("t/late.json", (tmp_path / "lines.json").read_bytes())
    with watch_requests() as requests:
        manifest = build_dataset([f"{URL}/t"], tmp_path / "dataset")
    assert requests.downloads() == ["t/3.json", "t/late.json"]
    assert manifest.digest == build_dataset([f"{URL}/t"], tmp_path / "fresh").digest


def test_more_objects_than_a_page_of_a_listing_has(bucket, tmp_path, lines):
    """1,203 objects, of which 1,200 are empty: all are listed, each is read once."""
    for number in range(1200):
        bucket.put(f"t/{number:05d}.json", b"")
    for number, key in enumerate(("t/00000a.json", "t/01000a.json", "t/zzz.json")):
        bucket.put(key, lines(number))
    with watch_requests() as requests:
        manifest = build_dataset([f"{URL}/t"], tmp_path / "dataset")
    assert len(requests.downloads()) == len(set(requests.downloads())) == 1203
    assert (len(manifest.sources), manifest.counts["trajectories"]) == (1203, 3)


ODD_KEYS = {
    "a b.json",
    "ünï\u0301.json",
    "of%2Fpercent.json",
    "plus+and&.json",
    "what?.json",
    "hash#1.json",
    "tab\t.json",
    "back\\slash.json",
    "star*[1].json",
    "..json",
    "//two-slashes.json",
    "Case.json",
    "case.json",
    "folder.json",
    "a:b.json",
    "'quotes\".json",
    f"{'long' * 60}.json",
    "year=20%2026/a.json",
    "year=2026//a.json",
}
UNREAD_KEYS = {"../up.json", "a/../b.json", "./here.json", "folder.json/inside.json", "folder/"}
"""In a folder below, as their slashes say, whose names are no part folders'."""


def test_keys_are_any_text(bucket, tmp_path, lines):
    """Every object is read, whatever its key; copies stay in their folder and never collide."""
    for number, key in enumerate(sorted(ODD_KEYS | UNREAD_KEYS)):
        bucket.put(f"p/{key}", b"" if key.endswith("/") else lines(number))
    (tmp_path / "d").mkdir()
    manifest = build_dataset([f"{URL}/p"], tmp_path / "d" / "dataset")
    assert {entry["path"] for entry in manifest.sources} == {f"{URL}/p/{key}" for key in ODD_KEYS}
    assert manifest.counts["trajectories"] == len(ODD_KEYS)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["dataset"]
    with watch_requests() as requests:
        build_dataset([f"{URL}/p"], tmp_path / "d" / "dataset")
    assert requests.downloads() == []


@pytest.mark.parametrize("key", ["p/../up.json", "p/a/../b.json", "p/folder.json/inside.json"])
def test_any_object_is_read_by_its_own_url(bucket, tmp_path, lines, key):
    """Dots between slashes are text, too."""
    bucket.put(key, lines(0))
    bucket.put("p/up.json", lines(1))
    conversion = convert_sources([f"{URL}/{key}"])
    assert [entry["path"] for entry in conversion.sources] == [f"{URL}/{key}"]
    assert conversion.tables["trajectories"]["trajectory_id"].to_list() == ["run-0"]


def test_copies_of_one_task_lie_apart(bucket, tmp_path, lines):
    """Keys that some file systems take for one file have places of their own."""
    for key in (
        "A.json",
        "a.json",
        "x//b.traj",
        "x/b.traj",
        "c.traj",
        "c.traj/d.traj",
        "../e.traj",
    ):
        bucket.put(key, lines(0))
    spool = tmp_path / "spool"
    paths = [file.path for file in find_source_files([URL], spool=spool)]
    assert len({str(path).casefold() for path in paths}) == 7
    assert all(path.is_relative_to(spool) and ".." not in path.parts for path in paths)
    assert not any(path in other.parents for path in paths for other in paths)


def test_the_disk_holds_the_copies_of_one_task(bucket, tmp_path, lines):
    """They are removed when they were read; of runs an empty file stays, which reports look for."""
    for number in range(3):
        bucket.put(f"t/{number}.json", lines(number))
    bucket.put("t/run/a.traj", json.dumps(make_traj()).encode())
    spool = tmp_path / "spool"
    files = list(enumerate(find_source_files([f"{URL}/t"], spool=spool)))
    seen = []
    for task in plan_reading(files, tmp_path / "chunks", max_bytes=1):
        with hold_copies([file for _, file in task.files]) as held:
            seen.append([path.name for path in spool.rglob("*") if path.is_file()])
            assert [file.path.stat().st_size > 0 for file in held] == [True]
    assert seen == [["0.json"], ["1.json"], ["2.json"], ["a.traj"]]
    left = [path for path in spool.rglob("*") if path.is_file()]
    assert [(path.name, path.stat().st_size) for path in left] == [("a.traj", 0)]


def test_a_prefix_with_two_slashes(bucket, lines):
    """The Collector's S3 exporter makes one of a prefix that ends with a slash."""
    bucket.put("otel//year=2026/month=05/traces_1.json", lines(0))
    for url in (f"{URL}/otel", f"{URL}/otel/", f"{URL}/otel//"):
        assert convert_sources([url]).accounting.spans_used == 4


def test_content_encoding_is_what_is_stored(bucket, lines):
    """An object that is marked as compressed is one that holds compressed data."""
    bucket.put("a/x.json", gzip.compress(lines(0)), ContentEncoding="gzip")
    assert convert_sources([f"{URL}/a"]).accounting.spans_used == 4


def test_segments_that_were_sealed_between_two_copies(bucket, make_run, tmp_path, lines):
    """Of an unsealed segment and its sealed form the latter is read."""
    bucket.put("store/a.otlp.open", b"STARPO1\n")
    bucket.put("store/a.otlp", b"STARPO1\n")
    bucket.put("store/b.json", lines(0))
    sources = convert_sources([f"{URL}/store"]).sources
    assert [entry["path"] for entry in sources] == [
        f"{URL}/store/a.otlp",
        f"{URL}/store/b.json",
    ]


def test_a_delta_table_in_a_bucket(bucket, tmp_path, make_run):
    """The newest version, by its log from the last checkpoint on; data files once each."""
    rows = [make_run(number) for number in range(6)]
    folder = tmp_path / "spans"
    for number, each in enumerate(rows):
        table = make_table(each).with_columns(day=pl.lit(f"2026 {number % 2}"))
        write_deltalake(folder, table, mode="append", partition_by="day")
        if number == 3:
            DeltaTable(folder).create_checkpoint()
    DeltaTable(folder).delete(f"trace_id = '{rows[0][0].trace_id}'")
    bucket.put_folder(folder, "lake/spans")
    expected = build_dataset([folder], tmp_path / "expected")
    with watch_requests() as requests:
        manifest = build_dataset([f"{URL}/lake/spans"], tmp_path / "dataset")
    assert manifest.digest == expected.digest
    assert manifest.counts["trajectories"] == 5
    assert same_tables(tmp_path / "dataset", tmp_path / "expected")
    logs = [key.rpartition("/")[2] for key in requests.downloads() if "_delta_log" in key]
    assert logs[0] == "00000000000000000003.checkpoint.parquet"
    assert "00000000000000000002.json" not in logs
    with watch_requests() as requests:
        build_dataset([f"{URL}/lake/spans/"], tmp_path / "again")
        build_dataset([f"{URL}/lake/spans"], tmp_path / "dataset")
    fetched = [key for key in requests.downloads() if "_delta_log" not in key]
    assert len(fetched) == len(manifest.sources)


def test_a_delta_table_whose_file_is_gone(bucket, tmp_path, make_run):
    """It is named, by its URL."""
    write_deltalake(tmp_path / "t", make_table(make_run(0)))
    bucket.put_folder(tmp_path / "t", "t")
    (name,) = [path.name for path in (tmp_path / "t").glob("*.parquet")]
    bucket.delete(f"t/{name}")
    with pytest.raises(
        SourceError, match=f"{URL}/t: a Delta table without its file {URL}/t/{name}"
    ):
        convert_sources([f"{URL}/t"])


def test_a_delta_table_on_the_disk_in_a_folder_with_spaces(tmp_path, make_run):
    """The folder's name is percent-encoded in the URI of the table, and partitions' are not."""
    table = make_table(make_run(0)).with_columns(day=pl.lit("2026 ü/1"))
    write_deltalake(tmp_path / "a table of ü", table, partition_by="day")
    assert convert_sources([tmp_path / "a table of ü"]).accounting.spans_used == 4


def test_part_folders_on_the_disk(tmp_path, lines):
    """What the Collector's S3 exporter wrote may be copied to a folder; links are not followed."""
    path = tmp_path / "t" / "year=2026" / "month=05" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(lines(0))
    (path.parent / "loop=1").symlink_to(tmp_path / "t")
    assert [entry["path"] for entry in convert_sources([tmp_path / "t"]).sources] == [str(path)]


def test_an_object_that_changes_after_the_listing(bucket, tmp_path, lines):
    """What was read is what the manifest says, so that the next build reads nothing again."""
    bucket.put("t/0.json", lines(0))

    def change(stage, done, total):
        if (stage, done) == ("reading", 0):
            bucket.put("t/0.json", lines(1))

    manifest = build_dataset([f"{URL}/t"], tmp_path / "dataset", progress=change)
    assert (
        manifest.sources[0]["etag"]
        == bucket.client.head_object(Bucket=NAME, Key="t/0.json")["ETag"]
    )
    with watch_requests() as requests:
        build_dataset([f"{URL}/t"], tmp_path / "dataset")
    assert requests.downloads() == []


def test_a_killed_builders_copies_are_removed(bucket, tmp_path, lines):
    """They are in the build's folder, which the next build begins with removing."""
    bucket.put("t/0.json", lines(0))
    dataset = tmp_path / "dataset"
    build_dataset([f"{URL}/t"], dataset)
    left = dataset / BUILD_FOLDER / "objects" / NAME / "t" / "1.json"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    build_dataset([f"{URL}/t"], dataset)
    assert not left.exists()


def test_the_command_line(bucket, tmp_path, lines):
    """`starpo-trace export s3://...`, in a process of its own."""
    bucket.put("t/0.json", lines(0))
    command = [sys.executable, "-m", "starpo_trace.cli", "export", f"{URL}/t", "-o"]
    done = subprocess.run(
        [*command, tmp_path / "dataset"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_manifest(tmp_path / "dataset").accounting.spans_used == 4
    shutil.rmtree(tmp_path / "dataset")
    done = subprocess.run(
        [*command[:-2], "s3://none/t", "-o", tmp_path / "dataset"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "there is no such bucket" in done.stderr
