"""Prompt token ids, whole or after a base -> ids after the longest earlier prompt + response."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

import polars as pl

from starpo_trace.capture.history import count_common_prefix

_LOOK_BACK_TURNS: Final = 8
"""Earlier turns to compare a whole prompt with; interleaved sub-agents rarely need more."""
_COLUMNS: Final = (
    "trajectory_id",
    "step",
    "prompt_ids",
    "prompt_base_step",
    "prompt_base_length",
    "response_ids",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompt:
    """A prompt as the dataset stores it."""

    base_turn: int | None = None
    """Turn whose prompt + response ids begin this prompt."""
    base_length: int = 0
    """How many of those ids."""
    rest: Sequence[int] | None = None
    """The ids after them; None when the prompt's ids are unknown."""
    is_masked: bool = False
    """Whether any id of the whole prompt stands for a token that was redacted."""


def share_prompts(turns: pl.DataFrame) -> pl.DataFrame:
    """Turns sorted by trajectory and turn -> with `prompt_base_turn`, `..length`, `..token_ids`.

    And with `prompt_is_masked`: whether an id of the whole prompt is that of a redacted token.

    A prompt recorded after a base that is not there, or is too short, has unknown ids.
    """
    if turns["prompt_ids"].null_count() == turns.height:
        return _add_columns(turns, [SharedPrompt()] * turns.height)
    shared: list[SharedPrompt] = []
    rows = turns.select(*_COLUMNS).iter_rows(named=True)
    for _, group in groupby(rows, key=lambda row: row["trajectory_id"]):
        shared.extend(_share_trajectory(list(group)))
    return _add_columns(turns, shared)


def _add_columns(turns: pl.DataFrame, shared: Sequence[SharedPrompt]) -> pl.DataFrame:
    return turns.with_columns(
        pl.Series("prompt_base_turn", [p.base_turn for p in shared], dtype=pl.Int64),
        pl.Series("prompt_base_length", [p.base_length for p in shared], dtype=pl.Int64),
        pl.Series("prompt_token_ids", [p.rest for p in shared], dtype=pl.List(pl.Int32)),
        pl.Series("prompt_is_masked", [p.is_masked for p in shared], dtype=pl.Boolean),
    )


def _share_trajectory(turns: list[dict[str, Any]]) -> list[SharedPrompt]:
    turn_of_step = {row["step"]: turn for turn, row in reversed(list(enumerate(turns)))}
    prompts = _restore_prompts(turns, turn_of_step)
    sequences = [
        None if prompt is None else prompt + (row["response_ids"] or [])
        for prompt, row in zip(prompts, turns, strict=True)
    ]
    shared = []
    for turn, (row, prompt) in enumerate(zip(turns, prompts, strict=True)):
        if prompt is None:
            shared.append(SharedPrompt())
            continue
        base = turn_of_step.get(row["prompt_base_step"])
        if base is not None and base < turn:
            length = row["prompt_base_length"]
            found = SharedPrompt(base_turn=base, base_length=length, rest=prompt[length:])
        else:
            found = _find_base(prompt, sequences[:turn])
        shared.append(replace(found, is_masked=min(prompt, default=0) < 0))
    return shared


def _restore_prompts(
    turns: list[dict[str, Any]], turn_of_step: dict[int, int]
) -> list[list[int] | None]:
    """Whole prompts. A base may be a later turn: of parallel calls the later may end first."""
    prompts: dict[int, list[int] | None] = {}
    for start in range(len(turns)):
        chain: list[int] = []
        turn: int | None = start
        while turn is not None and turn not in prompts:
            chain.append(turn)
            prompts[turn] = None  # ends a circle of bases; the true value follows
            turn = turn_of_step.get(turns[turn]["prompt_base_step"])
        for turn in reversed(chain):
            prompts[turn] = _restore_prompt(turns, turn, turn_of_step, prompts)
    return [prompts[turn] for turn in range(len(turns))]


def _restore_prompt(
    turns: list[dict[str, Any]],
    turn: int,
    turn_of_step: dict[int, int],
    prompts: dict[int, list[int] | None],
) -> list[int] | None:
    row = turns[turn]
    rest = row["prompt_ids"]
    if rest is None or row["prompt_base_step"] is None:
        return rest
    base_turn = turn_of_step.get(row["prompt_base_step"])
    base = prompts.get(base_turn) if base_turn is not None else None
    if base_turn is None or base is None:
        return None
    sequence = base + (turns[base_turn]["response_ids"] or [])
    length = row["prompt_base_length"]
    return sequence[:length] + rest if 0 <= length <= len(sequence) else None


def _find_base(prompt: list[int], sequences: list[list[int] | None]) -> SharedPrompt:
    best = SharedPrompt(rest=prompt)
    first = max(0, len(sequences) - _LOOK_BACK_TURNS)
    for turn in reversed(range(first, len(sequences))):
        sequence = sequences[turn]
        length = count_common_prefix(sequence, prompt) if sequence is not None else 0
        if length > best.base_length:
            best = SharedPrompt(base_turn=turn, base_length=length, rest=prompt[length:])
    return best
