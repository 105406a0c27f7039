"""Advantages and weights of whole trajectories, by hand."""

import statistics

import numpy as np
import pytest
import torch

from starpo_train.config import read_run_config
from starpo_train.credit.assign import TokenizedTrajectories, assign_credit
from starpo_train.dataset import read_trajectories
from starpo_train.errors import DataError
from starpo_train.pack import pack_rows
from starpo_train.tokens import build_rows, tokenize_trajectory


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


def test_shaping_counts_with_its_weight(hand, tmp_path):
    """Shaping .8 at weight .5 and outcome 1, V = 0: A1 = 1, A0 = .4 + .95 = 1.35; null is refused."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    turns = [
        hand.turn([9], [2], [-1], shaping=0.8),
        hand.turn([9, 2, 8], [3], [-1], shaping=0.0),
    ]
    rows = [hand.trajectory("a", turns, reward=1.0), hand.trajectory("b", turns[1:], reward=0.0)]
    actual = assign_by_hand(hand, first, rows, [0.0, 0.0, 0.0], shaping_weight=0.5)
    expected = whiten([1.35, 1.0, 0.0])
    assert [*actual[0], *actual[1]] == pytest.approx(expected, abs=1e-6)
    missing = [hand.trajectory("a", [hand.turn([9], [2], [-1])], reward=1.0), rows[1]]
    with pytest.raises(DataError, match="trajectory a, turn 0: has no shaping"):
        assign_by_hand(hand, second, missing, [0.0, 0.0], shaping_weight=0.5)


def test_rows_of_a_trajectory_share_its_weight(hand, tmp_path):
    """A trajectory of two branches weighs as much as one of a single row (traj-mean)."""
    from starpo_train.objective import Objective
    from starpo_train.provenance import Choice
    from starpo_train.step import build_step
    from starpo_train.trainingdata import TrainingData

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
    config = read_run_config(
        hand.run_file(
            tmp_path / "r.toml", base=tmp_path, dataset=path, train={"tokens_per_pack": 3}
        )
    )
    data = TrainingData(
        manifest=None,
        choice=Choice(algorithm="filtered_bc", reason=""),
        objective=Objective(algorithm="filtered_bc", section=config.algorithm),
        trajectory_ids_N=["branched", "linear"],
        task_of_N=np.array([0, 0]),
        rows=rows,
        rows_of_N=rows_of_N,
        kept={},
        facts={},
    )
    packs = build_step(data, config, [0, 1]).packs
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
