"""Whole runs on tiny models: they learn, stop where they must, and say what they did."""

import json

import numpy as np
import pytest

from starpo_train.config import ModelSection
from starpo_train.dataset import read_trajectories
from starpo_train.errors import (
    DataError,
    TrainingError,
)
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.run import train
from starpo_train.run_folder import read_final_path
from starpo_train.schedule import gather_tasks

PROMPT = [0, 20, 21]
GOOD, BAD, END = 40, 50, 1


@pytest.fixture
def probability(hand):
    """Mean probability of a token as the first answer token over the two tasks."""

    def measure(folder, token):
        policy = load_policy(ModelSection(path=str(folder), device="cpu"))
        prompts = [[*PROMPT, 60], [*PROMPT, 61]]
        return sum(float(hand.score(policy, p, [token])[0].exp()) for p in prompts) / 2

    return measure


def steps_of(result):
    return [record for record in read_metrics(result.metrics_path) if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["grpo", "reinforce_pp", "gae", "bilevel_gae"])
def test_starpo_learns_a_bandit(configure, probability, model_folder, advantage):
    """The rewarded answer becomes likelier and the other one less likely."""
    result = train(
        configure(
            algorithm={"advantage": advantage, "clip_low": 0.5, "clip_high": 0.5},
            train={"epochs": 8, "learning_rate": 3e-3},
        )
    )
    assert result.num_steps == 16
    assert probability(result.final_path, GOOD) > 1.2 * probability(model_folder, GOOD)
    assert probability(result.final_path, BAD) < 0.8 * probability(model_folder, BAD)


@pytest.mark.slow
def test_lora_learns_a_bandit_and_exports_a_plain_model(configure, probability, model_folder):
    """The exported folder, loaded without peft, answers better than the model it came from."""
    result = train(
        configure(
            model={"lora_rank": 4},
            algorithm={"clip_low": 0.5, "clip_high": 0.5},
            train={"epochs": 8, "learning_rate": 2e-2},
        )
    )
    assert probability(result.final_path, GOOD) > 1.2 * probability(model_folder, GOOD)
    assert probability(result.final_path, BAD) < 0.8 * probability(model_folder, BAD)


@pytest.mark.slow
def test_filtered_bc_learns_a_bandit(configure, probability, model_folder):
    """Cloning the rewarded half makes its answer much likelier."""
    result = train(
        configure(algorithm={"name": "filtered_bc"}, train={"epochs": 8, "learning_rate": 3e-3})
    )
    assert probability(result.final_path, GOOD) > 5 * probability(model_folder, GOOD)
    start = read_metrics(result.metrics_path)[0]
    assert (start["num_trajectories"], start["left_out"]) == (4, {"below_threshold": 4})


