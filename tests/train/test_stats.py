"""Statistics against numbers worked out by hand and by independent computations."""

from math import comb, inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from starpo_train.stats import (
    adjust_holm,
    estimate_mean,
    estimate_quantile_change,
    estimate_relative_change,
    estimate_success_change,
    estimate_success_rate,
    p_value_below,
    pass_hat_k,
    tango_z,
    tasks_needed,
    weighted_quantiles,
)


def test_mean_interval_by_hand():
    """0, 1/2, 1: SE is 0.5 / sqrt(3), t(0.975, 2 df) is 4.30265."""
    estimate = estimate_mean([0.0, 0.5, 1.0])
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(0.2886751, abs=1e-7)
    assert estimate.high == pytest.approx(0.5 + 4.302653 * 0.2886751, abs=1e-5)
    assert estimate.low == pytest.approx(0.5 - 4.302653 * 0.2886751, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30).filter(lambda x: np.std(x) > 1e-6))
def test_mean_interval_is_scipys(values):
    """The interval is the one scipy's one-sample t test inverts."""
    estimate = estimate_mean(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert estimate.low == pytest.approx(expected.low, abs=1e-9)
    assert estimate.high == pytest.approx(expected.high, abs=1e-9)


def test_one_task_bounds_nothing():
    """A single task has no known spread."""
    estimate = estimate_mean([0.7])
    assert (estimate.value, estimate.low, estimate.high) == (0.7, -inf, inf)
    assert estimate_success_change([1.0]).low == -inf
    assert estimate_relative_change([2.0], [1.0]).high == inf
    assert p_value_below([-1.0], 0.0) == 1.0


def test_bad_values_are_refused():
    """No values, nan and success outside [-1, 1] are errors that name the value."""
    with pytest.raises(ValueError, match="no values"):
        estimate_mean([])
    with pytest.raises(ValueError, match="nan is not finite"):
        estimate_mean([0.1, float("nan")])
    with pytest.raises(ValueError, match=r"1\.5 is outside"):
        estimate_success_change([1.5, 0.0])


def trinomial_z(gains: int, losses: int, num_tasks: int, change: float) -> float:
    """Score statistic with the constrained likelihood maximised numerically."""
    ties = num_tasks - gains - losses

    def negative_log_likelihood(loss_rate: float) -> float:
        rates = (loss_rate + change, loss_rate, 1 - 2 * loss_rate - change)
        counts = (gains, losses, ties)
        return -sum(n * np.log(max(r, 1e-300)) for n, r in zip(counts, rates, strict=True) if n)

    low, high = max(0.0, -change), (1 - change) / 2
    loss_rate = optimize.minimize_scalar(
        negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = num_tasks * (2 * loss_rate + change - change**2)
    return (gains - losses - num_tasks * change) / sqrt(variance)


@pytest.mark.parametrize(
    ("gains", "losses", "num_tasks", "change"),
    [(5, 3, 40, -0.1), (0, 4, 60, -0.03), (12, 1, 50, 0.05), (2, 2, 30, -0.2)],
)
def test_tango_statistic_is_the_score_test(gains, losses, num_tasks, change):
    """The closed form is the score test with the likelihood maximised numerically."""
    expected = trinomial_z(gains, losses, num_tasks, change)
    assert tango_z(gains, losses, num_tasks, change) == pytest.approx(expected, abs=1e-4)


def test_tango_by_hand_without_any_difference():
    """60 ties at -0.03: the loss rate is 0.03, z = 1.8 / sqrt(60 x 0.03 x 0.97)."""
    assert tango_z(0, 0, 60, -0.03) == pytest.approx(1.8 / sqrt(60 * 0.0291))


def test_ties_alone_do_not_prove_equality():
    """60 tied tasks leave 4 points open, 100 leave 2.6; t would say zero for both."""
    z2 = 1.6448536**2
    for num_tasks in (60, 100):
        estimate = estimate_success_change(np.zeros(num_tasks))
        # z^2 = n d^2 / (d (1 - d)), so d = z^2 / (n + z^2)
        assert estimate.low == pytest.approx(-z2 / (num_tasks + z2), abs=1e-6)
        assert estimate.high == pytest.approx(-estimate.low)


def test_success_bound_turns_where_the_p_value_does():
    """At the upper bound of a 90% interval the one-sided p-value is 5%, by t and by Tango."""
    rng = np.random.default_rng(0)
    fractional = rng.uniform(-1, 1, 50)
    whole = rng.choice([-1.0, 0.0, 1.0], 50, p=[0.3, 0.5, 0.2])
    for change_T in (fractional, whole):
        high = estimate_success_change(change_T, confidence=0.90).high
        assert p_value_below(change_T, high) == pytest.approx(0.05, abs=1e-6)


def test_dense_fractional_differences_use_t():
    """Twenty or more tasks that differ by fractions are left to the t interval."""
    change_T = np.linspace(-0.5, 0.75, 40)
    assert estimate_success_change(change_T) == estimate_mean(change_T, confidence=0.90)


def test_relative_change_turns_where_the_paired_t_test_does():
    """Fieller's upper end is the ratio at which the paired t test reaches 5%."""
    rng = np.random.default_rng(1)
    base_T = rng.gamma(5, 100, 40)
    cand_T = 1.1 * base_T + rng.normal(0, 60, 40)
    estimate = estimate_relative_change(cand_T, base_T, confidence=0.90)
    assert estimate.value == pytest.approx(cand_T.mean() / base_T.mean() - 1)
    for end, side in ((estimate.high, "less"), (estimate.low, "greater")):
        test = stats.ttest_1samp(cand_T - (1 + end) * base_T, 0.0, alternative=side)
        assert test.pvalue == pytest.approx(0.05, abs=1e-9)


def test_relative_change_of_proportional_tasks_is_exact():
    """Every task 20% longer: the ratio is known without error."""
    base_T = np.array([300.0, 350.0, 400.0])
    estimate = estimate_relative_change(1.2 * base_T, base_T)
    assert [estimate.low, estimate.value, estimate.high] == pytest.approx([0.2, 0.2, 0.2])


def test_relative_change_is_unbounded_when_the_baseline_is_near_zero():
    """A baseline mean within its own noise bounds no ratio."""
    estimate = estimate_relative_change([1.0, 2.0, 3.0], [0.0, 0.0, 1.0])
    assert (estimate.low, estimate.high) == (-inf, inf)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_weighted_quantile_is_numpys_on_repeated_values(data):
    """Task multiplicities mean the same as repeating the tasks' values."""
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    values = [data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for n in sizes]
    counts = data.draw(
        st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)).filter(any)
    )
    quantile = data.draw(st.sampled_from([0.5, 0.95, 0.99]))
    repeated = [v for task, n in zip(values, counts, strict=True) for v in task * n]
    flat = np.array([v for task in values for v in task], dtype=float)
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    actual = weighted_quantiles(flat, tasks, np.array([counts]), quantile)
    assert actual[0] == np.quantile(repeated, quantile, method="inverted_cdf")


