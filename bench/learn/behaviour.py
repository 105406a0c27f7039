"""(Environment, seed) -> a small warmed-up model: the policy that the traffic is recorded from.

    python -m learn.behaviour frozen_lake --seed 0 --output MODEL

A Qwen3 of 64 x 4 with its own tokenizer, or a pretrained model (`bases.py`), is shown runs of a careless
demonstrator on the split `warmup`: it knows the best action, but some of the time it does not look. How
often, and how long the model learns, was chosen per environment so that it succeeds in 25 to 60 % of unseen
tasks.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from learn.bases import TINY, Base, load_pretrained
from learn.envs import GAMES
from learn.envs.base import Game, draw_tasks
from learn.envs.protocol import begin_messages, write_message

SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
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
IGNORED = -100
"""Label of tokens that the model only reads."""
MAX_ANSWER_TOKENS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """How a behaviour model is made."""

    num_tasks: int = 300
    runs_per_task: int = 6
    mistake_rate: float = 0.25
    """Chance that a demonstrated action is careless."""
    epochs: int = 1
    batch_size: int = 4
    learning_rate: float = 4e-3


WARMUPS: Mapping[str, Warmup] = {
    "bandit": Warmup(runs_per_task=14, mistake_rate=0.3),
    "frozen_lake": Warmup(mistake_rate=0.2),
    "sokoban": Warmup(num_tasks=450, runs_per_task=5, mistake_rate=0.3),
    "textcraft": Warmup(num_tasks=600, runs_per_task=5, mistake_rate=0.1),
    "shop": Warmup(num_tasks=900, runs_per_task=5, mistake_rate=0.1),
}
PRETRAINED_WARMUP = Warmup(
    num_tasks=64, runs_per_task=1, mistake_rate=0.1, batch_size=1, learning_rate=5e-4
)
"""After so few demonstrations its own mistakes come on top."""


def make_behaviour(
    name: str, seed: int, output: Path, *, base: Base = TINY, warmup: Warmup | None = None
) -> dict[str, Any]:
    """Write a model folder -> what it took. The same seed gives the same weights, on one thread.

    Args:
        name: Environment.
        seed: Of the demonstrations, the weights and their order.
        output: Folder to write.
        base: What the model is made of.
        warmup: Default the environment's own; of a pretrained model, `PRETRAINED_WARMUP`.
    """
    started_s = time.process_time()
    options = warmup or (WARMUPS[name] if base.model is None else PRETRAINED_WARMUP)
    game = GAMES[name]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(f"{name}/{seed}")
    conversations = [
        demonstrate(game(task.spec, rng.randrange(2**31)), rng, options.mistake_rate)
        for task in draw_tasks(game, "warmup", options.num_tasks, seed)
        for _ in range(options.runs_per_task)
    ]
    if base.model is None:
        tokenizer = make_tokenizer(conversations, game)
        model = make_model(tokenizer)
    else:
        model, tokenizer = load_pretrained(base.model, markers=[*MARKERS, *list_call_texts(game)])
        tokenizer.chat_template = CHAT_TEMPLATE
    examples = [encode_run(tokenizer, messages, game) for messages in conversations]
    losses = train_on_runs(model, examples, options, rng)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    facts = {
        "environment": name,
        "seed": seed,
        "warmup": asdict(options),
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "vocabulary": len(tokenizer),
        "tokens_per_run": sum(len(ids) for ids, _ in examples) / len(examples),
        "longest_run_tokens": max(len(ids) for ids, _ in examples),
        "last_loss": sum(losses[-20:]) / len(losses[-20:]),
        "cpu_seconds": round(time.process_time() - started_s, 1),
    }
    (output / "warmup.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def list_call_texts(game: type[Game]) -> list[str]:
    """What a call of each tool begins with, and what calls end with: a token each, of a pretrained model."""
    begins = [
        f'{{"name": "{function["name"]}", "arguments": {{"{argument}": "'
        for function in (tool["function"] for tool in game.tools)
        for argument in function["parameters"]["required"]
    ]
    return [*begins, '"}}']


def demonstrate(game: Game, rng: random.Random, mistake_rate: float) -> list[dict[str, Any]]:
    """The messages of one run of the careless demonstrator."""
    messages = begin_messages(game)
    while True:
        is_careless = rng.random() < mistake_rate
        action = game.careless(rng) if is_careless else game.best()
        call_id = f"call_{len(messages)}"
        messages.append(write_message(game, action, call_id))
        outcome = game.act(action)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": outcome.observation})
        if outcome.end is not None:
            return messages


def make_tokenizer(
    conversations: list[list[dict[str, Any]]], game: type[Game]
) -> PreTrainedTokenizerFast:
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
    tokenizer.train_from_iterator(_texts(conversations, game), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(MARKERS)
    return fast


def _texts(conversations: list[list[dict[str, Any]]], game: type[Game]) -> Iterator[str]:
    """What the template writes between its special tokens and markers."""
    renderer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    marks = re.compile("|".join(map(re.escape, [*SPECIAL_TOKENS, *MARKERS])))
    for messages in conversations:
        text = renderer.apply_chat_template(
            messages, tools=list(game.tools), tokenize=False, chat_template=CHAT_TEMPLATE
        )
        yield from marks.split(str(text))


def encode_run(
    tokenizer: Any, messages: list[dict[str, Any]], game: type[Game]
) -> tuple[list[int], list[int]]:
    """Messages -> (token ids, labels); only what the assistant says has labels.

    Prompt parts and answers are encoded apart, as a server's prompt and response ids are.
    """
    text = str(tokenizer.apply_chat_template(messages, tools=list(game.tools), tokenize=False))
    ids: list[int] = []
    labels: list[int] = []
    for number, part in enumerate(ANSWER.split(text)):
        part_ids = tokenizer.encode(part, add_special_tokens=False)
        ids += part_ids
        labels += part_ids if number % 2 else [IGNORED] * len(part_ids)
    end = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
    return ids[:end], labels[:end]


def make_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A Qwen3 of hidden size 64 and 4 layers, from torch's random numbers."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=tokenizer.get_vocab()["<|pad|>"],
            eos_token_id=tokenizer.get_vocab()["<|im_end|>"],
        )
    )


def train_on_runs(
    model: Any, examples: list[tuple[list[int], list[int]]], options: Warmup, rng: random.Random
) -> list[float]:
    """Supervised training in place -> loss of every step."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
    )
    batches = _make_batches(examples, options, rng)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, total_steps=len(batches), pct_start=0.05
    )
    losses = []
    model.train()
    for batch in batches:
        ids_BT, labels_BT = _pad(batch)
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        said_BT = labels_BT[:, 1:] != IGNORED  # logits are wanted only where the answers are
        logits_NV = model.lm_head(hidden_BTD[:, :-1][said_BT])
        loss = torch.nn.functional.cross_entropy(logits_NV, labels_BT[:, 1:][said_BT])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses


def _make_batches(
    examples: list[tuple[list[int], list[int]]], options: Warmup, rng: random.Random
) -> list[list[tuple[list[int], list[int]]]]:
    """Runs of similar length lie together."""
    batches = []
    for _ in range(options.epochs):
        order = sorted(examples, key=lambda example: len(example[0]) + 40 * rng.random())
        size = options.batch_size
        epoch = [order[start : start + size] for start in range(0, len(order), size)]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", choices=list(GAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    print(json.dumps(make_behaviour(arguments.environment, arguments.seed, arguments.output)))


if __name__ == "__main__":
    main()
