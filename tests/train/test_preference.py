"""Pairs of attempts, and answers under another task's prompt."""

import numpy as np

from starpo_train.preference import make_pairs, mismatch_rows
from starpo_train.tokens import TurnTokens, build_rows


def make_row(prompt, *answers, trajectory=0):
    turns = []
    history = list(prompt)
    for k, answer in enumerate(answers):
        turns.append(
            TurnTokens(
                turn=k,
                prompt_ids_T=np.array(history),
                response_ids_T=np.array(answer),
                logprobs_T=None,
                recorded=True,
                trained=True,
            )
        )
        history = [*history, *answer, 9]
    return build_rows(turns, trajectory=trajectory)[0]


def test_a_pair_is_of_one_task_and_the_widest_come_first():
    """Rewards (1, 0, .5) and (0, 1): the widest gap of the first task, then the next two."""
    rewards = np.array([1.0, 0.0, 0.5, 0.0, 1.0])
    tasks = np.array([0, 0, 0, 1, 1])
    assert make_pairs(rewards, tasks, per_task=1).tolist() == [[0, 1], [4, 3]]
    assert make_pairs(rewards, tasks, per_task=9).tolist() == [[0, 1], [0, 2], [2, 1], [4, 3]]


def test_equal_gaps_use_every_attempt():
    """Two winners and two losers: two pairs use all four."""
    pairs = make_pairs(np.array([1.0, 1.0, 0.0, 0.0]), np.zeros(4, dtype=int), per_task=2)
    assert pairs.tolist() == [[0, 2], [1, 3]]


def test_equal_rewards_and_lone_attempts_make_no_pair():
    """Nothing is better than its equal."""
    assert make_pairs(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 1]), per_task=4).shape == (0, 2)


def test_an_answer_moves_under_the_next_tasks_prompt():
    """Prompt of the one, both turns and the message between of the other, cut at the longest."""
    rows = [make_row([1, 2, 3], [10]), make_row([4], [20, 21], [22], trajectory=1)]
    first, second = mismatch_rows(rows, [[0], [1]], np.array([0, 1]), longest=6)
    assert first.input_ids_T.tolist() == [1, 2, 3, 20, 21, 9]
    assert first.action_mask_T.tolist() == [False, False, False, True, True, False]
    assert first.turn_T.tolist() == [-1, -1, -1, 0, 0, -1]
    assert second.input_ids_T.tolist() == [4, 10]
    assert (first.trajectory, second.trajectory) == (0, 1)


def test_the_other_is_of_another_task():
    """Attempts 0 and 1 at one task both take the answer of 2; one task alone has none."""
    rows = [make_row([1], [10]), make_row([1], [11]), make_row([2], [12])]
    tasks = np.array([0, 0, 1])
    mismatched = mismatch_rows(rows, [[0], [1], [2]], tasks, longest=9)
    assert [row.input_ids_T.tolist() for row in mismatched] == [[1, 12], [1, 12], [2, 10]]
    assert mismatch_rows(rows[:2], [[0], [1]], np.array([0, 0]), longest=9) is None
