"""Training runs that are killed at random moments, and checkpoints that were tampered with.

    python bench/train_kill.py [--quick] [--json FILE] [--kills 50] [--ranks 1] [--seed 0]

A small run that commits a checkpoint after every step gets SIGKILL at random moments, spread over
training and over the writing of checkpoints; after each, `starpo-train resume` goes on. Counted:
whether the finished weights are those of a run that nobody killed (SHA-256), whether a life began
from anything but the newest whole checkpoint (checked against the uninterrupted run's weights of
that step), and whether steps are in the metrics twice. `--ranks 2` runs under torchrun.

Then every file of a checkpoint is changed by one byte, cut short or removed, files are added, and
each byte of COMMIT is changed: all must be refused before anything is parsed or unpickled.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import conclude
from trainlib.killing import make_run_file, prepare_inputs
from trainlib.tampering import measure_tampering

from starpo_train.metrics import read_metrics
from starpo_train.modelfolder import hash_file


class Lives:
    """One run, killed again and again until it finishes."""

    def __init__(self, folder: Path, name: str, *, num_steps: int, ranks: int) -> None:
        self.run = folder / name
        self.ranks = ranks
        self.file = make_run_file(folder, name, num_steps=num_steps, keep=2)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start the run, or resume it."""
        is_new = not (self.run / "run.toml").is_file()
        return start(["run", self.file] if is_new else ["resume", self.run], ranks=self.ranks)

    def read_beginnings(self) -> list[dict]:
        """Records with which each life began training."""
        path = self.run / "metrics.jsonl"
        records = read_metrics(path) if path.is_file() else []
        return [r for r in records if r.get("event") in ("start", "resume")]

    def read_phase(self) -> str:
        """Between a step's record and its COMMIT a checkpoint is written."""
        steps = [r["step"] for r in read_metrics(self.run / "metrics.jsonl") if "loss" in r]
        whole, _ = self.list_folders()
        is_ahead = bool(steps) and (not whole or steps[-1] > int(whole[-1].name[-6:]))
        return "write" if is_ahead else "training"

    def list_folders(self) -> tuple[list[Path], list[Path]]:
        """Checkpoints with a COMMIT, and without."""
        folders = sorted((self.run / "checkpoints").glob("step_*"))
        whole = [f for f in folders if (f / "COMMIT").is_file()]
        return whole, [f for f in folders if f not in whole]


def start(arguments: list, *, ranks: int) -> subprocess.Popen[bytes]:
    """`starpo-train` in a process group of its own."""
    command = [sys.executable, "-m", "starpo_train.cli"]
    if ranks > 1:
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, "-m", *launch, "-m", "starpo_train"]
    with tempfile.TemporaryFile() as log:
        return subprocess.Popen(
            [*command, *map(str, arguments)], stdout=log, stderr=log, start_new_session=True
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and all below it, at once; nothing of it may go on.

    By their ids: torchrun's workers are in sessions of their own, where a signal to its group does
    not reach them, and they would train on.
    """
    everyone = [process.pid, *list_descendants(process.pid)]
    for pid in everyone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    end_s = time.monotonic() + 10
    while alive := [pid for pid in everyone if is_running(pid)]:
        if time.monotonic() > end_s:
            raise SystemExit(f"processes {alive} survived SIGKILL")
        time.sleep(0.005)


def list_descendants(pid: int) -> list[int]:
    """Ids of all processes below one."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):  # of every thread
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += map(int, file.read_text().split())
    return children + [below for child in children for below in list_descendants(child)]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def live(lives: Lives, chance: random.Random, *, aim: str) -> dict | None:
    """One life, ended by SIGKILL; None when the run finished first."""
    known = len(lives.read_beginnings())
    whole, _ = lives.list_folders()
    newest = whole[-1] if whole else None
    process = lives.begin()
    if aim == "start-up":
        try:
            process.wait(chance.uniform(0.2, 4.0))
        except subprocess.TimeoutExpired:
            kill(process)
        return {"phase": "start-up", "newest": newest, "began_at": None}
    while len(lives.read_beginnings()) == known and process.poll() is None:
        time.sleep(0.05)
    beginnings = lives.read_beginnings()
    began = beginnings[-1].get("step", 0) if len(beginnings) > known else None
    end_s = time.monotonic() + chance.uniform(0.0, 1.5)
    while time.monotonic() < end_s and process.poll() is None:
        time.sleep(0.002)
    while lives.read_phase() != aim and process.poll() is None:
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 0.03))
    if process.poll() is not None:
        return None
    kill(process)
    return {"phase": lives.read_phase(), "newest": newest, "began_at": began}


