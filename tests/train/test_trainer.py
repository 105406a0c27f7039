"""Whole runs on tiny models: they learn, stop, resume and refuse."""

import hashlib
import json
import os
import signal
import statistics
from pathlib import Path

import pytest
import torch

from starpo_train.config import ModelSection, read_run_config
from starpo_train.credit.assign import TokenizedTrajectories, assign_credit
from starpo_train.dataset import read_trajectories
from starpo_train.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    ProvenanceError,
    TrainingError,
)
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.pack import pack_rows
from starpo_train.run_folder import read_final_path, read_resumed_config
from starpo_train.tokens import build_rows, tokenize_trajectory
from starpo_train.trainer import train

PROMPT = [0, 20, 21]
GOOD, BAD, END = 40, 50, 1


def write_bandit(hand, folder, model, *, num_tasks=2, attempts=4, **columns):
    """One-turn tasks: answering GOOD is worth 1, BAD 0; log-probabilities from `model` itself."""

    def record(logprobs_of):
        trajectories = []
        for task in range(num_tasks):
            for attempt in range(attempts):
                answer = [GOOD if attempt % 2 == 0 else BAD, END]
                prompt = [*PROMPT, 60 + task]
                turn = hand.turn(prompt, answer, logprobs_of(prompt, answer), **columns)
                trajectories.append(
                    hand.trajectory(
                        f"task{task}-{attempt}",
                        [turn],
                        reward=float(attempt % 2 == 0),
                        task_id=f"task{task}",
                    )
                )
        return trajectories

    policy = load_policy(ModelSection(path=str(model), device="cpu"))

    def logprobs_of(prompt, answer):
        return score(policy, prompt, answer).tolist()

    return hand.dataset(folder, record(logprobs_of))


def score(policy, prompt, answer):
    """Log-probabilities of an answer's tokens by transformers' own forward pass."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        policy.model.set_attn_implementation("sdpa")
        logprobs = torch.log_softmax(policy.model(input_ids=ids).logits[0].double(), -1)
        policy.model.set_attn_implementation("starpo_packed")
    return logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]


def probability(folder, token):
    """Mean probability of `token` as the first answer token over the two tasks."""
    policy = load_policy(ModelSection(path=str(folder), device="cpu"))
    values = [float(score(policy, [*PROMPT, 60 + task], [token])[0].exp()) for task in (0, 1)]
    return sum(values) / 2


@pytest.fixture(scope="module")
def bandit(hand, model_folder, tmp_path_factory):
    return write_bandit(hand, tmp_path_factory.mktemp("bandit") / "data", model_folder)


@pytest.fixture
def configure(hand, model_folder, bandit, tmp_path):
    def build(output="run", *, base=model_folder, dataset=bandit, **sections):
        file = hand.run_file(
            tmp_path / f"{output}.toml", base=base, dataset=dataset, output=output, **sections
        )
        return read_run_config(file)

    return build


def hash_weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def steps_of(result):
    return [record for record in read_metrics(result.metrics_path) if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["group", "bilevel_gae"])
def test_starpo_learns_a_bandit(configure, model_folder, advantage):
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
def test_lora_learns_a_bandit_and_exports_a_plain_model(configure, model_folder):
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
def test_filtered_bc_learns_a_bandit(configure, model_folder):
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


class InterruptAt:
    """Progress callback that sends this process a signal after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def __call__(self, record):
        if record.get("step") == self.step and "loss" in record:
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": {"name": "starpo"}},
        {"algorithm": {"name": "starpo", "advantage": "bilevel_gae"}},
        {"model": {"lora_rank": 2}},
    ],
    ids=["group", "bilevel_gae", "lora"],
)
def test_interrupted_run_resumes_bit_for_bit(configure, changes):
    """Stopped in the middle of an epoch and resumed: the weights of the uninterrupted run."""
    sections = {"train": {"epochs": 3, "trajectories_per_step": 3}, **changes}
    whole = train(configure("whole", **sections))
    part = train(configure("part", **sections), progress=InterruptAt(4))
    assert (part.interrupted, part.num_steps) == (True, 4)
    resumed = train(read_resumed_config(part.metrics_path.parent), resume=True)
    assert (resumed.interrupted, resumed.num_steps) == (False, 9)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)
    keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    assert [[record[key] for key in keys] for record in steps_of(resumed)] == [
        [record[key] for key in keys] for record in steps_of(whole)
    ]


