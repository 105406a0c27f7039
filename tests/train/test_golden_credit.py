"""Advantages against numbers that verl and TRL computed (`make oracles` writes them)."""

import pytest
import torch

from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.gae import compute_gae
from starpo_train.credit.gdpo import compute_gdpo_advantages, compute_gdpo_scores
from starpo_train.credit.grpo import compute_grpo_advantages
from starpo_train.credit.reinforce_pp import (
    compute_reinforce_pp_advantages,
    compute_reinforce_pp_baseline_advantages,
    compute_reinforce_pp_returns,
)
from starpo_train.credit.rloo import compute_rloo_advantages
from starpo_train.credit.whiten import whiten_masked

OF_GROUPS = {
    "grpo": compute_grpo_advantages,
    "grpo_vectorized": compute_grpo_advantages,
    "dr_grpo": compute_dr_grpo_advantages,
    "rloo": compute_rloo_advantages,
    "rloo_vectorized": compute_rloo_advantages,
}


def to_tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual, to_tensor(expected), rtol=0.0, atol=tolerance)


@pytest.fixture
def cases(read_golden):
    """`cases(file, *functions)`: inputs and outputs of them; a dozen of each are there."""

    def read(file, *functions):
        found = [case for case in read_golden(file) if case["function"] in functions]
        assert len(found) == 12 * len(functions)
        return [(case["function"], case["inputs"], case["outputs"]) for case in found]

    return read


def test_verl_groups(cases):
    """One advantage per trajectory; verl's vectorised GRPO computes in float32."""
    for name, given, wanted in cases("credit_verl", *OF_GROUPS):
        actual = OF_GROUPS[name](to_tensor(given["rewards_N"]), given["names_N"])
        tolerance = 1e-5 if name == "grpo_vectorized" else 1e-10
        assert_near(actual, wanted["advantages"], tolerance)


def test_verl_token_gae(cases):
    """Returns, and advantages whitened over all tokens; verl's count has 1e-8 more."""
    for _, given, wanted in cases("credit_verl", "gae"):
        rewards, values = (
            to_tensor(given[key]).split(given["num_tokens_N"]) for key in ("rewards_A", "values_A")
        )
        options = {"gamma": given["gamma"], "lam": given["lam"]}
        parts = [compute_gae(r, v, **options) for r, v in zip(rewards, values, strict=True)]
        assert_near(torch.cat([returns for _, returns in parts]), wanted["returns"], 1e-10)
        raw = torch.cat([advantages for advantages, _ in parts])
        assert_near(whiten_masked(raw, torch.ones(len(raw)) > 0), wanted["advantages"], 1e-7)


def test_verl_reinforce_pp(cases):
    """Returns to come at each token, whitened."""
    for _, given, wanted in cases("credit_verl", "reinforce_pp"):
        inputs = (to_tensor(given["rewards_A"]), given["num_tokens_N"])
        returns = compute_reinforce_pp_returns(*inputs, gamma=given["gamma"])
        assert_near(returns, wanted["returns"], 1e-10)
        actual = compute_reinforce_pp_advantages(*inputs, gamma=given["gamma"])
        assert_near(actual, wanted["advantages"], 1e-7)


def test_verl_reinforce_pp_baseline(cases):
    """Less the group's mean, whitened over tokens."""
    for _, given, wanted in cases("credit_verl", "reinforce_pp_baseline"):
        actual = compute_reinforce_pp_baseline_advantages(
            to_tensor(given["rewards_N"]), given["names_N"], given["num_tokens_N"]
        )
        assert_near(actual, wanted["advantages"], 1e-7)


def test_verl_gdpo(cases):
    """Each reward by itself, whitened over tokens as verl does, in float32."""
    for _, given, wanted in cases("credit_verl", "gdpo"):
        scores, is_scored = compute_gdpo_scores(
            to_tensor(given["rewards_NM"]), given["names_N"], to_tensor(given["weights_M"])
        )
        counts = torch.tensor(given["num_tokens_N"])
        actual = whiten_masked(
            scores.repeat_interleave(counts), is_scored.repeat_interleave(counts)
        )
        assert_near(actual, wanted["advantages"], 3e-6)


def test_verl_whitening(cases):
    """Over the mask only; outside of it ours is 0."""
    for _, given, wanted in cases("credit_verl", "whiten"):
        actual = whiten_masked(to_tensor(given["values"]), torch.tensor(given["mask"]))
        assert_near(actual, wanted["white"], 1e-7)


def test_trl_groups(cases):
    """TRL's epsilon is 1e-4, its Bessel correction a float32 fraction."""
    options = {"grpo": {"epsilon": 1e-4}, "dr_grpo": {}, "rloo": {}}
    for name, given, wanted in cases("credit_trl", *options):
        actual = OF_GROUPS[name](to_tensor(given["rewards"]), given["names_N"], **options[name])
        assert_near(actual, wanted["advantages"], 1e-6 if name == "grpo" else 1e-10)


def test_trl_gdpo(cases):
    """Whitened over trajectories; TRL divides by the deviation + 1e-4."""
    for _, given, wanted in cases("credit_trl", "gdpo"):
        inputs = (to_tensor(given["rewards"]), given["names_N"], to_tensor(given["weights_M"]))
        std = compute_gdpo_scores(*inputs, epsilon=1e-4)[0].std()
        actual = compute_gdpo_advantages(*inputs, epsilon=1e-4) * std / (std + 1e-4)
        assert_near(actual, wanted["advantages"], 1e-6)