def kill_runs(folder: Path, *, kills: int, ranks: int, num_steps: int, seed: int) -> dict:
    """Figures of the whole experiment."""
    reference = make_run_file(folder, "reference", num_steps=num_steps, keep=0)
    begun_s = time.monotonic()
    if start(["run", reference], ranks=ranks).wait() != 0:
        raise SystemExit("the uninterrupted run failed")
    reference_s = time.monotonic() - begun_s
    checkpoints = folder / "reference" / "checkpoints"
    expected = {p.name: hash_file(p / "model.safetensors") for p in checkpoints.glob("step_*")}
    chance = random.Random(seed)
    figures = {
        "kills": 0,
        "phases": {"start-up": 0, "training": 0, "write": 0},
        "torn_folders_seen": 0,
        "torn_or_wrong_checkpoints_loaded": 0,
        "runs_finished": 0,
        "runs_with_the_same_weights": 0,
        "steps_missing_or_twice_in_metrics": 0,
        "steps_per_run": num_steps,
        "ranks": ranks,
        "uninterrupted_s": round(reference_s, 1),
    }
    number = 0
    while figures["kills"] < kills:
        lives = Lives(folder, f"killed{number}", num_steps=num_steps, ranks=ranks)
        number += 1
        finished = False
        while figures["kills"] < kills and not finished:
            aim = chance.choices(["start-up", "training", "write"], [2, 9, 9])[0]
            life = live(lives, chance, aim=aim)
            if life is None:
                finished = True
                break
            count(figures, life, lives, expected)
            print(f"  kill {figures['kills']}: {life['phase']}, {life['began_at']}", flush=True)
        if not finished and lives.begin().wait() != 0:
            raise SystemExit(f"{lives.run}: the last resume failed")
        check_end(figures, lives, expected)
    return figures


def count(figures: dict, life: dict, lives: Lives, expected: dict[str, str]) -> None:
    """Add one life: what it loaded is the newest whole checkpoint, with the right weights."""
    figures["kills"] += 1
    figures["phases"][life["phase"]] += 1
    whole, torn = lives.list_folders()
    figures["torn_folders_seen"] += len(torn)
    wrong = [f for f in whole if hash_file(f / "model.safetensors") != expected[f.name]]
    newest = int(life["newest"].name.removeprefix("step_")) if life["newest"] else 0
    is_wrong = life["began_at"] not in (None, newest)
    figures["torn_or_wrong_checkpoints_loaded"] += bool(wrong) or is_wrong


def check_end(figures: dict, lives: Lives, expected: dict[str, str]) -> None:
    """Weights and metrics of a run that finished."""
    final = json.loads((lives.run / "final.json").read_text())
    weights = hash_file(lives.run / final["checkpoint"] / "model.safetensors")
    figures["runs_finished"] += 1
    figures["runs_with_the_same_weights"] += weights == expected[max(expected)]
    steps = [r["step"] for r in read_metrics(lives.run / "metrics.jsonl") if "loss" in r]
    figures["steps_missing_or_twice_in_metrics"] += steps != list(range(1, final["step"] + 1))


def judge(killed: dict, tampered: dict) -> list[dict]:
    """Targets, met or not."""
    same = f"{killed['runs_with_the_same_weights']} of {killed['runs_finished']}"
    rows = [
        ("finished runs with the uninterrupted run's weights", same, "all",
         killed["runs_with_the_same_weights"] == killed["runs_finished"]),
        ("torn or wrong checkpoints loaded", killed["torn_or_wrong_checkpoints_loaded"], 0,
         killed["torn_or_wrong_checkpoints_loaded"] == 0),
        ("runs with steps missing or twice", killed["steps_missing_or_twice_in_metrics"], 0,
         killed["steps_missing_or_twice_in_metrics"] == 0),
        ("tampered checkpoints refused", f"{tampered['refused']} of {tampered['tampered']}", "all",
         tampered["refused"] == tampered["tampered"]),
        ("files parsed or unpickled before refusing", tampered["parsed_before_refusing"], 0,
         tampered["parsed_before_refusing"] == 0),
    ]  # fmt: skip
    return [dict(zip(("name", "value", "target", "met"), row, strict=True)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="five kills")
    parser.add_argument("--json", type=Path, help="write figures and targets here")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills = 5 if options.quick else options.kills
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_inputs(folder)
        num_steps = 48 if options.quick else 240
        killed = kill_runs(
            folder, kills=kills, ranks=options.ranks, num_steps=num_steps, seed=options.seed
        )
        checkpoint = max((folder / "reference" / "checkpoints").glob("step_*"))
        tampered = measure_tampering(checkpoint, folder / "tampered")
    targets = judge(killed, tampered)
    conclude(
        "train_kill",
        targets,
        {"figures": {"kill": killed, "tampering": tampered}},
        begun_s=begun_s,
        is_quick=options.quick,
        path=options.json,
    )


if __name__ == "__main__":
    main()
