"""Policy on the CPU of every rank -> Policy whose weights are spread over the ranks (FSDP2).

A decoder layer is gathered just before it runs, in bfloat16 where products are, and dropped after
it; what is outside the layers (embedding, last norm, head) is gathered in float32 for the whole
pass. Gradients are summed in float32: a step's loss is a sum over its tokens, wherever they are.
Weights, moments and their update stay float32, in slices.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from starpo_train.errors import ModelError
from starpo_train.lora import merge_lora
from starpo_train.policy import Policy, run_here

T = TypeVar("T")


def shard_policy(policy: Policy, device: torch.device) -> Policy:
    """Spread a policy's weights over its ranks, each part on its `device`; one rank keeps all.

    Raises:
        ModelError: this version of PyTorch cannot sum gradients.
    """
    if policy.ranks.size == 1:
        return policy
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    model: Any = policy.model
    mesh = init_device_mesh(device.type, (policy.ranks.size,))
    # under autocast alone, each product would keep its bfloat16 copy of a weight that is dropped
    low = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in find_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=low if policy.autocast else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        if not hasattr(module, "set_force_sum_reduction_for_comms"):
            raise ModelError(f"torch {torch.__version__}: several ranks need a newer one (2.13).")
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # the decoder is called and the head's weight used without the model's own forward method
    model.run_gathered = run_here
    register_fsdp_forward_method(model, "run_gathered")

    def run(work: Callable[[], T]) -> T:
        result = model.run_gathered(work)
        drop()
        return result

    def drop(*_unused: Any) -> None:
        if not torch.is_grad_enabled():
            model.reshard()  # there is no backward pass that would do it

    model.register_forward_hook(drop)
    return replace(policy, device=device, run=run)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Decoder layers, by what transformers says must not be split over devices."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def gather_weights(policy: Policy) -> dict[str, Tensor]:
    """Weights as the plain model has them, whole; LoRA updates are added in, on copies.

    Of several ranks, each must call it; rank 0 gets them, on the CPU, the others nothing.
    """
    model: Any = policy.model
    if policy.ranks.size == 1:
        state = model.state_dict()
        return merge_lora(model, state) if policy.lora else state
    whole: dict[int, Tensor] = {}
    gathered: dict[str, Tensor] = {}
    tied = dict(model.named_parameters(remove_duplicate=False))
    for name, saved in model.state_dict().items():
        tensor = tied.get(name, saved)
        if id(tensor) not in whole:
            value = tensor.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            whole[id(tensor)] = value.cpu() if policy.ranks.is_first else torch.empty(0)
        gathered[name] = whole[id(tensor)]
    if not policy.ranks.is_first:
        return {}
    return merge_lora(model, gathered) if policy.lora else gathered
