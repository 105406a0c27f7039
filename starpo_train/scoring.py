"""Rows + Policy -> log-probabilities and entropies of their trained tokens, without gradient.

Suffixes: R rows, A trained tokens of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from starpo_train.memory import explain_out_of_memory
from starpo_train.pack import pack_all
from starpo_train.policy import Policy
from starpo_train.tokens import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """What a policy says of the trained tokens of some rows."""

    logprobs_R: list[np.ndarray]
    """float32 [A] per row, at the temperature of each token's turn."""
    entropies_R: list[np.ndarray]
    """float32 [A] per row, nats."""


@torch.no_grad()
def score_rows(
    policy: Policy,
    rows: Sequence[TokenSequence],
    *,
    tokens_per_pack: int,
    name_row: Callable[[int], str],
    chosen: Sequence[int] | None = None,
) -> RowScores:
    """The policy as it is now; every rank has all scores, of the same bits.

    `chosen` are the rows to score (default: all), the others get zeros; `name_row` gives a row's
    trajectory.

    Raises:
        OutOfMemoryError: a pack does not fit into memory.
    """
    sizes = [row.num_actions for row in rows]
    ends_R = np.cumsum(sizes, dtype=int)
    scores_2A = np.zeros((2, sum(sizes)), dtype=np.float32)
    for pack, batch in pack_all(
        rows,
        range(len(rows)) if chosen is None else chosen,
        tokens_per_pack=policy.limit_pack(tokens_per_pack),
        shared_up_to=policy.shared_up_to,
        ranks=policy.ranks,
    ):
        with explain_out_of_memory(batch, name_row):
            scores = policy.score_actions(batch)
            found_2A = torch.stack([scores.logprobs_A, scores.entropies_A]).float().cpu().numpy()
        first = 0
        for r in pack:
            last = first + sizes[r]
            scores_2A[:, ends_R[r] - sizes[r] : ends_R[r]] = found_2A[:, first:last]
            first = last
    scores_2A = policy.ranks.sum_tensor(torch.from_numpy(scores_2A)).numpy()
    logprobs_R, entropies_R = (np.split(values, ends_R[:-1]) for values in scores_2A)
    return RowScores(logprobs_R=logprobs_R, entropies_R=entropies_R)
