"""`starpo-train` as a person types it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO

import pytest
from rich.console import Console

from starpo_train.cli import main
from starpo_train.progress import TrainingDisplay
from starpo_train.progress import _describe_start as describe_start


@pytest.fixture
def dataset(hand, tmp_path):
    rows = [
        hand.trajectory(
            f"t{i:02}",
            [hand.turn([20, 21], [40 + i % 2, 1], [-5.0, -5.0])],
            reward=float(i % 2),
            task_id=f"k{i // 4}",
            num_steps=1,
            input_tokens=2,
            output_tokens=2,
        )
        for i in range(16)
    ]
    return hand.dataset(tmp_path / "data", rows)


@pytest.mark.slow
def test_run_writes_a_run_folder_and_refuses_to_do_it_twice(
    hand, dataset, model_folder, tmp_path, capsys
):
    """Exit code 0, the checkpoint's path printed; the second time 2 and one line that helps."""
    file = hand.run_file(tmp_path / "run.toml", base=model_folder, dataset=dataset)
    assert main(["run", str(file)]) == 0
    output = capsys.readouterr().out
    assert "16 trajectories, 16 rows, 64 tokens of which 32 trained" in output
    assert f"done after 4 steps: {tmp_path}/run/checkpoints/step_000004" in output
    assert main(["run", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run.output = ")
    assert error.count("\n") == 1
    assert "starpo-train resume" in error


def test_explain_says_what_the_data_allows(dataset, capsys):
    """Counts, one ruling per algorithm, and what `auto` would run."""
    assert main(["explain", str(dataset)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "starpo yes 16 of 16 trajectories have a reward, exact ids" in output
    assert "filtered_bc yes" in output
    assert "auto: topr; 16 of 16" in output


def test_unknown_key_is_one_clear_line(tmp_path, capsys):
    """Exit code 2 and the nearest known key, brackets and all."""
    (tmp_path / "run.toml").write_text("[train]\nepoch = 1\n")
    assert main(["run", str(tmp_path / "run.toml")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/run.toml: unknown key train.epoch; did you mean `epochs`?\n"
    )


def test_missing_dataset_is_one_clear_line(tmp_path, capsys):
    """`explain` on a folder without a dataset says how to build one."""
    assert main(["explain", str(tmp_path)]) == 2
    assert "build one with `starpo-trace export" in capsys.readouterr().err


def copy_dataset(dataset, path, *, digest):
    """The same rows under another digest."""
    shutil.copytree(dataset, path)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("made-by-hand", digest))
    return path


def test_gate_of_equal_policies_with_few_tasks(dataset, tmp_path, capsys):
    """Four tasks decide nothing: exit code 20 and a verdict file."""
    candidate = copy_dataset(dataset, tmp_path / "new", digest="another")
    arguments = ["gate", "--baseline", str(dataset), "--candidate", str(candidate)]
    assert main([*arguments, "-o", str(tmp_path / "gate")]) == 20
    assert "INCONCLUSIVE" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "gate" / "verdict.json").read_text())
    assert verdict["verdict"] == "INCONCLUSIVE"


def test_gate_refuses_a_dataset_against_itself(dataset, tmp_path, capsys):
    """The same digest at two paths: exit code 2, both named, no verdict."""
    candidate = copy_dataset(dataset, tmp_path / "copy", digest="made-by-hand")
    arguments = ["gate", "--baseline", str(dataset), "--candidate", str(candidate)]
    assert main([*arguments, "-o", str(tmp_path / "gate")]) == 2
    error = capsys.readouterr().err
    assert f"baseline {dataset} and candidate {candidate} are the same dataset" in error
    assert not (tmp_path / "gate").exists()


def test_gate_refuses_an_output_that_is_a_file(dataset, tmp_path, capsys):
    """Exit code 2 before anything is read."""
    (tmp_path / "taken").touch()
    arguments = ["gate", "--baseline", "absent", "--candidate", str(dataset)]
    assert main([*arguments, "-o", str(tmp_path / "taken")]) == 2
    assert "taken is a file; give a folder" in capsys.readouterr().err


def test_report_of_a_dataset(dataset, tmp_path, capsys):
    """One page at the path asked for."""
    page = tmp_path / "page.html"
    assert main(["report", "--baseline", f"old={dataset}", "-o", str(page)]) == 0
    assert f"written: {page}" in capsys.readouterr().out
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_report_with_scores_and_credit(hand, tmp_path, capsys):
    """What `score` and `credit` wrote is on the page; without it the page names the commands."""
    rows = [
        hand.trajectory(f"t{n}", [hand.turn([20], [40])], reward=float(n), task_id="task")
        for n in range(2)
    ]
    dataset = str(hand.dataset(tmp_path / "data", rows))
    files = {kind: str(tmp_path / f"{kind}.parquet") for kind in ("scores", "credit")}
    assert main(["score", dataset, "--evaluator", "TaskCompletion", "-o", files["scores"]]) == 0
    assert main(["credit", dataset, "-o", files["credit"]]) == 0
    page = tmp_path / "page.html"
    arguments = ["report", "--candidate", f"new={dataset}", "-o", str(page)]
    assert main(arguments) == 0
    assert "<code>--scores NAME=scores.parquet</code>" in page.read_text()
    tables = [word for kind, path in files.items() for word in (f"--{kind}", f"new={path}")]
    assert main([*arguments, *tables]) == 0
    html = page.read_text()
    assert "--scores NAME" not in html
    assert "TaskCompletion" in html
    assert '<td class="heat-few"><span class="mean">0.00</span><span class="n">2</span>' in html
    capsys.readouterr()
    assert main([*arguments, "--credit", f"old={files['credit']}"]) == 2
    assert "--credit old=...: no policy has this name; there are new." in capsys.readouterr().err


def test_explain_without_rewards(hand, tmp_path, capsys):
    """Said in words."""
    row = hand.trajectory("t", [hand.turn([20], [40])], reward=None)
    assert main(["explain", str(hand.dataset(tmp_path / "d", [row]))]) == 0
    output = capsys.readouterr().out
    assert "no rewards" in output
    assert "nan" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "-o", "page.html"], "nothing to report on; give one of --baseline"),
        (
            ["report", "--run=r", "-o", "page.html", "--trace-link", "javascript:{trace_id}"],
            "--trace-link 'javascript:{trace_id}': must be an http:// or https:// address",
        ),
        (["report", "--run=r", "-o", "page.html", "--fail-below=nan"], "--fail-below nan: must be"),
        (["serve", "m", "--port", "99999"], "--port 99999: must be between 0"),
        (
            ["gate", "--baseline=a", "--candidate=b", "-o", "out", "--config", "none.toml"],
            "none.toml: no such gate file",
        ),
    ],
)
def test_unusable_arguments_are_one_clear_line(arguments, message, capsys):
    """Exit code 2."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_without_chat_template_is_warned_about():
    """`serve` would refuse what is trained from it."""
    record = {"algorithm": "starpo", "algorithm_reason": "r", "left_out": {}}
    record |= dict.fromkeys(("num_trajectories", "num_rows", "num_tokens", "num_action_tokens"), 1)
    assert "warning" not in describe_start(record | {"has_chat_template": True})
    assert "`starpo-train serve` will refuse" in describe_start(
        record | {"has_chat_template": False}
    )


def test_evidence_needs_a_name(dataset, tmp_path, capsys):
    """argparse's own error, exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--evidence", str(dataset), "-o", str(tmp_path / "p.html")])
    assert stopped.value.code == 2
    assert "write NAME=DATASET" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_commits_and_resume_finishes(hand, dataset, model_folder, tmp_path):
    """A real process, a real signal: exit code 130, a committed checkpoint, a finished resume."""
    file = hand.run_file(
        tmp_path / "run.toml", base=model_folder, dataset=dataset, train={"epochs": 4000}
    )
    command = [sys.executable, "-m", "starpo_train.cli"]
    process = subprocess.Popen(
        [*command, "run", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count('"loss"') < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 130, output
    assert f"go on with: starpo-train resume {tmp_path}/run" in output
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert (checkpoint / "COMMIT").exists()
    resolved = tmp_path / "run" / "run.toml"
    text = resolved.read_text()
    step = json.loads((checkpoint / "COMMIT").read_text())["step"]
    resolved.write_text(text.replace("epochs = 4000", f"epochs = {step // 4 + 1}"))
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "final.json").read_text())["step"] == 4 * (step // 4 + 1)


def test_a_run_in_which_all_is_clipped_is_warned_about():
    """Once, with what to do; loss and bar alone would not show it."""
    told = StringIO()
    with TrainingDisplay(Console(file=told, width=400)) as display:
        facts = {"algorithm": "starpo", "algorithm_reason": "", "left_out": {}, "num_steps": 3}
        counts = dict.fromkeys(
            ("num_trajectories", "num_rows", "num_tokens", "num_action_tokens"), 1
        )
        display.show({"event": "start"} | facts | counts)
        for step, share in ((1, 0.5), (2, 1.0), (3, 1.0)):
            numbers = {"loss": 0.1, "tokens_per_s": 1.0, "clip_fraction": share}
            display.show({"step": step, "epoch": 0} | numbers)
    assert told.getvalue().count("warning: step 2: 100% of the tokens are clipped") == 1
    assert told.getvalue().count("warning") == 1
