"""Every algorithm as a run: it learns, its gradient is the loss's, and it resumes to the same bits."""

import hashlib
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from starpo_train.config import ModelSection
from starpo_train.errors import DataError, ProvenanceError
from starpo_train.losses.aggregation import Aggregation
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.provenance import ALGORITHMS
from starpo_train.run import open_trainer, train
from starpo_train.run_folder import read_resumed_config
from starpo_train.schedule import split_between_tasks
from starpo_train.step import accumulate_gradients

PROMPT = [0, 20, 21]
GOOD, BAD, END = 40, 50, 1
LOSSES = ("ppo_clip", "gspo", "cispo", "cispo_trl", "sapo", "dppo_tv")
WIDE = {"clip_low": 0.5, "clip_high": 0.5}


@pytest.fixture
def tell_apart(hand):
    """Mean log-odds of the good against the bad answer over the two tasks."""

    def measure(folder):
        policy = load_policy(ModelSection(path=str(folder), device="cpu"))
        prompts = [[*PROMPT, 60], [*PROMPT, 61]]
        return float(
            np.mean(
                [
                    hand.score(policy, p, [GOOD])[0] - hand.score(policy, p, [BAD])[0]
                    for p in prompts
                ]
            )
        )

    return measure


@pytest.fixture
def branched(hand, model_folder, tmp_path):
    """Two tasks of three attempts, two turns each, of which some branch into a second row."""
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    generator = np.random.default_rng(3)
    trajectories = []
    for task in range(2):
        for attempt in range(3):
            prompt = [0, 20 + task, 22]
            turns = []
            for k in range(2):
                answer = [*generator.integers(30, 90, 2 + attempt).tolist(), END]
                scores = hand.score(policy, prompt, answer).tolist()
                turns.append(hand.turn(prompt, answer, scores, output_node=f"{k}"))
                prompt = [*prompt, *answer, 24] if attempt % 2 else [0, 25, 26 + attempt]
            trajectories.append(
                hand.trajectory(
                    f"{task}-{attempt}", turns, reward=[1.0, 0.0, 0.5][attempt], task_id=f"t{task}"
                )
            )
    return hand.dataset(tmp_path / "branched", trajectories)


def measure_gradient(config):
    """Gradient of the first step as one vector, and its metrics."""
    trainer = open_trainer(config, resume=False, progress=None)
    trainer._refresh_proximal()
    step = trainer._build_step(trainer._plan_epoch(0)[0])
    objective, name_row = trainer.data.objective, trainer.data.name_row
    found = accumulate_gradients(trainer.policy, step, objective, name_row)
    trainer._metrics.close()
    gradients = [p.grad.flatten() for _, p in trainer.policy.trained_parameters()]
    return torch.cat(gradients), found.sums, trainer


def hash_weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "starpo"])
def test_every_algorithm_prefers_the_rewarded_answer(configure, tell_apart, model_folder, name):
    """The good answer gains on the bad one."""
    config = configure(algorithm={"name": name}, train={"epochs": 4, "learning_rate": 3e-3})
    result = train(config)
    assert tell_apart(result.final_path) > tell_apart(model_folder) + 0.1
    records = read_metrics(result.metrics_path)
    assert records[0]["algorithm"] == name
    assert np.isfinite([r["loss"] for r in records if "loss" in r]).all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_starpo_prefers_the_rewarded_answer(
    configure, tell_apart, model_folder, loss
):
    """The good answer gains on the bad one."""
    config = configure(
        algorithm={"name": "starpo", "loss": loss} | WIDE,
        train={"epochs": 4, "learning_rate": 3e-3},
    )
    assert tell_apart(train(config).final_path) > tell_apart(model_folder) + 0.1


