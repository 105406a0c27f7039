"""Model folder -> a model that the engine can run, or the reason why not."""

from pathlib import Path
from typing import Any

import torch

from starpo_train.errors import ModelError


def load_model(model_path: str | Path) -> tuple[Any, Any]:
    """Folder or hub name -> (model in eval mode, tokenizer).

    Raises:
        ModelError: it cannot be loaded, or attends in a way that the engine does not implement.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the model {str(model_path)!r} cannot be loaded: {error}") from error
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"the model {str(model_path)!r} has {', '.join(sorted(unknown))} layers; this server "
            "implements full attention only: serve it with vLLM"
        )
    return model.eval(), tokenizer


def find_max_context(model: Any) -> int:
    """Positions the model can attend to; a sliding window is full attention up to its size."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or (window and not kinds)
    limits = [getattr(config, "max_position_embeddings", None), window if slides else None]
    return min((limit for limit in limits if limit), default=32_768)
