"""Model folder -> refused when its weights are quantised.

Weights are float32 here: the optimizer changes them, LoRA is merged into them, checkpoints hold them
whole. Packed weights get no gradient, and transformers, which unpacks some of them while it loads,
packs those again when it saves.
"""

from typing import Any

from starpo_train.errors import ModelError


def require_plain_weights(path: str) -> None:
    """Refuse a model whose config.json names a quantisation, before its weights are read.

    Raises:
        ModelError: it does; says which one, and what to do.
        OSError, ValueError: no readable config.json, as transformers raises it.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True)
    for part in (config, config.get_text_config(decoder=True)):
        values: Any = getattr(part, "quantization_config", None)
        if values is not None:
            values = values if isinstance(values, dict) else values.to_dict()
            raise ModelError(
                f"model.path = {path!r}: its weights are quantised "
                f"({values.get('quant_method', 'unknown')}), and training needs plain ones, below a "
                "LoRA too; give the folder that it was made from, or unpack it once as "
                "docs/training.md says (Quantised models)."
            )
