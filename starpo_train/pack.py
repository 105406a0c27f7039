"""TokenSequence rows -> packed TokenBatch, within a budget of tokens per forward pass.

Rows lie one after another, or as a tree in which what they share lies once; positions are those of
their rows, and attention never leaves a row. Suffixes: T packed tokens, A action tokens of the rows, R
rows, S turn starts.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from starpo_train.deal import count_longest, deal_units
from starpo_train.ranks import ALONE, Ranks
from starpo_train.tokens import TokenSequence
from starpo_train.tree import TreeLayout, build_tree, sort_rows

_LEAST_SHARED: Final = 16
"""Tokens from which on rows that share them are kept in one pack."""
_GOOD_BALANCE: Final = 1.1
"""Ranks that wait for each other no more than this need no other plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """One pack.

    Two rows, `p` prompt and `A` action tokens, one after another and as a tree::

        input_ids_T      p p A A p A | p p A B        p p A | A p A | B
        position_ids_T   0 1 2 3 4 5 | 0 1 2 3        0 1 2 | 3 4 5 | 3
        predicted_at_A   1 2 4 7 8                    1 2 4 1 2

    A token that several rows sampled is several times in A, once in T.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    layout: TreeLayout
    """What sees what."""
    rows_R: tuple[int, ...]
    """Position of each row in the list that was packed."""
    num_row_tokens: int
    """Tokens of the rows, shared ones as often as they are in one."""
    predicted_at_A: Tensor
    """Index in T of the token before each trained one, from which that is predicted."""
    action_ids_A: Tensor
    row_of_A: Tensor
    """Index in R of each trained token."""
    weights_A: Tensor
    """Row weight of each trained token."""
    behaviour_logprobs_A: Tensor | None
    """Recorded log-probabilities; None unless every row has exact ones."""
    turn_starts_S: Tensor
    """Index in T of the last prompt token before each trained turn."""
    temperatures_A: Tensor | None = None
    """By which the logits are divided; None: all are 1."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.input_ids_T)

    @property
    def num_actions(self) -> int:
        """Trained tokens of the rows."""
        return len(self.action_ids_A)


