"""A dataset brought up to date equals one built anew, and only what was touched is built again."""

import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from otlp_lines import write_lines

from starpo_trace import semconv
from starpo_trace.convert import build, routing
from starpo_trace.convert.dataset import build_dataset, scan_table
from starpo_trace.convert.manifest import read_manifest
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.errors import ConfigError, DatasetError
from starpo_trace.schema import TABLES

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
NUM_RUNS = 12


def make_run(spans, number: int, *, has_reward: bool = True) -> list[SpanRow]:
    """A run in a trace of its own; every third is resumed in another, its reward in a third."""
    trace = f"{number + 1:032x}"
    root = spans.root(f"run-{number}", num_steps=2, **{semconv.TASK_ID: f"task{number // 3}"})
    call = spans.call(root, 0, [USER], ANSWER, delta=False)
    more = spans.call(root, 1, [USER, ANSWER, USER], ANSWER, delta=False)
    stranger = spans.row({"http.method": "GET"}, scope="http")
    rows = [SpanRow(**{**fields(row), "trace_id": trace}) for row in (root, call, more, stranger)]
    if number % 3 == 0:
        rows[2] = SpanRow(**{**fields(rows[2]), "trace_id": f"{number + 1001:032x}"})
    return rows + ([make_reward(spans, rows[0], number)] if has_reward else [])


def make_reward(spans, root: SpanRow, number: int, value: float | None = None) -> SpanRow:
    """A reward in a trace of its own, linked to the run's root."""
    reward = spans.reward(
        root, float(number % 2) if value is None else value, **{semconv.REWARD_ID: f"r{number}"}
    )
    return SpanRow(
        **{
            **fields(reward),
            "trace_id": f"{number + 2001:032x}",
            "parent_id": None,
            "links": ((root.trace_id, root.span_id),),
        }
    )


def fields(row: SpanRow) -> dict:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def same_as_new(source: Path, dataset: Path, tmp_path: Path) -> None:
    """The dataset equals one that is built from nothing, table by table."""
    new = tmp_path / "new"
    shutil.rmtree(new, ignore_errors=True)
    expected, actual = build_dataset([source], new), read_manifest(dataset)
    for name in TABLES:
        order = [c for c, kind in TABLES[name].items() if not kind.startswith("list")]
        table = scan_table(dataset, name).sort(order).collect()
        assert table.equals(scan_table(new, name).sort(order).collect()), name
    assert actual.digest == expected.digest
    assert actual.accounting == expected.accounting
    assert actual.accounting.is_closed
    assert actual.counts == expected.counts
    assert (actual.usable_for, actual.signatures) == (expected.usable_for, expected.signatures)


@pytest.fixture
def small_partitions(monkeypatch):
    """Partitions of about ten spans, so that a few runs make several."""
    plan = routing.plan_partitions
    monkeypatch.setattr(
        "starpo_trace.convert.build.plan_partitions",
        lambda chunks, keys: plan(chunks, keys, max_spans=10),
    )


@pytest.mark.usefixtures("small_partitions")
def test_new_runs_and_late_rewards_are_added(tmp_path, spans):
    """New files are read alone; a late reward rewrites no message, and a repeated build nothing."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    runs = [make_run(spans, number, has_reward=number != 4) for number in range(NUM_RUNS)]
    write_lines(source / "1.jsonl", [row for run in runs[:8] for row in run])
    first = build_dataset([source], dataset)
    assert len(first.shards) > 2
    write_lines(source / "2.jsonl", [row for run in runs[8:] for row in run])
    second = build_dataset([source], dataset)
    assert set(first.shards) < set(second.shards)
    same_as_new(source, dataset, tmp_path)
    write_lines(source / "3.jsonl", [make_reward(spans, runs[4][0], 4, 0.25)])
    third = build_dataset([source], dataset)
    for name in ("messages", "turns"):
        assert third.tables[name]["files"] == second.tables[name]["files"]
    old, new = (set(each.tables["rewards"]["files"]) for each in (second, third))
    assert old < new
    rewards = scan_table(dataset, "trajectories").filter(pl.col("trajectory_id") == "run-4")
    assert rewards.collect()["reward"].to_list() == [0.25]
    same_as_new(source, dataset, tmp_path)
    again = build_dataset([source], dataset)
    assert again.tables["turns"] == third.tables["turns"]
    assert again.digest == third.digest


@pytest.mark.usefixtures("small_partitions")
def test_late_spans_changed_and_removed_files(tmp_path, spans):
    """A late call, a corrected reward, a file that grew, one that is gone: as if built anew."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    runs = [make_run(spans, number) for number in range(NUM_RUNS)]
    late = runs[2].pop(2)
    for number, run in enumerate(runs):
        write_lines(source / f"{number:02}.jsonl", run)
    build_dataset([source], dataset)
    write_lines(source / "90.jsonl", [late])
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)
    [turns] = (
        scan_table(dataset, "trajectories")
        .filter(pl.col("trajectory_id") == "run-2")
        .collect()["num_turns"]
    )
    assert turns == 2
    write_lines(source / "90.jsonl", [late, make_reward(spans, runs[1][0], 1, 0.75)])
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)
    (source / "03.jsonl").unlink()
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)
    assert "run-3" not in scan_table(dataset, "trajectories").collect()["trajectory_id"]