CASES = [
    *({"name": name} for name in ALGORITHMS),
    {"name": "awr", "baseline": "critic"},
    *({"name": "starpo", "loss": loss} for loss in LOSSES[1:]),
    {"name": "starpo", "kl_coef": 0.1, "proximal": "epoch", "dual_clip": 3.0},
    *({"name": "starpo", "aggregation": mode} for mode in get_args(Aggregation)[1:]),
    {"name": "starpo", "loss": "gspo", "proximal": "epoch", "correction": "sequence_mask"},
    {"name": "starpo", "proximal": "epoch", "correction": "off_policy_mask"},
]


@pytest.mark.parametrize("section", CASES, ids=lambda s: "-".join(map(str, s.values())))
def test_how_a_step_is_packed_does_not_change_its_gradient(configure, branched, section):
    """One pack, or one row after another: the same loss and gradient, branches included."""
    gradients = []
    for tokens_per_pack in (8192, 1):
        config = configure(
            f"pack{tokens_per_pack}",
            dataset=branched,
            algorithm=section,
            train={"tokens_per_pack": tokens_per_pack, "trajectories_per_step": 6},
        )
        gradient, sums, _ = measure_gradient(config)
        gradients.append((gradient, sums["loss"]))
    (one, loss), (other, other_loss) = gradients
    assert loss == pytest.approx(other_loss, rel=1e-4, abs=5e-6)  # float32; processors differ
    assert float(one.norm()) > 1e-6
    assert float((one - other).norm()) < 2e-4 * float(one.norm())


@pytest.mark.parametrize("name", ["topr", "dro", "kto", "dpo"])
def test_a_loss_on_trajectories_has_the_gradient_that_autograd_gives(configure, branched, name):
    """Summed over branches in one graph, through the loss, against slopes carried to packs."""
    config = configure(
        dataset=branched,
        algorithm={"name": name},
        train={"tokens_per_pack": 1, "trajectories_per_step": 6},
    )
    carried, _, trainer = measure_gradient(config)
    policy, data = trainer.policy, trainer.data
    # somewhere else than at the reference, where terms that vanish there count
    with torch.no_grad():
        for _, parameter in policy.trained_parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    policy.model.zero_grad()
    chosen = trainer._plan_epoch(0)[0]
    step = trainer._build_step(chosen)
    found = accumulate_gradients(policy, step, data.objective, data.name_row)
    carried = torch.cat([p.grad.flatten() for _, p in policy.trained_parameters()])
    policy.model.zero_grad()
    sums_N = torch.zeros(len(chosen), dtype=torch.float64)
    for pack in step.packs:
        values_A = policy.score_actions(pack.batch).logprobs_A.double()
        sums_N = sums_N.index_add(0, pack.trajectory_of_A, values_A)
    divergence = 0.0
    if step.mismatched:
        with torch.no_grad():
            gaps = [
                float((policy.score_actions(batch).logprobs_A.double() - reference_A).sum())
                for batch, reference_A in step.mismatched
            ]
        divergence = max(sum(gaps) / len(chosen), 0.0)
    output = data.objective.compute_on_trajectories(sums_N, step.terms, divergence=divergence)
    output.loss.backward()
    expected = torch.cat([p.grad.flatten() for _, p in policy.trained_parameters()])
    assert found.sums["loss"] == pytest.approx(output.loss.detach().item(), rel=1e-5, abs=1e-6)
    assert float((carried - expected).norm()) < 1e-4 * float(expected.norm())


@pytest.mark.parametrize(
    "section",
    [
        {"name": "dro"},
        {"name": "kto"},
        {"name": "awac"},
        {"name": "starpo", "kl_coef": 0.1, "proximal": "epoch"},
    ],
    ids=lambda s: s["name"],
)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_with_the_same_weights(
    configure, branched, section
):
    """Reference, critic and the policy of the epoch's start come from the checkpoint."""
    sections = {
        "algorithm": section,
        "train": {
            "epochs": 2,
            "trajectories_per_step": 2,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 2,
            "keep_checkpoints": 0,
        },
    }
    whole = train(configure("whole", dataset=branched, **sections))
    part = configure("part", dataset=branched, **sections)
    first = train(part, progress=stop_after(2))
    assert (first.interrupted, first.num_steps) == (True, 2)
    rest = train(read_resumed_config(part.run.output), resume=True)
    assert rest.num_steps == whole.num_steps
    assert hash_weights(rest.final_path) == hash_weights(whole.final_path)


