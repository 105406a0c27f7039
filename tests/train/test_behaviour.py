"""Log-probabilities that were not recorded: fitted, or asked of the weights that sampled."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from starpo_train.behaviour.fit import fit_behaviour
from starpo_train.behaviour.rescore import rescore_behaviour
from starpo_train.behaviour.settings import BehaviourConfig, BehaviourSection
from starpo_train.behaviour.table import accept_rescored, digest_ids, read_behaviour
from starpo_train.cli import main
from starpo_train.config import ModelSection, TrainSection
from starpo_train.dataset import read_trajectories
from starpo_train.errors import ConfigError, DataError, ModelError, ProvenanceError
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.modelfolder import hash_file, hash_weights
from starpo_train.provenance import explain_inexact
from starpo_train.run import train
from starpo_train.run_folder import read_resumed_config

GOOD, BAD, END = 40, 50, 1


@pytest.fixture
def closed(hand, tmp_path):
    """Ids recorded, log-probabilities not: 24 attempts that answer GOOD twice as often as BAD."""
    trajectories = []
    for i in range(24):
        answer = BAD if i % 3 == 0 else GOOD
        turn = hand.turn([0, 20, 60 + i % 2], [answer, END], temperature=0.5, output_node="a")
        trajectories.append(
            hand.trajectory(
                f"run{i:02}",
                [turn],
                reward=float(answer == GOOD),
                task_id=f"task{i % 2}",
                policy_id="shop@1",
                usable_for="sft",
                reasons=["logprob_missing"],
            )
        )
    return hand.dataset(tmp_path / "closed", trajectories)


@pytest.fixture
def describe(closed, model_folder, tmp_path):
    def build(method="fit", **options):
        return BehaviourConfig(
            behaviour=BehaviourSection(
                dataset=closed, output=tmp_path / "behaviour", method=method, **options
            ),
            model=ModelSection(path=str(model_folder), device="cpu"),
            train=TrainSection(epochs=24, trajectories_per_step=6, learning_rate=2e-3, threads=1),
        )

    return build


def quiet(line):
    assert line.startswith("fold ")


@pytest.mark.slow
def test_what_was_fitted_knows_how_often_each_answer_was_given(describe, closed):
    """Held-out answers: GOOD in two of three runs, so -log p near the entropy of (2/3, 1/3)."""
    config = describe()
    (calibration,) = fit_behaviour(config, announce=quiet)
    before = json.loads((config.behaviour.output / "behaviour.json").read_text())["before_fitting"]
    assert (calibration.num_turns, calibration.num_tokens) == (24, 48)
    assert before[0]["nll"] > 2 * calibration.nll
    behaviour = read_behaviour(config.behaviour.output, dataset=closed)
    assert behaviour.provenance == "estimated"
    found = {GOOD: [], BAD: []}
    for trajectory in read_trajectories(closed):
        (turn,) = trajectory.turns
        name, prompt, answer = trajectory.trajectory_id, turn.prompt_ids_T, turn.response_ids_T
        found[int(answer[0])].append(np.exp(behaviour.find(name, 0, prompt, answer)))
    assert np.mean(found[GOOD], 0)[0] == pytest.approx(2 / 3, abs=0.2)
    assert np.mean(found[BAD], 0)[0] == pytest.approx(1 / 3, abs=0.2)
    assert np.min(found[GOOD] + found[BAD], 0)[1] > 0.8  # the answer always ends there


@pytest.mark.slow
def test_estimates_are_taken_when_asked_for_and_stamped(describe, closed, configure):
    """TOPR refuses them, then takes them; the start record and the checkpoint's card say so."""
    config = describe()
    fit_behaviour(config, announce=quiet)
    data = {"behaviour": str(config.behaviour.output)}
    with pytest.raises(ProvenanceError, match=r"24 have estimated ones, which algorithm.estimated"):
        train(configure(dataset=closed, data=data, algorithm={"name": "topr"}))
    accepting = {"name": "topr", "estimated_logprobs": "accept"}
    result = train(configure(dataset=closed, data=data, algorithm=accepting))
    start = read_metrics(result.metrics_path)[0]
    assert (start["estimated"], start["num_estimated_rows"]) == (True, 24)
    (config.behaviour.output / "logprobs.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read"):
        train(read_resumed_config(result.metrics_path.parent), resume=True)
    card = (result.final_path / "README.md").read_text()
    assert "| Log-probabilities | estimated by" in card


