"""Power loss: what was acknowledged is there, and nothing that was never written is read."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCH = Path(__file__).parents[2] / "bench" / "faultlib" / "power.py"


def load_model():
    spec = importlib.util.spec_from_file_location("power_model", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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