def stop_after(step):
    """A progress callback that asks for the end, as Ctrl-C does."""
    import os
    import signal

    def look(record):
        if record.get("step") == step and "loss" in record:
            os.kill(os.getpid(), signal.SIGINT)

    return look


def test_dpo_leaves_out_what_is_in_no_pair(configure, hand, model_folder, tmp_path):
    """A task whose attempts are all worth the same has nothing to prefer."""
    turn = hand.turn([0, 20], [GOOD, END], [-1.0, -1.0])
    dataset = hand.dataset(
        tmp_path / "data",
        [
            hand.trajectory("a", [turn], reward=1.0, task_id="t"),
            hand.trajectory("b", [hand.turn([0, 20], [BAD, END])], reward=0.0, task_id="t"),
            hand.trajectory("c", [turn], reward=1.0, task_id="u"),
            hand.trajectory("d", [turn], reward=1.0, task_id="u"),
        ],
    )
    config = configure(dataset=dataset, algorithm={"name": "dpo"})
    start = read_metrics(train(config).metrics_path)[0]
    assert (start["num_trajectories"], start["num_pairs"], start["num_unpaired"]) == (2, 1, 2)


def test_a_task_is_never_parted():
    """Tasks of 3, 1 and 2 attempts in two steps: whole ones, of about one size."""
    order = np.array([4, 5, 6, 0, 2, 3])
    task_of = np.array([1, 9, 2, 2, 0, 0, 0])
    assert split_between_tasks(order, task_of, 2) == [[4, 5, 6], [0, 2, 3]]
    assert split_between_tasks(order, task_of, 1) == [[4, 5, 6, 0, 2, 3]]


def test_ratios_are_refused_where_nothing_was_recorded(configure, hand, tmp_path):
    """No ratio of 1, no log-probability of 0: TOPR needs what was recorded, AWR does not."""
    turns = {reward: [hand.turn([0, 20], [GOOD, END])] for reward in (0.0, 1.0)}
    dataset = hand.dataset(
        tmp_path / "data",
        [
            hand.trajectory(f"{r}", t, reward=r, usable_for="sft", reasons=["logprob_missing"])
            for r, t in turns.items()
        ],
    )
    with pytest.raises(ProvenanceError, match=r"topr' is refused: importance ratios need"):
        train(configure(dataset=dataset, algorithm={"name": "topr"}))
    result = train(configure(dataset=dataset, algorithm={"name": "auto"}))
    assert read_metrics(result.metrics_path)[0]["algorithm"] == "topr_reference"


def test_topr_counts_a_good_run_whole_and_a_bad_one_as_far_as_it_is_likely(configure, branched):
    """At the behaviour policy all count whole; where a bad run is unlikely, it fades."""
    config = configure(
        dataset=branched, algorithm={"name": "topr"}, train={"trajectories_per_step": 6}
    )
    trainer = open_trainer(config, resume=False, progress=None)
    trainer._metrics.close()
    step = trainer._build_step(trainer._plan_epoch(0)[0])
    at_mu = step.terms.behaviour_N.clone().requires_grad_()
    trainer.data.objective.compute_on_trajectories(at_mu, step.terms).loss.backward()
    assert at_mu.grad.tolist() == pytest.approx((-step.terms.outcomes_N / 6).tolist())
    unlikely = (step.terms.behaviour_N - 3.0).requires_grad_()
    trainer.data.objective.compute_on_trajectories(unlikely, step.terms).loss.backward()
    weights = torch.where(step.terms.outcomes_N >= 0, 1.0, np.exp(-3.0))
    expected = -step.terms.outcomes_N / 6 * weights
    assert unlikely.grad.tolist() == pytest.approx(expected.tolist())


