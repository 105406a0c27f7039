"""Rotary embeddings of a transformers model -> three kernels instead of nine, in place; for a CPU.

Suffixes: N heads, T tokens, D width of a head.
"""

from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

_NAME: Final = "apply_rotary_pos_emb"
"""What the attention layers of transformers call."""


def fuse_rotary(model: nn.Module) -> None:
    """Wherever an attention layer calls a function that is seen to rotate halves of the heads.

    The layer's own `forward` runs, with that one name bound to ours.
    """
    for module in model.modules():
        forward = type(module).forward
        if "forward" in vars(module) or not isinstance(forward, FunctionType):
            continue
        if _NAME not in forward.__code__.co_names or not _rotates_halves(forward):
            continue
        rotate = partial(_rotate, theirs=forward.__globals__[_NAME])
        bound = FunctionType(
            forward.__code__,
            {**forward.__globals__, _NAME: rotate},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        bound.__kwdefaults__ = forward.__kwdefaults__
        module.forward = MethodType(bound, module)


def rotate_both(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """[1, N, T, D] each, and [1, T, D] of cosines and sines."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)


def _rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any, **options: Any
) -> Any:
    """Only where the whole width of a head turns: GPT-NeoX and Phi turn a part of it."""
    theirs = options.pop("theirs")
    if cos.shape[-1] != query.shape[-1]:
        return theirs(query, key, cos, sin, *args, **options)
    return rotate_both(query, key, cos, sin, *args, **options)


class _Rotation(torch.autograd.Function):
    """(a, b) -> (a cos - b sin, b cos + a sin), for the halves a and b of each head."""

    @staticmethod
    def forward(ctx: Any, heads_NTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        half = heads_NTD.shape[-1] // 2
        out_NTD = heads_NTD * cos_TD
        out_NTD[..., :half].addcmul_(heads_NTD[..., half:], sin_TD[..., :half], value=-1)
        out_NTD[..., half:].addcmul_(heads_NTD[..., :half], sin_TD[..., half:])
        return out_NTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_TD, sin_TD = ctx.saved_tensors
        grad_NTD, half = grads[0], grads[0].shape[-1] // 2
        out_NTD = grad_NTD * cos_TD
        out_NTD[..., :half].addcmul_(grad_NTD[..., half:], sin_TD[..., half:])
        out_NTD[..., half:].addcmul_(grad_NTD[..., :half], sin_TD[..., :half], value=-1)
        return out_NTD, None, None


def _rotates_halves(forward: Any) -> bool:
    theirs = forward.__globals__.get(_NAME)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, n, 3, 8, generator=generator) for n in (4, 2))
    cos, sin = (torch.randn(1, 3, 8, generator=generator) for _ in range(2))
    try:
        expected, actual = theirs(query, key, cos, sin), rotate_both(query, key, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        return False
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, actual, strict=True))