def test_bootstrap_of_identical_policies_is_exactly_zero():
    """Pairing: the same tasks are drawn for both sides, so equal sides never differ."""
    rng = np.random.default_rng(2)
    side = [rng.integers(1, 20, 4) for _ in range(40)]
    estimate = estimate_quantile_change(side, side, quantile=0.95, num_resamples=200)
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.0, 0.0)


def test_bootstrap_is_seeded_and_independent_of_chunks(monkeypatch):
    """The same seed gives the same bounds, however the resamples are cut."""
    rng = np.random.default_rng(3)
    cand = [rng.integers(1, 20, 3) for _ in range(30)]
    base = [rng.integers(1, 20, 3) for _ in range(30)]
    first = estimate_quantile_change(cand, base, quantile=0.95, num_resamples=300, seed=7)
    monkeypatch.setattr("starpo_train.stats._CHUNK_CELLS", 1000)
    assert estimate_quantile_change(cand, base, quantile=0.95, num_resamples=300, seed=7) == first


def test_bootstrap_spread_matches_a_plain_loop():
    """The bounds agree with a bootstrap written as a loop over tasks, within resampling noise."""
    rng = np.random.default_rng(4)
    cand = [rng.gamma(4, 2, 3) for _ in range(60)]
    base = [rng.gamma(4, 2, 3) for _ in range(60)]
    estimate = estimate_quantile_change(cand, base, quantile=0.9, num_resamples=4000)
    loop = []
    for _ in range(4000):
        drawn = rng.integers(0, 60, 60)
        top = np.quantile(np.concatenate([cand[t] for t in drawn]), 0.9, method="inverted_cdf")
        low = np.quantile(np.concatenate([base[t] for t in drawn]), 0.9, method="inverted_cdf")
        loop.append(top / low - 1)
    assert estimate.standard_error == pytest.approx(np.std(loop), rel=0.08)
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(loop, [0.05, 0.95]), abs=0.03)


