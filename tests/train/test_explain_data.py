"""`explain` on what the demo records, on a closed model's runs, and on single attempts."""

import json
import random
from pathlib import Path

import pytest

from starpo_trace.convert.dataset import build_dataset
from starpo_train.cli import main
from starpo_train.dataset import read_trajectories
from starpo_train.explain_data import count_cloned
from starpo_train.prepare import prepare_training_data

ROOT = Path(__file__).parents[2]
AIRLINE = ROOT.parent / "shared" / "data" / "tau-bench-gpt4o-airline" / "historical_trajectories"


def explain(dataset, tmp_path, *options):
    """Dataset -> what `explain --json` writes."""
    file = tmp_path / "explained.json"
    assert main(["explain", str(dataset), "--json", str(file), *options]) == 0
    return json.loads(file.read_text())


def read_verdicts(explained):
    """(algorithm -> allowed, guard -> severity)."""
    return (
        {ruling["algorithm"]: ruling["legal"] for ruling in explained["rulings"]},
        {guard["name"]: guard["severity"] for guard in explained["guards"]},
    )


@pytest.fixture(scope="module")
def environment(import_from):
    """The demo's environment, imported as the demo does."""
    pytest.importorskip("gymnasium", reason="needs the extra `demo`")
    with import_from(ROOT / "examples" / "frozen_lake", "environment") as modules:
        yield modules["environment"]


def test_the_demos_lakes_may_be_trained_with_ratios(hand, environment, tmp_path, capsys):
    """Eight lakes, four walks each, half of the moves the best: exact ids, groups that differ."""
    generator = random.Random(0)
    runs = []
    for lake_map in environment.generate_maps("train", 8, 0):
        best = environment.best_moves(lake_map)
        for attempt in range(4):
            lake = environment.FrozenLake(lake_map)
            turns, ids, outcome = [], [2], None
            while outcome is None or outcome.end is None:
                move = generator.choice(list(environment.OFFSETS))
                if generator.random() < 0.5:
                    move = best.get((lake.row, lake.column), move)
                answer = [40 + list(environment.OFFSETS).index(move), 1]
                turns.append(hand.turn(ids, answer, [-0.7, -0.1], step=len(turns)))
                ids = [*ids, *answer, 9]
                outcome = lake.move(move)
            name = "-".join(lake_map)
            runs.append(
                hand.trajectory(
                    f"{name}.{attempt}", turns, reward=outcome.reward, task_id=name, end=outcome.end
                )
            )
    dataset = hand.dataset(tmp_path / "data", runs)
    explained = explain(dataset, tmp_path)
    legal, guards = read_verdicts(explained)
    assert (legal["starpo"], legal["filtered_bc"]) == (True, True)
    assert guards["terminal_reward_only"] == "warn"
    assert not guards.keys() & {"zero_variance", "reward_leakage", "single_turn", "stale_rollouts"}
    assert explained["auto"]["algorithm"] is not None
    num_solved = sum(run["trajectories"]["reward"] == 1.0 for run in runs)
    assert 0 < num_solved < 32
    counts = explained["filtered_bc"]
    assert (counts["threshold"], counts["num_kept"]) == (0.5, num_solved)
    assert counts["left_out"] == {"below_threshold": 32 - num_solved}
    printed = " ".join(capsys.readouterr().out.split())
    assert f"filtered_bc at reward >= 0.5: {num_solved} kept" in printed
    assert "terminal_reward_only warn" in printed
    assert f"auto: {explained['auto']['algorithm']}; " in printed


def test_a_closed_models_runs_form_no_ratio(tmp_path):
    """200 real runs of gpt-4o on tau-bench airline: no log-probabilities, nothing suspicious but
    that only the end is judged."""
    if not AIRLINE.is_dir():
        pytest.skip("../shared/data/tau-bench-gpt4o-airline is not there")
    build_dataset([AIRLINE], tmp_path / "data")
    explained = explain(tmp_path / "data", tmp_path)
    legal, guards = read_verdicts(explained)
    assert (legal["starpo"], legal["filtered_bc"]) == (False, True)
    assert explained["auto"]["algorithm"] != "starpo"
    assert guards == {"terminal_reward_only": "warn"}
    assert explained["filtered_bc"] == {
        "threshold": 0.5,
        "num_kept": 84,
        "left_out": {"below_threshold": 116},
    }


