"""Who is deleted is in no table, no version and no later build; pins say what became of them."""

import pytest
from msgspec.structs import replace
from otlp_lines import write_lines

from starpo_trace import semconv
from starpo_trace.cli import main
from starpo_trace.convert.dataset import build_dataset
from starpo_trace.convert.forget import forget, vacuum
from starpo_trace.convert.manifest import read_manifest, scan_table
from starpo_trace.errors import ConfigError, DatasetError
from starpo_trace.schema import TABLES
from starpo_train.dataset import read_manifest as read_pinned
from starpo_train.dataset import scan_table as scan_pinned
from starpo_train.errors import DataError

SECRET = "the cat of Mrs Miller"
ANSWER = {"role": "assistant", "content": "ho"}


def make_runs(spans):
    """Four runs of two users; the second one's texts hold a secret, one of its spans is rejected."""
    rows = []
    for number in range(4):
        user, text = ("miller", SECRET) if number % 2 else ("smith", "hello")
        ids = {"user.id": user, "gen_ai.conversation.id": f"talk-{number}"}
        root = spans.root(f"run-{number}", num_steps=1, **ids)
        call = spans.call(root, 0, [{"role": "user", "content": text}], ANSWER, delta=False)
        bad = spans.row({semconv.RECORD: SECRET if number % 2 else "dance"}, parent=root)
        rows.append([root, call, bad, spans.reward(root, 1.0)])
    return rows


def search_bytes(folder, text) -> list[str]:
    """Files below a folder that hold a text, compressed columns decoded."""
    import polars as pl

    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            data = pl.read_parquet(path).write_ndjson().encode()
        else:
            data = path.read_bytes() if path.is_file() else b""
        if text.encode() in data:
            found.append(path.name)
    return found


@pytest.fixture
def dataset(tmp_path, spans):
    """A dataset of two versions."""
    runs = make_runs(spans)
    write_lines(tmp_path / "source" / "1.jsonl", [row for run in runs[:2] for row in run])
    build_dataset([tmp_path / "source"], tmp_path / "dataset")
    write_lines(tmp_path / "source" / "2.jsonl", [row for run in runs[2:] for row in run])
    build_dataset([tmp_path / "source"], tmp_path / "dataset")
    return tmp_path / "dataset"


def test_a_user_leaves_every_table_and_version(dataset):
    """No byte of the folder holds the texts or the user's name; the accounting still closes."""
    before = read_manifest(dataset)
    assert search_bytes(dataset, SECRET)
    manifest, num_gone = forget(dataset, [("user", "miller")])
    assert num_gone == 2
    assert search_bytes(dataset, SECRET) == search_bytes(dataset, "miller") == []
    assert manifest.accounting.is_closed
    assert manifest.accounting.spans_read == before.accounting.spans_read
    assert manifest.accounting.spans_rejected_by_reason == {"forgotten": 6, "unknown_record": 4}
    assert manifest.counts["trajectories"] == 2
    for name in TABLES:
        assert scan_table(dataset, name).collect().height == manifest.counts[name]
    assert set(scan_table(dataset, "trajectories").collect()["user_id"]) == {"smith"}


def test_later_builds_do_not_bring_anybody_back(dataset, tmp_path, spans):
    """From the same sources, anew or with more, and under other parameters."""
    manifest, _ = forget(dataset, [("user", "miller"), ("conversation", "talk-0")])
    source = tmp_path / "source"
    again = build_dataset([source], dataset)
    assert again.digest == manifest.digest
    full = build_dataset([source], dataset, full=True, trust_sources=["user"])
    assert full.counts["trajectories"] == 1
    root = spans.root("run-9", num_steps=1, **{"user.id": "miller"})
    call = spans.call(root, 0, [{"role": "user", "content": SECRET}], ANSWER, delta=False)
    write_lines(source / "3.jsonl", [root, call])
    late = build_dataset([source], dataset)
    assert late.counts["trajectories"] == 1
    assert search_bytes(dataset, SECRET) == []


def test_pins_read_their_version_until_it_is_void(dataset):
    """A pin on an earlier version reads it; after a deletion it says what became of it."""
    current = read_manifest(dataset).digest
    [earlier] = [path.stem for path in (dataset / "versions").iterdir() if path.stem != current]
    pin = dataset.with_name(f"{dataset.name}@{earlier[:12]}")
    assert scan_pinned(pin, "trajectories").collect().height == 2
    assert scan_pinned(dataset, "trajectories").collect().height == 4
    with pytest.raises(DataError, match="no version ffff"):
        read_pinned(dataset.with_name(f"{dataset.name}@ffff"))
    forget(dataset, [("trajectory", "run-1")])
    with pytest.raises(DataError, match="is void: what it held was deleted on request"):
        scan_pinned(pin, "trajectories")
    assert scan_pinned(dataset, "trajectories").collect().height == 3


def test_the_command_says_what_it_does_not_reach(dataset, capsys):
    """The sources are named; nobody, an unknown kind and a folder that is no dataset are refused."""
    assert main(["forget", str(dataset), "--user", "miller", "--user", "nobody"]) == 0
    said = capsys.readouterr().out
    assert "2 trajectories deleted" in said
    assert str(dataset.with_name("source")) in said
    assert main(["vacuum", str(dataset)]) == 0
    assert main(["forget", str(dataset)]) == 1
    assert "nobody is named" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="colour cannot be forgotten"):
        forget(dataset, [("colour", "red")])
    with pytest.raises(DatasetError, match="no dataset"):
        forget(dataset.with_name("source"), [("user", "x")])


