"""Rows of tokens: what is trained, once, under which prefix. Also packing."""

import numpy as np
import pytest

from starpo_train.pack import pack_rows, plan_packs
from starpo_train.tokens import TurnTokens, build_rows


def turn(number, prompt, response, *, trained=True, logprobs=True):
    return TurnTokens(
        turn=number,
        prompt_ids_T=np.array(prompt, dtype=np.int32),
        response_ids_T=np.array(response, dtype=np.int32),
        logprobs_T=-np.array(response, dtype=np.float32) if logprobs else None,
        recorded=True,
        trained=trained,
    )


LINEAR = [turn(0, [1, 2], [10, 11]), turn(1, [1, 2, 10, 11, 3], [20])]
BRANCHED = [
    turn(0, [1, 2], [10, 11]),
    turn(1, [1, 10, 3], [20]),  # history was edited: 2 and 11 are gone
    turn(2, [1, 2, 10, 11, 4], [30]),  # back on the first history
]


def test_linear_trajectory_is_one_row():
    """Two turns whose second prompt extends the first prompt and answer::

    ids    1  2 10 11  3 20
    action .  .  ^  ^  .  ^
    turn   .  .  0  0  .  1
    end    .  .  .  |  .  |
    start  .  s  .  .  s  .
    """
    (row,) = build_rows(LINEAR, trajectory=7)
    assert row.input_ids_T.tolist() == [1, 2, 10, 11, 3, 20]
    assert row.action_mask_T.tolist() == [False, False, True, True, False, True]
    assert row.turn_T.tolist() == [-1, -1, 0, 0, -1, 1]
    assert row.turn_end_mask_T.nonzero()[0].tolist() == [3, 5]
    assert row.turn_start_mask_T.nonzero()[0].tolist() == [1, 4]
    assert row.logprobs_T is not None
    assert row.logprobs_T.tolist() == [0, 0, -10, -11, 0, -20]
    assert (row.trajectory, row.weight, row.recorded) == (7, 1.0, True)


def test_branched_trajectory_trains_each_answer_once():
    """An edited history begins a row; going back to the first one continues its row::

    row 0  1  2 10 11  4 30        row 1  1 10  3 20
           .  .  ^  ^  .  ^               .  .  .  ^
    """
    first, second = build_rows(BRANCHED, trajectory=0)
    assert first.input_ids_T.tolist() == [1, 2, 10, 11, 4, 30]
    assert first.input_ids_T[first.action_mask_T].tolist() == [10, 11, 30]
    assert second.input_ids_T.tolist() == [1, 10, 3, 20]
    assert second.input_ids_T[second.action_mask_T].tolist() == [20]


@pytest.mark.parametrize("turns", [LINEAR, BRANCHED, BRANCHED * 1 + [turn(3, [1, 2], [40, 41])]])
def test_every_sampled_token_is_trained_exactly_once(turns):
    """Trained (turn, token) pairs over all rows are the sampled ones, no more and no less."""
    rows = build_rows(turns, trajectory=0)
    trained = sorted(
        (int(t), int(i))
        for row in rows
        for t, i in zip(
            row.turn_T[row.action_mask_T], row.input_ids_T[row.action_mask_T], strict=True
        )
    )
    assert trained == sorted((t.turn, int(i)) for t in turns for i in t.response_ids_T)


def test_every_token_is_trained_under_the_prefix_it_was_sampled_from():
    """The ids before a turn's first trained token are that turn's prompt."""
    for row in build_rows(BRANCHED, trajectory=0):
        for start in row.turn_start_mask_T.nonzero()[0]:
            prompt = BRANCHED[row.turn_T[start + 1]].prompt_ids_T
            assert row.input_ids_T[: start + 1].tolist() == prompt.tolist()


def test_turns_of_other_models_are_context():
    """A turn that is not trained stays in the row without action, end, or logprob."""
    turns = [LINEAR[0], turn(1, [1, 2, 10, 11, 3], [20], trained=False, logprobs=False)]
    (row,) = build_rows(turns, trajectory=0)
    assert row.input_ids_T.tolist() == [1, 2, 10, 11, 3, 20]
    assert row.input_ids_T[row.action_mask_T].tolist() == [10, 11]
    assert row.turn_end_mask_T.nonzero()[0].tolist() == [3]
    assert row.logprobs_T is not None


def test_a_row_with_one_turn_without_logprobs_has_none():
    """A log-probability of 0 is never made up for the missing turn."""
    (row,) = build_rows([LINEAR[0], turn(1, [1, 2, 10, 11, 3], [20], logprobs=False)], trajectory=0)
    assert row.logprobs_T is None


def test_pack_lays_rows_one_after_another():
    """Two rows: positions restart, actions keep their places, logprobs follow the actions."""
    rows = build_rows(LINEAR, trajectory=0) + build_rows([turn(0, [5], [6])], trajectory=1)
    batch = pack_rows(rows, [0, 1])
    assert batch.input_ids_T.tolist() == [1, 2, 10, 11, 3, 20, 5, 6]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.layout.lengths_M == (6, 2)
    assert batch.layout.is_flat
    assert batch.predicted_at_A.tolist() == [1, 2, 4, 6]
    assert batch.action_ids_A.tolist() == [10, 11, 20, 6]
    assert batch.row_of_A.tolist() == [0, 0, 0, 1]
    assert batch.turn_starts_S.tolist() == [1, 4, 6]
    assert batch.behaviour_logprobs_A is not None
    assert batch.behaviour_logprobs_A.tolist() == [-10, -11, -20, -6]


def test_packs_stay_within_the_budget():
    """Longest first into the first pack with room; a row above the budget is alone."""
    assert plan_packs([4, 9, 3, 5, 20], tokens_per_pack=10) == [[4], [1], [3, 0], [2]]


def test_every_row_is_in_exactly_one_pack():
    """Over many random lengths, packs hold each row once and none is above the budget."""
    lengths = np.random.default_rng(0).integers(1, 60, 300).tolist()
    packs = plan_packs(lengths, tokens_per_pack=64)
    assert sorted(i for pack in packs for i in pack) == list(range(300))
    assert max(sum(lengths[i] for i in pack) for pack in packs) <= 64
