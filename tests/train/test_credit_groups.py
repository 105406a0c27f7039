"""Advantages against other attempts at the same task, by hand."""

import itertools
import math

import pytest
import torch

from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.filters import (
    compute_soft_weights,
    select_snr_groups,
    select_top_groups,
)
from starpo_train.credit.gdpo import compute_gdpo_advantages, compute_gdpo_scores
from starpo_train.credit.gigpo import compute_gigpo_advantages
from starpo_train.credit.groups import build_groups
from starpo_train.credit.grpo import compute_grpo_advantages
from starpo_train.credit.maxrl import compute_maxrl_advantages
from starpo_train.credit.reinforce_pp import (
    compute_reinforce_pp_advantages,
    compute_reinforce_pp_baseline_advantages,
    compute_reinforce_pp_returns,
)
from starpo_train.credit.rloo import compute_rloo_advantages

ESTIMATORS = [
    compute_grpo_advantages,
    compute_dr_grpo_advantages,
    compute_rloo_advantages,
    compute_maxrl_advantages,
]


def to_tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.tolist() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("compute", "options", "expected"),
    [
        (compute_grpo_advantages, {}, [1.1547, -0.57735, -0.57735]),
        (compute_grpo_advantages, {"epsilon": 1e-4}, [1.1545, -0.5773, -0.5773]),
        (compute_grpo_advantages, {"epsilon": 0.0, "ddof": 0}, [1.4142, -0.7071, -0.7071]),
        (compute_dr_grpo_advantages, {}, [0.6667, -0.3333, -0.3333]),
        (compute_rloo_advantages, {}, [1.0, -0.5, -0.5]),
        (compute_maxrl_advantages, {}, [2.0, -1.0, -1.0]),
    ],
    ids=["verl", "trl", "art", "dr_grpo", "rloo", "maxrl"],
)
def test_one_success_in_three(compute, options, expected):
    """Rewards (1, 0, 0) as published, and as verl, TRL and ART have them."""
    actual = compute(to_tensor(1, 0, 0), ["a", "a", "a"], **options)
    assert_close(actual, expected, tolerance=5e-5)


def test_groups_do_not_mix():
    """Interleaved groups are compared within themselves: std of (4, 2) is sqrt(2)."""
    rewards, names = to_tensor(4, 1, 2, 0), ["a", "b", "a", "b"]
    groups = build_groups(rewards, names)
    assert_close(groups.mean_G, [3.0, 0.5])
    assert_close(groups.std_G, [math.sqrt(2), math.sqrt(0.5)])
    assert groups.size_G.tolist() == [2, 2]
    assert groups.group_of_N.tolist() == [0, 1, 0, 1]
    actual = compute_grpo_advantages(rewards, names)
    assert_close(actual, [0.7071, 0.7071, -0.7071, -0.7071], tolerance=5e-5)


@pytest.mark.parametrize("compute", ESTIMATORS)
@pytest.mark.parametrize("singleton", ["drop", "global_baseline"])
def test_equal_rewards_give_zero_not_noise(compute, singleton):
    """Three times 0.1 has a rounding error in its mean; the advantage is still exactly 0."""
    rewards = to_tensor(0.1, 0.1, 0.1, 1, 0)
    actual = compute(rewards, ["a", "a", "a", "b", "b"], singleton=singleton)
    assert actual.tolist()[:3] == [0.0, 0.0, 0.0]
    assert actual[3] > 0 > actual[4]


@pytest.mark.parametrize(
    ("compute", "overall", "learned"),
    [
        # mean .5 and std .5774 of all; V = (.75, 9, 9, .25)
        (compute_grpo_advantages, [0.8660, -0.8660], [0.4330, -0.4330]),
        (compute_dr_grpo_advantages, [0.5, -0.5], [0.25, -0.25]),
        (compute_rloo_advantages, [2 / 3, -2 / 3], [0.25, -0.25]),
        (compute_maxrl_advantages, [1.0, -1.0], [1 / 3, -1.0]),
    ],
)
def test_singletons_never_get_their_raw_reward(compute, overall, learned):
    """A lone attempt is dropped by default, or compared with all, or with a critic's value."""
    rewards, names = to_tensor(1, 1, 0, 0), ["lone", "a", "a", None]
    dropped = compute(rewards, names)
    assert dropped.tolist()[::3] == [0.0, 0.0]
    compared = compute(rewards, names, singleton="global_baseline")
    assert_close(compared[::3], overall, tolerance=5e-5)
    valued = compute(
        rewards, names, singleton="learned_value", values_N=to_tensor(0.75, 9, 9, 0.25)
    )
    assert_close(valued[::3], learned, tolerance=5e-5)
    assert compared[1:3].tolist() == valued[1:3].tolist() == dropped[1:3].tolist()


