"""RMSNorms of a transformers model -> one kernel each instead of six, in place."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


def fuse_norms(model: nn.Module) -> None:
    """Use a faster RMSNorm wherever a module is seen to compute just that.

    On CUDA that is PyTorch's; on a CPU PyTorch's is as many kernels, and ours is used. Not for
    Gemma's, whose weight is added to one.
    """
    for module in model.modules():
        if hasattr(module, "variance_epsilon") and _is_plain_norm(module):
            module.forward = MethodType(_normalize, module)


def _normalize(module: Any, hidden_states: Tensor) -> Tensor:
    weight_H = module.weight
    # with two types there is no such kernel; in a sharded layer both may be bfloat16, but a sum of
    # squares and the gradient of its root want more
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    dtype = torch.promote_types(dtype, weight_H.dtype)
    hidden, weight_H = hidden_states.to(dtype), weight_H.to(dtype)
    if hidden.device.type == "cpu" and dtype.itemsize >= torch.float32.itemsize:
        return _RmsNorm.apply(hidden, weight_H, module.variance_epsilon)
    return rms_norm(hidden, weight_H.shape, weight_H, module.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """[..., H] -> [..., H]; keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        scale = length.square_().div_(len(weight_H)).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight_H, scale)
        return (hidden * scale).mul_(weight_H)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight_H, scale = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        # the kernel of LayerNorm at mean 0 takes the mean out of the gradient, which is put back
        grad_hidden, grad_weight_H, _ = torch.ops.aten.native_layer_norm_backward(
            grad_out,
            hidden.contiguous(),
            weight_H.shape,
            torch.zeros_like(scale),
            scale,
            weight_H,
            None,
            [True, ctx.needs_input_grad[1], False],
        )
        mean = (grad_out @ weight_H)[..., None]
        return grad_hidden.addcmul_(mean, scale, value=1 / len(weight_H)), grad_weight_H, None


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