def test_killed_run_goes_on_from_its_last_checkpoint(configure):
    """Steps after the checkpoint are taken again, and appear once in the metrics."""
    sections = {"train": {"epochs": 3, "checkpoint_every_steps": 2, "keep_checkpoints": 0}}
    whole = train(configure("whole", **sections))

    def die(record):
        if record.get("step") == 3 and "loss" in record:
            raise RuntimeError("killed")

    config = configure("part", **sections)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, progress=die)
    resumed = train(read_resumed_config(config.run.output), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)
    assert [record["step"] for record in steps_of(resumed)] == [1, 2, 3, 4, 5, 6]


def test_run_killed_before_its_first_checkpoint_starts_over(configure):
    """There is nothing to go on from, so resuming does the whole run."""
    whole = train(configure("whole"))
    config = configure("part")

    def die(record):
        if "loss" in record:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, progress=die)
    resumed = train(read_resumed_config(config.run.output), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)


def test_resuming_from_a_tampered_checkpoint_is_refused(configure):
    """One flipped byte in the optimizer state stops the resume."""
    part = train(configure(train={"epochs": 3}), progress=InterruptAt(2, signal.SIGINT))
    file = part.final_path / "trainer" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.safetensors does not match"):
        train(read_resumed_config(part.metrics_path.parent), resume=True)


def test_resuming_on_another_dataset_is_refused(configure, hand, model_folder, tmp_path):
    """The dataset's digest is part of the run."""
    dataset = write_bandit(hand, tmp_path / "data", model_folder)
    part = train(configure(dataset=dataset, train={"epochs": 3}), progress=InterruptAt(2))
    manifest = dataset / "manifest.json"
    manifest.write_text(manifest.read_text().replace("made-by-hand", "another"))
    with pytest.raises(DataError, match="the dataset has changed"):
        train(read_resumed_config(part.metrics_path.parent), resume=True)


def test_old_checkpoints_are_removed(configure):
    """Of four checkpoints the two newest stay."""
    result = train(configure(train={"epochs": 2, "checkpoint_every_steps": 1}))
    names = sorted(path.name for path in result.final_path.parent.iterdir())
    assert names == ["step_000003", "step_000004"]


def test_a_second_run_does_not_take_over_a_folder(configure):
    """The same output twice is an error that names `resume`."""
    config = configure()
    train(config)
    with pytest.raises(ConfigError, match="already holds a run; `starpo-train resume"):
        train(config)


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


def test_starpo_s_trains_on_the_most_varied_groups(configure, hand, model_folder, tmp_path):
    """Of four tasks, a quarter is kept: the one with one success in two."""
    turn = hand.turn(PROMPT, [GOOD, END], [-5.0, -5.0])
    rewards = {"half": [1, 0], "little": [0.6, 0.4], "none": [0, 0], "all": [1, 1]}
    dataset = hand.dataset(
        tmp_path / "data",
        [
            hand.trajectory(f"{task}-{i}", [turn], reward=float(reward), task_id=task)
            for task, values in rewards.items()
            for i, reward in enumerate(values)
        ],
    )
    result = train(configure(dataset=dataset, algorithm={"keep_groups": 0.25}))
    start = read_metrics(result.metrics_path)[0]
    assert {key: start[key] for key in start if "groups" in key or key == "num_trajectories"} == {
        "num_groups": 4,
        "num_groups_kept": 1,
        "groups_zero_variance": 2,
        "groups_singleton": 0,
        "num_trajectories": 2,
    }


def test_starpo_without_logprobs_is_refused_before_anything_is_written(configure, hand, tmp_path):
    """The refusal leaves no run folder behind."""
    turn = hand.turn(PROMPT, [GOOD, END])
    dataset = hand.dataset(
        tmp_path / "data",
        [hand.trajectory(f"t{i}", [turn], reward=float(i), task_id="task") for i in (0, 1)],
    )
    config = configure(dataset=dataset)
    with pytest.raises(ProvenanceError, match="logprob_missing in 2"):
        train(config)
    assert not config.run.output.exists()
    result = train(configure("bc", dataset=dataset, algorithm={"name": "filtered_bc"}))
    assert result.num_steps == 1


