"""Advantages against verl 0.9.1's, on random padded batches with tool tokens between turns.

Before whitening to 1e-10. verl's whitening divides by the number of tokens + 1e-8, which moves its
mean by up to 1e-8 of itself per token, so whitened advantages are compared to 1e-7.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from credit_cases import NUM_CASES, assert_equal, make_batch
from verl.trainer.ppo import core_algos as verl
from verl.utils import torch_functional as verl_functional

from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.gae import compute_gae
from starpo_train.credit.gdpo import compute_gdpo_scores
from starpo_train.credit.groups import build_groups
from starpo_train.credit.grpo import compute_grpo_advantages
from starpo_train.credit.reinforce_pp import (
    compute_reinforce_pp_advantages,
    compute_reinforce_pp_baseline_advantages,
    compute_reinforce_pp_returns,
)
from starpo_train.credit.rloo import compute_rloo_advantages
from starpo_train.credit.whiten import whiten_masked

WHITENED = 1e-7


def first_of_each(advantages_NL, batch):
    """One number per trajectory, after checking that all its tokens have the same."""
    first_N = torch.stack(
        [row[mask][0] for row, mask in zip(advantages_NL, batch.sampled, strict=True)]
    )
    assert torch.equal(advantages_NL, first_N[:, None] * batch.mask_NL)
    return first_N


@pytest.fixture(scope="module")
def golden(write_golden):
    """Cases that agreed; the first of each function are written down when all tests are done."""
    cases = []
    yield cases
    write_golden("credit_verl", "verl", "0.9.1", cases)


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "options"),
    [
        ("grpo", compute_grpo_advantages, verl.compute_grpo_outcome_advantage, {}),
        (
            "grpo_vectorized",
            compute_grpo_advantages,
            verl.compute_grpo_vectorized_outcome_advantage,
            {},
        ),
        (
            "dr_grpo",
            compute_dr_grpo_advantages,
            verl.compute_grpo_outcome_advantage,
            {"norm_adv_by_std_in_grpo": False},
        ),
        ("rloo", compute_rloo_advantages, verl.compute_rloo_outcome_advantage, {}),
        (
            "rloo_vectorized",
            compute_rloo_advantages,
            verl.compute_rloo_vectorized_outcome_advantage,
            {},
        ),
    ],
    ids=["grpo", "grpo_vectorized", "dr_grpo", "rloo", "rloo_vectorized"],
)
def test_advantages_of_groups(name, ours, theirs, options, golden):
    """One number per trajectory, on each of its sampled tokens and 0 elsewhere.

    verl's vectorised GRPO takes rewards as float32, which counts the more the closer they are: 1e-6
    there, and where a group's deviation is below .5, that much more.
    """
    for seed in range(NUM_CASES):
        batch = make_batch(seed)
        given = (batch.rewards_NL.clone(), batch.mask_NL, batch.names)
        expected_N = first_of_each(theirs(*given, **options)[0], batch)
        std_G = build_groups(batch.rewards_N, batch.names_N).std_G
        rounded = 5e-7 / float(std_G.min().clamp(max=0.5))
        tolerance = rounded if name == "grpo_vectorized" else 1e-10
        assert_equal(ours(batch.rewards_N, batch.names_N), expected_N, tolerance=tolerance)
        golden.append(
            {"function": name, "inputs": batch.describe(), "outputs": {"advantages": expected_N}}
        )


def test_gae(golden):
    """Advantages before whitening to 1e-10 (from the returns), whitened ones to 1e-7."""
    for seed in range(NUM_CASES):
        batch = make_batch(seed)
        sampled = batch.sampled
        advantages_NL, returns_NL = verl.compute_gae_advantage_return(
            batch.rewards_NL, batch.values_NL, batch.mask_NL, batch.gamma, batch.lam
        )
        ours = [
            compute_gae(rewards[row], values[row], gamma=batch.gamma, lam=batch.lam)
            for rewards, values, row in zip(batch.rewards_NL, batch.values_NL, sampled, strict=True)
        ]
        advantages_A = torch.cat([advantages for advantages, _ in ours])
        returns_A = torch.cat([returns for _, returns in ours])
        assert_equal(returns_A, returns_NL[sampled])
        assert_equal(advantages_A, (returns_NL - batch.values_NL)[sampled])
        white_A = whiten_masked(advantages_A, torch.ones_like(advantages_A, dtype=torch.bool))
        assert_equal(white_A, advantages_NL[sampled], tolerance=WHITENED)
        golden.append(
            {
                "function": "gae",
                "inputs": batch.describe_tokens(lam=batch.lam, values_A=batch.values_NL[sampled]),
                "outputs": {"returns": returns_NL[sampled], "advantages": advantages_NL[sampled]},
            }
        )


def test_reinforce_pp(golden):
    """Returns to 1e-10, whitened to 1e-7; no discount is taken across a tool's tokens."""
    for seed in range(NUM_CASES):
        batch = make_batch(seed)
        sampled = batch.sampled
        advantages_NL, returns_NL = verl.compute_reinforce_plus_plus_outcome_advantage(
            batch.rewards_NL, batch.mask_NL, config=SimpleNamespace(gamma=batch.gamma)
        )
        given = (batch.rewards_NL[sampled], batch.num_tokens)
        returns_A = compute_reinforce_pp_returns(*given, gamma=batch.gamma)
        assert_equal(returns_A, returns_NL[sampled])
        advantages_A = compute_reinforce_pp_advantages(*given, gamma=batch.gamma)
        assert_equal(advantages_A, advantages_NL[sampled], tolerance=WHITENED)
        golden.append(
            {
                "function": "reinforce_pp",
                "inputs": batch.describe_tokens(),
                "outputs": {"returns": returns_NL[sampled], "advantages": advantages_NL[sampled]},
            }
        )