def test_a_learned_baseline_has_to_be_given():
    """Asked for a critic's values and given none, nothing is made up."""
    with pytest.raises(ValueError, match="without values_N"):
        compute_grpo_advantages(to_tensor(1, 0), [None, None], singleton="learned_value")


def test_runs_without_a_task_are_not_one_group():
    """Two runs that name no task are two lone runs."""
    assert compute_grpo_advantages(to_tensor(1, 0), [None, None]).tolist() == [0.0, 0.0]


def test_maxrl_of_rewards_below_zero_is_zero():
    """Mean -1 of (0, -2) cannot scale anything; (2, 0) beside it gives 1 and -1."""
    actual = compute_maxrl_advantages(to_tensor(0, -2, 2, 0), ["a", "a", "b", "b"])
    assert actual.tolist() == [0.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize("compute", ESTIMATORS)
@pytest.mark.parametrize("singleton", ["drop", "global_baseline", "learned_value"])
def test_order_of_trajectories_does_not_matter(compute, singleton):
    """Every order of five trajectories gives each of them the same advantage."""
    rewards, names = to_tensor(1, 0.2, 0.3, 0.9, 0.4), ["a", "b", "a", None, "b"]
    values = to_tensor(0.5, 0.4, 0.3, 0.2, 0.1)
    expected = compute(rewards, names, singleton=singleton, values_N=values)
    for order in itertools.permutations(range(5)):
        actual = compute(
            rewards[list(order)],
            [names[i] for i in order],
            singleton=singleton,
            values_N=values[list(order)],
        )
        assert_close(actual, expected[list(order)].tolist(), tolerance=1e-12)


@pytest.mark.parametrize("compute", ESTIMATORS)
def test_the_dtype_given_is_kept(compute):
    """float32 rewards give float32 advantages."""
    assert compute(torch.tensor([1.0, 0.0]), ["a", "a"]).dtype == torch.float32


def test_gdpo_brings_rewards_to_one_scale():
    """A reward of 0..1 and one of 0..1000 count the same.

    Attempts (1, 0) and (0, 1000): scores .7071 - .7071 = 0 where the sum's GRPO has -.7071, .7071.
    With weights (2, 1) the scores are +-.7071, and whitened (std 1) the same again.
    """
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1000.0]], dtype=torch.float64)
    scores, _ = compute_gdpo_scores(rewards, ["a", "a"], to_tensor(1, 1))
    assert_close(scores, [0.0, 0.0], tolerance=2e-6)
    actual = compute_gdpo_advantages(rewards, ["a", "a"], to_tensor(2, 1))
    assert_close(actual, [0.7071, -0.7071], tolerance=5e-5)


def test_gdpo_whitens_over_trajectories_that_have_something_to_compare():
    """Docstring's example: +-.8660; a group of equal rewards and a lone run stay exactly 0."""
    rewards = torch.tensor(
        [[1, 0], [0, 0], [1, 1], [0, 1], [0.1, 3], [0.1, 3], [0.1, 3], [9, 9]],
        dtype=torch.float64,
    )
    names = ["a", "a", "b", "b", "c", "c", "c", None]
    actual = compute_gdpo_advantages(rewards, names, to_tensor(1, 1))
    assert_close(actual, [0.8660, -0.8660, 0.8660, -0.8660, 0, 0, 0, 0], tolerance=5e-5)
    assert actual.tolist()[4:] == [0.0] * 4


def test_gdpo_refuses_what_it_cannot_weigh():
    """One weight for two rewards, and a critic's value of their sum."""
    rewards = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="1 weights for 2 rewards"):
        compute_gdpo_advantages(rewards, ["a", "a"], to_tensor(1))
    with pytest.raises(ValueError, match="values the sum"):
        compute_gdpo_advantages(rewards, ["a", "a"], to_tensor(1, 1), singleton="learned_value")


def test_reinforce_pp_whitens_returns_over_all_tokens():
    """Rewards (0, 1) and (0, 0): at gamma .5 returns (.5, 1, 0, 0), mean .375, std .4787."""
    rewards = to_tensor(0, 1, 0, 0)
    assert_close(compute_reinforce_pp_returns(rewards, [2, 2], gamma=0.5), [0.5, 1.0, 0.0, 0.0])
    actual = compute_reinforce_pp_advantages(rewards, [2, 2], gamma=0.5)
    assert_close(actual, [0.2611, 1.3056, -0.7833, -0.7833], tolerance=5e-5)
    actual = compute_reinforce_pp_advantages(rewards, [2, 2])
    assert_close(actual, [0.8660, 0.8660, -0.8660, -0.8660], tolerance=5e-5)