def write_chats(hand, folder):
    """Chats recorded without ids: one good, one bad."""
    trajectories = []
    for name, reward in (("goal", 1.0), ("hole", 0.0)):
        nodes = [("q", None, "user", "left or right?"), ("a", "q", "assistant", name)]
        messages = [
            {
                "node_id": node,
                "parent_id": parent,
                "message": json.dumps({"role": role, "parts": [{"type": "text", "content": text}]}),
            }
            for node, parent, role, text in nodes
        ]
        turn = hand.turn(None, None, input_node="q", output_node="a")
        trajectories.append(
            hand.trajectory(name, [turn], reward=reward, usable_for="sft", messages=messages)
        )
    return hand.dataset(folder, trajectories)


def test_chats_without_ids_are_rendered_for_cloning(configure, hand, tmp_path):
    """Filtered BC trains on retokenized rows and says so."""
    dataset = write_chats(hand, tmp_path / "data")
    result = train(configure(dataset=dataset, algorithm={"name": "auto"}))
    start = read_metrics(result.metrics_path)[0]
    assert (start["algorithm"], start["num_retokenized_rows"]) == ("filtered_bc", 1)


def test_rendering_needs_a_chat_template(configure, hand, tmp_path):
    """Chats without ids and a model without a template: the error names the model."""
    model = hand.model(tmp_path / "m")
    hand.tokenizer(chat_template=None).save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    dataset = write_chats(hand, tmp_path / "data")
    with pytest.raises(ModelError, match="no chat template"):
        train(configure(base=model, dataset=dataset, algorithm={"name": "filtered_bc"}))


def test_not_a_number_names_the_trajectory(configure, hand, model_folder, tmp_path):
    """A recorded log-probability that is no number stops the run at its trajectory only."""
    dataset = write_bandit(hand, tmp_path / "good", model_folder)
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


def test_ids_of_another_vocabulary_are_refused(configure, hand, tmp_path):
    """Token id 300 does not exist in a vocabulary of 300."""
    rows = [
        hand.trajectory(f"t{i}", [hand.turn([5], [300], [-1.0])], reward=float(i)) for i in (0, 1)
    ]
    with pytest.raises(DataError, match=r"t0: token id 300 is outside the vocabulary"):
        train(configure(dataset=hand.dataset(tmp_path / "data", rows)))


def test_bilevel_gae_uses_turn_order_across_branches(configure, hand, tmp_path):
    """Equal states, so V is the mean return: later turns of a success are worth more.

    Two-turn trajectories whose second turn is a branch; the recorded reward is at the last turn.
    """
    turns = [
        hand.turn([20, 21], [GOOD, END], [-5.0, -5.0]),
        hand.turn([30, 31], [BAD, END], [-5.0, -5.0]),
    ]
    rows = [
        hand.trajectory(f"t{i}", turns, reward=float(i % 2), task_id=f"k{i % 10}")
        for i in range(20)
    ]
    result = train(
        configure(
            dataset=hand.dataset(tmp_path / "data", rows),
            algorithm={"advantage": "bilevel_gae"},
            train={"trajectories_per_step": 20},
        )
    )
    start, step = read_metrics(result.metrics_path)[:2]
    assert start["num_rows"] == 40
    assert "critic_explained_variance" in start
    # returns are (.95, 1) or (0, 0), V = (.475, .5): advantages +-(.475+.025...), whitened to ~1
    assert step["advantage_mean_abs"] == pytest.approx(1, abs=0.1)


def test_rows_of_a_trajectory_share_its_weight(hand, tmp_path):
    """A trajectory of two branches weighs as much as one of a single row (traj-mean)."""
    from starpo_train.prepare import TrainingData
    from starpo_train.provenance import Choice
    from starpo_train.step import build_step_packs

    path = hand.dataset(
        tmp_path,
        [
            hand.trajectory(
                "branched",
                [hand.turn([1], [2, 3], [-1, -1]), hand.turn([9], [4], [-1])],
                reward=1.0,
            ),
            hand.trajectory("linear", [hand.turn([1], [2, 3, 4, 5], [-1] * 4)], reward=0.0),
        ],
    )
    rows, rows_of_N = [], []
    for i, trajectory in enumerate(read_trajectories(path)):
        new = tokenize_trajectory(trajectory, position=i)
        rows_of_N.append(list(range(len(rows), len(rows) + len(new))))
        rows += new
    data = TrainingData(
        manifest=None,
        choice=Choice(algorithm="filtered_bc", reason=""),
        trajectory_ids_N=["branched", "linear"],
        rows=rows,
        rows_of_N=rows_of_N,
        advantages_R=[],
        critic_values_K=None,
        facts={},
    )
    config = read_run_config(
        hand.run_file(
            tmp_path / "r.toml", base=tmp_path, dataset=path, train={"tokens_per_pack": 3}
        )
    )
    packs = build_step_packs(data, config, [0, 1])
    weights = {0: 0.0, 1: 0.0}
    for pack in packs:
        for row, weight in zip(
            pack.batch.row_of_A.tolist(), pack.coefficients_A.tolist(), strict=True
        ):
            weights[rows[pack.batch.rows_R[row]].trajectory] += weight
    assert weights == pytest.approx({0: 0.5, 1: 0.5})
    assert len(packs) == 3
    assert build_rows([], trajectory=0) == []
    assert pack_rows(rows, [0]).num_actions == 2


