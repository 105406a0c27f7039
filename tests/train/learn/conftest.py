"""The bench's package `learn`, importable; and one small behaviour model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))


@pytest.fixture(scope="session")
def small_behaviour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learnt the lake for a second or two."""
    from learn.behaviour import Warmup, make_behaviour

    folder = tmp_path_factory.mktemp("behaviour") / "model"
    make_behaviour("frozen_lake", 0, folder, warmup=Warmup(num_tasks=40, runs_per_task=4))
    return folder
