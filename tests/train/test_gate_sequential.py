"""Bounds that hold at every look: the wager by hand, its error rate, the record of looks."""

import itertools
import json

import numpy as np
import polars as pl
import pytest
from gate_data import make_rows as gate_rows
from gate_data import write_dataset as gate_dataset
from scipy.integrate import quad

from starpo_train.errors import ConfigError, DataError
from starpo_train.gate import GateConfig, GateExtras, decide_release, run_gate
from starpo_train.gate.looks import Looks, accumulate_tasks, record_tasks
from starpo_train.gate.pairing import pair_tasks
from starpo_train.gate.sequential import (
    estimate_sequential,
    log_wealth,
    p_value_sequential,
    spend_alpha,
    tasks_needed_sequential,
)

SEQUENTIAL = GateConfig(guardrails=(), looks="sequential")


def test_wealth_is_the_integral_over_all_bets():
    """Against an independent integral of the product over the share that is staked."""
    changes = [0.5, -0.25, 1.0, 0.0, 0.75, -1.0]
    for mean in (-0.03, 0.0, 0.4):
        expected, _ = quad(
            lambda c, m=mean: np.prod([1 - c + c * (1 + d) / (1 + m) for d in changes]), 0, 1
        )
        assert log_wealth(changes, mean) == pytest.approx(np.log(expected), abs=2e-3)


def test_expected_wealth_at_the_mean_is_exactly_one():
    """Over all 2^6 outcomes of six fair tasks of +-1 wealth averages 1: a fair wager."""
    outcomes = itertools.product((-1.0, 1.0), repeat=6)
    assert np.mean([np.exp(log_wealth(o, 0.0)) for o in outcomes]) == pytest.approx(1, abs=1e-12)


def test_bounds_turn_where_wealth_reaches_one_over_alpha():
    """The lower bound is the mean against which exactly 20 was won, the upper its mirror image."""
    rng = np.random.default_rng(0)
    changes = rng.choice([-0.5, 0.0, 0.25, 1.0], 200)
    estimate = estimate_sequential(changes, changes, value=changes.mean(), alpha=0.05)
    assert log_wealth(changes, estimate.low) == pytest.approx(np.log(20), abs=1e-5)
    assert log_wealth(-changes, -estimate.high) == pytest.approx(np.log(20), abs=1e-5)
    assert estimate.low < changes.mean() < estimate.high
    assert estimate.standard_error == pytest.approx(changes.std(ddof=1) / 200**0.5)


def test_few_tasks_bound_nothing():
    """A lost task leaves the lower bound open; p-values are at most one."""
    estimate = estimate_sequential([-1.0], [1.0], value=0.0, alpha=0.05)
    assert (estimate.low, estimate.high, estimate.standard_error) == (-1.0, 1.0, np.inf)
    assert p_value_sequential([-1.0, -1.0], 0.0) == 1.0


@pytest.mark.parametrize("changes", [[], [1.5], [float("nan")]])
def test_what_nobody_can_bet_on_is_refused(changes):
    """No difference, one outside [-1, 1], one that is no number."""
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        log_wealth(changes, 0.0)


@pytest.mark.slow
def test_any_of_a_hundred_looks_errs_no_more_often_than_alpha():
    """Looking after every fifth task of 500 at the margin, false passes stay within alpha."""
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(300):
        changes = (rng.binomial(4, 0.47, 500) - rng.binomial(4, 0.5, 500)) / 4
        false += any(log_wealth(changes[:n], -0.03) >= np.log(20) for n in range(5, 501, 5))
    assert false / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.slow
def test_planned_tasks_decide_as_often_as_planned():
    """With the planned number of tasks a true tie passes in about 80 % of releases."""
    changes = np.array([-1.0, 0.0, 1.0])
    num = tasks_needed_sequential(task_deviation=0.2**0.5, distance=0.08)
    rng = np.random.default_rng(2)
    passed = 0
    for _ in range(300):
        drawn = rng.choice(changes, num, p=[0.1, 0.8, 0.1])
        passed += log_wealth(drawn, -0.08) >= np.log(20)
    assert passed / 300 == pytest.approx(0.8, abs=0.1)


