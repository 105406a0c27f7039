"""Recorded turns + a policy -> features of what was done, and of what the policy would have done.

A turn's features are the policy's hidden state at its last token. What the policy would have done
is sampled with the built-in engine, at the recorded states; no tool is executed, no run goes on.
Suffixes: M turns of all trajectories in order, S turn ends, H hidden.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from starpo_train.memory import explain_out_of_memory
from starpo_train.ope.fqe import Transitions, reduce_features
from starpo_train.ope.turns import ScoredTrajectories, ScoredTurn, name_row
from starpo_train.pack import pack_all
from starpo_train.policy import Policy
from starpo_train.serve.engine import Engine
from starpo_train.serve.generation import Generation, GenerationRequest
from starpo_train.serve.loading import find_max_context, load_model
from starpo_train.tokens import TokenSequence

_MAX_BATCH = 32
_AT_ONCE = 512
"""Candidates that are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFacts:
    """How the sampling went."""

    num_candidates: int
    num_cut: int
    """That reached the limit of tokens before they ended."""
    max_tokens: int
    num_features: int
    """Directions of the hidden states that are kept."""


def build_transitions(
    policy: Policy,
    model_path: str,
    scored: ScoredTrajectories,
    rewards_M: Tensor,
    *,
    num_samples: int,
    seed: int,
    tokens_per_pack: int,
) -> tuple[Transitions, CandidateFacts]:
    """Features of every turn, and the mean features of `num_samples` candidates in its place.

    `max_tokens` of a candidate is twice the longest recorded answer.
    """
    rows = scored.tokenized.rows
    turns = [turn for of_one in scored.turns_N for turn in of_one]

    def name(row: int) -> str:
        return name_row(scored.tokenized, row)

    taken_MH = _read_turn_features(policy, rows, turns, tokens_per_pack, name)
    longest = max(turn.last - turn.first + 1 for turn in turns)
    sampler = _Sampler(model_path, max_tokens=2 * longest, seed=seed)
    expected_MH = torch.zeros_like(taken_MH)
    try:
        jobs = [(m, s) for m in range(len(turns)) for s in range(num_samples)]
        for start in range(0, len(jobs), _AT_ONCE):
            part = jobs[start : start + _AT_ONCE]
            sampled = sampler.sample([_make_prompt(rows, turns[m]) for m, _ in part])
            rows_of_part = [turns[m].row for m, _ in part]
            features_SH = _compute_features(
                policy, sampled, tokens_per_pack, lambda r, of=rows_of_part: name(of[r])
            )
            index_S = torch.tensor([m for m, _ in part])
            expected_MH.index_add_(0, index_S, features_SH / num_samples)
    finally:
        sampler.close()
    taken_MH, expected_MH = reduce_features(taken_MH, expected_MH)
    facts = CandidateFacts(
        num_candidates=len(jobs),
        num_cut=sampler.num_cut,
        max_tokens=2 * longest,
        num_features=taken_MH.shape[1],
    )
    trajectory_of_M = [n for n, of_one in enumerate(scored.turns_N) for _ in of_one]
    transitions = Transitions(
        taken_MH=taken_MH,
        expected_MH=expected_MH,
        rewards_M=rewards_M,
        trajectory_of_M=torch.tensor(trajectory_of_M),
    )
    return transitions, facts


class _Sampler:
    """The engine, as a function of prompts."""

    def __init__(self, model_path: str, *, max_tokens: int, seed: int) -> None:
        model, tokenizer = load_model(model_path)
        self._max_context = find_max_context(model)
        self._engine = Engine(model, tokenizer, max_batch=_MAX_BATCH, max_context=self._max_context)
        self._max_tokens = max_tokens
        self._seeds = np.random.default_rng(seed)
        self.num_cut = 0

    def sample(self, prompts: Sequence[tuple[list[int], float]]) -> list[TokenSequence]:
        """One answer to each prompt, at its temperature, as a row that ends with the answer."""
        done: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        generations = [
            self._engine.submit(
                GenerationRequest(
                    prompt_ids=ids,
                    max_tokens=min(self._max_tokens, max(self._max_context - len(ids), 1)),
                    temperature=temperature,
                    seed=int(self._seeds.integers(2**31)),
                ),
                on_done=done.put,
            )
            for ids, temperature in prompts
        ]
        for _ in generations:
            finished = done.get()
            if finished.error is not None:
                raise finished.error
        self.num_cut += sum(each.finish_reason == "length" for each in generations)
        return [_make_row(each) for each in generations]

    def close(self) -> None:
        self._engine.close()


def _make_prompt(rows: Sequence[TokenSequence], turn: ScoredTurn) -> tuple[list[int], float]:
    row = rows[turn.row]
    heat_T = row.temperatures_T
    temperature = 1.0 if heat_T is None else float(heat_T[turn.first])
    return row.input_ids_T[: turn.first].tolist(), temperature


def _make_row(generation: Generation) -> TokenSequence:
    """Prompt and answer; the mask of turn starts marks the last token, where features are read."""
    ids = [*generation.request.prompt_ids, *(token.token_id for token in generation.tokens)]
    last_T = np.arange(len(ids)) == len(ids) - 1
    return TokenSequence(
        trajectory=0,
        input_ids_T=np.array(ids, dtype=np.int64),
        action_mask_T=last_T,
        turn_T=np.where(last_T, 0, -1),
        turn_end_mask_T=last_T,
        turn_start_mask_T=last_T,
        logprobs_T=None,
        recorded=True,
    )


def _read_turn_features(
    policy: Policy,
    rows: Sequence[TokenSequence],
    turns: Sequence[ScoredTurn],
    tokens_per_pack: int,
    name_row: Callable[[int], str],
) -> Tensor:
    """Features at the ends of recorded turns, in the order of `turns`."""
    ends = [replace(row, turn_start_mask_T=row.turn_end_mask_T) for row in rows]
    features_SH = _compute_features(policy, ends, tokens_per_pack, name_row)
    found = [(r, int(at)) for r, row in enumerate(rows) for at in row.turn_end_mask_T.nonzero()[0]]
    place_of = {key: s for s, key in enumerate(found)}
    return features_SH[[place_of[turn.row, turn.last] for turn in turns]]


def _compute_features(
    policy: Policy,
    rows: Sequence[TokenSequence],
    tokens_per_pack: int,
    name_row: Callable[[int], str],
) -> Tensor:
    """Hidden states at the turn starts of every row, row by row, float64 on the CPU."""
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    counts_R = [int(row.turn_start_mask_T.sum()) for row in rows]
    for chosen, batch in pack_all(
        rows,
        range(len(rows)),
        tokens_per_pack=policy.limit_pack(tokens_per_pack),
        shared_up_to=policy.shared_up_to,
    ):
        with explain_out_of_memory(batch, name_row):
            features_SH = policy.compute_state_features(batch).cpu().to(torch.float64)
        parts = features_SH.split([counts_R[r] for r in chosen])
        for r, part in zip(chosen, parts, strict=True):
            found[r] = part
    return torch.cat(found)
