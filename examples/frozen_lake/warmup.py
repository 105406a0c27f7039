"""Demonstrations -> a small warmed-up model: the policy that the demo starts from.

A tiny Qwen3 with its own tokenizer (default), or SmolLM2-135M-Instruct (`smollm2.py`), is shown runs of a
deliberately careless demonstrator: it knows the shortest way, but one move in four is random.
The model ends up about as good, which leaves StarPO something to improve.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agent
import environment
import torch
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""One token each, but part of the text: a client sees them when it asks for raw output."""
VOCABULARY_SIZE = 448
PIECES = "|".join(
    [
        r'\{"name": "\w+", "arguments": \{"\w+": "',
        r'"\}\}',
        r"(?:system|user|assistant|tool)\n",
        r'[{}":, ]*"[{}":, ]*',
        r" ?\w+[.:]?",
        r"\s",
        r"[^\s\w]",
    ]
)
"""What merges stay within: both ends of a tool call, a role, a word, one character."""
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text()
ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)
"""What the model samples, in a rendered conversation."""
IGNORED = -100
"""Label of tokens that the model only reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """How the tiny model is made."""

    num_maps: int = 500
    """Maps of the warm-up split."""
    demonstrations_per_map: int = 5
    mistake_rate: float = 0.25
    """Chance that a demonstrated move is random."""
    epochs: int = 1
    batch_size: int = 4
    learning_rate: float = 4e-3
    hidden_size: int = 64
    num_heads: int = 2
    num_layers: int = 4
    seed: int = 0


def demonstrate(
    lake_map: environment.Map, rng: random.Random, *, mistake_rate: float
) -> list[dict[str, Any]]:
    """The messages of one run of the careless demonstrator."""
    lake = environment.FrozenLake(lake_map)
    best = environment.best_moves(lake_map)
    messages = agent.begin_messages(lake, list(lake_map))
    while True:
        direction = best[lake.row, lake.column]
        if rng.random() < mistake_rate:
            direction = rng.choice(list(environment.OFFSETS))
        call_id = f"call_{len(messages)}"
        messages.append(
            {
                "role": "assistant",
                "reasoning_content": think_aloud(lake, direction),
                "tool_calls": [
                    {
                        "id": call_id,
                        "type": "function",
                        "function": {
                            "name": "move",
                            "arguments": json.dumps({"direction": direction}),
                        },
                    }
                ],
            }
        )
        outcome = lake.move(direction)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": outcome.observation})
        if outcome.end is not None:
            return messages


def think_aloud(lake: environment.FrozenLake, direction: str) -> str:
    """What the demonstrator says before a move: where the ice holds, and where it will go."""
    safe = [name for name, cell in lake.neighbours().items() if cell in {"ice", "goal"}]
    return f"safe {' '.join(safe)}. go {direction}."


def make_tokenizer(conversations: list[list[dict[str, Any]]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of these conversations, with the ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(MARKERS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(conversations), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(MARKERS)
    return fast


def _texts(conversations: list[list[dict[str, Any]]]) -> Iterator[str]:
    """What the template writes between its special tokens and markers."""
    renderer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    for messages in conversations:
        text = renderer.apply_chat_template(
            messages, tools=agent.TOOLS, tokenize=False, chat_template=CHAT_TEMPLATE
        )
        for token in [*SPECIAL_TOKENS, *MARKERS]:
            text = text.replace(token, "\x00")
        yield from text.split("\x00")


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]
) -> tuple[list[int], list[int]]:
    """Messages -> (token ids, labels); only what the assistant says has labels.

    Prompt parts and answers are encoded apart, as a server's prompt and response ids are.
    """
    text = str(tokenizer.apply_chat_template(messages, tools=agent.TOOLS, tokenize=False))
    ids: list[int] = []
    labels: list[int] = []
    for number, part in enumerate(ANSWER.split(text)):
        part_ids = tokenizer.encode(part, add_special_tokens=False)
        ids += part_ids
        labels += part_ids if number % 2 else [IGNORED] * len(part_ids)
    end = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
    return ids[:end], labels[:end]


def train_on_demonstrations(
    model: Any, examples: list[tuple[list[int], list[int]]], config: WarmupConfig
) -> list[float]:
    """Supervised training in place -> loss of every step."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    batches = _make_batches(examples, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=len(batches), pct_start=0.05
    )
    losses = []
    model.train()
    for batch in track(batches, description="warm-up"):
        ids_BT, labels_BT = _pad(batch)
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        said_BT = labels_BT[:, 1:] != IGNORED  # logits are wanted only where the answers are
        logits_NV = model.lm_head(hidden_BTD[:, :-1][said_BT])
        loss = torch.nn.functional.cross_entropy(logits_NV, labels_BT[:, 1:][said_BT])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses


def _make_batches(
    examples: list[tuple[list[int], list[int]]], config: WarmupConfig
) -> list[list[tuple[list[int], list[int]]]]:
    rng = random.Random(config.seed)
    batches = []
    for _ in range(config.epochs):
        order = sorted(examples, key=lambda example: len(example[0]) + 40 * rng.random())
        epoch = [
            order[start : start + config.batch_size]
            for start in range(0, len(order), config.batch_size)
        ]
        rng.shuffle(epoch)
        batches += epoch
    return batches


def _pad(batch: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padding lies on the right, where causal attention never looks."""
    length = max(len(ids) for ids, _ in batch)
    ids_BT = torch.zeros(len(batch), length, dtype=torch.long)
    labels_BT = torch.full((len(batch), length), IGNORED)
    for row, (ids, labels) in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(labels)] = torch.tensor(labels)
    return ids_BT, labels_BT


def make_demonstrations(config: WarmupConfig, rng: random.Random) -> list[list[dict[str, Any]]]:
    """The conversations that a warm-up shows its model."""
    return [
        demonstrate(lake_map, rng, mistake_rate=config.mistake_rate)
        for lake_map in environment.generate_maps("warmup", config.num_maps, config.seed)
        for _ in range(config.demonstrations_per_map)
    ]


def make_tiny_model(output: Path, config: WarmupConfig) -> dict[str, float]:
    """Write a warmed-up tiny model folder -> what it took."""
    started = time.monotonic()
    rng = random.Random(config.seed)
    torch.manual_seed(config.seed)
    conversations = make_demonstrations(config, rng)
    tokenizer = make_tokenizer(conversations)
    examples = [encode_demonstration(tokenizer, messages) for messages in conversations]
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=2 * config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            head_dim=config.hidden_size // config.num_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    losses = train_on_demonstrations(model, examples, config)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return describe_warmup(model, examples, losses, started)


def describe_warmup(
    model: Any, examples: list[tuple[list[int], list[int]]], losses: list[float], started: float
) -> dict[str, float]:
    """What a warm-up made and what it took."""
    return {
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "tokens_per_run": sum(len(ids) for ids, _ in examples) / len(examples),
        "longest_run_tokens": max(len(ids) for ids, _ in examples),
        "first_loss": losses[0],
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=["tiny", "smollm2"], default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.model == "smollm2":
        import smollm2

        facts = smollm2.make_smollm2(arguments.output, seed=arguments.seed)
    else:
        facts = make_tiny_model(arguments.output, WarmupConfig(seed=arguments.seed))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