def test_rewards_of_one_value_are_refused_by_name(configure, hand, tmp_path):
    """Nothing to weigh: AWR says so, cloning does not mind."""
    turn = hand.turn([0, 20], [GOOD, END], [-1.0, -1.0])
    dataset = hand.dataset(tmp_path / "data", [hand.trajectory("a", [turn], reward=1.0)])
    with pytest.raises(ProvenanceError, match="every reward is 1, so no advantage differs from 0"):
        train(configure(dataset=dataset, algorithm={"name": "awr"}))
    with pytest.raises(ProvenanceError, match="every reward is 1"):
        train(configure("dpo", dataset=dataset, algorithm={"name": "dpo"}))
    result = train(configure("bc", dataset=dataset, algorithm={"name": "filtered_bc"}))
    assert result.num_steps == 1
    assert replace(result, interrupted=False) == result


def test_long_runs_lose_reward(configure, branched):
    """Runs of 6, 8 and 10 sampled tokens, limit 10 after a buffer of 4: they lose 0, .5 and 1."""
    config = configure(
        dataset=branched,
        algorithm={"name": "dro", "overlong_length": 10, "overlong_buffer": 4},
    )
    trainer = open_trainer(config, resume=False, progress=None)
    trainer._metrics.close()
    assert trainer.data.facts["num_overlong"] == 4
    # rewards 1, 0 and .5 less that: 1, -.5 and -.5, less their mean of 0
    assert trainer.data.outcomes_N.tolist() == pytest.approx([1.0, -0.5, -0.5] * 2)


def test_bad_tokens_of_a_drifted_run_do_not_count():
    """Mean log mu - log pi of 2 and 0 against a cap of 1: only the first run's bad token is out."""
    from starpo_train.config import AlgorithmSection
    from starpo_train.proximal import correct_rows
    from starpo_train.tokens import TurnTokens, build_rows

    rows = [
        build_rows(
            [
                TurnTokens(
                    turn=0,
                    prompt_ids_T=np.array([1]),
                    response_ids_T=np.array([2, 3]),
                    logprobs_T=np.array([-1.0, -1.0], dtype=np.float32),
                    recorded=True,
                    trained=True,
                )
            ],
            trajectory=n,
        )[0]
        for n in range(2)
    ]
    now = [np.array([-3.0, -3.0], dtype=np.float32), np.array([-1.0, -1.0], dtype=np.float32)]
    advantages = [np.array([1.0, -1.0], dtype=np.float32)] * 2
    section = AlgorithmSection(correction="off_policy_mask", correction_cap=1.0)
    proximal = correct_rows(now, rows, [[0], [1]], advantages, section)
    assert [w.tolist() for w in proximal.weights_R] == [[1.0, 0.0], [1.0, 1.0]]
    assert proximal.kept == 0.75


@pytest.mark.parametrize("loss", ["ppo_clip", "gspo"])
def test_the_reference_holds_every_loss(configure, branched, loss):
    """A large `kl_coef` changes the steps in which the policy has left the reference."""
    ends = []
    for kl_coef in (0.0, 100.0):
        config = configure(
            f"kl{kl_coef}",
            dataset=branched,
            algorithm={"name": "starpo", "loss": loss, "kl_coef": kl_coef} | WIDE,
            train={"epochs": 3, "trajectories_per_step": 6, "learning_rate": 1e-3},
        )
        ends.append([r for r in read_metrics(train(config).metrics_path) if "loss" in r][-1])
    assert ends[1]["approx_kl"] < 0.7 * ends[0]["approx_kl"]