def test_vacuum_leaves_the_last_version(dataset, capsys):
    """Old files are gone and counted once, the dataset reads as before."""
    before = read_manifest(dataset)
    size = sum(path.stat().st_size for path in dataset.rglob("*.parquet"))
    num_files = len(list(dataset.rglob("*.parquet")))
    assert main(["vacuum", str(dataset)]) == 0
    assert sum(path.stat().st_size for path in dataset.rglob("*.parquet")) < size
    num_gone = num_files - len(list(dataset.rglob("*.parquet")))
    assert main(["vacuum", str(dataset)]) == 0
    counts = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    assert counts == [f"{n} files of earlier versions removed" for n in (num_gone, 0)]
    for name in TABLES:
        assert scan_table(dataset, name).collect().height == before.counts[name]


def test_what_an_update_left_in_an_older_file_is_deleted_too(tmp_path, spans):
    """A late reward moves a run's spans and not its messages."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    runs = [
        [replace(row, trace_id=f"{number:032x}", links=()) for row in run]
        for number, run in enumerate(make_runs(spans), start=1)
    ]
    write_lines(source / "1.jsonl", [row for run in runs for row in run])
    before = build_dataset([source], dataset)
    root = runs[1][0]
    late = replace(spans.reward(root, 0.0, **{semconv.REWARD_ID: "late"}), trace_id=f"{9:032x}")
    write_lines(source / "2.jsonl", [late])
    moved = build_dataset([source], dataset)
    assert moved.tables["messages"] == before.tables["messages"]
    manifest, num_gone = forget(dataset, [("trajectory", "run-1")])
    assert num_gone == 1
    assert search_bytes(dataset, "run-1") == []
    assert manifest.counts["turns"] == manifest.counts["trajectories"] == 3
    for name in TABLES:
        assert scan_table(dataset, name).collect().height == manifest.counts[name]


def test_one_of_several_users_and_conversations_takes_the_run(tmp_path, spans):
    """Also where another is the first, and what is rejected because of the run says nothing more."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    prompt = [{"role": "user", "content": SECRET}]

    def make_run(name: str, **second: str) -> list:
        root = spans.root(name, num_steps=2, **{"user.id": "smith"})
        first = spans.call(root, 0, [ANSWER], ANSWER, delta=False)
        return [root, first, spans.call(root, 1, prompt, ANSWER, delta=False, attributes=second)]

    shared = make_run("shared", **{"user.id": "miller"})
    moved = make_run("moved", **{"gen_ai.conversation.id": "talk of miller"})
    idle = spans.row(
        {semconv.OPERATION_NAME: "invoke_agent", "user.id": "miller"}, name=SECRET, scope="other"
    )
    idle = replace(idle, trace_id=f"{2:032x}")
    feedback = [
        replace(spans.reward(shared[0], value), trace_id=f"{3 + number:032x}", name=SECRET)
        for number, value in enumerate((1.0, SECRET))
    ]
    feedback.append(replace(spans.reward(moved[0], 1.0), links=feedback[0].links, name=SECRET))
    left = [spans.root("left", num_steps=0), spans.row({semconv.RECORD: "dance"})]
    write_lines(source / "1.jsonl", [*shared, *moved, idle, *feedback, *left])
    build_dataset([source], dataset)
    assert search_bytes(dataset, "miller")
    manifest, num_gone = forget(
        dataset, [("user", "miller"), ("conversation", "talk of miller"), ("user", "nobody")]
    )
    assert num_gone == 2
    assert search_bytes(dataset, SECRET) == search_bytes(dataset, "miller") == []
    assert scan_table(dataset, "trajectories").collect()["trajectory_id"].to_list() == ["left"]
    write_lines(source / "2.jsonl", make_run("new", **{"gen_ai.conversation.id": "talk of miller"}))
    again = build_dataset([source], dataset)
    assert search_bytes(dataset, SECRET) == search_bytes(dataset, "miller") == []
    assert again.counts["trajectories"] == 1
    assert again.digest == build_dataset([source], dataset, full=True).digest != manifest.digest
    assert again.accounting.is_closed


def test_nobody_is_brought_back_where_the_manifest_cannot_be_read(dataset, tmp_path):
    """It is where the forgotten are kept."""
    forget(dataset, [("user", "miller")])
    (dataset / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match="who was forgotten"):
        build_dataset([tmp_path / "source"], dataset)
    assert search_bytes(dataset, SECRET) == []


def test_vacuum_after_a_build_that_died_keeps_what_counts(dataset, tmp_path, spans, monkeypatch):
    """The tables' last versions are not the manifest's then, which are the ones to stay."""
    before = read_manifest(dataset)
    write_lines(tmp_path / "source" / "1.jsonl", [spans.root("run-9", num_steps=0)])

    def die(*_arguments) -> None:
        raise OSError("the machine lost power")

    with monkeypatch.context() as patch:
        patch.setattr("starpo_trace.convert.dataset.write_manifest", die)
        with pytest.raises(DatasetError):
            build_dataset([tmp_path / "source"], dataset)
    vacuum(dataset)
    for name in TABLES:
        assert scan_table(dataset, name).collect().height == before.counts[name]
        left = {path.name for path in (dataset / name).glob("*.parquet")}
        assert left == set(before.tables[name]["files"])


@pytest.mark.parametrize("remove", [vacuum, lambda path: forget(path, [("user", "x")])])
def test_a_folder_that_is_no_dataset_is_left_as_it_is(tmp_path, remove):
    """Also where its folders are called like a dataset's."""
    kept = [tmp_path / name / "mine.txt" for name in ("messages", "index", "versions", ".build")]
    for path in kept:
        path.parent.mkdir()
        path.write_text("mine")
    with pytest.raises(DatasetError, match="no dataset"):
        remove(tmp_path)
    assert all(path.read_text() == "mine" for path in kept)
    assert len(list(tmp_path.iterdir())) == len(kept)
