"""Off-policy estimators against scope-rl 0.2.1, on random logs: values to 1e-10.

scope-rl wants logs without padding, so an ended trajectory is filled with turns of ratio 1 and
reward 0, which is what ours does by itself. Its self-normalised forms add 1e-10 to each mean weight;
`test_where_they_differ` has what that does.
"""

import numpy as np
import pytest
import torch
from scope_rl.ope.discrete import basic_estimators as scope

from starpo_train.ope.dr import build_dr_terms
from starpo_train.ope.importance import (
    build_is_terms,
    build_pdis_terms,
    build_sn_pdis_terms,
    build_wis_terms,
)

NUM_CASES = 240
NUM_ACTIONS = 3
ADDED = 1e-10

PAIRS = {
    "TrajectoryWiseImportanceSampling": build_is_terms,
    "PerDecisionImportanceSampling": build_pdis_terms,
    "SelfNormalizedTIS": build_wis_terms,
    "SelfNormalizedPDIS": build_sn_pdis_terms,
    "DoublyRobust": build_dr_terms,
}


def make_log(seed: int) -> dict[str, np.ndarray]:
    """A log of discrete actions; ended trajectories are filled with turns of ratio 1, reward 0."""
    generator = np.random.default_rng(seed)
    shape = (int(generator.integers(2, 40)), int(generator.integers(1, 9)))
    lengths_N = generator.integers(1, shape[1] + 1, shape[0])
    mask_NK = np.arange(shape[1])[None] < lengths_N[:, None]
    behaviour_NKA = generator.dirichlet(np.full(NUM_ACTIONS, 2.0), shape)
    policy_NKA = generator.dirichlet(np.full(NUM_ACTIONS, 2.0), shape)
    action_NK = generator.integers(0, NUM_ACTIONS, shape)
    policy_NKA[~mask_NK] = behaviour_NKA[~mask_NK]
    q_values_NKA = generator.normal(size=(*shape, NUM_ACTIONS))
    q_values_NKA[~mask_NK] = 0.0
    return {
        "action_NK": action_NK,
        "mask_NK": mask_NK,
        "reward_NK": generator.normal(size=shape) * mask_NK,
        "pscore_NK": np.take_along_axis(behaviour_NKA, action_NK[..., None], 2)[..., 0],
        "policy_NKA": policy_NKA,
        "q_values_NKA": q_values_NKA,
        "gamma": np.float64(generator.choice([1.0, 0.95, 0.6])),
    }


def ask_scope(name: str, log: dict[str, np.ndarray]) -> float:
    return float(
        getattr(scope, name)().estimate_policy_value(
            step_per_trajectory=log["action_NK"].shape[1],
            action=log["action_NK"].reshape(-1),
            reward=log["reward_NK"].reshape(-1),
            pscore=log["pscore_NK"].reshape(-1),
            evaluation_policy_action_dist=log["policy_NKA"].reshape(-1, NUM_ACTIONS),
            state_action_value_prediction=log["q_values_NKA"].reshape(-1, NUM_ACTIONS),
            gamma=float(log["gamma"]),
        )
    )


def make_inputs(name: str, log: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ours takes, as arrays."""
    chosen_NK1 = log["action_NK"][..., None]
    policy_NK = np.take_along_axis(log["policy_NKA"], chosen_NK1, 2)[..., 0]
    inputs = {
        "log_ratios_NK": np.log(policy_NK) - np.log(log["pscore_NK"]),
        "rewards_NK": log["reward_NK"],
        "mask_NK": log["mask_NK"],
        "gamma": log["gamma"],
    }
    if name == "DoublyRobust":
        q_values_NKA = log["q_values_NKA"]
        inputs["q_values_NK"] = np.take_along_axis(q_values_NKA, chosen_NK1, 2)[..., 0]
        inputs["values_NK"] = (q_values_NKA * log["policy_NKA"]).sum(2)
    return inputs


def ask_ours(name: str, inputs: dict[str, np.ndarray]) -> float:
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items() if key.endswith("_NK")}
    return PAIRS[name](**tensors, gamma=float(inputs["gamma"])).compute_value()


def add_as_they_do(name: str, inputs: dict[str, np.ndarray]) -> float:
    """Ours with scope-rl's 1e-10 added to the mean weights."""
    weights_NK = np.exp(np.cumsum(inputs["log_ratios_NK"], axis=1))
    if name == "SelfNormalizedTIS":
        weights_NK = weights_NK[:, -1:]
    means_K = weights_NK.mean(0)
    discount_K = inputs["gamma"] ** np.arange(inputs["rewards_NK"].shape[1])
    earned_NK = inputs["rewards_NK"] * discount_K
    return float((weights_NK / (means_K + ADDED) * earned_NK).sum(1).mean())


@pytest.mark.parametrize("name", PAIRS)
def test_values(name: str):
    """240 logs each; for the self-normalised ones what they add is added to ours first."""
    for seed in range(NUM_CASES):
        log = make_log(seed)
        inputs, theirs = make_inputs(name, log), ask_scope(name, log)
        ours = ask_ours(name, inputs)
        if name.startswith("SelfNormalized"):
            assert theirs == pytest.approx(add_as_they_do(name, inputs), rel=1e-10, abs=1e-10)
            assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
        else:
            assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-10)


def test_where_they_differ():
    """All ratios divided by e^26: WIS does not change, scope-rl's falls to less than a tenth."""
    log = make_log(0)
    before = ask_ours("SelfNormalizedTIS", make_inputs("SelfNormalizedTIS", log))
    policy_NKA, first_N = log["policy_NKA"].copy(), log["action_NK"][:, 0]
    rows = np.arange(len(first_N))
    kept_N = policy_NKA[rows, 0, first_N] * np.exp(-26.0)
    policy_NKA[:, 0] = 0.0
    policy_NKA[rows, 0, first_N] = kept_N
    policy_NKA[rows, 0, (first_N + 1) % NUM_ACTIONS] = 1.0 - kept_N
    shrunk = log | {"policy_NKA": policy_NKA}
    inputs = make_inputs("SelfNormalizedTIS", shrunk)
    assert ask_ours("SelfNormalizedTIS", inputs) == pytest.approx(before, rel=1e-9)
    theirs = ask_scope("SelfNormalizedTIS", shrunk)
    mean = np.exp(inputs["log_ratios_NK"].sum(1)).mean()
    assert theirs == pytest.approx(before * mean / (mean + ADDED), rel=1e-9)
    assert abs(theirs) < 0.1 * abs(before)


def test_golden_vectors(write_golden):
    """A dozen logs of each estimator, small ones, for the default suite."""
    cases = []
    for name in PAIRS:
        small = [log for log in map(make_log, range(400)) if log["action_NK"].size <= 40]
        cases += [
            {
                "function": name,
                "inputs": make_inputs(name, log),
                "outputs": {"value": ask_scope(name, log)},
            }
            for log in small[:12]
        ]
    write_golden("ope_scope_rl", "scope-rl", "0.2.1", cases)
