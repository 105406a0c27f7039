"""FutureAGI's own scores beside ours, case by case, where the package is installed."""

import importlib.util

import pytest

from starpo_train.errors import ConfigError
from starpo_train.evals.futureagi import FutureAgiEvaluator, compare_with_futureagi

IS_INSTALLED = importlib.util.find_spec("fi") is not None
HONEST = [
    {"thought": "look", "tool": "find", "args": {"id": 4411}, "observation": "found"},
    {"thought": "do it", "tool": "refund", "args": {"id": 4411}, "observation": "done"},
]
KNOWN = {
    "input": "refund 4411",
    "expected_output": "refund 4411",
    "expected_tools": ["find", "refund"],
}
CASES = {
    "honest": {**KNOWN, "trajectory": HONEST, "output": "refund 4411"},
    "thoughts only": {
        **KNOWN,
        "trajectory": [{"thought": "refund 4411"}, {"thought": "refund 4411"}],
        "output": "refund 4411",
    },
    "did NOT": {**KNOWN, "trajectory": HONEST, "output": "I did NOT refund 4411"},
    "failed": {
        **KNOWN,
        "trajectory": [HONEST[0], {**HONEST[1], "observation": "Error: no"}],
        "output": "refund 4411",
    },
    "spam": {**KNOWN, "trajectory": [*HONEST, *[HONEST[1]] * 4], "output": "refund 4411"},
}


@pytest.mark.skipif(IS_INSTALLED, reason="ai-evaluation is installed")
def test_without_the_package_it_is_named():
    """The error says what to install."""
    with pytest.raises(ConfigError, match="pip install ai-evaluation"):
        FutureAgiEvaluator(metric="TrajectoryScore")
    with pytest.raises(ConfigError, match="no metric 'Speed' of FutureAGI"):
        FutureAgiEvaluator(metric="Speed")


@pytest.mark.skipif(not IS_INSTALLED, reason="ai-evaluation (FutureAGI's fi.evals) is missing")
def test_parity_on_honest_runs_and_divergence_on_attacks():
    """ai-evaluation 1.1.0; both scores of each run."""
    found = {(each.metric, each.case): each for each in compare_with_futureagi(CASES)}
    scores = {key: (each.ours, each.theirs) for key, each in found.items()}
    for metric in ("TrajectoryScore", "TaskCompletion", "ToolSelectionAccuracy"):
        assert scores[metric, "honest"] == (1.0, 1.0)
        assert found[metric, "honest"].is_same
        assert not found[metric, "thoughts only"].is_same
    assert scores["TrajectoryScore", "thoughts only"] == (0.0, 1.0)
    assert scores["TaskCompletion", "thoughts only"] == (0.0, 1.0)
    assert scores["TaskCompletion", "did NOT"] == (0.0, 0.95)
    assert scores["TaskCompletion", "failed"] == (0.0, 1.0)
    assert scores["ToolSelectionAccuracy", "failed"] == (0.5, 0.7857)
    assert scores["ToolSelectionAccuracy", "spam"] == (0.5, 1.0)
