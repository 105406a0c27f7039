"""Trajectories + rewards -> what preference losses compare.

Suffixes: N trajectories, P pairs, R rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from starpo_train.tokens import TokenSequence


def make_pairs(rewards_N: np.ndarray, task_of_N: np.ndarray, *, per_task: int) -> np.ndarray:
    """Int64 [P, 2]: a better and a worse attempt at one task, at most `per_task` for each.

    The furthest apart in reward first; among equals, those that are in fewer pairs so far, then
    the order of the trajectories. Rewards (1, 0, 0) of one task, two pairs: (0, 1) and (0, 2).
    """
    pairs: list[tuple[int, int]] = []
    for task in dict.fromkeys(task_of_N.tolist()):
        members = np.flatnonzero(task_of_N == task).tolist()
        gaps = {
            (better, worse): rewards_N[better] - rewards_N[worse]
            for better in members
            for worse in members
            if rewards_N[better] > rewards_N[worse]
        }
        uses = dict.fromkeys(members, 0)
        for _ in range(min(per_task, len(gaps))):
            chosen = min(gaps, key=lambda pair: (-gaps[pair], uses[pair[0]] + uses[pair[1]], pair))
            del gaps[chosen]
            for member in chosen:
                uses[member] += 1
            pairs.append(chosen)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def mismatch_rows(
    rows: Sequence[TokenSequence],
    rows_of_N: Sequence[Sequence[int]],
    task_of_N: np.ndarray,
    *,
    longest: int,
) -> list[TokenSequence] | None:
    """For each trajectory, its first prompt with what the next task's trajectory went on with.

    KTO's baseline is the divergence on answers that were not given to the prompt before them. A
    row is cut at `longest` tokens. None where all trajectories are of one task.
    """
    if len(set(task_of_N.tolist())) < 2:
        return None
    mismatched = []
    for n, of_own in enumerate(rows_of_N):
        others = np.roll(task_of_N, -n - 1) != task_of_N[n]
        other = (n + 1 + int(np.argmax(others))) % len(task_of_N)
        own, foreign = rows[of_own[0]], rows[rows_of_N[other][0]]
        prompt_T = own.input_ids_T[: _find_first_turn(own)]
        mismatched.append(_continue(prompt_T, foreign, trajectory=n, longest=longest))
    return mismatched


def _find_first_turn(row: TokenSequence) -> int:
    return int(np.argmax(row.action_mask_T))


def _continue(
    prompt_T: np.ndarray, row: TokenSequence, *, trajectory: int, longest: int
) -> TokenSequence:
    """`row` from its first trained token on, after another prompt."""
    start = _find_first_turn(row)
    rest = slice(start, start + max(longest - len(prompt_T), 0))

    def shift(values_T: np.ndarray, before: float) -> np.ndarray:
        filler_T = np.full(len(prompt_T), before, dtype=values_T.dtype)
        return np.concatenate([filler_T, values_T[rest]])

    return replace(
        row,
        trajectory=trajectory,
        input_ids_T=np.concatenate([prompt_T, row.input_ids_T[rest]]),
        action_mask_T=shift(row.action_mask_T, False),
        turn_T=shift(row.turn_T, -1),
        turn_end_mask_T=shift(row.turn_end_mask_T, False),
        turn_start_mask_T=shift(row.turn_start_mask_T, False),
        logprobs_T=None,
        temperatures_T=None if row.temperatures_T is None else shift(row.temperatures_T, 1.0),
    )
