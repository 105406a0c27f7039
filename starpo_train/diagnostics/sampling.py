"""Rows of the training data -> some of their turns, cut into what was read and what was answered.

Suffixes: N trajectories, T tokens of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from starpo_train.diagnostics.reasoning import find_reasoning, find_reasoning_tags
from starpo_train.tokens import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswer:
    """One sampled turn, cut in two."""

    trajectory: int
    prompt_ids_T: np.ndarray
    """X: all that stands before Z, the opening tag of the reasoning included."""
    answer_ids_T: np.ndarray
    """Z."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSample:
    """What mutual information is measured on."""

    answers: list[SampledAnswer]
    kind: Literal["reasoning", "turn"]
    """What Z is."""


def sample_turns(
    rows: Sequence[TokenSequence], rows_of_N: Sequence[Sequence[int]], *, count: int, seed: int
) -> list[tuple[int, int, int, int]]:
    """(trajectory, row, start, end) of `count` turns, trajectory-uniform, none twice.

    Trajectories in random order, one random turn of each; then again of what is left. So a long
    trajectory weighs no more than a short one.
    """
    rng = np.random.default_rng([seed, 0x5A])
    left = [_list_turns(rows, own) for own in rows_of_N]
    chosen: list[tuple[int, int, int, int]] = []
    while len(chosen) < count and any(left):
        for n in rng.permutation(len(left)).tolist():
            if left[n] and len(chosen) < count:
                row, start, end = left[n].pop(int(rng.integers(len(left[n]))))
                chosen.append((n, row, start, end))
    return chosen


def sample_answers(
    rows: Sequence[TokenSequence],
    rows_of_N: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    count: int,
    seed: int,
    longest: int,
) -> AnswerSample:
    """Turns -> prompts and answers: their reasoning, or whole turns where half of them have none.

    Every answer is scored behind every prompt, so answers are cut to what leaves room for the longest
    prompt within `longest` tokens.
    """
    turns = sample_turns(rows, rows_of_N, count=count, seed=seed)
    tags = find_reasoning_tags(tokenizer)
    parts = [
        find_reasoning(tokenizer, rows[row].input_ids_T, start=start, end=end, tags=tags)
        for _, row, start, end in turns
    ]
    has_reasoning = 2 * sum(part is not None for part in parts) >= len(parts)
    cuts = []
    for (n, row, start, end), part in zip(turns, parts, strict=True):
        if not has_reasoning:
            cuts.append((n, row, start, end))
        elif part is not None:
            cuts.append((n, row, *part))
    room = longest - max((start for _, _, start, _ in cuts), default=0)
    return AnswerSample(
        answers=[
            SampledAnswer(
                trajectory=n,
                prompt_ids_T=rows[row].input_ids_T[:start],
                answer_ids_T=rows[row].input_ids_T[start : min(end, start + room)],
            )
            for n, row, start, end in cuts
        ],
        kind="reasoning" if has_reasoning else "turn",
    )


def _list_turns(rows: Sequence[TokenSequence], own: Sequence[int]) -> list[tuple[int, int, int]]:
    """(row, start, end) of each trained turn of a trajectory."""
    turns = []
    for row in own:
        turn_T = rows[row].turn_T
        for turn in np.unique(turn_T[turn_T >= 0]).tolist():
            at = np.flatnonzero(turn_T == turn)
            turns.append((row, int(at[0]), int(at[-1]) + 1))
    return turns
