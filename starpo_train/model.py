"""Model folder -> Policy: a causal language model as it is to be run here."""

from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from starpo_train.attention import register_packed_attention
from starpo_train.config import ModelSection
from starpo_train.errors import ModelError
from starpo_train.fused import fuse_layers
from starpo_train.lora import add_lora, halve_frozen_weights
from starpo_train.modelfolder import require_model
from starpo_train.policy import Policy
from starpo_train.probe import configure_policy, probe_plainly
from starpo_train.quantized import require_plain_weights
from starpo_train.ranks import ALONE, Ranks


def load_policy(section: ModelSection, *, seed: int = 0, ranks: Ranks = ALONE) -> Policy:
    """Model folder -> Policy, every weight float32; for several ranks whole and on the CPU.

    Raises:
        ModelError: no such model, no tokenizer, no causal language model, or a model that cannot
            be run as asked.
    """
    device = choose_device(section.device, ranks)  # before anything is read
    model, tokenizer = _load_folder(section.path)
    if ranks.size == 1:
        model = model.to(device)
    return build_policy(model, tokenizer, section, seed=seed, ranks=ranks)


def build_policy(
    model: Any, tokenizer: Any, section: ModelSection, *, seed: int = 0, ranks: Ranks = ALONE
) -> Policy:
    """A transformers model, where it is to stay -> Policy; `section.path` only names it.

    Raises:
        ModelError: the model cannot be run as asked.
    """
    register_packed_attention()
    device = model.device
    target = device if ranks.size == 1 else choose_device(section.device, ranks)
    _silence_dropout(model)
    if section.lora_rank > 0:
        model = add_lora(model, section, seed=seed)
        model.to(device)
    model.train(section.gradient_checkpointing)
    if section.gradient_checkpointing:
        # renamed in the course of transformers 5
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        device=device,
        autocast=section.precision == "bfloat16"
        or (section.precision == "auto" and target.type == "cuda"),
        packed=False,
        shared_up_to=0,
        fast_head=False,
        lora=section.lora_rank > 0,
        ranks=ranks,
    )
    fuse_layers(
        model,
        device=target.type,
        is_low=policy.autocast,
        compute=lambda: probe_plainly(policy),
    )
    policy = configure_policy(policy, section, tree=target.type == "cpu")
    if policy.lora and policy.autocast:
        halve_frozen_weights(policy.model)
    return policy


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """`model.device` -> the device of this process.

    Raises:
        ModelError: it is not there, or one that several ranks would share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model.device = {name!r}: there is no CUDA device; use 'cpu'.")
    if ranks.size > 1 and name != "cpu":
        if name != "cuda":
            raise ModelError(f"model.device = {name!r}: each rank takes its own; use 'cuda'.")
        if ranks.local_rank >= torch.cuda.device_count():
            raise ModelError(
                f"rank {ranks.rank} is number {ranks.local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} CUDA devices; start no more ranks than that on each."
            )
        name = f"cuda:{ranks.local_rank}"
    try:
        return torch.device(name)
    except RuntimeError:
        raise ModelError(
            f"model.device = {name!r}: no such kind of device; use 'auto', 'cpu' or 'cuda'."
        ) from None


def _load_folder(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_model(path, where="model.path")
    try:
        require_plain_weights(path)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True
        )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"model.path = {path!r}: cannot be loaded as a causal language model with its "
            f"tokenizer ({' '.join(str(error).split())}); give a folder that transformers can load."
        ) from error
    return model, tokenizer


def _silence_dropout(model: nn.Module) -> None:
    """Dropout would make the ratio to the recorded log-probabilities noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