def test_alpha_spent_over_all_looks_is_alpha():
    """1 / (k (k + 1)) sums to one; look 0 is none."""
    assert sum(spend_alpha(0.05, k) for k in range(1, 100_000)) == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(ValueError, match="the first one is 1"):
        spend_alpha(0.05, 0)


def test_unbounded_metrics_get_the_looks_share_of_alpha():
    """At look 2 tokens have bounds at alpha / 6, wider than at look 1; success has its own."""
    config = GateConfig(guardrails=("tokens_per_trace",), looks="sequential")
    candidate = gate_rows([[1]] * 60).with_columns(output_tokens=pl.int_range(pl.len()) + 100)
    baseline = gate_rows([[1]] * 60)
    first = decide_release(candidate, baseline, config=config)
    looks = Looks(evaluation={}, alpha=0.05, looks=({"mode": "sequential"},))
    second = decide_release(candidate, baseline, config=config, earlier=looks)
    assert (first.looks["alpha_others"], second.looks["alpha_others"]) == (0.025, 0.05 / 6)
    assert second.comparisons[1].high > first.comparisons[1].high
    assert second.comparisons[0] == first.comparisons[0]


def test_sequential_asks_for_more_tasks_than_a_single_look():
    """Not knowing when one stops has a price, and the number asked for says so."""
    rng = np.random.default_rng(3)
    rows = [gate_rows(rng.random((60, 4)) < 0.5) for _ in range(2)]
    once = decide_release(*rows, config=GateConfig(guardrails=()))
    sequential = decide_release(*rows, config=SEQUENTIAL)
    assert sequential.verdict == "INCONCLUSIVE"
    assert sequential.tasks_needed > 2 * once.tasks_needed


def test_looks_accumulate_and_what_was_seen_first_counts():
    """Two halves give what the whole gives; a lost task played again to success stays lost."""
    candidate, baseline = gate_rows([[1], [0], [1], [1]]), gate_rows([[1], [1], [0], [1]])
    halves = [
        pair_tasks(candidate[part], baseline[part], success_threshold=0.5)
        for part in (slice(0, 2), slice(2, 4))
    ]
    whole = pair_tasks(candidate, baseline, success_threshold=0.5)
    seen = json.loads(json.dumps(record_tasks(halves[0])))
    both = accumulate_tasks(halves[1], seen)
    assert record_tasks(both.paired) == record_tasks(whole)
    assert both.notes == ("2 tasks of earlier looks are not in this data; they still count.",)
    again = pair_tasks(gate_rows([[1], [1]]), baseline[:2], success_threshold=0.5)
    kept = accumulate_tasks(again, seen)
    assert kept.paired.candidate.success_T.tolist() == [1.0, 0.0]
    assert kept.notes[0].startswith("1 tasks have other numbers than at an earlier look")


def look(folder, write, number, candidate, baseline, **settings):
    """One run of the gate with a record of looks."""
    data = {
        role: write(folder / f"{role}{number}", rows)
        for role, rows in (("candidate", candidate), ("baseline", baseline))
        if not (folder / f"{role}{number}").exists()
    } or {role: folder / f"{role}{number}" for role in ("candidate", "baseline")}
    return run_gate(
        **data,
        evidence={},
        config=GateConfig(guardrails=(), **settings),
        output=folder / "out",
        extras=GateExtras(looks=folder / "looks.json"),
    )


def test_a_single_look_is_one(tmp_path):
    """The same data again gives the same verdict; more data is refused until looks are sequential."""
    baseline, candidate = gate_rows([[0]] * 40, policy="old"), gate_rows([[1]] * 40, policy="new")
    more = [gate_rows([[x]] * 80, policy=p) for x, p in ((1, "new"), (0, "old"))]
    assert look(tmp_path, gate_dataset, 1, candidate, baseline).verdict == "PROMOTE"
    assert look(tmp_path, gate_dataset, 1, candidate, baseline).verdict == "PROMOTE"
    second = look(tmp_path, gate_dataset, 2, *more)
    assert second.verdict == "INCONCLUSIVE"
    assert "was looked at 1 times before" in second.sentence
    assert look(tmp_path, gate_dataset, 2, *more).verdict == "INCONCLUSIVE"
    third = look(tmp_path, gate_dataset, 2, *more, looks="sequential")
    assert third.verdict == "PROMOTE"
    assert third.looks["number"] == 3
    assert "at most 0.1, not 0.05" in third.looks["note"]


