"""SwiGLU layers of a transformers model -> what they compute, in blocks that stay in the cache; for a CPU.

Between its products such a layer goes through arrays of tokens times its inner width eight times, each
in fresh memory, and keeps four of them for the backward pass. In blocks of tokens the same takes a
fifth less time, and two of them are enough.

Suffixes: T tokens, H hidden, I inner width, B tokens of one block.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

BLOCK_ELEMENTS = 1 << 19
"""Elements of the inner width that are worked on at once: 2 MiB in float32."""

_silu: Any = torch.ops.aten.silu.out
_silu_backward: Any = torch.ops.aten.silu_backward.grad_input


def fuse_gated_mlps(model: nn.Module) -> None:
    """Wherever a module is seen to be `down(silu(gate(x)) * up(x))` of plain float32 layers."""
    for module in model.modules():
        if "forward" not in vars(module) and _is_gated_mlp(module):
            module.forward = MethodType(_forward, module)


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        return type(module).forward(module, hidden_states)
    layers = (module.gate_proj, module.up_proj, module.down_proj)
    hidden_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
    out_TH = _GatedMlp.apply(hidden_TH, *(layer.weight for layer in layers))
    return out_TH.view(hidden_states.shape)


class _GatedMlp(torch.autograd.Function):
    """(hidden_TH, gate_IH, up_IH, down_HI) -> [T, H]."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, gate_IH: Tensor, up_IH: Tensor, down_HI: Tensor
    ) -> Tensor:
        gated_TI, up_TI = hidden_TH @ gate_IH.T, hidden_TH @ up_IH.T
        out_TH = torch.empty_like(hidden_TH)
        for block, (inner_BI,) in _blocks(gated_TI, 1):
            _silu(gated_TI[block], out=inner_BI).mul_(up_TI[block])
            torch.mm(inner_BI, down_HI.T, out=out_TH[block])
        ctx.save_for_backward(hidden_TH, gate_IH, up_IH, down_HI, gated_TI, up_TI)
        return out_TH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        hidden_TH, gate_IH, up_IH, down_HI, gated_TI, up_TI = ctx.saved_tensors
        grad_out_TH = grads[0].contiguous()
        grad_hidden_TH = torch.empty_like(hidden_TH)
        grad_gate_IH, grad_up_IH, grad_down_HI = (
            torch.zeros_like(weight) for weight in (gate_IH, up_IH, down_HI)
        )
        for block, (inner_BI, grad_inner_BI, grad_up_BI) in _blocks(gated_TI, 3):
            gated_BI, up_BI, hidden_BH = gated_TI[block], up_TI[block], hidden_TH[block]
            torch.mm(grad_out_TH[block], down_HI, out=grad_inner_BI)
            _silu(gated_BI, out=inner_BI)
            torch.mul(grad_inner_BI, inner_BI, out=grad_up_BI)
            grad_down_HI.addmm_(grad_out_TH[block].T, inner_BI.mul_(up_BI))
            grad_gated_BI = _silu_backward(grad_inner_BI.mul_(up_BI), gated_BI, grad_input=inner_BI)
            grad_gate_IH.addmm_(grad_gated_BI.T, hidden_BH)
            grad_up_IH.addmm_(grad_up_BI.T, hidden_BH)
            grad_hidden_BH = torch.mm(grad_gated_BI, gate_IH, out=grad_hidden_TH[block])
            grad_hidden_BH.addmm_(grad_up_BI, up_IH)
        return grad_hidden_TH, grad_gate_IH, grad_up_IH, grad_down_HI


def _blocks(like_TI: Tensor, num_spaces: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of tokens, each with room for what is worked on, used again for the next."""
    num_tokens, width = like_TI.shape
    size = max(1, min(num_tokens, BLOCK_ELEMENTS // width))
    spaces = like_TI.new_empty(num_spaces, size, width)
    for start in range(0, num_tokens, size):
        block = slice(start, min(start + size, num_tokens))
        yield block, spaces[:, : block.stop - start]


@torch.no_grad()
def _is_gated_mlp(module: Any) -> bool:
    names = ("gate_proj", "up_proj", "down_proj")
    layers: list[Any] = [getattr(module, name, None) for name in names]
    if not all(_is_plain_layer(layer) for layer in layers) or not hasattr(module, "act_fn"):
        return False
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 3, layers[0].in_features, generator=generator)
    try:
        return torch.allclose(_forward(module, sample), module(sample), atol=1e-5, rtol=1e-5)
    except (TypeError, RuntimeError):
        return False


def _is_plain_layer(layer: Any) -> bool:
    if type(layer) is not nn.Linear or layer.bias is not None:
        return False
    return layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
