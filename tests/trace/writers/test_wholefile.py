"""A file is there whole or not at all, whatever ends the writing; the dataset is read in pieces."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from starpo_trace import semconv as keys
from starpo_trace.cli import main
from starpo_trace.convert.writers import stream
from starpo_trace.convert.writers.command import FORMS
from starpo_trace.convert.writers.forms import write_dataset
from starpo_trace.convert.writers.wholefile import open_spool, replace_whole
from starpo_trace.errors import ConfigError

USER = {"role": "user", "content": "hi"}
OPTIONS = {"trl-kto": ["--desirable-from", "1"]}
KILLED = """
import os, sys
from pathlib import Path
from starpo_trace.convert.writers.wholefile import replace_whole
with replace_whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def dataset(spans, datasets):
    """Five runs of one call."""
    rows = []
    for number in range(5):
        root = spans.root(f"t{number}", num_steps=1, **{keys.TASK_ID: "task"})
        reward = {keys.REWARD_ID: f"r{number}"}
        answer = {"role": "assistant", "content": f"ho {number} \ud83d"}
        rows += [root, spans.call(root, 0, [USER], answer, delta=False)]
        rows.append(spans.reward(root, float(number), **reward))
    return datasets.build(rows)


def test_a_killed_writer_leaves_the_last_file(tmp_path):
    """SIGKILL in the middle: what was there before is there still."""
    file = tmp_path / "out.jsonl"
    file.write_text("whole")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=30)
    assert file.read_text() == "whole"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_a_fault_leaves_nothing_behind(tmp_path, fault):
    """The exception passes; neither the file nor a part of it is there."""

    def write_half():
        with replace_whole(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise fault

    with pytest.raises(fault):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused(tmp_path):
    """A folder in the way, a folder that is not there; said with what to do."""
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        replace_whole(tmp_path).__enter__()
    with pytest.raises(ConfigError, match=r"no folder .*no; make it first"):
        replace_whole(tmp_path / "no" / "out").__enter__()
    with pytest.raises(ConfigError, match="cannot be written"):
        open_spool(tmp_path / "no" / "out").__enter__()


def test_what_cannot_be_removed_hides_no_reason(tmp_path):
    """Not even the temporary file can be there: the reason is said, not that it cannot be removed."""
    with (
        pytest.raises(ConfigError, match=r"cannot be written \(File name too long\)"),
        replace_whole(tmp_path / ("x" * 250)) as temporary,
    ):
        temporary.write_text("half")


def test_nothing_is_written_into_the_dataset(dataset, capsys):
    """`-o DATASET/manifest.json` would be the end of it."""
    before = (dataset / "manifest.json").read_bytes()
    for name in ("manifest.json", "out.jsonl", "turns/out.jsonl"):
        assert main(["write", str(dataset), "-o", str(dataset / name)]) == 1
        assert "put it beside it" in capsys.readouterr().err
    assert (dataset / "manifest.json").read_bytes() == before
    assert not (dataset / "out.jsonl").exists()


def test_a_spool_gives_back_what_was_put_in(tmp_path):
    """In any order, between additions."""
    with open_spool(tmp_path / "out") as spool:
        numbers = [spool.add(value) for value in ("a", {"b": 1})]
        assert spool.read(numbers[1]) == {"b": 1}
        numbers.append(spool.add([2]))
        assert [spool.read(number) for number in numbers] == ["a", {"b": 1}, [2]]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", sorted(FORMS))
def test_small_pieces_give_the_same_file(dataset, tmp_path, form, monkeypatch):
    """However few trajectories are in memory at once, and whenever it is done again."""
    options = ["--as", form, *OPTIONS.get(form, [])]
    files = [tmp_path / name for name in ("one", "other")]
    assert main(["write", str(dataset), "-o", str(files[0]), *options]) == 0
    monkeypatch.setattr(stream, "_MAX_BATCH_ROWS", 1)
    assert main(["write", str(dataset), "-o", str(files[1]), *options]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size > 0


def test_progress_counts_every_trajectory(dataset, tmp_path):
    """Also those that are left out."""
    seen = []
    write_dataset(
        dataset, tmp_path / "out", form="openai", advance=lambda *counts: seen.append(counts)
    )
    assert seen == [(number, 5) for number in range(1, 6)]


def test_a_terminal_gets_a_bar(dataset, tmp_path):
    """And the report, on standard output."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "starpo_trace.cli", "write", dataset, "-o", tmp_path / "out"]
    environment = {**os.environ, "TERM": "xterm"}
    with os.fdopen(leader, "rb") as terminal:
        done = subprocess.run(
            command, stderr=follower, stdout=subprocess.PIPE, env=environment, check=True
        )
        os.close(follower)
        shown = b""
        try:
            while piece := terminal.read1():
                shown += piece
        except OSError:  # the other end is closed
            pass
    assert b"trajectories" in shown
    assert done.stdout.decode() == f"{tmp_path / 'out'}: 5 conversations of 5 trajectories\n"


def test_a_wrong_form_is_refused(dataset, tmp_path):
    """By name, with those that there are."""
    with pytest.raises(ConfigError, match="form 'csv': use one of openai, trl"):
        write_dataset(dataset, tmp_path / "out", form="csv")