@pytest.mark.usefixtures("small_partitions")
def test_any_order_of_arrival_gives_one_dataset(tmp_path, spans):
    """Spans and copies spread over files that come one after the other, in 40 ways."""
    rows = [row for number in range(6) for row in make_run(spans, number)]
    write_lines(tmp_path / "whole" / "1.jsonl", rows)
    expected = build_dataset([tmp_path / "whole"], tmp_path / "expected")
    for seed in range(40):
        draw = random.Random(seed)
        shuffled = [*rows, *draw.sample(rows, 5)]
        draw.shuffle(shuffled)
        source, dataset = tmp_path / f"s{seed}", tmp_path / f"d{seed}"
        cuts = sorted(draw.sample(range(1, len(shuffled)), 2))
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
            write_lines(source / f"{number}.jsonl", shuffled[start:stop], size=draw.randint(1, 9))
            manifest = build_dataset([source], dataset)
        assert manifest.digest == expected.digest
        assert manifest.accounting.duplicates == 5
        assert manifest.accounting.is_closed


def test_other_parameters_build_anew(tmp_path, spans):
    """What changes the rewards changes every shard; a damaged record is counted once."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    write_lines(source / "1.jsonl", make_run(spans, 1))
    with (source / "1.jsonl").open("a") as stream:
        stream.write("{\n")
    first = build_dataset([source], dataset)
    same = build_dataset([source], dataset, test_fraction=0.5)
    assert same.tables["rewards"] == first.tables["rewards"]
    other = build_dataset([source], dataset, trust_sources=["user"])
    assert other.tables["rewards"] != first.tables["rewards"]
    assert [each.accounting.damaged_records for each in (first, same, other)] == [1, 1, 1]
    full = build_dataset([source], dataset, trust_sources=["user"], full=True)
    assert full.digest == other.digest


@pytest.mark.usefixtures("small_partitions")
def test_executors_give_one_dataset(tmp_path, spans):
    """Processes give what this one gives; an unknown executor is named."""
    for number in range(NUM_RUNS):
        write_lines(tmp_path / "source" / f"{number}.jsonl", make_run(spans, number))
    digests = {
        build_dataset([tmp_path / "source"], tmp_path / name, executor=name, num_workers=2).digest
        for name in ("serial", "process")
    }
    assert len(digests) == 1
    with pytest.raises(ConfigError, match="executor 'threads' is none of serial, process, ray"):
        build_dataset([tmp_path / "source"], tmp_path / "x", executor="threads")


@pytest.mark.slow
def test_executor_ray_gives_the_same(tmp_path, spans):
    """On a real Ray: the digest of a serial build."""
    pytest.importorskip("ray", reason="needs the package ray")
    for number in range(NUM_RUNS):
        write_lines(tmp_path / "source" / f"{number}.jsonl", make_run(spans, number))
    expected = build_dataset([tmp_path / "source"], tmp_path / "serial").digest
    program = (
        "import sys; from pathlib import Path; "
        "from starpo_trace.convert.dataset import build_dataset; "
        "print(build_dataset([Path(sys.argv[1])], Path(sys.argv[2]), executor='ray', "
        "num_workers=2).digest)"
    )
    arguments = [str(tmp_path / "source"), str(tmp_path / "ray")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == expected


def test_what_other_runs_name_decides_nothing(tmp_path, spans):
    """An empty id is none, and the conversation of a run that has its own id is no stranger's."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    talk = {"gen_ai.conversation.id": "talk"}
    root = spans.root("run", num_steps=0, **talk)
    empty = spans.root("", num_steps=0)

    def call_model(trace: int, **attributes: str) -> SpanRow:
        prompt = '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]'
        row = spans.row(
            {semconv.OPERATION_NAME: "chat", semconv.INPUT_MESSAGES: prompt, **attributes},
            scope="other",
        )
        return SpanRow(**{**fields(row), "trace_id": f"{trace:032x}"})

    write_lines(source / "1.jsonl", [root, call_model(1), SpanRow(**fields(empty))])
    write_lines(source / "2.jsonl", [call_model(number) for number in range(3, 9)])
    build_dataset([source], dataset)
    write_lines(source / "3.jsonl", [call_model(2, **talk)])
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)
    trajectories = scan_table(dataset, "trajectories").collect()
    of_talk = trajectories.filter(pl.col("conversation_id") == "talk")
    assert of_talk["trajectory_id"].to_list() == ["run", "talk"]
    assert "" not in trajectories["trajectory_id"]