def make_runs(hand, tmp_path, rewards_of, *, exact=()):
    """One-turn runs: task -> rewards; those of tasks in `exact` have log-probabilities."""
    runs = []
    for task, rewards in rewards_of.items():
        known = {} if task in exact else {"usable_for": "sft", "reasons": ["logprob_missing"]}
        for i, reward in enumerate(rewards):
            turn = hand.turn([0, 20], [GOOD, END], [-1.0, -1.0] if task in exact else None)
            runs.append(hand.trajectory(f"{task}{i}", [turn], reward=reward, task_id=task, **known))
    return hand.dataset(tmp_path / "runs", runs)


def test_what_is_equal_but_for_rounding_weighs_nothing(configure, hand, tmp_path):
    """Tasks of .1, .7 and .3 throughout: their means differ from them by rounding only."""
    dataset = make_runs(hand, tmp_path, {"a": [0.1] * 3, "b": [0.7] * 3, "c": [0.3] * 7})
    with pytest.raises(DataError, match="no reward differs from what it is compared with"):
        train(configure(dataset=dataset, algorithm={"name": "awr"}))
    result = train(
        configure("none", dataset=dataset, algorithm={"name": "awr", "baseline": "none"})
    )
    assert result.num_steps > 0


def test_rewards_must_differ_where_they_are_used(configure, hand, tmp_path):
    """The runs with log-probabilities are all worth 1: `auto` takes what uses the others, too."""
    dataset = make_runs(hand, tmp_path, {"a": [1.0] * 4, "b": [0.0, 1.0]}, exact=("a",))
    start = read_metrics(train(configure(dataset=dataset, algorithm={"name": "auto"})).metrics_path)
    assert start[0]["algorithm"] == "topr_reference"
    with pytest.raises(ProvenanceError, match=r"'topr' is refused: every reward is 1"):
        train(configure("topr", dataset=dataset, algorithm={"name": "topr"}))


def test_failures_alone_are_not_cloned(configure, hand, tmp_path):
    """Every reward 0: refused, unless a threshold says that 0 is good."""
    dataset = make_runs(hand, tmp_path, {"a": [0.0] * 4})
    with pytest.raises(ProvenanceError, match="what failed is not to be cloned"):
        train(configure(dataset=dataset, algorithm={"name": "auto"}))
    section = {"name": "filtered_bc", "reward_threshold": 0.0}
    assert train(configure("set", dataset=dataset, algorithm=section)).num_steps == 1


def test_kto_needs_good_ones_and_bad_ones(configure):
    """A threshold above every reward leaves none that is good."""
    config = configure(algorithm={"name": "kto", "reward_threshold": 5.0})
    with pytest.raises(ProvenanceError, match=r"every trajectory is bad, .*; set one between"):
        train(config)


@pytest.mark.parametrize("tokens_per_pack", [8192, 6])
def test_drift_is_measured_where_something_was_recorded(
    configure, hand, model_folder, tmp_path, tokens_per_pack
):
    """Half of the runs have log-probabilities, of the model itself: at any packing KL 0, ESS 1."""
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    runs = []
    for i in range(4):
        prompt, answer = [0, 20 + i], [GOOD if i % 2 else BAD, END]
        scores = hand.score(policy, prompt, answer).tolist() if i < 2 else None
        turn = hand.turn(prompt, answer, scores)
        runs.append(hand.trajectory(f"{i}", [turn], reward=float(i % 2), task_id=f"{i // 2}"))
    config = configure(
        dataset=hand.dataset(tmp_path / "half", runs),
        algorithm={"name": "awr", "ess_floor": 0.9},
        train={"tokens_per_pack": tokens_per_pack},
    )
    first = next(r for r in read_metrics(train(config).metrics_path) if "loss" in r)
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["ess_fraction"] == pytest.approx(1.0, abs=1e-6)


def test_a_critic_for_lone_attempts_is_not_missed_where_there_are_none(configure):
    """Every task has four attempts."""
    result = train(configure(algorithm={"name": "starpo", "singleton": "learned_value"}))
    assert result.num_steps == 2
