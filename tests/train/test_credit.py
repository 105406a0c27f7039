"""Advantages against the worked examples of the papers' formulas."""

import math

import pytest
import torch

from starpo_train.credit.bilevel_gae import compute_bilevel_gae, compute_turn_advantages
from starpo_train.credit.critic import compute_turn_returns, fit_turn_values
from starpo_train.credit.gae import compute_gae, compute_returns
from starpo_train.credit.whiten import whiten_masked


def to_tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.tolist() == pytest.approx(expected, abs=tolerance)


def test_bilevel_gae_discounts_across_zero_reward_turns():
    """Rewards (0, 0, 1) with V = 0 give .9025, .95, 1 on every token of each turn.

    Tokens `a` and turn ends `|`: aa| a| aaa|
    """
    ends = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0, 1], dtype=torch.bool)
    advantages, returns = compute_bilevel_gae(to_tensor(0, 0, 1), torch.zeros(9).double(), ends)
    assert_close(advantages, [0.9025] * 3 + [0.95] * 2 + [1.0] * 4)
    assert_close(returns, advantages.tolist())


def test_bilevel_gae_mirrors_a_negative_reward():
    """Reward -1 gives the same numbers with the sign turned."""
    ends = torch.ones(3, dtype=torch.bool)
    advantages, _ = compute_bilevel_gae(to_tensor(0, 0, -1), torch.zeros(3).double(), ends)
    assert_close(advantages, [-0.9025, -0.95, -1.0])


def test_bilevel_gae_of_a_plain_failure_is_zero():
    """Rewards (0, 0, 0) have turn ends all the same, and give zeros."""
    ends = torch.tensor([0, 1, 0, 1, 1], dtype=torch.bool)
    advantages, _ = compute_bilevel_gae(to_tensor(0, 0, 0), torch.zeros(5).double(), ends)
    assert advantages.tolist() == [0.0] * 5


def test_bilevel_gae_of_one_turn_is_its_reward():
    """One turn of three tokens with reward .5 and V = 0 gives .5 on each."""
    ends = torch.tensor([False, False, True])
    advantages, _ = compute_bilevel_gae(to_tensor(0.5), torch.zeros(3).double(), ends)
    assert_close(advantages, [0.5] * 3)


def test_turn_advantages_with_values():
    """r = (.2, -.1, 1), V = (.5, .6, .7), lambda .9 give (.45938, .2215, .3).

    By hand: d2 = 1 - .7 = .3; d1 = -.1 + .95*.7 - .6 = -.035; d0 = .2 + .95*.6 - .5 = .27;
    A1 = -.035 + .855*.3 = .2215; A0 = .27 + .855*.2215 = .4593825.
    """
    actual = compute_turn_advantages(to_tensor(0.2, -0.1, 1), to_tensor(0.5, 0.6, 0.7), lam=0.9)
    assert_close(actual, [0.4593825, 0.2215, 0.3])


def test_bilevel_gae_with_values_inside_the_turn():
    """Two turns of two tokens with V = (.1, .5, .2, .7), r = (.2, 1), lambda .9.

    High level on V(e) = (.5, .7): A1 = .3, A0 = .2 + .95*.7 - .5 + .855*.3 = .6215.
    Returns at turn ends: 1.1215 and 1. Low level: end tokens .6215 and .3; first tokens
    .5 - .1 + .9*.6215 = .95935 and .7 - .2 + .9*.3 = .77.
    """
    advantages, returns = compute_bilevel_gae(
        to_tensor(0.2, 1),
        to_tensor(0.1, 0.5, 0.2, 0.7),
        torch.tensor([False, True, False, True]),
        lam=0.9,
    )
    assert_close(advantages, [0.95935, 0.6215, 0.77, 0.3])
    assert_close(returns, [1.05935, 1.1215, 0.97, 1.0])


def test_truncated_trajectory_bootstraps_from_the_last_value():
    """Rewards (0, 0) cut by a limit at V = .8 are no failure: .7220 and .76 instead of 0."""
    actual = compute_turn_advantages(to_tensor(0, 0), to_tensor(0, 0), bootstrap_value=0.8)
    assert_close(actual, [0.722, 0.76])


