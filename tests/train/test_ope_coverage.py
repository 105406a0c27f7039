"""Intervals hold exact values as often as they say; the bench does the same at length."""

import sys
from pathlib import Path

import numpy as np
import pytest

from starpo_train.ope.evaluation import evaluate_logged_turns

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def worlds():
    pytest.importorskip("gymnasium", reason="needs the extra `demo`")
    sys.path.insert(0, str(BENCH))
    from opelib import worlds

    yield worlds
    sys.path.remove(str(BENCH))


def repeat(world, repetitions, *, with_regression=False):
    for repetition in range(repetitions):
        turns, transitions = world.play(
            np.random.default_rng([repetition, 11]), num_tasks=100, attempts=4
        )
        yield evaluate_logged_turns(
            turns, transitions if with_regression else None, num_resamples=300, seed=repetition
        )


def test_the_worlds_values_are_what_play_earns(worlds):
    """The bandit's by its definition; the lake's recorded policy earns its value in 8,000 runs."""
    bandit = worlds.make_bandit(sharpness=2.0)
    success_SA = bandit.rewards_SAS[:5, :, 5]
    by_definition = float((bandit.policy_SA[:5] * success_SA).sum(1).mean())
    assert bandit.compute_value(bandit.policy_SA) == pytest.approx(by_definition)
    lake = worlds.make_lake(behaviour=1.0, sharpness=3.0)
    turns, _ = lake.play(np.random.default_rng(0), num_tasks=2_000, attempts=4)
    earned = float(turns.rewards_NK.sum(1).mean())
    assert earned == pytest.approx(lake.compute_value(lake.behaviour_SA), abs=0.02)


@pytest.mark.slow
def test_coverage_on_the_bandit(worlds):
    """100 repetitions: each estimator's interval holds the value in 90 to 99 % of them."""
    world = worlds.make_bandit(sharpness=2.0)
    value = world.compute_value(world.policy_SA)
    hits: dict[str, int] = {}
    for found in repeat(world, 100, with_regression=True):
        for estimate in found.estimates:
            is_hit = estimate.interval.contains(value)
            hits[estimate.name] = hits.get(estimate.name, 0) + is_hit
    shares = {name: count / 100 for name, count in hits.items()}
    assert {name: 0.9 <= share <= 0.99 for name, share in shares.items()} == dict.fromkeys(
        ("IS", "WIS", "PDIS", "SN-PDIS", "DR", "FQE"), True
    ), shares


@pytest.mark.slow
def test_coverage_on_the_lake(worlds):
    """The same for WIS where weights are heavy, over the repetitions that pass the floor."""
    world = worlds.make_lake(behaviour=0.0, sharpness=6.0)
    value = world.compute_value(world.policy_SA)
    hits = []
    for found in repeat(world, 100):
        names = {doubt.name for doubt in found.verdict.doubts}
        if not names & {"ess_below_floor", "weight_concentrated"}:
            hits.append(found.estimates[1].interval.contains(value))
    assert len(hits) > 80
    assert 0.9 <= np.mean(hits) <= 0.99


def test_far_from_the_data_nothing_is_concluded(worlds):
    """A policy that hardly any recorded run speaks for: inconclusive every time, and why."""
    world = worlds.make_lake(behaviour=0.0, sharpness=40.0)
    for found in repeat(world, 10):
        assert found.verdict.outcome == "inconclusive"
        assert "ess_below_floor" in {doubt.name for doubt in found.verdict.doubts}
