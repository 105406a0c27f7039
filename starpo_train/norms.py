"""RMSNorms of a transformers model -> one kernel each instead of six, in place."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


def fuse_norms(model: nn.Module) -> None:
    """Use PyTorch's RMSNorm wherever a module is seen to compute just that.

    Not Gemma's, whose weight is added to one.
    """
    for module in model.modules():
        if hasattr(module, "variance_epsilon") and _is_plain_norm(module):
            module.forward = MethodType(_normalize, module)


def _normalize(module: Any, hidden_states: Tensor) -> Tensor:
    weight_H = module.weight
    # with two types there is no such kernel; a sharded layer's weight may be bfloat16
    dtype = torch.promote_types(hidden_states.dtype, weight_H.dtype)
    hidden, weight_H = hidden_states.to(dtype), weight_H.to(dtype)
    return rms_norm(hidden, weight_H.shape, weight_H, module.variance_epsilon)


@torch.no_grad()
def _is_plain_norm(module: Any) -> bool:
    weight_H = getattr(module, "weight", None)
    if weight_H is None or weight_H.dtype != torch.float32 or weight_H.dim() != 1:
        return False
    kept_H = weight_H.clone()
    generator = torch.Generator().manual_seed(0)
    sample_2H = torch.randn(2, len(weight_H), generator=generator).to(weight_H.device)
    try:
        weight_H.copy_(sample_2H[1])  # zeros or ones would hide what is done with them
        expected_2H, actual_2H = module(sample_2H), _normalize(module, sample_2H)
    except (TypeError, RuntimeError):
        return False
    finally:
        weight_H.copy_(kept_H)
    return torch.allclose(actual_2H, expected_2H, atol=1e-5, rtol=1e-5)