def test_bilevel_gae_refuses_rewards_without_turn_ends():
    """Two rewards for one turn end is an error, not a merged turn."""
    with pytest.raises(ValueError, match="one reward per turn end"):
        compute_bilevel_gae(to_tensor(0, 1), torch.zeros(2).double(), torch.tensor([False, True]))


def test_whitening_uses_the_masked_tokens_only():
    """(1, 2, 3) whiten to (-1, 0, 1); the masked-out 100 changes nothing and becomes 0."""
    actual = whiten_masked(to_tensor(1, 100, 2, 3), torch.tensor([True, False, True, True]))
    assert_close(actual, [-1.0, 0.0, 0.0, 1.0], tolerance=1e-7)


def test_whitening_leaves_a_single_token_alone():
    """One token has no deviation, so it keeps its value."""
    actual = whiten_masked(to_tensor(5, 7), torch.tensor([False, True]))
    assert actual.tolist() == [0.0, 7.0]


def test_token_gae_with_values():
    """r = (.2, -.1, 1), V = (.5, .6, .7), lambda .9, gamma .95: (.45938, .2215, .3), as above."""
    advantages, returns = compute_gae(
        to_tensor(0.2, -0.1, 1), to_tensor(0.5, 0.6, 0.7), gamma=0.95, lam=0.9
    )
    assert_close(advantages, [0.4593825, 0.2215, 0.3])
    assert_close(returns, [0.9593825, 0.8215, 1.0])


def test_token_gae_of_a_cut_trajectory_expects_what_the_critic_expects():
    """r = (0, 0), V = (.5, .4) cut at V = .4: d1 = 0, d0 = -.1, where a failure has (-.5, -.4)."""
    rewards, values = to_tensor(0, 0), to_tensor(0.5, 0.4)
    assert_close(compute_gae(rewards, values, bootstrap_value=0.4)[0], [-0.1, 0.0])
    assert_close(compute_gae(rewards, values)[0], [-0.5, -0.4])


def test_token_gae_refuses_rewards_without_values():
    """Two rewards and one value are an error, not a broadcast."""
    with pytest.raises(ValueError, match="2 rewards and 1 values"):
        compute_gae(to_tensor(0, 1), to_tensor(0))


def draw_turns(seed, *, one_token_each):
    """Random turns of a trajectory: rewards [K], values [T], turn ends [T]."""
    generator = torch.Generator().manual_seed(seed)
    num_turns = int(torch.randint(1, 6, (1,), generator=generator))
    longest = 2 if one_token_each else 6
    lengths = torch.randint(1, longest, (num_turns,), generator=generator)
    ends = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    ends[lengths.cumsum(0) - 1] = True
    rewards = torch.randn(num_turns, generator=generator, dtype=torch.float64)
    values = torch.randn(len(ends), generator=generator, dtype=torch.float64)
    return rewards, values, ends


def to_token_rewards(rewards, ends):
    token_rewards = torch.zeros(len(ends), dtype=torch.float64)
    token_rewards[ends] = rewards
    return token_rewards


@pytest.mark.parametrize("seed", range(20))
def test_bilevel_gae_of_one_token_turns_is_token_gae(seed):
    """With one token per turn the low level does nothing, whatever gamma and lambda."""
    rewards, values, ends = draw_turns(seed, one_token_each=True)
    options = {"lam": 0.7, "bootstrap_value": 0.3}
    actual, _ = compute_bilevel_gae(rewards, values, ends, gamma_turn=0.9, **options)
    assert_close(actual, compute_gae(rewards, values, gamma=0.9, **options)[0].tolist())