def test_reinforce_pp_baseline(golden):
    """Whitened to 1e-7 where every group has something to compare."""
    for seed in range(NUM_CASES):
        batch = make_batch(seed)
        expected_NL, _ = verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
            batch.rewards_NL.clone(), batch.mask_NL, batch.names
        )
        actual_A = compute_reinforce_pp_baseline_advantages(
            batch.rewards_N, batch.names_N, batch.num_tokens
        )
        assert_equal(actual_A, expected_NL[batch.sampled], tolerance=WHITENED)
        golden.append(
            {
                "function": "reinforce_pp_baseline",
                "inputs": batch.describe(num_tokens_N=batch.num_tokens),
                "outputs": {"advantages": expected_NL[batch.sampled]},
            }
        )


def make_reward_vectors(batch, seed):
    """Three rewards per trajectory, exact in float32, which verl's GDPO takes them through."""
    source = np.random.default_rng(seed)
    rewards_NM = source.integers(-8, 9, size=(len(batch.names_N), 3)) / 8
    rewards_NM += np.arange(len(batch.names_N))[:, None] / 64  # no equal group
    return torch.from_numpy(rewards_NM), torch.from_numpy(source.integers(1, 5, size=3) / 4)


def test_gdpo(golden):
    """Scores whitened over tokens as verl does it; it computes in float32, hence 1e-6."""
    for seed in range(NUM_CASES):
        batch = make_batch(seed)
        rewards_NM, weights_M = make_reward_vectors(batch, seed)
        length = batch.mask_NL.shape[1]
        expected_NL, _ = verl.compute_gdpo_outcome_advantage(
            batch.rewards_NL,
            batch.mask_NL,
            batch.names,
            config={"gdpo_reward_keys": [*"abc"], "gdpo_reward_weights": weights_M.tolist()},
            non_tensor_batch=dict(zip("abc", rewards_NM.T.numpy(), strict=True)),
            batch={
                "prompts": torch.zeros(len(rewards_NM), 1),
                "attention_mask": torch.ones(len(rewards_NM), 1 + length, dtype=torch.long),
            },
        )
        scores_N, is_scored_N = compute_gdpo_scores(rewards_NM, batch.names_N, weights_M)
        counts_N = torch.tensor(batch.num_tokens)
        scores_A = scores_N.repeat_interleave(counts_N)
        white_A = whiten_masked(scores_A, is_scored_N.repeat_interleave(counts_N))
        assert_equal(white_A, expected_NL[batch.sampled], tolerance=3e-6)
        golden.append(
            {
                "function": "gdpo",
                "inputs": batch.describe(
                    num_tokens_N=batch.num_tokens, rewards_NM=rewards_NM, weights_M=weights_M
                ),
                "outputs": {"advantages": expected_NL[batch.sampled]},
            }
        )


