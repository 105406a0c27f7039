"""Power loss: what was acknowledged is there, and nothing that was never written is read."""

import importlib
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCH = str(Path(__file__).parents[2] / "bench")


def load_model():
    sys.path.insert(0, BENCH)
    try:
        return importlib.import_module("faultlib.power")
    finally:
        sys.path.remove(BENCH)


power = load_model()


@pytest.fixture(autouse=True)
def production(monkeypatch):
    """Faults of the disk are logged, not raised, as in production."""
    monkeypatch.setenv("STARPO_DEBUG", "0")


def test_what_was_acknowledged_survives():
    """500 generated runs with faults, power cuts and restarts: nothing lost, no garbage."""
    outcome = power.run_sequences(0, 500)
    assert (outcome.acknowledged_lost, outcome.garbage) == (0, 0)
    assert outcome.crashes > 500
    assert outcome.torn_places > 100


@settings(max_examples=50, deadline=None)
@given(st.integers(1_000_000, 2_000_000_000))
def test_what_was_acknowledged_survives_anywhere(seed):
    """The same for seeds that nobody chose."""
    outcome = power.run_sequence(seed)
    assert (outcome.acknowledged_lost, outcome.garbage) == (0, 0)


@pytest.mark.parametrize("forgets", ["data", "names"])
def test_the_model_finds_a_writer_that_does_not_sync(forgets):
    """Without syncing file content, or folders, acknowledged records are lost, and it shows."""
    assert power.run_sequences(0, 50, forgets=forgets).acknowledged_lost > 0