def test_single_attempts_have_nobody_to_be_compared_with(hand, tmp_path):
    """Twelve tasks once each, by a judge: no groups; what the judge may be is said."""
    runs = []
    for i in range(12):
        turn = hand.turn([20], [40, 1], [-1.0, -1.0])
        run = hand.trajectory(f"t{i}", [turn], reward=i / 11, task_id=f"k{i}")
        reward = {"trajectory_id": f"t{i}", "name": "quality", "value": i / 11, "time_ns": i}
        reward |= {"scope": "trajectory", "source": "judge", "trusted": True, "superseded": False}
        run["rewards"] = [reward]
        runs.append(run)
    explained = explain(hand.dataset(tmp_path / "data", runs), tmp_path)
    legal, guards = read_verdicts(explained)
    assert (legal["starpo"], legal["filtered_bc"]) == (False, True)
    assert guards == {
        "open_ended_surface": "hold_back",
        "judge_not_pinned": "warn",
        "single_turn": "warn",
    }
    assert explained["filtered_bc"]["num_kept"] == 6
    assert explained["guards"][0]["name"] == "open_ended_surface"


def test_without_a_reward_everything_is_refused_in_words(hand, tmp_path, capsys):
    """No number that is none in the JSON, and `auto` says what is missing."""
    dataset = hand.dataset(
        tmp_path / "data", [hand.trajectory("t", [hand.turn([20], [40])], reward=None)]
    )
    explained = explain(dataset, tmp_path)
    assert explained["facts"]["reward_low"] is None
    assert explained["auto"]["algorithm"] is None
    assert "none of 1 trajectories has a trusted reward" in explained["auto"]["reason"]
    assert explained["filtered_bc"] == {
        "threshold": None,
        "num_kept": 0,
        "left_out": {"no_reward": 1},
    }
    assert "auto: refused; none of 1" in capsys.readouterr().out


def test_counts_of_cloning_are_those_of_a_run(hand, configure, model_folder, tmp_path):
    """What filtered BC leaves out when it prepares its data, reason by reason."""
    from starpo_train.model import load_policy

    turn = hand.turn([20, 21], [40, 1])
    runs = [hand.trajectory(f"t{i}", [turn], reward=i / 4) for i in range(5)]
    runs.append(hand.trajectory("none", [turn], reward=None))
    odd = {"usable_for": "none", "reasons": ["no_content"]}
    runs.append(hand.trajectory("odd", [turn], reward=1.0, **odd))
    dataset = hand.dataset(tmp_path / "data", runs)
    config = configure(dataset=dataset, algorithm={"name": "filtered_bc"})
    data = prepare_training_data(config, load_policy(config.model))
    counted = count_cloned(read_trajectories(dataset))
    assert counted.threshold == 0.5
    assert counted.num_kept == len(data.trajectory_ids_N) == 3
    assert counted.left_out == data.facts["left_out"]
    assert count_cloned(read_trajectories(dataset), threshold=0.75).num_kept == 2


def test_what_auto_leaves_out_is_said(hand, tmp_path, capsys):
    """Two solved, two failed of themselves, three failed as a limit cut them."""
    runs = [
        hand.trajectory(
            f"run{n}",
            [hand.turn([0, 20 + n], [40, 1], [-0.7, -0.1])],
            reward=float(n < 2),
            task_id=f"task{n}",
            end="truncated" if n >= 4 else "terminated",
        )
        for n in range(7)
    ]
    explained = explain(hand.dataset(tmp_path / "data", runs), tmp_path)
    assert explained["auto"]["num_cut"] == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert "auto leaves out 3 of 7 that failed as a limit cut them (data.truncated)" in printed


def test_a_policy_without_runs_is_named(tmp_path, capsys, hand):
    """With those that have some; and a folder above a dataset, with the dataset."""
    run = hand.trajectory("run", [hand.turn([0, 20], [40, 1], [-0.7, -0.1])], reward=1.0)
    dataset = hand.dataset(tmp_path / "evaluation" / "dataset", [run])
    assert main(["explain", str(dataset), "--policy", "nope"]) == 2
    assert "no trajectory is of policy 'nope'; there are " in capsys.readouterr().err
    assert main(["explain", str(dataset.parent)]) == 2
    assert f"no dataset, but {dataset} is one; give that." in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "test"])
def test_that_nothing_is_held_back_is_told(tmp_path, capsys, hand, split):
    """With what would hold some back."""
    runs = [
        hand.trajectory(
            f"run{n}",
            [hand.turn([0, 20 + n], [40, 1], [-0.7, -0.1])],
            reward=float(n),
            task_id=f"task{n}",
            split=split if n else "train",
        )
        for n in range(2)
    ]
    explained = explain(hand.dataset(tmp_path / "data", runs), tmp_path)
    assert explained["holds_back"] == (split == "test")
    is_told = "--test-fraction" in capsys.readouterr().out
    assert is_told == (split == "train")