def test_recorded_logprobs_of_the_same_model_do_not_drift(configure):
    """The dataset was scored by the model itself: drift 0, first ratio 1, nothing clipped."""
    result = train(configure())
    start, first = read_metrics(result.metrics_path)[:2]
    assert start["logprob_drift_mean_abs"] == pytest.approx(0, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert first["ess_fraction"] == pytest.approx(1)
    assert first["clip_fraction"] == 0
    # at ratio 1 the loss is minus the mean advantage, which is 0 over whole groups
    assert (start["num_groups"], start["num_trajectories"]) == (2, 8)


def test_metrics_and_lineage_say_where_weights_come_from(configure, bandit):
    """Every promised key is in the metrics; COMMIT holds dataset, versions and configuration."""
    result = train(configure())
    assert {
        "step",
        "epoch",
        "loss",
        "clip_fraction",
        "approx_kl",
        "ess_fraction",
        "entropy",
        "grad_norm",
        "learning_rate",
        "tokens",
        "tokens_per_s",
        "advantage_mean_abs",
        "algorithm",
    } <= set(steps_of(result)[0])
    lineage = json.loads((result.final_path / "COMMIT").read_text())["lineage"]
    assert lineage["dataset"]["digest"] == "made-by-hand"
    assert lineage["dataset"]["versions"]["turns"] == 0
    assert lineage["config"]["algorithm"]["clip_high"] == 0.28
    assert read_final_path(result.metrics_path.parent) == result.final_path


def test_exported_folder_loads_with_transformers(configure):
    """Model, tokenizer and chat template of the final checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train(configure())
    model = AutoModelForCausalLM.from_pretrained(result.final_path)
    tokenizer = AutoTokenizer.from_pretrained(result.final_path)
    assert model.config.vocab_size == 300
    assert "<|im_start|>" in tokenizer.chat_template


def test_packing_does_not_change_training(configure):
    """A budget of one row per pack and one of all rows give the same losses and weights."""
    losses, norms = [], []
    for output, tokens in (("one", 1), ("all", 1000)):
        result = train(configure(output, train={"epochs": 2, "tokens_per_pack": tokens}))
        losses.append([record["loss"] for record in steps_of(result)])
        norms.append([record["grad_norm"] for record in steps_of(result)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_kl_ceiling_ends_the_epoch(configure):
    """With a big learning rate the second step is over the ceiling: each epoch takes what it can."""
    result = train(
        configure(algorithm={"kl_ceiling": 1e-4}, train={"epochs": 4, "trajectories_per_step": 2})
    )
    records = read_metrics(result.metrics_path)
    stops = [record for record in records if record.get("event") == "kl_ceiling"]
    assert stops
    assert all(record["approx_kl"] > 1e-4 for record in stops)
    assert result.num_steps < 16
    assert all(record["approx_kl"] <= 1e-4 for record in steps_of(result))


def test_foreign_model_above_the_ceiling_is_refused(configure, hand, tmp_path):
    """A model far from the recorded policy cannot take even one step."""
    other = hand.model(tmp_path / "other", seed=5)
    with pytest.raises(DataError, match=r"before the first step, above algorithm\.kl_ceiling"):
        train(configure(base=other, algorithm={"kl_ceiling": 0.01}))


def test_not_a_number_names_the_trajectory(configure, hand, model_folder, tmp_path):
    """A recorded log-probability that is no number stops the run at its trajectory only."""
    dataset = hand.bandit(tmp_path / "good", model_folder)
    turn = hand.turn([*PROMPT, 60], [GOOD, END], [float("nan"), -1.0])
    rows = [
        hand.trajectory("poisoned", [turn], reward=1.0),
        *(
            hand.trajectory(
                t.trajectory_id,
                [hand.turn(t.turns[0].prompt_ids_T.tolist(), [BAD, END], [-5.0, -5.0])],
                reward=0.0,
            )
            for t in read_trajectories(dataset)
        ),
    ]
    with pytest.raises(TrainingError, match=r"the loss is nan; trajectories poisoned\. "):
        train(
            configure(
                dataset=hand.dataset(tmp_path / "bad", rows), train={"trajectories_per_step": 9}
            )
        )


def test_attempts_at_one_task_are_in_one_step_and_share_what_they_begin_with(
    configure, hand, model_folder, tmp_path
):
    """Six tasks of four attempts in steps of four: [4 of the prompt, 2 x 2 of two answers] a step."""
    dataset = hand.bandit(tmp_path / "data", model_folder, num_tasks=6)
    train_options = {"trajectories_per_step": 4, "learning_rate": 1e-4}
    together = train(configure(dataset=dataset, train=train_options))
    steps = steps_of(together)
    assert [(step["tokens"], step["computed_tokens"]) for step in steps] == [(24, 8)] * 6
    train_options["order"] = "shuffled"
    apart = train(configure("apart", dataset=dataset, train=train_options))
    assert sum(step["computed_tokens"] for step in steps_of(apart)) > 6 * 8


def test_order_of_tasks_is_that_of_their_first_attempts():
    """Trajectories 4 and 1 are of task 7, the others of two more: 4 1 | 0 | 3 2."""
    order = gather_tasks(np.array([4, 0, 3, 1, 2]), np.array([5, 7, 9, 9, 7]))
    assert order.tolist() == [4, 1, 0, 3, 2]
