"""Prompts x answers -> the log-probability of each answer behind each prompt, through packs.

A prompt lies in a tree once, with all answers below it. Suffixes: N answers, U distinct prompts, T
tokens of a row, A tokens of a pack's answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from starpo_train.diagnostics.sampling import SampledAnswer
from starpo_train.memory import explain_out_of_memory
from starpo_train.pack import pack_all
from starpo_train.policy import Policy
from starpo_train.tokens import TokenSequence
from starpo_train.tree import sort_rows

_TOKENS_AT_ONCE: Final = 1 << 20
"""Tokens of rows that are laid out before they are packed: their memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossScores:
    """Every answer behind every prompt."""

    logprobs_NU: Tensor
    """float64, summed over the answer's tokens."""
    entropies_N: Tensor
    """float64, summed over the answer's tokens, behind its own prompt."""
    lengths_N: Tensor
    prompt_of_N: Tensor
    num_row_tokens: int
    """Tokens of all rows, shared ones as often as they are in one."""
    num_computed: int


def merge_prompts(prompts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Tensor]:
    """Prompts of N answers -> the U distinct ones, neighbours alike, and which of them each is."""
    number_of: dict[bytes, int] = {}
    distinct: list[np.ndarray] = []
    for at in sort_rows(prompts)[0]:
        key = prompts[at].tobytes()
        if key not in number_of:
            number_of[key] = len(distinct)
            distinct.append(prompts[at])
    return distinct, torch.tensor([number_of[prompt.tobytes()] for prompt in prompts])


@torch.no_grad()
def score_crosswise(
    policy: Policy,
    answers: Sequence[SampledAnswer],
    *,
    tokens_per_pack: int,
    name_answer: Callable[[int], str],
) -> CrossScores:
    """Teacher-forced log pi(z_i | x_u) of every answer behind every distinct prompt, at temperature 1.

    Every rank calls it, scores a part, and has all in the end.
    """
    prompts, prompt_of_N = merge_prompts([answer.prompt_ids_T for answer in answers])
    lengths = [len(answer.answer_ids_T) for answer in answers]
    sums_2NU = torch.zeros(2, len(answers), len(prompts), dtype=torch.float64)
    num_row_tokens = num_computed = 0
    for begin, end in _split([len(p) * len(lengths) + sum(lengths) for p in prompts]):
        pairs = [(i, u) for u in range(begin, end) for i in range(len(answers))]
        rows = [_build_row(prompts[u], answers[i].answer_ids_T) for i, u in pairs]
        for chosen, batch in pack_all(
            rows,
            range(len(rows)),
            tokens_per_pack=policy.limit_pack(tokens_per_pack),
            shared_up_to=policy.shared_up_to,
            ranks=policy.ranks,
        ):
            with explain_out_of_memory(batch, lambda row: name_answer(pairs[row][0])):  # noqa: B023
                scores = policy.score_actions(batch)
            num_row_tokens += batch.num_row_tokens
            num_computed += batch.num_tokens
            values_2A = torch.stack([scores.logprobs_A, scores.entropies_A]).double().cpu()
            sums_2R = torch.zeros(2, len(chosen), dtype=torch.float64)
            sums_2R.index_add_(1, batch.row_of_A, values_2A)
            for place, row in enumerate(chosen):
                i, u = pairs[row]
                sums_2NU[:, i, u] = sums_2R[:, place]
    sums_2NU = policy.ranks.sum_tensor(sums_2NU)
    counts = policy.ranks.sum({"rows": num_row_tokens, "computed": num_computed})
    return CrossScores(
        logprobs_NU=sums_2NU[0],
        entropies_N=sums_2NU[1].gather(1, prompt_of_N[:, None])[:, 0],
        lengths_N=torch.tensor(lengths, dtype=torch.float64),
        prompt_of_N=prompt_of_N,
        num_row_tokens=int(counts["rows"]),
        num_computed=int(counts["computed"]),
    )


def _split(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours in parts of about a million tokens, at least one in each."""
    parts: list[tuple[int, int]] = []
    begin, total = 0, 0
    for at, size in enumerate(sizes):
        if at > begin and total + size > _TOKENS_AT_ONCE:
            parts.append((begin, at))
            begin, total = at, 0
        total += size
    return [*parts, (begin, len(sizes))]


def _build_row(prompt_ids_T: np.ndarray, answer_ids_T: np.ndarray) -> TokenSequence:
    """A row of which the answer is scored; what only training needs is a view of one value."""
    length = len(prompt_ids_T) + len(answer_ids_T)
    is_answer_T = np.arange(length) >= len(prompt_ids_T)
    nothing_T = np.broadcast_to(np.zeros(1, dtype=bool), length)
    return TokenSequence(
        trajectory=0,
        input_ids_T=np.concatenate([prompt_ids_T, answer_ids_T]),
        action_mask_T=is_answer_T,
        turn_T=np.broadcast_to(np.zeros(1, dtype=np.int64), length),
        turn_end_mask_T=nothing_T,
        turn_start_mask_T=nothing_T,
        logprobs_T=None,
        recorded=True,
    )
