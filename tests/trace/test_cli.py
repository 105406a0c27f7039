"""`starpo-trace` as a person types it: in its own process."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from starpo_trace import instrument, reward, trajectory, uninstrument
from starpo_trace.cli import main
from starpo_trace.convert.manifest import read_manifest, scan_table

AGENT = """
import sys
import starpo_trace
with starpo_trace.trajectory("agent", task_id=sys.argv[1], trajectory_id="t-" + sys.argv[1]):
    with starpo_trace.step("tool", "look"):
        pass
"""

pytestmark = pytest.mark.slow


def starpo_trace(
    *arguments: object,
    cwd: Path,
    timeout_s: int = 60,
    columns: int = 200,
    text_encoding: str = "utf-8",
    **variables: str,
):
    environment = {**os.environ, "COLUMNS": str(columns), "OMP_NUM_THREADS": "1", **variables}
    environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    return subprocess.run(
        [sys.executable, "-m", "starpo_trace.cli", *map(_as_argument, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding=text_encoding,
        timeout=timeout_s,
        check=False,
    )


def _as_argument(given: object) -> str | bytes:
    return given if isinstance(given, bytes) else str(given)


def test_run_reward_export_show(tmp_path):
    """An agent runs untouched, its reward comes later, both meet in the dataset."""
    (tmp_path / "agent.py").write_text(AGENT)
    done = starpo_trace("run", "agent.py", "one", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for _ in range(2):  # the same reward twice counts once
        done = starpo_trace("reward", "--trajectory", "t-one", "--value", "0.75", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "reward = 0.75 recorded for t-one\n")
    done = starpo_trace("export", ".starpo/traces", "-o", "dataset", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "dataset").accounting.spans_used == 4
    row = scan_table(tmp_path / "dataset", "trajectories").collect().row(0, named=True)
    assert (row["trajectory_id"], row["task_id"], row["reward"]) == ("t-one", "one", 0.75)
    for source in ("dataset", ".starpo/traces"):
        done = starpo_trace("show", source, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "t-one" in done.stdout
        assert "4 spans read" in " ".join(done.stdout.split())
    done = starpo_trace("show", "dataset", "--trajectory", "t-one", cwd=tmp_path)
    assert "reward = 0.75 (user)" in done.stdout


@pytest.mark.parametrize(
    ("program", "code", "stderr_end"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("raise ValueError('mine')", 1, "ValueError: mine\n"),
        ("import sys; print(sys.argv, __name__)", 0, ""),
    ],
)
def test_run_leaves_exit_code_and_exceptions_alone(tmp_path, program, code, stderr_end):
    """The script ends as it does without us."""
    (tmp_path / "script.py").write_text(program)
    done = starpo_trace("run", "--store", "s", "script.py", "-o", "--store", "x", cwd=tmp_path)
    assert (done.returncode, done.stderr[-len(stderr_end) :] if stderr_end else done.stderr) == (
        code,
        stderr_end,
    )
    if "argv" in program:
        assert done.stdout == "['script.py', '-o', '--store', 'x'] __main__\n"


REWARD = ["reward", "--trajectory", "t", "--value", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere", "-o", "d"], "nowhere: no such file or folder"),
        (["export", "empty", "-o", "d"], "empty: no span files in this folder"),
        (["export", "empty", "-o", "d", "--content", "nowhere"], "nowhere: no such folder"),
        (["show", "nowhere"], "nowhere: no such file or folder"),
        (["run", "nowhere.py"], "nowhere.py: no such script"),
        (["show", "nowhere", "--limit", "0"], "--limit 0: list at least 1 trajectory"),
        (["reward", "--trajectory", "t", "--value", "nan"], "must be a finite number"),
        (["reward", "--trajectory", "t", "--value", "1", "--scope", "turn"], "needs --step"),
        (["reward", "--trajectory", "t", "--value", "1", "--store", "no"], "no such folder"),
        ([*REWARD, "--trajectory", ""], "--trajectory is empty"),
        ([*REWARD, "--name", " "], "--name is empty"),
        ([*REWARD, "--id", ""], "--id is empty"),
        ([*REWARD, "--scope", "turn", "--step", "-1"], "--step -1: steps are numbered from 0"),
        ([*REWARD, "--scope", "turn", "--step", str(2**63)], "steps are numbered from 0"),
        ([*REWARD, "--step", "1"], "--step 1: a reward of the whole trajectory has none"),
        ([*REWARD, "--max", "0.5"], "--value 1 is above --max 0.5"),
        ([*REWARD, "--min", "2"], "--value 1 is below --min 2"),
        ([*REWARD, "--min", "nan"], "--min nan: give a finite number"),
        ([*REWARD, "--task", b"caf\xe9"], "--task 'caf\\udce9': is not UTF-8"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path, arguments, message):
    """Exit code 1, one line that names value and remedy, no traceback, nothing written."""
    (tmp_path / "empty").mkdir()
    done = starpo_trace(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_a_variable_that_is_not_set_is_not_the_current_folder(tmp_path):
    """`export "$STORE" -o dataset` reads nothing when STORE is empty."""
    for arguments in (["export", "", "-o", "d"], ["export", "s", "-o", ""], ["show", ""]):
        done = starpo_trace(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "is empty; name a file or folder" in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED is true; unset it"),
        ({"STARPO_STORE_MAX_BYTES": "10"}, "the reward was refused for good and is not recorded"),
    ],
)
def test_a_reward_that_nobody_took_is_an_error(tmp_path, environment, message):
    """Exit code 1 and the reason, not a flush that had nothing to wait for."""
    done = starpo_trace(*REWARD, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "in time" not in done.stderr
    assert "recorded for" not in done.stdout


def test_a_late_reward_is_recorded_whatever_the_sampler_says(tmp_path):
    """A verifier in an environment that samples nothing."""
    done = starpo_trace(*REWARD, cwd=tmp_path, OTEL_TRACES_SAMPLER="always_off")
    assert (done.returncode, done.stdout) == (0, "reward = 1 recorded for t\n")


def test_traceback_of_a_script_is_its_own(tmp_path):
    """A script that raises prints what Python prints for it: no frame of ours."""
    (tmp_path / "script.py").write_text("def fail():\n    {}['x']\n\nfail()\n")
    alone = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    done = starpo_trace("run", "script.py", cwd=tmp_path)
    assert (done.returncode, alone.returncode) == (1, 1)
    assert done.stderr.replace(f'"{tmp_path}/', '"') == alone.stderr.replace(f'"{tmp_path}/', '"')


def test_narrow_terminal_shows_whole_ids_paths_and_positive_counts(tmp_path):
    """At 80 columns an id and a path are in one piece; a count of rejected spans is a count."""
    program = AGENT.replace('trajectory_id="t-" + sys.argv[1]', "attempt=0")
    (tmp_path / "agent.py").write_text(f"{program}starpo_trace.reward(1, trajectory_id='nobody')")
    assert starpo_trace("run", "agent.py", "one", cwd=tmp_path).returncode == 0
    output = tmp_path / ("long-name-" * 12)
    done = starpo_trace("export", ".starpo/traces", "-o", output, cwd=tmp_path, columns=80)
    assert done.stdout.splitlines()[0] == str(output)
    assert "1 rejected: reward_target_missing" in " ".join(done.stdout.split())
    assert "-1" not in done.stdout.partition("\n")[2]
    [trajectory_id] = scan_table(output, "trajectories").collect()["trajectory_id"]
    done = starpo_trace("show", output, cwd=tmp_path, columns=80)
    assert done.stdout.splitlines()[0] == str(output)
    assert f"│ {trajectory_id} │ one " in done.stdout


def test_narrow_terminal_names_a_damaged_file_whole(tmp_path):
    """At 40 columns its path is folded, not cut."""
    (tmp_path / "agent.py").write_text(AGENT)
    assert starpo_trace("run", "agent.py", "one", cwd=tmp_path).returncode == 0
    name = "a-file-of-another-program-in-the-same-folder.json"
    (tmp_path / ".starpo/traces" / name).write_text("{}")
    done = starpo_trace("export", ".starpo/traces", "-o", "dataset", cwd=tmp_path, columns=40)
    assert f".starpo/traces/{name}" in "".join(done.stdout.split())


def test_output_that_is_not_utf_8_gets_codes_and_no_traceback(tmp_path):
    """Recorded text and drawn bars have characters that the stream's encoding lacks."""
    (tmp_path / "agent.py").write_text(AGENT)
    assert starpo_trace("run", "agent.py", "naïve-小", cwd=tmp_path).returncode == 0
    for encoding, task in (("ascii", r"na\xefve-\u5c0f"), ("latin-1", r"naïve-\u5c0f")):
        done = starpo_trace(
            *("show", ".starpo/traces", "--trajectory", "t-na"),
            cwd=tmp_path,
            PYTHONIOENCODING=encoding,
            text_encoding=encoding,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"task_id={task}" in done.stdout


def test_a_reader_that_goes_away_and_a_full_output(tmp_path):
    """`write ... | true` is quiet; an output that takes nothing is one line."""
    (tmp_path / "agent.py").write_text(AGENT)
    assert starpo_trace("run", "agent.py", "one", cwd=tmp_path).returncode == 0
    assert starpo_trace("export", ".starpo/traces", "-o", "d", cwd=tmp_path).returncode == 0
    write = [sys.executable, "-m", "starpo_trace.cli", "write", "d", "-o", "x.jsonl"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(write, cwd=tmp_path, stdout=gone, stderr=-1, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(write, cwd=tmp_path, stdout=full, stderr=-1, check=False)
    assert (done.returncode, done.stderr) == (1, b"starpo-trace: No space left on device\n")


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    """Of a source and of a dataset: one line with the name, and nothing written."""
    (tmp_path / "agent.py").write_text(AGENT)
    assert starpo_trace("run", "agent.py", "one", cwd=tmp_path).returncode == 0
    odd = os.fsdecode(b"caf\xe9")
    done = starpo_trace("export", ".starpo/traces", "-o", os.fsencode(odd), cwd=tmp_path)
    assert done.stderr == "starpo-trace: 'caf\\udce9': the name is not UTF-8; rename it\n"
    (tmp_path / ".starpo/traces").rename(tmp_path / odd)
    for command in (["export", odd, "-o", "d"], ["show", odd]):
        done = starpo_trace(*map(os.fsencode, command), cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "the name is not UTF-8; rename it" in done.stderr
    assert not (tmp_path / "d").exists()


def test_trust_takes_only_known_sources(tmp_path):
    """A mistyped source is named with those there are."""
    done = starpo_trace("export", "s", "-o", "d", "--trust", "enviroment", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'enviroment'" in done.stderr
    assert "judge" in done.stderr


def test_interrupted_export_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    """Ctrl-C in the middle of the tables: exit code 130, no traceback, nothing left behind."""
    (tmp_path / "agent.py").write_text(AGENT)
    assert starpo_trace("run", "agent.py", "one", cwd=tmp_path).returncode == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("starpo_trace.convert.dataset.write_index", interrupt)
    output = tmp_path / "dataset"
    assert main(["export", str(tmp_path / ".starpo/traces"), "-o", str(output)]) == 130
    assert capsys.readouterr().err == "starpo-trace: interrupted; nothing written\n"
    assert not output.exists()


def test_export_to_a_full_disk_is_one_line(tmp_path):
    """Also where native code panics: one line, and nothing left behind."""
    (tmp_path / "agent.py").write_text(AGENT)
    assert starpo_trace("run", "agent.py", "one", cwd=tmp_path).returncode == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        done = starpo_trace("export", ".starpo/traces", "-o", "disk/d", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            "starpo-trace: disk/d: disk full; nothing of this build counts, "
            "no dataset was there before; free space and repeat\n"
        )
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_version(capsys):
    """The one that is installed."""
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"starpo {version('starpo')}\n")


def test_sources_that_are_left_out_are_named(tmp_path, capsys):
    """What a dataset was made of and is not named again is not in it any more."""
    for name in ("one", "two"):
        instrument(store=tmp_path / name)
        with trajectory(name):
            reward(1.0)
        uninstrument()
    dataset = str(tmp_path / "dataset")
    assert main(["export", str(tmp_path / "one"), "-o", dataset]) == 0
    assert "no longer" not in capsys.readouterr().err
    assert main(["export", str(tmp_path / "two"), "-o", dataset]) == 0
    assert f"{tmp_path / 'one'}: no longer among the sources" in capsys.readouterr().err
    assert main(["export", dataset, "-o", str(tmp_path / "other")]) == 1
    assert "is a dataset" in capsys.readouterr().err


def test_that_nothing_is_held_out_any_more_is_told(tmp_path, capsys):
    """A second export without `--test-fraction` puts the tasks held out back into `train`."""
    instrument(store=tmp_path / "traces")
    with trajectory(task_id="t"):
        reward(1.0)
    uninstrument()
    export = ["export", str(tmp_path / "traces"), "-o", str(tmp_path / "dataset")]
    assert main([*export, "--test-fraction", "1"]) == 0
    assert "held out" not in capsys.readouterr().err
    assert main(export) == 0
    told = capsys.readouterr().err
    assert "1 trajectories were held out as `test` and none is now; --test-fraction 1 does" in told


def test_a_dataset_with_something_else_inside_is_named(tmp_path, capsys):
    """It is a dataset all the same."""
    instrument(store=tmp_path / "traces")
    with trajectory("t"):
        reward(1.0)
    uninstrument()
    export = ["export", str(tmp_path / "traces"), "-o", str(tmp_path / "dataset")]
    assert main(export) == 0
    (tmp_path / "dataset" / "run").mkdir()
    assert main(export) == 1
    assert "a dataset that holds run beside its own files" in capsys.readouterr().err