def test_a_run_goes_on_with_the_table_that_it_began_with(describe, closed, configure, tmp_path):
    """The same turns with other log-probabilities, put in its place: refused."""
    config = describe("rescore", policy_id="shop@1", weights_sha256="x")
    sha256 = hash_weights(config.model.path)
    config.behaviour.output.mkdir()
    rescore_behaviour(replace(config, behaviour=replace(config.behaviour, weights_sha256=sha256)))
    data = {"behaviour": str(config.behaviour.output), "logprobs": "processed"}
    result = train(configure(dataset=closed, data=data))
    table = config.behaviour.output / "logprobs.parquet"
    other = pl.read_parquet(table).with_columns(pl.col("logprobs").list.eval(pl.element() - 1))
    other.write_parquet(table)
    with pytest.raises(ConfigError, match=r"is not the file that behaviour\.json was written for"):
        train(read_resumed_config(result.metrics_path.parent), resume=True)
    file = config.behaviour.output / "behaviour.json"
    facts = json.loads(file.read_text()) | {"table_sha256": hash_file(table)}
    file.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"data\.behaviour: its log-probabilities are not those"):
        train(read_resumed_config(result.metrics_path.parent), resume=True)


@pytest.mark.slow
def test_an_interrupted_fit_goes_on(describe):
    """SIGINT in the first fold; the second call ends with the same table as an undisturbed one."""
    whole = describe()
    fit_behaviour(whole, announce=quiet)
    expected = (whole.behaviour.output / "logprobs.parquet").read_bytes()
    section = replace(whole.behaviour, output=whole.behaviour.output.with_name("part"))
    part = replace(whole, behaviour=section)

    def stop(record):
        if record.get("step") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_behaviour(part, announce=quiet, progress=stop)
    assert not (section.output / "behaviour.json").exists()
    fit_behaviour(part, announce=quiet)
    assert (section.output / "logprobs.parquet").read_bytes() == expected


def test_the_weights_that_sampled_give_exact_ones(describe, closed, model_folder, hand):
    """At the recorded temperature of 0.5: log-softmax of twice the logits."""
    sha256 = hash_weights(str(model_folder))
    config = describe("rescore", policy_id="shop@1", weights_sha256=sha256)
    config.behaviour.output.mkdir()
    found = rescore_behaviour(config)
    assert (found.num_turns, found.left_out, found.temperatures) == (24, {}, [0.5])
    behaviour = read_behaviour(config.behaviour.output, dataset=closed)
    trajectory = accept_rescored(read_trajectories(closed)[0], behaviour)
    assert explain_inexact(trajectory) is None
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    import torch

    ids = torch.tensor([[0, 20, 60, BAD]])
    with torch.no_grad():
        policy.model.set_attn_implementation("sdpa")
        logits = policy.model(input_ids=ids).logits[0].double()
    expected = torch.log_softmax(logits / 0.5, -1)[2, BAD]
    assert trajectory.turns[0].logprobs_T[0] == pytest.approx(float(expected), abs=1e-4)


def test_other_weights_are_refused(describe):
    """The hash is not that of the model at hand."""
    with pytest.raises(ModelError, match="only the weights that sampled the data"):
        rescore_behaviour(describe("rescore", policy_id="shop@1", weights_sha256="00"))
    with pytest.raises(ConfigError, match=r"needs behaviour.policy_id and"):
        describe("rescore")


def test_turns_whose_sampling_is_not_known_stay_without(hand, describe, closed, tmp_path):
    """No temperature, top-p, greedy, no ids: each is counted by name."""
    turns = [
        hand.turn([0, 20], [GOOD, END], output_node="a"),
        hand.turn([0, 21], [GOOD, END], temperature=1.0, top_p=0.9, output_node="b"),
        hand.turn([0, 22], [GOOD, END], temperature=0.0, output_node="c"),
        hand.turn(None, None, temperature=1.0, output_node="d"),
        hand.turn([0, 23], [GOOD, END], temperature=1.0, output_node="e"),
    ]
    dataset = hand.dataset(
        tmp_path / "mixed", [hand.trajectory("run", turns, reward=1.0, policy_id="shop@1")]
    )
    config = describe("rescore", policy_id="shop@1", weights_sha256="x")
    sha256 = hash_weights(config.model.path)
    section = replace(config.behaviour, dataset=dataset, weights_sha256=sha256)
    section.output.mkdir()
    found = rescore_behaviour(replace(config, behaviour=section))
    assert found.num_turns == 1
    assert found.left_out == {
        "temperature_not_recorded": 1,
        "top_p_or_top_k": 1,
        "greedy": 1,
        "token_ids_missing": 1,
    }


