"""`starpo-trace` as a person types it: in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from starpo_trace.convert.manifest import read_manifest, scan_table

AGENT = """
import sys
import starpo_trace
with starpo_trace.trajectory("agent", task_id=sys.argv[1], trajectory_id="t-" + sys.argv[1]):
    with starpo_trace.step("tool", "look"):
        pass
"""

pytestmark = pytest.mark.slow


def starpo_trace(*arguments: object, cwd: Path, timeout_s: int = 60):
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    return subprocess.run(
        [sys.executable, "-m", "starpo_trace.cli", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere", "-o", "d"], "nowhere: no such file or folder"),
        (["export", "empty", "-o", "d"], "empty: no span files in this folder"),
        (["show", "nowhere"], "nowhere: no such file or folder"),
        (["run", "nowhere.py"], "nowhere.py: no such script"),
        (["reward", "--trajectory", "t", "--value", "nan"], "must be a finite number"),
        (["reward", "--trajectory", "t", "--value", "1", "--scope", "turn"], "needs --step"),
        (["reward", "--trajectory", "t", "--value", "1", "--store", "no"], "no such folder"),
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
