"""Runs -> the batch that every contender trains on, and the model that it trains."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from trainlib.runs import make_groups, make_linear
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from starpo_train.tokens import TokenSequence, build_rows

NAMES = ("flat", "wide", "groups")
CLIP_LOW, CLIP_HIGH = 0.2, 0.28


@dataclass(frozen=True, kw_only=True)
class Work:
    """One optimizer step's data; a run is one row."""

    vocabulary: int
    rows: list[TokenSequence]
    """With recorded log-probabilities."""
    advantages_N: np.ndarray
    rows_per_batch: int
    """Of the contenders that count rows; the number of rows is a multiple of it."""
    tokens_per_pack: int
    """Of ours."""

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    @property
    def num_actions(self) -> int:
        return sum(row.num_actions for row in self.rows)

    @property
    def batches(self) -> list[list[int]]:
        """Row numbers, in order."""
        size = self.rows_per_batch
        return [list(range(at, at + size)) for at in range(0, len(self.rows), size)]


@lru_cache(maxsize=3)
def make_work(name: str, *, quick: bool) -> Work:
    vocabulary, rows_per_batch, tokens_per_pack = 4096, 4, 0
    if name == "flat":
        runs = make_linear(4 if quick else 12, seed=0)
    elif name == "wide":
        runs = [turns[:3] for turns in make_linear(2 if quick else 4, seed=3)]
        vocabulary, rows_per_batch = 151_936, 2
    else:
        runs, tokens_per_pack = make_groups(1, seed=1), 10_240  # the tree of a group
    generator = np.random.default_rng(5)
    rows = []
    for n, turns in enumerate(runs):
        (row,) = build_rows(turns, trajectory=n)
        # about what a model of random weights says, so that some ratios are clipped and most not
        said_T = -np.log(vocabulary) + 0.25 * generator.standard_normal(row.num_tokens)
        said_T = np.where(row.action_mask_T, said_T, 0.0).astype(np.float32)
        rows.append(replace(row, logprobs_T=said_T))
    work = Work(
        vocabulary=vocabulary,
        rows=rows,
        advantages_N=generator.permutation(np.linspace(-1.5, 1.5, len(rows))).astype(np.float32),
        rows_per_batch=rows_per_batch,
        tokens_per_pack=tokens_per_pack,
    )
    longest = max(sum(rows[i].num_tokens for i in batch) for batch in work.batches)
    return work if tokens_per_pack else replace(work, tokens_per_pack=longest)


def build_model(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=65_536,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)
