"""Advantages against TRL 1.16's conventions.

TRL computes them in the middle of a trainer's method. Its own lines are run here, cut out of the
installed source between two of them, on random rewards.
"""

import inspect
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from credit_cases import NUM_CASES, assert_equal
from trl.trainer import grpo_trainer, rloo_trainer

from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.gdpo import compute_gdpo_advantages, compute_gdpo_scores
from starpo_train.credit.grpo import compute_grpo_advantages
from starpo_train.credit.rloo import compute_rloo_advantages

ATTEMPTS = 4


def cut_out(method, first, last):
    """Source of a method from the line that begins with `first` to before the one with `last`."""
    source = inspect.getsource(method)
    begin = source.rindex("\n", 0, source.index(first)) + 1
    end = source.rindex("\n", 0, source.index(last, begin)) + 1
    return compile(dedent(source[begin:end]), method.__qualname__, "exec")


GRPO_LINES = cut_out(
    grpo_trainer.GRPOTrainer._generate_and_score_completions,
    "unscorable_mask = torch.isnan(rewards_per_func)",
    "# Slice to keep only the local part of the data",
)
RLOO_LINES = cut_out(
    rloo_trainer.RLOOTrainer._generate_and_score_completions,
    "grouped_rewards = rewards.view(-1, num_generations)",
    "is_std_zero = torch.isclose(std_rewards",
)


def run_grpo(rewards_NM, weights_M, **options):
    """Variables of TRL's lines once they have run."""
    trainer = SimpleNamespace(
        reward_weights=weights_M,
        reward_funcs=list(weights_M),
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
    )
    vars(trainer).update(options)
    found = {
        "self": trainer,
        "rewards_per_func": rewards_NM,
        "num_generations": ATTEMPTS,
        "device": "cpu",
    }
    exec(GRPO_LINES, vars(grpo_trainer) | found, found)
    return SimpleNamespace(**found)


def draw(seed, *, kinds=1):
    """Rewards [N, M] of one to four tasks of four attempts, and the tasks' names."""
    source = torch.Generator().manual_seed(seed)
    num_tasks = int(torch.randint(1, 5, (1,), generator=source))
    shape = (num_tasks * ATTEMPTS, kinds)
    rewards_NM = torch.randn(shape, generator=source, dtype=torch.float64)
    return rewards_NM, [n // ATTEMPTS for n in range(len(rewards_NM))]


@pytest.fixture(scope="module")
def golden(write_golden):
    """Cases that agreed; the first of each function are written down when all tests are done."""
    cases = []
    yield cases
    write_golden("credit_trl", "trl", "1.16.0", cases)


def describe(name, rewards, groups, advantages, **more):
    inputs = {"rewards": rewards, "names_N": groups, **more}
    return {"function": name, "inputs": inputs, "outputs": {"advantages": advantages}}


def test_grpo(golden):
    """Epsilon 1e-4; TRL's Bessel correction is a float32 fraction, hence 1e-6."""
    for seed in range(NUM_CASES):
        rewards_NM, groups = draw(seed)
        expected_N = run_grpo(rewards_NM, torch.ones(1)).advantages
        actual_N = compute_grpo_advantages(rewards_NM[:, 0], groups, epsilon=1e-4)
        assert_equal(actual_N, expected_N, tolerance=1e-6)
        golden.append(describe("grpo", rewards_NM[:, 0], groups, expected_N))


def test_dr_grpo(golden):
    """Rewards that are not scaled."""
    for seed in range(NUM_CASES):
        rewards_NM, groups = draw(seed)
        expected_N = run_grpo(rewards_NM, torch.ones(1), scale_rewards="none").advantages
        assert_equal(compute_dr_grpo_advantages(rewards_NM[:, 0], groups), expected_N)
        golden.append(describe("dr_grpo", rewards_NM[:, 0], groups, expected_N))


def test_rloo(golden):
    """The mean of the others, without TRL's further normalisation."""
    for seed in range(NUM_CASES):
        rewards_NM, groups = draw(seed)
        found = {
            "self": SimpleNamespace(normalize_advantages=False),
            "rewards": rewards_NM[:, 0],
            "num_generations": ATTEMPTS,
        }
        exec(RLOO_LINES, vars(rloo_trainer) | found, found)
        assert_equal(compute_rloo_advantages(rewards_NM[:, 0], groups), found["advantages"])
        golden.append(describe("rloo", rewards_NM[:, 0], groups, found["advantages"]))


def test_gdpo(golden):
    """Scores with epsilon 1e-4; TRL divides their batch by std + 1e-4, ours by sqrt(var + 1e-8)."""
    for seed in range(NUM_CASES):
        rewards_NM, groups = draw(seed, kinds=3)
        weights_M = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
        expected = run_grpo(rewards_NM, weights_M, multi_objective_aggregation="normalize_then_sum")
        scores_N, _ = compute_gdpo_scores(rewards_NM, groups, weights_M, epsilon=1e-4)
        assert_equal(scores_N, expected.rewards, tolerance=1e-6)
        actual_N = compute_gdpo_advantages(rewards_NM, groups, weights_M, epsilon=1e-4)
        std = scores_N.std()
        assert_equal(actual_N * std / (std + 1e-4), expected.advantages, tolerance=1e-6)
        golden.append(
            describe("gdpo", rewards_NM, groups, expected.advantages, weights_M=weights_M)
        )


def test_equal_rewards_are_zero_in_both():
    """Four times 0.1: TRL divides rounding by 1e-4 and is near 0, ours is 0."""
    rewards_N = torch.full((4,), 0.1, dtype=torch.float64)
    theirs = run_grpo(rewards_N[:, None], torch.ones(1)).advantages
    assert theirs.abs().max() < 1e-12
    assert compute_grpo_advantages(rewards_N, ["a"] * 4).tolist() == [0.0] * 4