def test_masked_whiten(golden):
    """Values of any scale, some masked out, to 1e-7 of their size."""
    for seed in range(NUM_CASES):
        source = torch.Generator().manual_seed(seed)
        values = (
            torch.randn(40, generator=source, dtype=torch.float64) * 10 ** (seed % 4) + seed % 7
        )
        mask = torch.rand(40, generator=source) < 0.6
        expected = verl_functional.masked_whiten(values, mask.double())
        assert_equal(
            whiten_masked(values, mask), torch.where(mask, expected, 0.0), tolerance=WHITENED
        )
        golden.append(
            {
                "function": "whiten",
                "inputs": {"values": values, "mask": mask},
                "outputs": {"white": expected * mask},
            }
        )


def test_where_whitening_differs():
    """verl's count + 1e-8: of two tokens (100, 101) the mean is 5e-7 lower, ours is exact.

    Half the deviation .7071 apart: +-.70711; verl's are both 7.1e-7 higher.
    """
    values, mask = torch.tensor([100.0, 101.0], dtype=torch.float64), torch.ones(2).double()
    ours = whiten_masked(values, mask.bool())
    theirs = verl_functional.masked_whiten(values, mask)
    assert ours.sum().abs() < 1e-12
    assert (theirs - ours).tolist() == pytest.approx([7.1e-7, 7.1e-7], rel=0.01)
    with pytest.raises(ValueError, match="sum of the mask is one"):
        verl_functional.masked_whiten(values, torch.tensor([1.0, 0.0]))


def test_where_lone_attempts_differ():
    """verl gives a lone attempt its raw reward (vectorised RLOO: 0), ours nothing by default."""
    rewards_NL, mask_NL = torch.tensor([[3.0], [1.0], [0.0]]), torch.ones(3, 1)
    names = np.array(["lone", "a", "a"], dtype=object)
    raw = {
        verl.compute_grpo_outcome_advantage: 3.0,
        verl.compute_rloo_outcome_advantage: 3.0,
        verl.compute_rloo_vectorized_outcome_advantage: 0.0,
    }
    for theirs, expected in raw.items():
        actual = theirs(rewards_NL.clone(), mask_NL, names)[0][0, 0]
        assert actual.item() == pytest.approx(expected, abs=1e-4)
    for ours in (compute_grpo_advantages, compute_rloo_advantages):
        assert ours(rewards_NL[:, 0], names.tolist())[0] == 0.0


def test_where_equal_groups_differ():
    """REINFORCE++-baseline on rewards (1, 0) of 1 and 3 tokens beside (.5, .5) of 1 token each.

    Centred tokens .5, -.5 (3 times), 0, 0: mean -1/6, std .4082; verl hands the equal group .4082,
    ours 0, and whitens .5, -.5, -.5, -.5 alone to 1.5 and -.5.
    """
    mask_NL = torch.tensor([[1.0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.float64)
    rewards_N = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    rewards_NL = torch.zeros_like(mask_NL)
    rewards_NL[:, 0] = rewards_N
    names = np.array([*"aabb"], dtype=object)
    theirs, _ = verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
        rewards_NL, mask_NL, names
    )
    assert theirs[:, 0].tolist() == pytest.approx([1.63299, -0.81650, 0.40825, 0.40825], abs=1e-4)
    ours = compute_reinforce_pp_baseline_advantages(rewards_N, [*"aabb"], [1, 3, 1, 1])
    assert ours.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.0, 0.0], abs=1e-6)
