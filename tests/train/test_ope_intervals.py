"""Bootstrap intervals, fitted Q evaluation and the verdict's rules."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from starpo_train.ope.bootstrap import (
    Interval,
    bootstrap_terms,
    draw_clusters,
    find_bounds,
    subtract_mean,
)
from starpo_train.ope.ess import WeightFacts
from starpo_train.ope.evaluation import LoggedTurns, evaluate_logged_turns
from starpo_train.ope.fqe import Transitions, evaluate_fqe, reduce_features
from starpo_train.ope.importance import EstimatorTerms
from starpo_train.ope.verdict import Basis, Estimate, decide_verdict


def make_mean(values_N, *, log_scale=0.0):
    values_N1 = torch.as_tensor(values_N, dtype=torch.float64)[:, None]
    return EstimatorTerms(
        numerators_NF=values_N1, denominators_NF=torch.ones_like(values_N1), log_scale=log_scale
    )


def test_the_interval_of_a_mean_is_near_students():
    """On 200 normal values: within a tenth of its width of the t interval."""
    values_N = np.random.default_rng(0).normal(3, 2, 200)
    found = bootstrap_terms(make_mean(values_N), torch.arange(200), draw_clusters(200))
    low, high = stats.t.interval(0.95, 199, values_N.mean(), stats.sem(values_N))
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_attempts_at_one_task_add_nothing():
    """Each value four times in its cluster: the interval of the values once."""
    values_N = np.random.default_rng(1).normal(size=50)
    counts_BC = draw_clusters(50, num_resamples=500)
    once = bootstrap_terms(make_mean(values_N), torch.arange(50), counts_BC)
    often = bootstrap_terms(
        make_mean(np.repeat(values_N, 4)), torch.arange(50).repeat_interleave(4), counts_BC
    )
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_scale_goes_through():
    """A factor taken out of the terms is in the bounds again."""
    values_N = np.random.default_rng(2).exponential(size=40)
    counts_BC = draw_clusters(40, num_resamples=500)
    plain = bootstrap_terms(make_mean(values_N), torch.arange(40), counts_BC)
    terms = make_mean(values_N, log_scale=math.log(8))
    scaled = bootstrap_terms(terms, torch.arange(40), counts_BC)
    assert (scaled.low, scaled.high) == pytest.approx((8 * plain.low, 8 * plain.high))


def test_what_bounds_nothing():
    """One cluster, or two of which a resample often has one only."""
    values_N = [0.0, 1.0, 2.0, 5.0]
    for clusters in ([0, 0, 0, 0], [0, 0, 1, 1]):
        num_clusters = max(clusters) + 1
        counts_BC = draw_clusters(num_clusters, num_resamples=500)
        found = bootstrap_terms(make_mean(values_N), torch.tensor(clusters), counts_BC)
        assert (found.low, found.high) == (-math.inf, math.inf)


def test_equal_values_have_no_width():
    """And are no proof: see the verdict."""
    found = bootstrap_terms(make_mean([1.0] * 20), torch.arange(20), draw_clusters(20))
    assert (found.low, found.high) == (1.0, 1.0)


def test_resamples_depend_on_the_seed_only():
    """Each row has as many draws as there are clusters."""
    first, again, other = (draw_clusters(9, num_resamples=50, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.sum(1).unique().tolist() == [9.0]


def test_too_many_lost_resamples_bound_nothing():
    """Two of a hundred are too many, one is not."""
    values_B = torch.arange(100.0)
    values_B[:2] = math.nan
    assert find_bounds(values_B, confidence=0.95) == (-math.inf, math.inf)
    values_B[0] = 0.0
    assert find_bounds(values_B, confidence=0.9)[1] < math.inf


def test_the_change_is_of_the_same_trajectories():
    """An estimate that is the mean itself does not move against it."""
    returns_N = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    terms = subtract_mean(make_mean(returns_N), returns_N)
    found = bootstrap_terms(terms, torch.arange(5), draw_clusters(5))
    assert (terms.compute_value(), found.low, found.high) == (0.0, 0.0, 0.0)


def make_chain(*, num_runs=60, gamma=0.9):
    """Two states; `go` moves on, from the second to the end with reward 1; `stay` earns nothing.

    The policy goes with .7 and stays with .3: V_1 = .7 / (1 - .3 g), V_0 = .7 g V_1 / (1 - .3 g).
    """
    generator = np.random.default_rng(0)
    rows = []
    for run in range(num_runs):
        state = 0
        while state < 2:
            goes = generator.random() < 0.5
            rows.append((run, state, int(goes), float(goes and state == 1)))
            state += goes
    run_M, state_M, action_M, reward_M = (np.array(column) for column in zip(*rows, strict=True))
    taken_MH = np.zeros((len(rows), 2, 2))
    taken_MH[np.arange(len(rows)), state_M, action_M] = 1
    expected_MH = np.zeros_like(taken_MH)
    expected_MH[np.arange(len(rows)), state_M] = (0.3, 0.7)
    value_1 = 0.7 / (1 - 0.3 * gamma)
    transitions = Transitions(
        taken_MH=torch.from_numpy(taken_MH.reshape(-1, 4)),
        expected_MH=torch.from_numpy(expected_MH.reshape(-1, 4)),
        rewards_M=torch.from_numpy(reward_M),
        trajectory_of_M=torch.from_numpy(run_M),
    )
    return transitions, (0.7 * gamma * value_1 / (1 - 0.3 * gamma), value_1), state_M


def test_fqe_finds_the_value_of_a_chain():
    """By the two equations of its states, at every turn and at the start; the error is held out."""
    transitions, values, state_M = make_chain()
    counts_BC = draw_clusters(60, num_resamples=20)
    found = evaluate_fqe(transitions, torch.arange(60), counts_BC, gamma=0.9, penalty=1e-9)
    assert found.value == pytest.approx(values[0], abs=1e-6)
    expected_M = np.array(values)[state_M]
    assert found.state_values_M.tolist() == pytest.approx(expected_M.tolist(), abs=1e-6)
    # every move has one outcome, so nothing is left unexplained
    assert found.bellman_error == pytest.approx(0, abs=1e-10)
    assert found.bellman_error_of_zero == pytest.approx(60 / len(state_M))
    assert found.values_B.tolist() == pytest.approx([values[0]] * 20, abs=1e-5)


def test_fqe_that_does_not_settle_has_no_value():
    """The next state's feature is five times this one's: Q doubles without end, and says so."""
    feature_M1 = torch.rand(120, 1, generator=torch.Generator().manual_seed(0)).double()
    growing = Transitions(
        taken_MH=feature_M1,
        expected_MH=5 * feature_M1.roll(1, 0),
        rewards_M=feature_M1[:, 0],
        trajectory_of_M=torch.arange(60).repeat_interleave(2),
    )
    found = evaluate_fqe(growing, torch.arange(60), draw_clusters(60, num_resamples=5))
    assert math.isnan(found.value)


def test_main_directions():
    """Both sets of features go through the same map: distances between them stay, but for scale."""
    generator = torch.Generator().manual_seed(0)
    taken_MH = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    taken, expected = reduce_features(taken_MH, taken_MH[:3] + 1, most=6)
    before = (taken_MH[:3] + 1 - taken_MH[5]).norm(dim=1)
    after = (expected - taken[5]).norm(dim=1)
    assert (after / before).tolist() == pytest.approx([float(after[0] / before[0])] * 3)
    assert float(taken.pow(2).mean(0).max()) == pytest.approx(1.0)
    assert reduce_features(taken_MH, taken_MH, most=2)[0].shape == (40, 2)


def make_estimates(wis=(0.6, 0.5, 0.7), **others):
    answers = {"WIS": wis, **others}
    return [
        Estimate(name=name, value=value, interval=Interval(low=low, high=high))
        for name, (value, low, high) in answers.items()
    ]


GOOD = Basis(
    num_trajectories=400,
    provenance="exact",
    weights=WeightFacts(ess=100.0, largest_share=0.05),
    mean_weight=Estimate(name="mean weight", value=1.0, interval=Interval(low=0.9, high=1.1)),
)


def change_basis(**changes):
    from dataclasses import replace

    return replace(GOOD, **changes)


def test_verdicts_without_doubts():
    """Above what was recorded, and below it."""
    above = decide_verdict(make_estimates(), GOOD, behaviour_mean=0.4)
    below = decide_verdict(make_estimates(), GOOD, behaviour_mean=0.8)
    assert (above.outcome, above.by, above.doubts) == ("supported", "WIS", ())
    assert (below.outcome, below.doubts) == ("contradicted", ())


@pytest.mark.parametrize(
    ("name", "basis", "estimates"),
    [
        ("ess_below_floor", {"weights": WeightFacts(ess=29.0, largest_share=0.1)}, {}),
        (
            "ess_below_floor",  # 5 % of n is above 30
            {"weights": WeightFacts(ess=49.0, largest_share=0.1), "num_trajectories": 1000},
            {},
        ),
        ("weight_concentrated", {"weights": WeightFacts(ess=100.0, largest_share=0.21)}, {}),
        (
            "mean_weight_off",
            {"mean_weight": Estimate(name="", value=0.7, interval=Interval(low=0.6, high=0.8))},
            {},
        ),
        ("behaviour_estimated", {"provenance": "estimated"}, {}),
        ("behaviour_missing", {"provenance": "missing", "weights": None}, {}),
        ("trajectories_left_out", {"num_left_out": 50}, {}),
        ("trained_on_these", {"is_trained_on": True}, {}),
        ("interval_contains_behaviour", {}, {"wis": (0.6, 0.3, 0.7)}),
        ("no_spread", {}, {"wis": (0.6, 0.6, 0.6)}),
        ("signs_disagree", {}, {"IS": (0.3, 0.1, 0.5)}),
    ],
)
def test_each_doubt_alone_makes_it_inconclusive(name, basis, estimates):
    """And is named."""
    verdict = decide_verdict(make_estimates(**estimates), change_basis(**basis), behaviour_mean=0.4)
    assert verdict.outcome == "inconclusive"
    assert [doubt.name for doubt in verdict.doubts] == [name]


def test_the_limits_themselves_are_no_doubts():
    """An ESS of the floor and a weight of the limit pass, and a mean weight within rounding."""
    basis = change_basis(
        weights=WeightFacts(ess=30.0, largest_share=0.2),
        mean_weight=Estimate(name="", value=1.0, interval=Interval(low=1.00001, high=1.00001)),
        num_left_out=40,
    )
    assert decide_verdict(make_estimates(), basis, behaviour_mean=0.4).outcome == "supported"


def test_a_change_across_zero_is_a_doubt():
    """The recorded mean is an estimate, too."""
    estimate = Estimate(
        name="WIS",
        value=0.6,
        interval=Interval(low=0.5, high=0.7),
        change=Interval(low=-0.1, high=0.3),
    )
    verdict = decide_verdict([estimate], GOOD, behaviour_mean=0.4)
    assert [doubt.name for doubt in verdict.doubts] == ["change_contains_zero"]


def test_without_ratios_only_fqe_may_answer():
    """The others say why not; it never concludes anything."""
    transitions, _, _ = make_chain()
    length_N = torch.bincount(transitions.trajectory_of_M)
    mask_NK = torch.arange(int(length_N.max()))[None] < length_N[:, None]
    rewards_NK = torch.zeros(mask_NK.shape, dtype=torch.float64)
    rewards_NK[mask_NK] = transitions.rewards_M
    turns = LoggedTurns(
        rewards_NK=rewards_NK,
        mask_NK=mask_NK,
        cluster_of_N=torch.arange(60),
        log_ratios_NK=None,
        provenance="missing",
    )
    found = evaluate_logged_turns(turns, transitions, gamma=0.9, num_resamples=50)
    values = {estimate.name: estimate.value for estimate in found.estimates}
    refused = [name for name, value in values.items() if value is None]
    assert refused == ["IS", "WIS", "PDIS", "SN-PDIS", "DR"]
    assert "were not recorded" in str(found.estimates[0].reason)
    assert isinstance(values["FQE"], float)
    assert found.verdict.outcome == "inconclusive"
    assert "behaviour_missing" in {doubt.name for doubt in found.verdict.doubts}
    without = evaluate_logged_turns(turns, num_resamples=50)
    assert without.estimates[-1].reason == "needs --samples"
    assert "no_estimate" in {doubt.name for doubt in without.verdict.doubts}
