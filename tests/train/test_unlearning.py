"""Runs of tasks held back are scored as a run goes on; one that loses the good ones goes back."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starpo_train.diagnostics import early_stop
from starpo_train.diagnostics.unlearning import summarize_change
from starpo_train.errors import ConfigError
from starpo_train.export import find_checkpoint
from starpo_train.heldback import draw_orders
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.run import train
from starpo_train.run_folder import find_model, read_final_path, read_resumed_config
from starpo_train.trainingdata import HeldBack

GOOD, BAD, END = 40, 50, 1
NUM_TEST = 10
FAST = {"epochs": 6, "trajectories_per_step": 4, "learning_rate": 1e-4}
CHECKED = FAST | {"checkpoint_every_steps": 1}


@pytest.fixture(scope="module")
def policy(model_folder):
    from starpo_train.config import ModelSection

    return load_policy(ModelSection(path=str(model_folder), device="cpu"))


@pytest.fixture
def make_dataset(hand, model_folder, policy, tmp_path):
    """What is worth 1 in training, and what in the tasks held back."""

    def make(name, *, held_back, num_test=NUM_TEST, more=()):
        trajectories = list(more)
        tasks = [("train", n, GOOD) for n in range(2)]
        tasks += [("test", n, held_back) for n in range(num_test)]
        for split, number, worth in tasks:
            prompt = [0, 20, 21, (60 if split == "train" else 70) + number]
            for attempt in range(4):
                answer = [GOOD if attempt % 2 == 0 else BAD, END]
                logprobs = hand.score(policy, prompt, answer).tolist()
                trajectories.append(
                    hand.trajectory(
                        f"{split}{number}-{attempt}",
                        [hand.turn(prompt, answer, logprobs)],
                        reward=float(answer[0] == worth),
                        task_id=f"{split}{number}",
                        split=split,
                    )
                )
        return hand.dataset(tmp_path / name, trajectories)

    return make


def read_events(run, event):
    return [r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == event]


def measure_by_hand(hand, model, *, answer, held_back_task=0):
    from starpo_train.config import ModelSection

    loaded = load_policy(ModelSection(path=str(model), device="cpu"))
    prompt = [0, 20, 21, 70 + held_back_task]
    return float(hand.score(loaded, prompt, [answer, END]).sum())


def collapse(configure, make_dataset, name="run", **train_settings):
    """A run that pushes down what succeeds elsewhere -> its configuration and what became of it."""
    config = configure(
        name,
        dataset=make_dataset(f"{name}-data", held_back=BAD),
        train=CHECKED | train_settings,
        diagnostics={"early_stop": True},
    )
    return config, train(config)


def test_the_change_is_what_transformers_own_forward_pass_says(configure, make_dataset, hand):
    """Log-probability of runs held back, at the end less that before the first step, over tokens."""
    config = configure(
        dataset=make_dataset("data", held_back=GOOD),
        train=FAST | {"epochs": 2},
        diagnostics={"early_stop": True},
    )
    result = train(config)
    before, after = read_events(result.final_path.parents[1], "held_back")
    assert (before["step"], before["good_change"], before["bad_change"]) == (0, 0.0, 0.0)
    assert after["step"] == result.num_steps
    assert (after["num_good"], after["num_bad"]) == (2 * NUM_TEST, 2 * NUM_TEST)
    for kind, answer in (("good", GOOD), ("bad", BAD)):
        change = [
            measure_by_hand(hand, result.final_path, answer=answer, held_back_task=n)
            - measure_by_hand(hand, config.model.path, answer=answer, held_back_task=n)
            for n in range(NUM_TEST)
        ]
        assert after[f"{kind}_change"] == pytest.approx(np.mean(change) / 2, abs=2e-5)
    assert after["good_change"] > 0 > after["bad_change"]
    assert after["good_lost_excess"] < 0
    assert result.stopped_by is None


def test_a_run_that_unlearns_goes_back_to_the_checkpoint_before(configure, make_dataset):
    """Where it pushes down what succeeds elsewhere it stops; its result still found that likely."""
    config, result = collapse(configure, make_dataset)
    run = config.run.output
    assert result.stopped_by == "good_runs_lost"
    (stop,) = read_events(run, "early_stop")
    scored = read_events(run, "held_back")
    assert [r["step"] for r in scored] == list(range(stop["step"] + 1))
    assert scored[-1]["good_lost_excess"] > 0
    assert all(r["good_lost_excess"] <= 0 for r in scored[:-1])
    healthy = stop["step"] - 1
    assert healthy >= 1
    final = json.loads((run / "final.json").read_text())
    assert final == {
        "checkpoint": f"checkpoints/step_{healthy:06d}",
        "step": healthy,
        "early_stop": "good_runs_lost",
        "stopped_at_step": stop["step"],
    }
    assert result.final_path == read_final_path(run) == run / final["checkpoint"]
    assert find_model(str(run)) == str(result.final_path)
    (rollback,) = read_events(run, "rollback")
    assert rollback["checkpoint"] == result.final_path.name
    again = train(read_resumed_config(run), resume=True)
    assert (again.already_finished, again.final_path) == (True, result.final_path)
    assert len(read_events(run, "rollback")) == 1
    assert json.loads((run / "final.json").read_text()) == final
    (run / "run.toml").write_text(
        (run / "run.toml").read_text().replace("epochs = 6", "epochs = 9")
    )
    longer = train(read_resumed_config(run), resume=True)
    assert (longer.already_finished, longer.stopped_by) == (True, "good_runs_lost")
    assert read_events(run, "resume") == []
    (run / "run.toml").write_text((run / "run.toml").read_text().replace("0.0001", "0.001"))
    with pytest.raises(ConfigError, match=f"model.path = '{result.final_path}' there begins"):
        train(read_resumed_config(run), resume=True)


def test_a_result_that_was_removed_is_not_replaced_by_the_lost_one(configure, make_dataset):
    """The healthy checkpoint before it is taken; without any, that is said."""
    config, result = collapse(configure, make_dataset, keep_checkpoints=0, learning_rate=5e-5)
    run = config.run.output
    steps = [int(path.name.removeprefix("step_")) for path in (result.final_path, find_newest(run))]
    assert 2 <= steps[0] < steps[1]
    shutil.rmtree(result.final_path)
    again = train(read_resumed_config(run), resume=True)
    assert again.final_path.name == f"step_{steps[0] - 1:06d}"
    assert [r["checkpoint"] for r in read_events(run, "rollback")] == [
        result.final_path.name,
        again.final_path.name,
    ]
    for path in sorted((run / "checkpoints").glob("step_*"))[:-1]:
        shutil.rmtree(path)
    last = train(read_resumed_config(run), resume=True)
    assert last.final_path == find_newest(run)
    assert [r["checkpoint"] for r in read_events(run, "no_rollback")] == [last.final_path.name]


def test_a_run_lost_at_its_first_checkpoint_goes_back_to_its_start(configure, make_dataset):
    """The model it began with, which is kept until a checkpoint is healthy."""
    config, result = collapse(
        configure, make_dataset, checkpoint_every_steps=4, learning_rate=3e-4, keep_checkpoints=1
    )
    assert (result.stopped_by, result.final_path.name) == ("good_runs_lost", "step_000000")
    began, ended = (
        (path / "model.safetensors").read_bytes()
        for path in (Path(config.model.path), result.final_path)
    )
    assert began == ended
    (rollback,) = read_events(config.run.output, "rollback")
    assert (rollback["step"], rollback["checkpoint"]) == (4, "step_000000")

    _, healthy = collapse(configure, make_dataset, "healthy", learning_rate=1e-5)
    assert healthy.stopped_by is None
    assert not (healthy.final_path.parent / "step_000000").exists()


def test_a_run_that_goes_back_again_says_so_again(configure, make_dataset):
    """Its last checkpoint was removed: it goes the same way, and the record of it is there once."""
    config, result = collapse(configure, make_dataset, learning_rate=5e-5)
    run = config.run.output
    final = (run / "final.json").read_text()
    shutil.rmtree(find_newest(run))
    again = train(read_resumed_config(run), resume=True)
    assert (again.already_finished, again.final_path) == (False, result.final_path)
    assert (run / "final.json").read_text() == final
    assert [r["checkpoint"] for r in read_events(run, "rollback")] == [result.final_path.name]


def test_a_kill_before_the_end_was_told_loses_no_record(configure, make_dataset):
    """As if it had come right after the last commit."""
    config, result = collapse(configure, make_dataset)
    run = config.run.output
    final = (run / "final.json").read_text()
    (run / "final.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(x for x in lines if '"rollback"' not in x))
    assert train(read_resumed_config(run), resume=True).final_path == result.final_path
    assert [r["checkpoint"] for r in read_events(run, "rollback")] == [result.final_path.name]
    assert (run / "final.json").read_text() == final


def test_a_run_whose_epochs_are_shortened_is_scored_at_its_end(configure, make_dataset):
    """It was interrupted where nothing had been scored, and ends there: it goes back all the same."""
    _, collapsed = collapse(configure, make_dataset, learning_rate=5e-5)
    lost_at = collapsed.num_steps
    assert lost_at > 2
    config = configure(
        "again",
        dataset=collapsed.final_path.parents[2] / "run-data",
        train=CHECKED | {"checkpoint_every_steps": lost_at - 1, "learning_rate": 5e-5},
        diagnostics={"early_stop": True},
    )

    def interrupt(record):
        if "event" not in record and record["step"] == lost_at:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(config, progress=interrupt).interrupted
    run = config.run.output
    file = run / "run.toml"
    file.write_text(file.read_text().replace("epochs = 6", "epochs = 1"))
    ended = train(read_resumed_config(run), resume=True)
    assert ended.stopped_by == "good_runs_lost"
    assert ended.final_path.name == f"step_{lost_at - 1:06d}"
    assert json.loads((run / "final.json").read_text())["stopped_at_step"] == lost_at


def find_newest(run):
    return max((run / "checkpoints").glob("step_*"))


def test_the_healthy_checkpoint_outlives_the_last(configure, make_dataset):
    """`keep_checkpoints = 1` would keep the damaged one."""
    config = configure(
        dataset=make_dataset("data", held_back=BAD),
        train=CHECKED | {"keep_checkpoints": 1},
        diagnostics={"early_stop": True},
    )
    result = train(config)
    assert result.stopped_by == "good_runs_lost"
    assert (result.final_path / "COMMIT").is_file()
    assert int(result.final_path.name.removeprefix("step_")) < result.num_steps


def test_without_a_checkpoint_before_the_last_one_is_the_result(configure, make_dataset):
    config = configure(
        dataset=make_dataset("data", held_back=BAD), train=FAST, diagnostics={"early_stop": True}
    )
    result = train(config)
    assert result.stopped_by == "good_runs_lost"
    final = json.loads((config.run.output / "final.json").read_text())
    assert (final["step"], "stopped_at_step" in final) == (result.num_steps, False)
    assert read_events(config.run.output, "rollback") == []
    (told,) = read_events(config.run.output, "no_rollback")
    assert told["checkpoint"] == result.final_path.name


def test_without_early_stop_it_is_told_once_and_the_last_one_is_the_result(configure, make_dataset):
    config = configure(
        dataset=make_dataset("data", held_back=BAD),
        train=CHECKED,
        diagnostics={"early_stop": False},
    )
    result = train(config)
    alarms = [r["rule"] for r in read_events(config.run.output, "alarm")]
    assert alarms.count("good_runs_lost") == 1
    assert (result.stopped_by, result.num_steps) == (None, 12)
    assert result.final_path.name == "step_000012"


@pytest.mark.parametrize(
    ("num_test", "diagnostics"), [(0, {}), (NUM_TEST, {"held_back": 0})], ids=["none", "not asked"]
)
def test_nothing_held_back_nothing_scored(configure, make_dataset, num_test, diagnostics):
    config = configure(
        dataset=make_dataset("data", held_back=BAD, num_test=num_test),
        train=CHECKED,
        diagnostics={"early_stop": False, **diagnostics},
    )
    train(config)
    assert read_events(config.run.output, "held_back") == []
    (start,) = read_events(config.run.output, "start")
    told = start.get("held_back_note")
    assert told is None if diagnostics else "has no split 'test'" in told


def test_too_few_good_runs_conclude_nothing(configure, make_dataset):
    config = configure(
        dataset=make_dataset("data", held_back=BAD, num_test=3),
        train=CHECKED,
        diagnostics={"early_stop": True},
    )
    result = train(config)
    scored = read_events(config.run.output, "held_back")
    assert {(r["num_good"], r["good_lost_excess"]) for r in scored} == {(6, None)}
    assert result.stopped_by != "good_runs_lost"


def test_a_resumed_run_compares_with_the_same_start(configure, make_dataset):
    """As the run that was never stopped, to the bit."""
    data = make_dataset("data", held_back=GOOD)
    diagnostics = {"early_stop": True}
    whole = configure("whole", dataset=data, train=CHECKED, diagnostics=diagnostics)
    train(whole)
    halves = configure(
        "halves", dataset=data, train=CHECKED | {"epochs": 3}, diagnostics=diagnostics
    )
    train(halves)
    file = halves.run.output / "run.toml"
    file.write_text(file.read_text().replace("epochs = 3", "epochs = 6"))
    train(read_resumed_config(halves.run.output), resume=True)
    told = [
        [{k: v for k, v in r.items() if k != "scored_in_s"} for r in read_events(path, "held_back")]
        for path in (whole.run.output, halves.run.output)
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 13


def test_an_interrupt_at_a_checkpoint_loses_no_score(configure, make_dataset):
    """The run stops after the score, so that the resumed one judges as the whole one."""
    data = make_dataset("data", held_back=GOOD)

    def interrupt(record):
        if record.get("step") == 3 and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    config = configure(dataset=data, train=CHECKED, diagnostics={"early_stop": True})
    part = train(config, progress=interrupt)
    assert (part.interrupted, part.num_steps) == (True, 3)
    train(read_resumed_config(config.run.output), resume=True)
    assert [r["step"] for r in read_events(config.run.output, "held_back")] == list(range(13))


def test_the_rule_that_stopped_the_run_is_the_one_that_is_told(
    configure, make_dataset, monkeypatch
):
    """The end is scored, and sends the run back, but does not say that it was the reason."""
    rules = tuple(
        replace(rule, find=lambda window: "forced" if window.count == 3 else None)
        if rule.name == "gradient_spike"
        else rule
        for rule in early_stop.RULES
    )
    monkeypatch.setattr(early_stop, "RULES", rules)
    config = configure(
        dataset=make_dataset("data", held_back=BAD),
        train=FAST | {"learning_rate": 3e-4, "checkpoint_every_steps": 2},
        diagnostics={"early_stop": True},
    )
    result = train(config)
    stops = [r["rule"] for r in read_events(config.run.output, "early_stop")]
    assert stops == [result.stopped_by]
    final = json.loads((config.run.output / "final.json").read_text())
    assert final["early_stop"] == result.stopped_by


def test_commands_take_the_result_and_not_the_newest(configure, make_dataset):
    config, result = collapse(configure, make_dataset)
    assert result.final_path.name != f"step_{result.num_steps:06d}"
    assert find_checkpoint(config.run.output) == result.final_path


def test_what_cannot_be_scored_refuses_no_training(configure, make_dataset, hand):
    """A run held back with an id that the model has not, and one longer than any that is trained."""
    strange = hand.trajectory(
        "strange",
        [hand.turn([0, 20], [10**6, END], [-1.0, -1.0])],
        reward=1.0,
        task_id="strange",
        split="test",
    )
    config = configure(
        "strange", dataset=make_dataset("strange-data", held_back=GOOD, more=[strange]), train=FAST
    )
    result = train(config)
    assert result.num_steps == 12
    (start,) = read_events(config.run.output, "start")
    assert re.match(r"1 cannot be scored.*strange.*outside the vocabulary", start["held_back_note"])
    assert {r["num_good"] for r in read_events(config.run.output, "held_back")} == {2 * NUM_TEST}

    longer = hand.trajectory(
        "longer",
        [hand.turn([0, *[20] * 30], [GOOD, END], [-1.0, -1.0])],
        reward=1.0,
        task_id="longer",
        split="test",
    )
    config = configure(
        "longer", dataset=make_dataset("longer-data", held_back=GOOD, more=[longer]), train=FAST
    )
    train(config)
    assert {r["num_good"] for r in read_events(config.run.output, "held_back")} == {2 * NUM_TEST}


def test_runs_with_ids_come_first(configure, make_dataset, hand):
    """A run without ids would have to be rendered; the others need not."""
    textual = hand.trajectory(
        "textual",
        [hand.turn(None, None, output_node="n1", input_nodes=["n0"])],
        reward=1.0,
        task_id="textual",
        split="test",
        usable_for="sft",
    )
    config = configure(
        dataset=make_dataset("data", held_back=GOOD, more=[textual]), train=FAST | {"epochs": 1}
    )
    train(config)
    assert {r["num_good"] for r in read_events(config.run.output, "held_back")} == {2 * NUM_TEST}


def make_held_back(lengths, is_good, tasks=None):
    from types import SimpleNamespace

    rows = [SimpleNamespace(num_actions=length) for length in lengths]
    return HeldBack(
        trajectory_ids_N=[str(n) for n in range(len(rows))],
        rows=rows,  # type: ignore[arg-type]
        rows_of_N=[[n] for n in range(len(rows))],
        is_good_N=np.array(is_good),
        task_of_N=np.arange(len(rows)) if tasks is None else np.array(tasks),
    )


def test_summary_by_hand():
    """Eight good runs of 1 and 3 tokens, and two bad ones."""
    held_back = make_held_back([1, 3] * 4 + [2, 2], [True] * 8 + [False] * 2)
    before = np.array([-0.06, -0.18] * 4 + [-1.0, -1.0])
    now = before + np.array([-0.04, -0.12] * 4 + [-0.1, -0.3])
    told = summarize_change(held_back, before, now)
    assert told == {
        "num_good": 8,
        "num_good_tasks": 8,
        "num_bad": 2,
        "good_logprob": pytest.approx(-0.1),
        "good_change": pytest.approx(-0.04),
        "bad_logprob": pytest.approx(-0.6),
        "bad_change": pytest.approx(-0.1),
        "good_change_se": pytest.approx(0.0, abs=1e-12),  # each token lost as much
        "good_lost_excess": pytest.approx(0.04 - 0.5 * 0.06),
    }


def test_what_is_surprising_from_the_start_may_not_lose_half():
    """Half of 2 nats would be 1; .05 is allowed."""
    held_back = make_held_back([1] * 8, [True] * 8)
    before = np.full(8, -2.0)
    told = summarize_change(held_back, before, before - 0.06)
    assert told["good_lost_excess"] == pytest.approx(0.01)


def test_standard_error_is_the_ratio_estimators():
    """Eight runs of two tokens, four lost .4 and four nothing: mean -.1, deviation of a mean."""
    held_back = make_held_back([2] * 8, [True] * 8)
    before = np.full(8, -1.0)
    now = before - np.array([0.4, 0.0] * 4)
    told = summarize_change(held_back, before, now)
    per_token = np.array([0.2, 0.0] * 4)
    assert told["good_change"] == pytest.approx(-0.1)
    assert told["good_change_se"] == pytest.approx(per_token.std(ddof=1) / np.sqrt(8))
    assert told["bad_change"] is None


def test_attempts_at_a_task_are_not_independent():
    """Two tasks of four lost .4 in each of their attempts: as uncertain as four runs, not eight."""
    before = np.full(8, -1.0)
    now = before - np.array([0.4] * 4 + [0.0] * 4)
    told = summarize_change(
        make_held_back([2] * 8, [True] * 8, tasks=[7, 7, 9, 9, 3, 3, 4, 4]), before, now
    )
    per_task = np.array([0.2, 0.2, 0.0, 0.0])
    assert told["good_change"] == pytest.approx(-0.1)
    assert told["good_change_se"] == pytest.approx(per_task.std(ddof=1) / np.sqrt(4))


def test_few_tasks_are_measured_and_nothing_is_concluded():
    """Eight good runs of three tasks."""
    before = np.full(8, -1.0)
    held_back = make_held_back([2] * 8, [True] * 8, tasks=[1, 1, 1, 2, 2, 2, 3, 3])
    told = summarize_change(held_back, before, before - 0.5)
    assert told["good_change"] == pytest.approx(-0.25)
    assert (told["good_change_se"], told["good_lost_excess"]) == (None, None)


def test_the_order_is_of_both_kinds_and_repeats():
    is_good = [n % 3 == 0 for n in range(90)]
    good, bad = draw_orders(is_good, seed=1)
    assert [good, bad] == draw_orders(is_good, seed=1) != draw_orders(is_good, seed=2)
    assert sorted(good) == list(range(0, 90, 3)) != good
    assert sorted(good + bad) == list(range(90))