def assign_by_hand(hand, tmp_path, rows, values, **algorithm):
    """Bi-level credit of a dataset with given critic values -> advantages per row."""
    path = hand.dataset(tmp_path / "data", rows)
    tokenized = TokenizedTrajectories(trajectories=read_trajectories(path), rows=[], rows_of_N=[])
    for i, trajectory in enumerate(tokenized.trajectories):
        new = tokenize_trajectory(trajectory, position=i)
        first = len(tokenized.rows)
        tokenized.rows_of_N.append(list(range(first, first + len(new))))
        tokenized.rows += new
    options = {"advantage": "bilevel_gae"} | algorithm
    config = read_run_config(
        hand.run_file(tmp_path / "r.toml", base=tmp_path, dataset=path, algorithm=options)
    )
    values_K = torch.tensor(values, dtype=torch.float64)
    credit = assign_credit(tokenized, config, None, critic_values_K=values_K)
    return [advantages.tolist() for advantages in credit.advantages_R]


def whiten(values):
    return [(value - statistics.mean(values)) / statistics.stdev(values) for value in values]


def test_bilevel_credit_by_hand(hand, tmp_path):
    """A success of two turns in one row, and a run of one turn that a limit cut.

    Success: r = (0, 1), V = (.5, .6): A1 = .4, A0 = .95*.6 - .5 + .95*.4 = .45. Cut: r = 0,
    V = .4, bootstrapped from .4: .95*.4 - .4 = -.02, where a failure would be -.4.
    """
    rows = [
        hand.trajectory(
            "a",
            [hand.turn([9], [2, 3], [-1, -1]), hand.turn([9, 2, 3, 8], [4], [-1])],
            reward=1.0,
        ),
        hand.trajectory("b", [hand.turn([9], [5], [-1])], reward=0.0, end="truncated"),
    ]
    actual = assign_by_hand(hand, tmp_path, rows, [0.5, 0.6, 0.4])
    expected = whiten([0.45, 0.45, 0.4, -0.02])
    assert actual[0] == pytest.approx(expected[:3], abs=1e-6)
    assert actual[1] == pytest.approx(expected[3:], abs=1e-6)


def test_process_rewards_count_with_their_weight(hand, tmp_path):
    """Turn reward .8 at weight .5 and outcome 1, V = 0: A1 = 1, A0 = .4 + .95 = 1.35."""
    turns = [
        hand.turn([9], [2], [-1], reward=0.8),
        hand.turn([9, 2, 8], [3], [-1]),
    ]
    rows = [hand.trajectory("a", turns, reward=1.0), hand.trajectory("b", turns[1:], reward=0.0)]
    actual = assign_by_hand(hand, tmp_path, rows, [0.0, 0.0, 0.0], process_reward_weight=0.5)
    expected = whiten([1.35, 1.0, 0.0])
    assert [*actual[0], *actual[1]] == pytest.approx(expected, abs=1e-6)


def test_truncated_runs_can_be_left_out(configure, hand, tmp_path):
    """`data.truncated = "drop"` takes a run out and counts it."""
    turn = hand.turn(PROMPT, [GOOD, END], [-5.0, -5.0])
    ends = ["terminated", "terminated", "truncated"]
    rows = [
        hand.trajectory(f"t{i}", [turn], reward=float(i == 0), end=end)
        for i, end in enumerate(ends)
    ]
    dataset = hand.dataset(tmp_path / "data", rows)
    result = train(configure(dataset=dataset, data={"truncated": "drop"}))
    start = read_metrics(result.metrics_path)[0]
    assert (start["num_trajectories"], start["left_out"]) == (2, {"truncated": 1})
