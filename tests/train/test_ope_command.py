"""`starpo-train ope` on recorded turns of a tiny model."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from starpo_train.cli import main
from starpo_train.dataset import read_trajectories
from starpo_train.modelfolder import hash_weights
from starpo_train.ope.run import run_ope
from starpo_train.ope.settings import OpeSettings
from starpo_train.ope.turns import build_logged_turns, list_turns, select_trajectories

IMPORTANCE = ("IS", "WIS", "PDIS", "SN-PDIS")


@pytest.fixture(scope="module")
def other_model(hand, tmp_path_factory):
    """The recorded model with other random weights."""
    return hand.model(tmp_path_factory.mktemp("other") / "model", seed=1)


def read_values(file):
    found = json.loads(file.read_text())
    return found, {each["name"]: each["value"] for each in found["estimates"]}


def test_the_recorded_model_itself(bandit, model_folder, tmp_path, capsys):
    """Ratios are 1 but for the rounding of log-probabilities: the recorded mean, inconclusive."""
    file = tmp_path / "ope.json"
    arguments = ["ope", str(model_folder), str(bandit), "--split", "train", "--json", str(file)]
    assert main(arguments) == 0
    found, values = read_values(file)
    assert found["behaviour"]["value"] == 0.5
    assert [values[name] for name in IMPORTANCE] == pytest.approx([0.5] * 4, abs=1e-5)
    assert (values["DR"], values["FQE"]) == (None, None)
    assert found["weights"]["ess"] == pytest.approx(8, abs=1e-3)
    assert found["dataset"]["digest"] == "made-by-hand"
    assert found["checkpoint"]["weights_sha256"] == hash_weights(str(model_folder))
    assert found["verdict"]["outcome"] == "inconclusive"
    output = capsys.readouterr().out
    assert "needs --samples" in output
    assert "inconclusive: the checkpoint earns more than what was recorded" in output
    assert "ess_below_floor: effective sample size 8.0, below 30" in output
    assert f"written: {file}" in output


def test_another_model_by_hand(hand, bandit, model_folder, other_model):
    """Weights from transformers' own forward pass under both models give the printed WIS."""
    from starpo_train.config import ModelSection
    from starpo_train.model import load_policy

    other = load_policy(ModelSection(path=str(other_model), device="cpu"))
    weights, rewards = [], []
    for trajectory in read_trajectories(bandit):
        (turn,) = trajectory.turns
        logprobs = hand.score(other, turn.prompt_ids_T.tolist(), turn.response_ids_T.tolist())
        weights.append(math.exp(float(logprobs.sum()) - float(turn.logprobs_T.sum())))
        rewards.append(trajectory.reward)
    expected = np.dot(weights, rewards) / np.sum(weights)
    result = run_ope(OpeSettings(checkpoint=str(other_model), dataset=bandit, split="train"))
    found = {estimate.name: estimate.value for estimate in result.evaluation.estimates}
    assert found["WIS"] == pytest.approx(expected, abs=1e-4)
    assert found["IS"] == pytest.approx(np.mean(np.multiply(weights, rewards)), rel=1e-3)


def make_turns(hand, num_trajectories=6, **columns):
    return [
        hand.trajectory(
            f"t{i}",
            [hand.turn([20, 21], [40, 1], [-5.0, -5.0]) | columns.get("turn", {})],
            reward=float(i % 2),
            task_id=f"k{i // 2}",
            **{key: value for key, value in columns.items() if key != "turn"},
        )
        for i in range(num_trajectories)
    ]


def test_without_recorded_logprobs(hand, model_folder, tmp_path):
    """Estimators with ratios refuse by name of what is missing; nothing is concluded."""
    rows = make_turns(
        hand, turn={"response_logprobs": None, "logprob_provenance": "missing"}, usable_for="sft"
    )
    data = hand.dataset(tmp_path / "data", rows)
    result = run_ope(OpeSettings(checkpoint=str(model_folder), dataset=data, split="train"))
    found = result.describe()
    assert [each["value"] for each in found["estimates"]] == [None] * 6
    assert "were not recorded" in found["estimates"][0]["reason"]
    assert found["estimates"][5]["reason"] == "needs --samples"
    assert found["weights"] is None
    doubts = {doubt["name"] for doubt in found["verdict"]["doubts"]}
    assert doubts == {"behaviour_missing", "no_estimate"}


def test_uncertain_logprobs_are_stamped(hand, model_folder, tmp_path, capsys):
    """Recorded at another temperature, they are estimates: shown so, never conclusive."""
    rows = make_turns(
        hand,
        turn={"logprob_provenance": "estimated", "temperature": 0.7},
        usable_for="sft",
        reasons=["logprob_estimated"],
    )
    data = hand.dataset(tmp_path / "data", rows)
    file = tmp_path / "ope.json"
    arguments = ["ope", str(model_folder), str(data), "--split", "train", "--json", str(file)]
    assert main(arguments) == 0
    found, _ = read_values(file)
    assert [each["estimated"] for each in found["estimates"][:4]] == [True] * 4
    assert "behaviour_estimated" in {doubt["name"] for doubt in found["verdict"]["doubts"]}
    assert "WIS (estimated)" in capsys.readouterr().out


