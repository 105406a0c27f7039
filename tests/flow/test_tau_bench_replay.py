"""200 recorded tau-bench runs through agent, spans, store and dataset, compared one by one."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from starpo_trace.convert.dataset import build_dataset, read_manifest
from starpo_trace.convert.writers.forms import WriteOptions, write_dataset

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "tau_bench_replay" / "replay.py"
DATA = ROOT.parent / "shared" / "data" / "tau-bench-gpt4o-airline"
NAME = "../shared/data/tau-bench-gpt4o-airline"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tau_bench_replay", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_round_trips(dataset: Path, folder: Path) -> None:
    """Written as OTLP and exported again, all 200 runs are the same dataset."""
    digest = read_manifest(dataset).digest
    for mode in ("delta", "full"):
        file = folder / f"{mode}.jsonl"
        report = write_dataset(dataset, file, form="otlp", options=WriteOptions(history=mode))
        assert (report.num_written, report.left_out, report.losses) == (200, {}, {})
        assert build_dataset([file], folder / mode).digest == digest


@pytest.mark.slow
def test_replay_equals_the_recording(tmp_path):
    """The example itself passes, and finds a difference once the recording is changed."""
    if not DATA.is_dir():
        pytest.skip(f"needs {NAME}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--output", tmp_path, "--json", tmp_path / "result.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    found = {check["what"]: check["dataset"] for check in result["checks"]}
    assert found["trajectories"] == 200
    assert found["groups of 4 attempts"] == 50
    assert (found["rewards of 1"], found["rewards of 0"]) == (84, 116)
    assert found["spans rejected"] == 0

    check_round_trips(tmp_path / "dataset", tmp_path)

    replay = load_script()
    runs = json.loads((DATA / replay.FILE).read_text())
    manifest = replay.read_manifest(tmp_path / "dataset")
    changed = copy.deepcopy(runs)
    call = next(m for m in changed[7]["traj"] if m.get("tool_calls"))["tool_calls"][0]
    call["function"]["arguments"] += " "
    changed[11]["reward"] = 1.0 - changed[11]["reward"]
    rows = replay.check_dataset(changed, manifest, tmp_path / "dataset")
    different = {what for what, expected, actual in rows if expected != actual}
    assert {
        "runs with every message, in order",
        "tool calls with id, name, argument string",
        "runs with their own reward",
    } <= different


def test_missing_recording_is_named(tmp_path):
    """Without the recording the example says what it needs."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data", tmp_path / "nowhere"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1
    assert "no such file" in done.stdout