def test_a_table_of_another_dataset_is_refused(describe, closed, configure, bandit):
    """Its version is named in the folder."""
    config = describe("rescore", policy_id="shop@1", weights_sha256="x")
    sha256 = hash_weights(config.model.path)
    config.behaviour.output.mkdir()
    rescore_behaviour(replace(config, behaviour=replace(config.behaviour, weights_sha256=sha256)))
    manifest = json.loads((bandit / "manifest.json").read_text())
    file = config.behaviour.output / "behaviour.json"
    facts = json.loads(file.read_text())
    facts["dataset"]["digest"] = "another"
    file.write_text(json.dumps(facts))
    assert manifest["digest"] != "another"
    data = {"behaviour": str(config.behaviour.output)}
    with pytest.raises(DataError, match="made for version another of the dataset"):
        train(configure(data=data))
    with pytest.raises(ConfigError, match=r"behaviour.json is missing"):
        train(configure("none", data={"behaviour": str(closed)}))


def test_a_turn_of_other_ids_is_not_found():
    """A digest tells the prompt's end from the answer's beginning."""
    assert digest_ids(np.array([1, 2]), np.array([3])) != digest_ids(
        np.array([1]), np.array([2, 3])
    )


@pytest.mark.slow
def test_the_command_prints_how_good_the_fit_is(closed, model_folder, tmp_path, capsys):
    """A table by model and policy, and the line for the run file."""
    file = tmp_path / "behaviour.toml"
    file.write_text(
        f'[behaviour]\ndataset = "{closed}"\noutput = "mu"\nmethod = "fit"\n'
        f'[model]\npath = "{model_folder}"\ndevice = "cpu"\n'
        "[train]\nepochs = 2\nthreads = 1\n"
    )
    assert main(["behaviour", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "held-out turns, nats per token" in printed
    assert "shop@1" in printed
    assert f'[data] behaviour = "{tmp_path / "mu"}"' in printed.replace("\n", "")
    assert main(["behaviour", str(file)]) == 0  # nothing is fitted again


def rescore(describe, **options):
    config = describe("rescore", policy_id="shop@1", weights_sha256="x")
    sha256 = hash_weights(config.model.path)
    config = replace(config, behaviour=replace(config.behaviour, weights_sha256=sha256, **options))
    rescore_behaviour(config)
    return config


def test_log_probabilities_of_a_temperature_are_not_taken_at_another(describe, closed, configure):
    """Sampled at 0.5, so `raw`, which scores the policy at 1, is refused; at 0.5 they are its own."""
    data = {"behaviour": str(rescore(describe).behaviour.output)}
    algorithm = {"name": "topr"}
    with pytest.raises(ConfigError, match=r"temperatures \[0.5\]; set data.logprobs = 'processed'"):
        train(configure(dataset=closed, data=data, algorithm=algorithm))
    data["logprobs"] = "processed"
    result = train(configure(dataset=closed, data=data, algorithm=algorithm))
    first = next(r for r in read_metrics(result.metrics_path) if "loss" in r)
    assert first["approx_kl"] < 1e-6
    assert first["ess_fraction"] == pytest.approx(1.0, abs=1e-6)


def test_a_loss_without_ratios_is_not_measured_by_another_temperature(describe, closed, configure):
    """AWR takes the policy at 1: nothing of temperature 0.5 is compared with that."""
    data = {"behaviour": str(rescore(describe).behaviour.output), "logprobs": "processed"}
    result = train(configure(dataset=closed, data=data, algorithm={"name": "awr"}))
    assert not any("approx_kl" in record for record in read_metrics(result.metrics_path))


@pytest.mark.slow
def test_another_division_of_the_data_is_fitted_anew(describe):
    """Two folds, then three in the same folder: five fits, none of which saw what it scores."""
    config = describe()
    fit_behaviour(config, announce=quiet)
    three = replace(config, behaviour=replace(config.behaviour, folds=3))
    fit_behaviour(three, announce=quiet)
    assert len(list(config.behaviour.output.glob("fold_*"))) == 5


@pytest.mark.slow
def test_estimates_of_other_ids_are_refused_by_name(describe, closed, configure):
    """The table is of turns that this dataset has, as other ids."""
    config = describe()
    fit_behaviour(config, announce=quiet)
    table = config.behaviour.output / "logprobs.parquet"
    pl.read_parquet(table).with_columns(ids_digest=pl.lit("00")).write_parquet(table)
    file = config.behaviour.output / "behaviour.json"
    facts = json.loads(file.read_text()) | {"table_sha256": hash_file(table)}
    file.write_text(json.dumps(facts))
    data = {"behaviour": str(config.behaviour.output)}
    algorithm = {"name": "topr", "estimated_logprobs": "accept"}
    with pytest.raises(DataError, match="made with another tokenizer, chat template or"):
        train(configure(dataset=closed, data=data, algorithm=algorithm))