@pytest.mark.slow
def test_candidates_give_dr_and_fqe(bandit, model_folder, tmp_path):
    """Both have values between the rewards seen and an interval, the same with the same seed."""
    runs = []
    for name in ("first", "again"):
        file = tmp_path / f"{name}.json"
        arguments = ["ope", str(model_folder), str(bandit), "--split", "train"]
        assert main([*arguments, "--samples", "2", "--json", str(file)]) == 0
        runs.append(read_values(file))
    (found, values), (_, again) = runs
    assert values == again
    assert found["candidates"]["num_candidates"] == 16
    assert found["candidates"]["max_tokens"] == 4
    assert -0.5 < values["FQE"] < 1.5
    assert -0.5 < values["DR"] < 1.5
    assert found["bellman_error"] >= 0
    assert found["bellman_error_of_zero"] == 0.5


@pytest.mark.slow
def test_a_run_on_the_data_it_was_trained_on(hand, bandit, model_folder, tmp_path):
    """A run's folder stands for its newest checkpoint, whose own record names the data."""
    file = hand.run_file(tmp_path / "run.toml", base=model_folder, dataset=bandit)
    assert main(["run", str(file)]) == 0
    result = tmp_path / "ope.json"
    arguments = ["ope", str(tmp_path / "run"), "--split", "train", "--json", str(result)]
    assert main([*arguments, str(bandit)]) == 0
    found, _ = read_values(result)
    assert found["checkpoint"]["path"].endswith("step_000002")
    assert "trained_on_these" in {doubt["name"] for doubt in found["verdict"]["doubts"]}
    copy = shutil.copytree(bandit, tmp_path / "other")
    manifest = json.loads((copy / "manifest.json").read_text()) | {"digest": "another"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main([*arguments, str(copy)]) == 0
    found, _ = read_values(result)
    assert "trained_on_these" not in {doubt["name"] for doubt in found["verdict"]["doubts"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "no trajectory in split 'test'"),
        (["--gamma", "1.5"], "--gamma 1.5: must be between 0 and 1"),
        (["--samples", "-1"], "--samples -1: must be 0 or greater"),
        (["--json", "/nowhere/ope.json"], "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_asked(bandit, model_folder, capsys, options, message):
    """Exit code 2 and one line that says what to do."""
    assert main(["ope", str(model_folder), str(bandit), "--split", "train", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_rewards_of_turns_and_clusters(hand, tmp_path):
    """The outcome is at the last scored turn, a process reward at its own or the one before."""
    from starpo_train.config import DataSection
    from starpo_train.credit.turns import TokenizedTrajectories
    from starpo_train.tokens import tokenize_trajectory

    first = hand.turn([20], [40, 1], [-1.0, -2.0], reward=0.5)
    others = hand.turn([20, 40, 1, 22], [43], [-1.0], reward=0.25, model="other")
    last = hand.turn([20, 40, 1, 22, 43], [44, 1], [-3.0, -4.0], reward=2.0)
    rows = [
        hand.trajectory("a", [first, others, last], reward=1.0, task_id="k", user_id="u"),
        hand.trajectory("b", [first], reward=0.0, task_id=None, user_id="u"),
        hand.trajectory("c", [first], reward=None),
    ]
    data = DataSection(dataset=hand.dataset(tmp_path / "data", rows), models=("tiny",))
    selection = select_trajectories(read_trajectories(data.dataset), models=data.models)
    assert (selection.provenance, selection.left_out["no_reward"]) == ("exact", 1)
    tokenized = TokenizedTrajectories(trajectories=selection.trajectories, rows=[], rows_of_N=[])
    for position, trajectory in enumerate(selection.trajectories):
        made = tokenize_trajectory(trajectory, position=position, models=data.models)
        start = len(tokenized.rows)
        tokenized.rows_of_N.append(list(range(start, start + len(made))))
        tokenized.rows += made
    scored = list_turns(
        tokenized, [np.full(row.num_actions, -1.5, dtype=np.float32) for row in tokenized.rows]
    )
    made = {
        cluster: build_logged_turns(
            scored.trajectories,
            scored.turns_N,
            provenance="exact",
            num_left_out=0,
            cluster=cluster,
            process_reward_weight=weight,
        )
        for cluster, weight in (("task", 2.0), ("user", 0.0))
    }
    # 2 * (.5 + .25 of the other model's turn), then 1 + 2 * 2; b: 2 * .5
    assert made["task"].rewards_NK.tolist() == [[1.5, 5.0], [1.0, 0.0]]
    assert made["user"].rewards_NK.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert made["task"].mask_NK.tolist() == [[True, True], [True, False]]
    # two tokens at -1.5 each, less -3 and -7
    assert torch.equal(
        made["task"].log_ratios_NK, torch.tensor([[0.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    )
    assert made["task"].cluster_of_N.tolist() == [0, 1]
    assert made["user"].cluster_of_N.tolist() == [0, 0]