def pack_all(
    rows: Sequence[TokenSequence],
    chosen: Sequence[int],
    *,
    tokens_per_pack: int,
    shared_up_to: int,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Rows `chosen` -> packs, each with the rows that are in it; those that are this rank's.

    They share their prefixes unless one has more than `shared_up_to` tokens. Every rank has the
    same number of packs, and may have some with no row, of one token of which none is trained.
    """
    share = max((rows[i].num_tokens for i in chosen), default=0) <= shared_up_to
    plans = (
        plan_rows(rows, chosen, tokens_per_pack=tokens_per_pack, share=share)
        if ranks.size == 1
        else deal_rows(
            rows, chosen, tokens_per_pack=tokens_per_pack, share=share, num_ranks=ranks.size
        )[ranks.rank]
    )
    for pack in plans:
        yield pack, pack_rows(rows, pack, share=share) if pack else _pack_nothing()


def plan_rows(
    rows: Sequence[TokenSequence], chosen: Sequence[int], *, tokens_per_pack: int, share: bool
) -> list[list[int]]:
    """Rows `chosen` -> packs of them, within a budget of computed tokens each.

    With `share`, rows that begin alike are kept together as far as the budget allows; a row above
    it gets a pack of its own. Deterministic.
    """
    if share:
        units, sizes = _gather_units([rows[i].input_ids_T for i in chosen], tokens_per_pack)
    else:
        units, sizes = [[i] for i in range(len(chosen))], [rows[i].num_tokens for i in chosen]
    packs = plan_packs(sizes, tokens_per_pack=tokens_per_pack)
    return [[chosen[i] for unit in pack for i in units[unit]] for pack in packs]


def deal_rows(
    rows: Sequence[TokenSequence],
    chosen: Sequence[int],
    *,
    tokens_per_pack: int,
    share: bool,
    num_ranks: int,
) -> list[list[list[int]]]:
    """Rows `chosen` -> the packs of each rank, balanced by computed tokens; as `plan_rows`.

    Rows that begin alike stay together, unless the ranks are done sooner when they do not.
    """
    fair = -(-sum(rows[i].num_tokens for i in chosen) // num_ranks)
    best: tuple[float, list[list[list[int]]]] = (math.inf, [])
    for limit in (tokens_per_pack, fair, fair // 2, fair // 4) if share else (0,):
        sizes = [rows[i].num_tokens for i in chosen]
        units = [[i] for i in range(len(chosen))]
        if share:
            units, sizes = _gather_units([rows[i].input_ids_T for i in chosen], limit)
        dealt = deal_units(sizes, tokens_per_pack=tokens_per_pack, num_ranks=num_ranks)
        cost = count_longest(dealt, sizes)
        if cost < best[0]:
            best = (
                cost,
                [[[chosen[i] for u in pack for i in units[u]] for pack in r] for r in dealt],
            )
        if cost * num_ranks <= _GOOD_BALANCE * sum(sizes):
            break
    return best[1]


def _gather_units(
    ids: Sequence[np.ndarray], tokens_per_pack: int
) -> tuple[list[list[int]], list[int]]:
    """Rows that share a prefix worth it, and how many tokens the tree of each unit has.

    Rows whose tree is above the budget become as few units as possible, of about equal size: the
    largest pack is what memory must hold.
    """
    order, shared = sort_rows(ids)
    lengths = [len(ids[row]) for row in order]
    units: list[list[int]] = []
    sizes: list[int] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and shared[end] >= min(_LEAST_SHARED, lengths[end]):
            continue
        begins, begin_sizes = _split_evenly(lengths[start:end], shared[start:end], tokens_per_pack)
        cuts = [start + begin for begin in begins] + [end]
        units += [order[left:right] for left, right in itertools.pairwise(cuts)]
        sizes += begin_sizes
        start = end
    return units, sizes


def _split_evenly(
    lengths: Sequence[int], shared: Sequence[int], limit: int
) -> tuple[list[int], list[int]]:
    """The least limit that needs no more parts than `limit` does, by bisection."""
    best = _split(lengths, shared, limit)
    low, high = 0, limit
    while len(best[0]) > 1 and high - low > 1:
        middle = (low + high) // 2
        parts = _split(lengths, shared, middle)
        if len(parts[0]) > len(best[0]):
            low = middle
        else:
            best, high = parts, middle
    return best


def _split(
    lengths: Sequence[int], shared: Sequence[int], limit: int
) -> tuple[list[int], list[int]]:
    """Neighbours -> where each part begins and the tokens of its tree, none above the limit.

    A row above it is a part of its own.
    """
    begins: list[int] = []
    sizes: list[int] = []
    for row, (length, num_shared) in enumerate(zip(lengths, shared, strict=True)):
        if sizes and sizes[-1] + length - num_shared <= limit:
            sizes[-1] += length - num_shared
        else:
            begins.append(row)
            sizes.append(length)
    return begins, sizes


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


def pack_rows(
    rows: Sequence[TokenSequence], chosen: Sequence[int], *, share: bool = False
) -> TokenBatch:
    """Rows `chosen` -> one TokenBatch on the CPU; with `share` as a tree."""
    picked = [rows[i] for i in chosen]
    tree = build_tree([row.input_ids_T for row in picked], share=share)
    actions = [np.flatnonzero(row.action_mask_T) for row in picked]
    before = [place[at - 1] for place, at in zip(tree.places, actions, strict=True)]
    starts = [place[row.turn_start_mask_T] for place, row in zip(tree.places, picked, strict=True)]
    ids = [row.input_ids_T[at] for row, at in zip(picked, actions, strict=True)]
    row_of_A = np.repeat(np.arange(len(picked)), [len(at) for at in actions])
    weights_R = np.array([row.weight for row in picked], dtype=np.float32)
    behaviour = None
    if all(row.logprobs_T is not None for row in picked):
        logprobs = [
            row.logprobs_T[at]
            for row, at in zip(picked, actions, strict=True)
            if row.logprobs_T is not None
        ]
        behaviour = torch.from_numpy(np.concatenate(logprobs))
    temperatures = None
    if any(row.temperatures_T is not None for row in picked):
        scales = [
            np.ones(len(at), dtype=np.float32)
            if row.temperatures_T is None
            else row.temperatures_T[at]
            for row, at in zip(picked, actions, strict=True)
        ]
        temperatures = torch.from_numpy(np.concatenate(scales))
    return TokenBatch(
        input_ids_T=torch.from_numpy(tree.input_ids_T),
        position_ids_T=torch.from_numpy(tree.positions_T),
        layout=tree.layout,
        rows_R=tuple(chosen),
        num_row_tokens=sum(row.num_tokens for row in picked),
        predicted_at_A=torch.from_numpy(np.concatenate(before)),
        action_ids_A=torch.from_numpy(np.concatenate(ids)),
        row_of_A=torch.from_numpy(row_of_A),
        weights_A=torch.from_numpy(weights_R[row_of_A]),
        behaviour_logprobs_A=behaviour,
        turn_starts_S=torch.from_numpy(np.concatenate(starts)),
        temperatures_A=temperatures,
    )


def _pack_nothing() -> TokenBatch:
    """A pass in which nothing is trained, for a rank that has no rows left."""
    nothing_T = np.zeros(1, dtype=bool)
    row = TokenSequence(
        trajectory=0,
        input_ids_T=np.zeros(1, dtype=np.int64),
        action_mask_T=nothing_T,
        turn_T=np.full(1, -1),
        turn_end_mask_T=nothing_T,
        turn_start_mask_T=nothing_T,
        logprobs_T=np.zeros(1, dtype=np.float32),
        recorded=True,
    )
    return replace(pack_rows([row], [0]), rows_R=(), num_row_tokens=0)
