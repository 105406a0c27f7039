"""Power planning from a pilot: spreads by hand, tasks by the published formula."""

import json

import numpy as np
import pytest
from gate_data import make_rows, write_dataset

from starpo_train.cli import main
from starpo_train.errors import DataError
from starpo_train.gate import GateConfig
from starpo_train.gate.plan import chance_of_promotion, plan_release
from starpo_train.stats import tasks_needed


def test_spread_of_two_policies_by_hand():
    """Differences 1/2, 0, -1/2, 1: variance 5/12. Luck of an attempt: 1/2 in three of eight halves."""
    candidate = make_rows([[1, 1], [0, 0], [0, 1], [1, 1]])
    baseline = make_rows([[1, 0], [0, 0], [1, 1], [0, 0]])
    pilot = plan_release(baseline, candidate, config=GateConfig()).strata[0].pilot
    assert (pilot.num_tasks, pilot.attempts) == (4, 2)
    assert pilot.sigma_d == pytest.approx((5 / 12) ** 0.5)
    # p (1 - p) n / (n - 1) = 1/2 for a task solved once in two: one of each policy
    assert pilot.within == pytest.approx((2 * 0.5 / 4) ** 0.5)
    assert pilot.between == pytest.approx((5 / 12 - 0.25 / 2) ** 0.5)
    assert pilot.find_sigma(2) == pytest.approx(pilot.sigma_d)
    assert pilot.sigma_d_high >= pilot.sigma_d


def test_spread_of_the_baseline_alone():
    """Half of the tasks solved two times in four, the rest always: 2 x (1/3) / 2 / 4 = 1/12."""
    rows = make_rows([[1, 0, 1, 0], [1, 1, 1, 1]] * 20)
    plan = plan_release(rows, config=GateConfig())
    pilot = plan.strata[0].pilot
    assert not plan.is_from_both
    assert pilot.sigma_d == pytest.approx((1 / 12) ** 0.5)
    assert pilot.between is None
    assert pilot.find_sigma(8) == pytest.approx((1 / 24) ** 0.5)


def test_baseline_alone_predicts_the_spread_of_equal_policies():
    """Split attempts of one policy say how far two runs of it differ: 4 % off at most."""
    rng = np.random.default_rng(0)
    rates = rng.beta(1.2, 1.2, 4000)[:, None]
    runs = [make_rows(rng.random((4000, 4)) < rates) for _ in range(2)]
    alone = plan_release(runs[0], config=GateConfig()).strata[0].pilot
    both = plan_release(*runs, config=GateConfig()).strata[0].pilot
    assert alone.sigma_d == pytest.approx(both.sigma_d, rel=0.04)


def test_rows_hold_the_formulas_numbers():
    """Tasks for each margin and number of attempts; more attempts help only against luck."""
    rng = np.random.default_rng(1)
    rates = rng.beta(1.2, 1.2, 300)[:, None]
    runs = [make_rows(rng.random((300, 4)) < rates) for _ in range(2)]
    part = plan_release(*runs, config=GateConfig(), true_change=0.01).strata[0]
    row = next(r for r in part.rows if (r.margin, r.attempts) == (0.03, 4))
    assert row.tasks == tasks_needed(task_deviation=row.sigma_d, distance=0.04)
    assert row.runs == 2 * 4 * row.tasks
    assert row.tasks_sequential > 2 * row.tasks
    by_attempts = [r.tasks for r in part.rows if r.margin == 0.02]
    assert by_attempts == sorted(by_attempts, reverse=True)


def test_reach_of_the_tasks_at_hand():
    """The smallest margin that equal policies pass is the one they pass with the power asked for."""
    rng = np.random.default_rng(2)
    runs = [make_rows(rng.random((100, 4)) < 0.5) for _ in range(2)]
    part = plan_release(*runs, config=GateConfig()).strata[0]
    chance = chance_of_promotion(
        sigma_d=part.pilot.sigma_d,
        num_tasks=100,
        margin=part.reach.smallest_margin,
        change=0.0,
        alpha=0.05,
    )
    assert chance == pytest.approx(0.8)
    assert part.reach.smallest_loss == pytest.approx(0.03 + part.reach.smallest_margin)
    assert not part.reach.is_too_few


def test_strata_are_planned_apart():
    """In- and out-of-distribution tasks each have their own spread and need their own tasks."""
    rows = make_rows([[1, 0]] * 40 + [[1, 1]] * 20, cohorts=["a"] * 40 + ["ood-b"] * 20)
    plan = plan_release(rows, config=GateConfig())
    assert [(p.pilot.stratum, p.pilot.num_tasks) for p in plan.strata] == [("id", 40), ("ood", 20)]
    assert [p.reach.is_too_few for p in plan.strata] == [False, True]


def test_a_pilot_that_tells_nothing_is_refused():
    """One attempt a task of the baseline alone, and no rewards."""
    with pytest.raises(DataError, match="one attempt at each task"):
        plan_release(make_rows([[1]] * 40), config=GateConfig())
    with pytest.raises(DataError, match="0 tasks with rewards"):
        plan_release(make_rows([[None, None]] * 40), config=GateConfig())


def test_one_attempt_of_both_plans_for_one_attempt():
    """Luck cannot be told from true differences, so other numbers of attempts are not offered."""
    rng = np.random.default_rng(3)
    runs = [make_rows(rng.random((50, 1)) < 0.5) for _ in range(2)]
    part = plan_release(*runs, config=GateConfig()).strata[0]
    assert part.pilot.within is None
    assert {row.attempts for row in part.rows} == {1}


def test_plan_from_the_command_line(tmp_path, capsys):
    """sigma_d, a table over margins and what the tasks decide are printed; plan.json has them."""
    pilot = write_dataset(tmp_path / "pilot", make_rows([[1, 0, 1, 0], [1, 1, 1, 1]] * 20))
    assert main(["gate", "--plan", "--baseline", str(pilot), "-o", str(tmp_path / "plan")]) == 0
    said = capsys.readouterr().out
    assert "40 tasks x 4 attempts, sigma_d 0.289" in said
    assert "these are the fewest tasks" in said
    assert "a loss of" in said
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    rows = plan["strata"][0]["rows"]
    assert {row["margin"] for row in rows} == {0.01, 0.02, 0.03, 0.05, 0.1}
