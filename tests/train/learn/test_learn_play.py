"""Behaviour models, and that runs played in this process are those that the server plays."""

import hashlib
from pathlib import Path

import polars as pl
import pytest
from learn.behaviour import Warmup, make_behaviour
from learn.envs.protocol import GameEnvironment
from learn.play import play, play_runs
from learn.traffic import record_traffic

from starpo_train.dataset import scan_table


def test_play_gives_the_runs_of_the_served_path(small_behaviour: Path, tmp_path: Path):
    """Six tasks, three attempts: sampled ids, rewards, ends, steps, lengths of prompts."""
    plan = {"split": "test", "tasks": 6, "attempts": 3, "seed": 7}
    traffic = record_traffic("frozen_lake", small_behaviour, tmp_path, concurrency=8, **plan)
    runs = play_runs(small_behaviour, GameEnvironment("frozen_lake"), **plan)
    keys = ["task_id", "attempt"]
    served = scan_table(traffic.dataset, "trajectories").collect()
    turns = (
        scan_table(traffic.dataset, "turns")
        .sort("turn")
        .join(served.lazy().select("trajectory_id", *keys), on="trajectory_id")
        .group_by(keys)
        .agg("response_token_ids")
        .collect()
    )
    assert {
        (task, number): answers
        for task, number, answers in turns.select(*keys, "response_token_ids").iter_rows()
    } == {(r.attempt.task_id, r.attempt.number): r.answers for r in runs}
    frame = play(small_behaviour, "frozen_lake", **plan)
    order = dict(frame.schema)
    assert (
        served.select(pl.col(c).cast(k) for c, k in order.items())
        .sort(keys)
        .equals(frame.sort(keys))
    )


def test_runs_do_not_depend_on_their_neighbours(tmp_path: Path):
    """Alone or 64 at once, where rows move and finished ones wait for others: the same tokens."""
    warmup = Warmup(num_tasks=60, runs_per_task=4)
    make_behaviour("textcraft", 0, tmp_path, warmup=warmup)
    game = GameEnvironment("textcraft")
    plan = {"split": "test", "tasks": 32, "attempts": 2, "seed": 1}
    found = [
        [
            (run.prompts, run.answers, run.reward, run.end)
            for run in play_runs(tmp_path, game, most_rows=most_rows, **plan)
        ]
        for most_rows in (1, 64)
    ]
    assert found[0] == found[1]


def test_recorded_traffic_can_be_trained_on_and_is_not_recorded_twice(
    small_behaviour: Path, tmp_path: Path
):
    """Token ids and log-probabilities are exact; a second call finds everything there."""
    plan = {"split": "train", "tasks": 3, "attempts": 2, "seed": 0, "concurrency": 4}
    first = record_traffic("frozen_lake", small_behaviour, tmp_path, **plan)
    again = record_traffic("frozen_lake", small_behaviour, tmp_path, **plan)
    assert first.summary["usable_for"] == {"rl": 6}
    assert (first.summary["runs_played"], again.summary["runs_played"]) == (6, 0)


@pytest.mark.parametrize("name", ["bandit", "shop"])
def test_the_same_seed_gives_the_same_weights(name: str, tmp_path: Path):
    """Byte for byte; another seed gives others."""
    warmup = Warmup(num_tasks=6, runs_per_task=2)
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        make_behaviour(name, seed, tmp_path / str(number), warmup=warmup)
        weights = (tmp_path / str(number) / "model.safetensors").read_bytes()
        digests.append(hashlib.sha256(weights).hexdigest())
    assert digests[0] == digests[1] != digests[2]