def test_tasks_needed_is_the_published_table():
    """sigma 0.31: 661 tasks for three points and 238 for five, at 5% and 80% power."""
    assert tasks_needed(task_deviation=0.31, distance=0.03) == 661
    assert tasks_needed(task_deviation=0.31, distance=0.05) == 238
    assert tasks_needed(task_deviation=0.31, distance=0.0) is None
    assert tasks_needed(task_deviation=inf, distance=0.03) is None


def test_tasks_needed_gives_the_promised_power():
    """That many simulated tasks decide in 80% of trials, within Monte-Carlo error."""
    rng = np.random.default_rng(5)
    num_tasks = tasks_needed(task_deviation=0.3, distance=0.1)
    samples = rng.normal(0, 0.3, (2000, num_tasks))
    low = samples.mean(1) - stats.t.ppf(0.95, num_tasks - 1) * samples.std(1, ddof=1) / sqrt(
        num_tasks
    )
    assert (low > -0.1).mean() == pytest.approx(0.80, abs=3 * sqrt(0.16 / 2000))


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 become 0.03, 0.06 and, never decreasing, 0.06."""
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def test_pass_hat_k_by_hand():
    """4 of 4 and 2 of 4 at k = 2: (1 + 1/6) / 2."""
    assert pass_hat_k([4, 2], [4, 4], 2) == pytest.approx(7 / 12)
    assert pass_hat_k([0], [5], 1) == 0.0


def test_pass_hat_k_needs_k_trials_of_every_task():
    """A task with too few trials makes the number unknown, not smaller."""
    assert pass_hat_k([4, 3], [4, 3], 4) is None
    assert pass_hat_k([], [], 1) is None
    with pytest.raises(ValueError, match="k is 0"):
        pass_hat_k([1], [1], 0)


def test_pass_hat_k_is_unbiased():
    """Averaged over every outcome of 5 trials it is p^3 exactly."""
    p = 0.6
    mean = sum(
        comb(5, c) * p**c * (1 - p) ** (5 - c) * (pass_hat_k([c], [5], 3) or 0) for c in range(6)
    )
    assert mean == pytest.approx(p**3)


def test_success_rate_of_a_perfect_policy_is_wilsons():
    """100 of 100 solved: Wilson's lower end is n / (n + z^2), t would say exactly one."""
    estimate = estimate_success_rate(np.ones(100))
    assert estimate.low == pytest.approx(100 / (100 + 1.959964**2))
    assert estimate.high == 1.0


def test_success_rate_is_t_when_tasks_vary():
    """Thirty tasks at every level: the t interval, unchanged."""
    rates_T = np.tile([0.25, 0.5, 0.75], 10)
    assert estimate_success_rate(rates_T) == estimate_mean(rates_T)


def test_sparse_fractional_differences_are_padded():
    """Two of forty tasks differ, by fractions: t with one whole gain and one whole loss added."""
    change_T = np.zeros(40)
    change_T[:2] = (0.5, -0.25)
    padded = estimate_mean(np.append(change_T, (1.0, -1.0)), confidence=0.90)
    estimate = estimate_success_change(change_T)
    assert (estimate.low, estimate.high) == (padded.low, padded.high)
    assert estimate.value == 0.25 / 40
    assert p_value_below(change_T, estimate.high) == pytest.approx(0.05)
