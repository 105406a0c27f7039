"""The GPU suite runs on a CPU too, with tiny shapes, so that it works when a GPU can be had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / "bench" / "gpu"


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    """Every head, pack, tree and layout has a time, and no target is claimed."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, SUITE, "--device", "cpu", "--json", file]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads(file.read_text())
    assert (results["is_tiny"], results["targets"]) == (True, [])
    measured = [
        *results["heads"]["heads"].values(),
        *(way for pack in results["attentions"].values() for way in pack.values()),
        *(way for tree in results["trees"].values() for way in tree.values()),
        *results["steps"].values(),
    ]
    assert [each["median_s"] > 0 for each in measured] == [True] * 12
    steps = {name: each["computed_tokens"] for name, each in results["steps"].items()}
    runs = 8 * (24 + 8 * (4 + 6)) - 8 * 6  # what came of the last answer is in no row
    assert (steps["tiny, full, packed"], steps["tiny, full, tree"]) == (runs, runs - 7 * 24)
