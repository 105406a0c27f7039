"""TokenSequence rows -> packed TokenBatch, within a budget of tokens per forward pass.

Rows lie one after another; positions restart with each, and attention never leaves its row.
Suffixes: T packed tokens, A action tokens among them, R rows, S turn starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starpo_train.tokens import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """One pack.

    Two rows, `p` prompt and `A` action tokens::

        input_ids_T     p p A A p A | p A A
        position_ids_T  0 1 2 3 4 5 | 0 1 2
        row_lengths_R   6, 3
        action_at_A     2 3 5 7 8      predicted from the token before: 1 2 4 6 7
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    row_lengths_R: tuple[int, ...]
    rows_R: tuple[int, ...]
    """Position of each row in the list that was packed."""
    action_at_A: Tensor
    """Index in T of each trained token."""
    action_ids_A: Tensor
    row_of_A: Tensor
    """Index in R of each trained token."""
    weights_A: Tensor
    """Row weight of each trained token."""
    behaviour_logprobs_A: Tensor | None
    """Recorded log-probabilities; None unless every row has exact ones."""
    turn_starts_S: Tensor
    """Index in T of the last prompt token before each trained turn."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the pack."""
        return len(self.input_ids_T)

    @property
    def num_actions(self) -> int:
        """Trained tokens of the pack."""
        return len(self.action_at_A)


def plan_packs(lengths: Sequence[int], *, tokens_per_pack: int) -> list[list[int]]:
    """Row lengths -> packs of row positions: longest first, each into the first pack with room.

    Deterministic. A row above the budget gets a pack of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    packs: list[list[int]] = []
    room: list[int] = []
    open_from = 0  # packs before this one are full
    shortest = min(lengths, default=0)
    for i in order:
        for pack in range(open_from, len(packs)):
            if lengths[i] <= room[pack]:
                packs[pack].append(i)
                room[pack] -= lengths[i]
                break
        else:
            packs.append([i])
            room.append(tokens_per_pack - lengths[i])
        while open_from < len(packs) and room[open_from] < shortest:
            open_from += 1
    return packs


def pack_rows(rows: Sequence[TokenSequence], chosen: Sequence[int]) -> TokenBatch:
    """Rows `chosen` -> one TokenBatch on the CPU."""
    picked = [rows[i] for i in chosen]
    lengths = np.array([row.num_tokens for row in picked])
    mask_T = np.concatenate([row.action_mask_T for row in picked])
    ids_T = np.concatenate([row.input_ids_T for row in picked])
    starts_R = np.cumsum(lengths) - lengths
    positions_T = np.arange(len(ids_T)) - np.repeat(starts_R, lengths)
    row_of_T = np.repeat(np.arange(len(picked)), lengths)
    action_at_A = np.flatnonzero(mask_T)
    weights_R = np.array([row.weight for row in picked], dtype=np.float32)
    row_of_A = row_of_T[action_at_A]
    behaviour = None
    if all(row.logprobs_T is not None for row in picked):
        logprobs = [row.logprobs_T for row in picked if row.logprobs_T is not None]
        behaviour = torch.from_numpy(np.concatenate(logprobs)[action_at_A])
    return TokenBatch(
        input_ids_T=torch.from_numpy(ids_T),
        position_ids_T=torch.from_numpy(positions_T),
        row_lengths_R=tuple(int(length) for length in lengths),
        rows_R=tuple(chosen),
        action_at_A=torch.from_numpy(action_at_A),
        action_ids_A=torch.from_numpy(ids_T[action_at_A]),
        row_of_A=torch.from_numpy(row_of_A),
        weights_A=torch.from_numpy(weights_R[row_of_A]),
        behaviour_logprobs_A=behaviour,
        turn_starts_S=torch.from_numpy(
            np.flatnonzero(np.concatenate([row.turn_start_mask_T for row in picked]))
        ),
    )
