"""Names -> models with random weights, and trajectories of random tokens, as rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from starpo_train.tokens import TokenSequence, TurnTokens, build_rows

SIZES: dict[str, dict[str, int]] = {
    # Qwen2.5's shapes
    "7B": {"hidden": 3584, "ffn": 18944, "layers": 28, "heads": 28, "kv": 4, "vocab": 152064},
    "1.5B": {"hidden": 1536, "ffn": 8960, "layers": 28, "heads": 12, "kv": 2, "vocab": 151936},
    "0.5B": {"hidden": 896, "ffn": 4864, "layers": 24, "heads": 14, "kv": 2, "vocab": 151936},
    # to see on a CPU that everything runs
    "tiny": {"hidden": 64, "ffn": 128, "layers": 2, "heads": 4, "kv": 2, "vocab": 512},
}


def build_model(size: str, *, device: str) -> Any:
    """A Qwen2-style model with random weights, made where it stays."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = SIZES[size]
    config = Qwen2Config(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        max_position_embeddings=32768,
        tie_word_embeddings=size != "7B",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.to(torch.float32)  # as published weights are: float32 that bfloat16 holds


def make_group(
    *, num_vocabulary: int, attempts: int = 8, turns: int = 8, prompt: int, seen: int, said: int
) -> list[list[TurnTokens]]:
    """Attempts at one task: a shared prompt, then `turns` times an answer and what came of it."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        return generator.integers(0, num_vocabulary, count).astype(np.int64)

    shared_ids, group = draw(prompt), []
    for _ in range(attempts):
        prefix_ids, run = shared_ids, []
        for turn in range(turns):
            response_ids = draw(said)
            run.append(
                TurnTokens(
                    turn=turn,
                    prompt_ids_T=prefix_ids,
                    response_ids_T=response_ids,
                    logprobs_T=np.full(said, -np.log(num_vocabulary), dtype=np.float32),
                    recorded=True,
                    trained=True,
                )
            )
            prefix_ids = np.concatenate([prefix_ids, response_ids, draw(seen)])
        group.append(run)
    return group


def build_whole_rows(group: list[list[TurnTokens]]) -> list[TokenSequence]:
    """Each run is one row: every token once for each run."""
    return [row for i, run in enumerate(group) for row in build_rows(run, trajectory=i)]


def build_turn_rows(group: list[list[TurnTokens]]) -> list[TokenSequence]:
    """Each turn is a row of its own, with all that came before it as its prompt."""
    return [
        replace(row, trajectory=i)
        for i, run in enumerate(group)
        for turn in run
        for row in build_rows([turn], trajectory=i)
    ]


def count_flops(size: str, lengths: list[int], num_actions: int, *, is_lora: bool = False) -> float:
    """Floating point operations of a forward and a backward pass over rows of these lengths.

    2 for a multiply-add; the backward pass is twice the forward one (once where weights are
    frozen); causal attention is half its square; nothing for recomputation, norms and softmax.
    """
    shape = SIZES[size]
    hidden, layers, head_dim = shape["hidden"], shape["layers"], shape["hidden"] // shape["heads"]
    per_layer = hidden * (2 * hidden + 2 * shape["kv"] * head_dim + 3 * shape["ffn"])
    products = 2.0 * layers * per_layer * sum(lengths) + 2.0 * hidden * shape["vocab"] * num_actions
    attention = 2.0 * layers * hidden * sum(length**2 for length in lengths)
    return products * (2 if is_lora else 3) + attention * 3
