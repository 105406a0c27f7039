"""The plan's formulas against runs that were measured, and weights counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = Path(__file__).parents[2] / "bench" / "plan.py"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    subprocess.run([sys.executable, PLAN, "--json", file], check=True, capture_output=True)
    return json.loads(file.read_text())


def test_formulas_are_near_what_was_measured(record):
    """Memory within a fifth, never more than the margin below; time of the runs not fitted likewise."""
    assert len(record["check"]) == 5
    for run in record["check"]:
        assert 1 / 1.15 < run["peak_gb"] / run["measured_peak_gb"] < 1.2
        assert 0.85 < run["step_s"] / run["measured_step_s"] < 1.15
        assert run["flops"] == pytest.approx(run["measured_flops"], rel=0.01)
    assert sum(run["is_time_fitted"] for run in record["check"]) == 2


def test_weights_of_the_8b_model_by_hand(record):
    """36 layers of 4096 x (4096 + 1024 + 1024 + 4096 + 3 x 12288), twice 151,936 x 4096: 8.19 billion."""
    weights = 36 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 12288) + 2 * 151_936 * 4096
    full = {row["ranks"]: row for row in record["plan"] if row["what"] == "full"}
    assert full[1]["held_gb"]["weights"] == pytest.approx(4 * weights / 1e9)
    assert full[8]["held_gb"]["moments"] == pytest.approx(weights / 1e9)
    assert (full[1]["fits"], full[8]["fits"]) == ([], ["80 GB", "141 GB"])
