"""A transformers model -> the same with LoRA on its linear layers, and back to plain weights."""

from typing import Any

import torch
from torch import Tensor, nn

from starpo_train.config import ModelSection
from starpo_train.errors import ModelError


def add_lora(model: Any, section: ModelSection, *, seed: int) -> Any:
    """Wrap the linear layers, in place.

    Raises:
        ModelError: peft cannot wrap them.
    """
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)  # the A matrices are random
    rank = section.lora_rank
    config = LoraConfig(
        r=rank,
        lora_alpha=int(section.lora_alpha if section.lora_alpha is not None else 2 * rank),
        target_modules="all-linear",
    )
    try:
        return inject_adapter_in_model(config, model)
    except ValueError as error:  # such as Mamba, whose layers peft cannot wrap
        raise ModelError(
            f"model.lora_rank = {rank}: no LoRA for {section.path!r} "
            f"({' '.join(str(error).split())}); use 0."
        ) from error


def merge_lora(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights of a model with LoRA -> those of the plain model, on copies."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, is_base, leaf = name.partition(".base_layer.")
        if is_base:
            whole = tensor.float()
            if leaf == "weight":
                layer = layers[owner]
                down, up = (state[f"{owner}.lora_{part}.default.weight"] for part in "AB")
                update = (up @ down) * layer.scaling["default"]
                whole = whole + (update.T if layer.fan_in_fan_out else update)
            merged[f"{owner}.{leaf}"] = whole
        elif ".lora_" not in name:
            merged[name] = tensor
    return merged


def halve_frozen_weights(model: nn.Module) -> None:
    """Keep the weights below LoRA in bfloat16, where that holds them exactly.

    The products use them in bfloat16 anyway, and would cast them anew each time. Not the head: it
    may share its weight with the embedding, which begins a float32 residual stream.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for parameter in layer.get_base_layer().parameters(recurse=False):
            low = parameter.detach().bfloat16()
            if not parameter.requires_grad and torch.equal(low.float(), parameter):
                parameter.data = low
