"""Model folder -> a model that the engine can run, or the reason why not."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from starpo_train.errors import ModelError
from starpo_train.modelfolder import require_model


def load_model(model_path: str | Path) -> tuple[Any, Any]:
    """Folder, or a name in the hub's local cache -> (model in eval mode, tokenizer).

    Raises:
        CheckpointError: a checkpoint of ours that is not whole.
        ModelError: it is not there or cannot be loaded, or attends in a way that the engine does not implement.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_model(model_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the model {str(model_path)!r} cannot be loaded: {reason}") from error
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