def test_a_reward_finds_a_span_that_was_rejected_before(tmp_path, spans):
    """It names the span without its trace; a call that comes later makes a run of the trace."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    agent = spans.row({semconv.OPERATION_NAME: "invoke_agent"}, scope="other", trace_id=f"{7:032x}")
    reward = spans.reward(agent, 1.0, links=(("", agent.span_id),), trace_id=f"{8:032x}")
    runs = [row for number in range(4) for row in make_run(spans, number)]
    write_lines(source / "1.jsonl", [agent, reward, *runs])
    build_dataset([source], dataset)
    prompt = '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]'
    content = {semconv.OPERATION_NAME: "chat", semconv.INPUT_MESSAGES: prompt}
    call = spans.row(content, parent=agent, scope="other", trace_id=agent.trace_id)
    write_lines(source / "2.jsonl", [call])
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)
    assert "reward_target_missing" not in read_manifest(dataset).accounting.spans_rejected_by_reason


def test_workers_of_a_killed_build_are_in_nobodys_way(tmp_path, spans, monkeypatch):
    """They may write into their build's folder while the next is under way."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    write_lines(source / "1.jsonl", make_run(spans, 0))
    read = build.read_files

    def read_beside(task):
        (dataset / ".build" / "chunks" / f"{task.number:06d}-000000").mkdir(parents=True)
        return read(task)

    monkeypatch.setattr(build, "read_files", read_beside)
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)


def test_a_build_that_died_before_its_manifest_takes_nothing_from_the_next(
    tmp_path, spans, monkeypatch
):
    """It rewrote messages that the next build does not touch: these count as they were."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    runs = [make_run(spans, number, has_reward=number > 0) for number in range(4)]
    write_lines(source / "1.jsonl", [row for run in runs for row in run])
    build_dataset([source], dataset)
    late = source / "2.jsonl"
    late_call = spans.call(runs[1][0], 2, [USER], ANSWER, delta=False)
    write_lines(late, [SpanRow(**{**fields(late_call), "trace_id": runs[1][0].trace_id})])
    with monkeypatch.context() as patch:
        patch.setattr("starpo_trace.convert.dataset.write_manifest", _die)
        with pytest.raises(DatasetError, match="the last dataset is intact"):
            build_dataset([source], dataset)
    late.unlink()
    write_lines(source / "3.jsonl", [make_reward(spans, runs[0][0], 0)])
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)


def _die(*_arguments) -> None:
    raise OSError("the machine lost power")


@pytest.mark.slow
def test_killed_updates_leave_the_last_version(tmp_path, spans):
    """SIGKILL at random moments of an update: the last version reads whole, the next build works."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    runs = [make_run(spans, number) for number in range(40)]
    write_lines(source / "1.jsonl", [row for run in runs[:20] for row in run])
    before = build_dataset([source], dataset)
    write_lines(source / "2.jsonl", [row for run in runs[20:] for row in run])
    shutil.copytree(dataset, tmp_path / "pristine")
    command = [sys.executable, "-m", "starpo_trace.cli", "export", str(source), "-o", str(dataset)]
    draw = random.Random(0)
    lasts_s, num_killed = 2.0, 0
    for _ in range(40):
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1.0) * lasts_s)
        process.kill()
        was_killed = process.wait() == -signal.SIGKILL
        num_killed += was_killed
        manifest = read_manifest(dataset)
        assert scan_table(dataset, "turns").collect().height == manifest.counts["turns"]
        assert manifest.digest == before.digest or not was_killed or manifest.counts["turns"] == 80
        if num_killed == 8:
            break
        if not was_killed:  # it was quicker than expected
            lasts_s = time.monotonic() - started
            shutil.rmtree(dataset)
            shutil.copytree(tmp_path / "pristine", dataset)
    assert num_killed == 8
    build_dataset([source], dataset)
    same_as_new(source, dataset, tmp_path)
