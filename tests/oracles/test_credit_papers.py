"""Bi-level GAE and GiGPO against their formulas, written again as plain loops over numbers.

RAGEN and GiGPO's repository are no packages that could be installed, so no foreign code runs here:
these loops follow the papers (arXiv 2504.20073 and 2505.10978) and share nothing with ours.
"""

import numpy as np
import torch
from credit_cases import NUM_CASES, assert_equal, make_batch

from starpo_train.credit.bilevel_gae import compute_bilevel_gae
from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.gigpo import compute_gigpo_advantages
from starpo_train.credit.grpo import compute_grpo_advantages


def loop_bilevel(rewards, values, ends, *, high, low, lam, bootstrap):
    """A trajectory's [T]: turn by turn from the end, then token by token from the end."""
    places = [t for t in range(len(values)) if ends[t]]
    turn_returns = {}
    following = 0.0
    for k in range(len(places) - 1, -1, -1):
        value = values[places[k]]
        next_value = values[places[k + 1]] if k + 1 < len(places) else bootstrap
        following = rewards[k] + high * next_value - value + high * lam * following
        turn_returns[places[k]] = following + value
    advantages = [0.0] * len(values)
    for t in range(len(values) - 1, -1, -1):
        if ends[t]:
            advantages[t] = turn_returns[t] - values[t]
        else:
            delta = low * values[t + 1] - values[t]
            advantages[t] = delta + low * lam * advantages[t + 1]
    return advantages


def test_bilevel_gae():
    """Turns of any length, zero rewards among them, ended and cut trajectories, to 1e-10."""
    num_compared = num_zero = 0
    for seed in range(NUM_CASES // 2):
        batch = make_batch(seed)
        for n, sampled in enumerate(batch.sampled):
            ends = batch.turn_ends_NL[n][sampled]
            values = batch.values_NL[n][sampled]
            rewards = batch.rewards_NL[n][sampled][ends]
            if n % 3 == 0:
                rewards[-1] = 0.0
            if n % 6 == 0:
                rewards = torch.zeros_like(rewards)
            bootstrap = 0.7 if n % 2 else 0.0
            expected = loop_bilevel(
                *(rewards.tolist(), values.tolist(), ends.tolist()),
                high=batch.gamma,
                low=0.9,
                lam=batch.lam,
                bootstrap=bootstrap,
            )
            actual, returns = compute_bilevel_gae(
                *(rewards, values, ends),
                gamma_turn=batch.gamma,
                gamma_token=0.9,
                lam=batch.lam,
                bootstrap_value=bootstrap,
            )
            assert_equal(actual, torch.tensor(expected, dtype=torch.float64))
            assert_equal(returns - values, actual)
            num_compared += 1
            num_zero += int((rewards == 0).any())
    assert num_compared > NUM_CASES
    assert num_zero > NUM_CASES // 5


def loop_gigpo(rewards, tasks, turns, *, omega, gamma, divide):
    """Turns are (trajectory, reward, anchor) in order; a list of advantages, one for each."""

    def compare(value, others):
        if len(others) == 1:
            return 0.0
        scale = np.std(others, ddof=1) + 1e-6 if divide else 1.0
        return (value - np.mean(others)) / scale

    returns = [0.0] * len(turns)
    for k in range(len(turns) - 1, -1, -1):
        is_last = k + 1 == len(turns) or turns[k + 1][0] != turns[k][0]
        returns[k] = turns[k][1] + (0.0 if is_last else gamma * returns[k + 1])
    advantages = []
    for k, (n, _, anchor) in enumerate(turns):
        episode = compare(
            rewards[n], [r for r, t in zip(rewards, tasks, strict=True) if t == tasks[n]]
        )
        same = [
            returns[j]
            for j, (m, _, other) in enumerate(turns)
            if tasks[m] == tasks[n] and other == anchor
        ]
        advantages.append(episode + omega * compare(returns[k], same))
    return advantages, returns


def test_gigpo():
    """Anchors that recur within and between trajectories and between tasks, to 1e-10."""
    num_lone = 0
    for seed in range(NUM_CASES):
        source = np.random.default_rng(seed)
        tasks = [f"task{source.integers(3)}" for _ in range(source.integers(2, 9))]
        rewards = source.normal(size=len(tasks)).tolist()
        turns = [
            (n, float(source.normal()), int(source.integers(4)))
            for n in range(len(tasks))
            for _ in range(source.integers(1, 5))
        ]
        omega, gamma, divide = float(source.uniform(0, 2)), float(source.uniform(0.8, 1)), seed % 2
        expected, returns = loop_gigpo(
            rewards, tasks, turns, omega=omega, gamma=gamma, divide=divide
        )
        compute = compute_grpo_advantages if divide else compute_dr_grpo_advantages
        actual = compute_gigpo_advantages(
            compute(torch.tensor(rewards, dtype=torch.float64), tasks),
            tasks,
            torch.tensor(returns, dtype=torch.float64),
            torch.tensor([n for n, _, _ in turns]),
            [anchor for _, _, anchor in turns],
            omega=omega,
            normalize="mean_std" if divide else "mean",
        )
        assert_equal(actual, torch.tensor(expected, dtype=torch.float64))
        num_lone += sum(tasks.count(task) == 1 for task in tasks)
    assert num_lone > 10