def test_sequential_looks_are_kept_in_the_file(tmp_path):
    """Looks at disjoint tasks add up to a verdict that neither half allows alone."""
    rng = np.random.default_rng(4)
    cand = gate_rows(rng.random((60, 1)) < 0.75, policy="new")
    base = gate_rows(rng.random((60, 1)) < 0.25, policy="old")
    parts = [(cand[:30], base[:30]), (cand[30:], base[30:])]
    decisions = [
        look(tmp_path, gate_dataset, number, *part, looks="sequential", margin_success=0.01)
        for number, part in enumerate(parts)
    ]
    whole = decide_release(
        cand, base, config=GateConfig(guardrails=(), looks="sequential", margin_success=0.01)
    )
    assert decisions[1].comparisons[0] == whole.comparisons[0]
    assert decisions[1].accounting["tasks_paired"] == 60
    record = json.loads((tmp_path / "looks.json").read_text())
    assert [(each["mode"], each["tasks"]) for each in record["looks"]] == [
        ("sequential", 30),
        ("sequential", 60),
    ]
    assert len(record["tasks"]) == 60


def test_looks_at_something_else_are_refused(tmp_path):
    """Another policy, another alpha, a torn record, and sequential looks without one."""
    base, cand = gate_rows([[0]] * 40, policy="old"), gate_rows([[1]] * 40, policy="new")
    look(tmp_path, gate_dataset, 1, cand, base, looks="sequential")
    with pytest.raises(ConfigError, match="give each evaluation a file"):
        look(tmp_path, gate_dataset, 2, gate_rows([[1]] * 40, policy="x"), base, looks="sequential")
    with pytest.raises(ConfigError, match="cannot change between looks"):
        look(tmp_path, gate_dataset, 1, cand, base, looks="sequential", alpha=0.1)
    (tmp_path / "looks.json").write_text("{")
    with pytest.raises(DataError, match="not a record of looks"):
        look(tmp_path, gate_dataset, 1, cand, base, looks="sequential")
    with pytest.raises(ConfigError, match="give --looks FILE"):
        run_gate(
            baseline=tmp_path / "baseline1",
            candidate=tmp_path / "candidate1",
            evidence={},
            config=SEQUENTIAL,
            output=tmp_path / "out",
        )


def test_an_earlier_verdict_in_the_output_is_noted(tmp_path):
    """Without a record of looks, the verdict that is replaced tells of an earlier one."""
    config = GateConfig(guardrails=())
    for number, tasks in enumerate((40, 50)):
        decision = run_gate(
            baseline=gate_dataset(tmp_path / f"b{number}", gate_rows([[0]] * tasks, policy="old")),
            candidate=gate_dataset(tmp_path / f"c{number}", gate_rows([[1]] * tasks, policy="new")),
            evidence={},
            config=config,
            output=tmp_path / "out",
        )
    assert decision.verdict == "PROMOTE"
    assert "held an earlier verdict about the same policies" in decision.notes[0]


def test_a_look_that_was_refused_is_not_recorded(tmp_path):
    """A slip of the threshold would freeze every task as failed; corrected, the candidate is blocked."""
    rng = np.random.default_rng(4)
    paths = {}
    for role, rate in (("baseline", 0.75), ("candidate", 0.4)):
        rewards = rng.random((100, 4)) < rate
        paths[role] = gate_dataset(tmp_path / role, gate_rows(rewards, policy=role))

    def look(threshold):
        config = GateConfig(guardrails=(), looks="sequential", success_threshold=threshold)
        extras = GateExtras(looks=tmp_path / "looks.json")
        return run_gate(**paths, evidence={}, config=config, output=tmp_path / "out", extras=extras)

    refused = look(50.0)
    assert refused.verdict == "INCONCLUSIVE"
    assert "No run of either side reaches" in refused.faults[0]
    assert not (tmp_path / "looks.json").exists()
    assert look(0.5).verdict == "BLOCK"
    with pytest.raises(ConfigError, match=r"gate\.success_threshold = 0\.5, not 0\.6"):
        look(0.6)