@pytest.mark.parametrize("seed", range(20))
def test_bilevel_gae_without_discount_is_token_gae(seed):
    """With every gamma and lambda 1 both levels are rewards to come + V at the cut - V(t)."""
    rewards, values, ends = draw_turns(seed, one_token_each=False)
    actual, _ = compute_bilevel_gae(rewards, values, ends, gamma_turn=1.0, bootstrap_value=0.3)
    expected, _ = compute_gae(to_token_rewards(rewards, ends), values, bootstrap_value=0.3)
    assert_close(actual, expected.tolist())
    assert_close(
        expected, (compute_returns(to_token_rewards(rewards, ends)) + 0.3 - values).tolist()
    )


def test_levels_differ_where_lambda_is_not_one():
    """Two turns of two tokens, r = (0, 1), V = 0, lambda .5: lambda is taken once per level.

    High level: (.5, 1); low level: (.25, .5), (.5, 1). Token GAE: .125, .25, .5, 1.
    """
    ends, values = torch.tensor([False, True, False, True]), torch.zeros(4).double()
    actual, _ = compute_bilevel_gae(to_tensor(0, 1), values, ends, gamma_turn=1.0, lam=0.5)
    assert_close(actual, [0.25, 0.5, 0.5, 1.0])
    assert_close(compute_gae(to_tensor(0, 0, 0, 1), values, lam=0.5)[0], [0.125, 0.25, 0.5, 1.0])


def test_turn_returns_discount_what_is_still_to_come():
    """Rewards (0, 0, 1) at gamma .95 return (.9025, .95, 1)."""
    assert compute_turn_returns([0.0, 0.0, 1.0], gamma_turn=0.95) == pytest.approx(
        [0.9025, 0.95, 1.0]
    )


def test_critic_finds_a_linear_value_on_held_out_tasks():
    """Returns that are a linear function of the features are predicted for unseen tasks."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=generator)
    returns = features @ torch.tensor([1.0, -2.0, 0.0, 0.5]) + 3.0
    fitted = fit_turn_values(
        features, returns, torch.arange(200) // 4, torch.ones(200, dtype=torch.bool)
    )
    assert fitted.explained_variance > 0.99
    assert_close(fitted.values_K, returns.tolist(), tolerance=0.1)


def test_critic_does_not_learn_a_task_from_itself():
    """Features that only name the task say nothing about held-out tasks: no variance explained."""
    generator = torch.Generator().manual_seed(0)
    returns = torch.randn(40, generator=generator)
    fitted = fit_turn_values(
        torch.eye(40), returns, torch.arange(40), torch.ones(40, dtype=torch.bool)
    )
    assert fitted.explained_variance < 0.05


def test_critic_of_one_task_is_the_mean_and_claims_nothing():
    """Eight turns, 32 features: a fit to its own returns would leave every advantage 0."""
    features = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    returns, one_task = to_tensor(1, 0, 0, 1, 0, 0, 0, 1), torch.zeros(8, dtype=torch.long)
    fitted = fit_turn_values(features, returns, one_task, torch.ones(8, dtype=torch.bool))
    assert_close(fitted.values_K, [3 / 8] * 8)
    assert math.isnan(fitted.explained_variance)
    nothing = fit_turn_values(features, returns, one_task, torch.zeros(8, dtype=torch.bool))
    assert_close(nothing.values_K, [0.0] * 8)


def test_explained_variance_is_that_of_held_out_tasks():
    """Two tasks of one fold each; values are the other's mean: 1 - mean (1, 1, 1, 1) / .25 = -3."""
    returns = to_tensor(0, 0, 1, 1)
    tasks, usable = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    fitted = fit_turn_values(torch.zeros(4, 3), returns, tasks, usable)
    assert_close(fitted.values_K, [1, 1, 0, 0])
    assert fitted.explained_variance == pytest.approx(-3)


def test_critic_ignores_returns_of_truncated_runs():
    """Absurd returns outside the usable mask leave the fit as it was."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 2, generator=generator)
    returns = features[:, 0].clone()
    usable = torch.arange(60) % 3 != 0
    expected = fit_turn_values(features, returns, torch.arange(60), usable)
    returns[~usable] = 1e6
    actual = fit_turn_values(features, returns, torch.arange(60), usable)
    assert torch.equal(actual.values_K, expected.values_K)