def test_reinforce_pp_baseline_whitens_what_is_compared():
    """Docstring's example: 1.5, -.5 ...; an equal group of 0.1 and a lone run stay exactly 0."""
    actual = compute_reinforce_pp_baseline_advantages(
        to_tensor(1, 0, 0, 0.1, 0.1, 0.1, 7), [*"aaabbb", None], [1, 2, 1, 1, 1, 2, 3]
    )
    assert_close(actual[:4], [1.5, -0.5, -0.5, -0.5], tolerance=1e-6)
    assert actual.tolist()[4:] == [0.0] * 7


def test_gigpo_compares_turns_that_saw_the_same():
    """Docstring's example, at omega 1 and 2; the step part alone is what doubles."""
    episode = compute_dr_grpo_advantages(to_tensor(1, 0), ["a", "a"])
    given = (episode, ["a", "a"], to_tensor(0.95, 1, 0, 0), torch.tensor([0, 0, 1, 1]), [*"sxsy"])
    assert_close(compute_gigpo_advantages(*given), [0.975, 0.5, -0.975, -0.5])
    assert_close(compute_gigpo_advantages(*given, omega=2.0), [1.45, 0.5, -1.45, -0.5])
    episode = compute_grpo_advantages(to_tensor(1, 0), ["a", "a"])
    actual = compute_gigpo_advantages(episode, *given[1:], normalize="mean_std")
    assert_close(actual, [1.41421, 0.70711, -1.41421, -0.70711], tolerance=5e-5)


def test_gigpo_anchors_hold_within_a_task():
    """The same observation in two tasks, or in two runs without a task, is not compared."""
    returns, owners = to_tensor(1, 0), torch.tensor([0, 1])
    for names in (["a", "b"], [None, None]):
        actual = compute_gigpo_advantages(to_tensor(0, 0), names, returns, owners, ["s", "s"])
        assert actual.tolist() == [0.0, 0.0]


def test_gigpo_compares_returns_to_a_state_within_one_run():
    """A run that is at `s` twice, with .5 and 1 still to come: -.25 and .25."""
    actual = compute_gigpo_advantages(
        to_tensor(0), [None], to_tensor(0.5, 1), torch.tensor([0, 0]), ["s", "s"]
    )
    assert_close(actual, [-0.25, 0.25])


def test_starpo_s_keeps_the_quarter_of_highest_deviation():
    """int(.25 * 8) = 2 groups: those with std .9 and .7."""
    stds = to_tensor(0.1, 0.9, 0.0, 0.3, 0.7, 0.2, 0.0, 0.4)
    assert select_top_groups(stds, keep=0.25).nonzero().flatten().tolist() == [1, 4]


def test_starpo_s_never_keeps_a_group_without_deviation():
    """Asked for three quarters of (0, 0, .5, 0), only the one that can teach is left."""
    actual = select_top_groups(to_tensor(0, 0, 0.5, 0), keep=0.75)
    assert actual.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("stds", "top_p", "expected"),
    [
        ([0.5, 0, 0.3, 0.2], 0.8, [True, False, True, False]),
        ([0.5, 0, 0.3, 0.2], 0.82, [True, False, True, True]),  # .81 is more than .8
        ([0.5, 0, 0.3, 0.2], 0.81, [True, False, True, False]),  # .8 is .81 less the slack
        ([0.2, 0.5, 0.3], 0.5, [False, True, False]),
        ([0.5, 0, 0.3, 0.2], 1.0, [True, False, True, True]),
        ([0.004, 0.006], 0.9, [False, False]),  # .009 is less than the slack
        ([0.0, 0.0], 0.9, [False, False]),
        ([0.0, 0.0], 1.0, [False, False]),
        ([], 0.9, []),
    ],
)
def test_snr_filter_stops_at_its_share_of_the_deviation(stds, top_p, expected):
    """Highest first until top_p of the sum less .01 is reached; without deviation, none."""
    assert select_snr_groups(to_tensor(*stds), top_p=top_p).tolist() == expected


def test_soft_filter_weighs_by_deviation():
    """(.5, 0, .25) weigh (1, 0, .5), and all 0 without any deviation."""
    assert compute_soft_weights(to_tensor(0.5, 0, 0.25)).tolist() == [1.0, 0.0, 0.5]
    assert compute_soft_weights(to_tensor(0, 0)).tolist() == [0.0, 0.0]
