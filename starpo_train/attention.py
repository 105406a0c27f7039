"""Causal attention over a tree of tokens, registered with transformers as `starpo_packed`.

A token sees what is before it on its way from the root (`tree.py`). Packed rows are a tree of roots.

On a CPU every node is one causal call of PyTorch's flash kernel, and what is below it attends to it in
one more call, without a mask; the parts are merged by their log-sum-exps, forward and backward
(the merge is Milakov and Gimelshein's online softmax, arXiv:1805.02867; that the kernel's
backward pass takes the merged output and log-sum-exp is how ring attention splits it,
arXiv:2310.01889). So the cost is that of the tokens that see each other, each once. On CUDA a
tree is one FlexAttention call, and rows of one length share a causal call of SDPA.

Suffixes: T tokens of the tree, M nodes, N heads, D their width, R rows of a call, L their length.
"""

from functools import lru_cache
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from starpo_train.tree import TreeLayout, make_layout

PACKED_ATTENTION: Final = "starpo_packed"
SHARING_DEVICES = {"cuda"}
"""Kinds of device on which rows of one length share a call."""


def register_packed_attention() -> None:
    """Make `attn_implementation="starpo_packed"` known to transformers; safe to repeat."""
    AttentionInterface.register(PACKED_ATTENTION, attend_packed)
    AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)


def attend_packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    tree: TreeLayout | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query [1, heads, T, D] -> [1, T, heads, D].

    `tree` reaches this through the model's keyword arguments; without it the whole sequence is
    one row.

    Raises:
        NotImplementedError: the layer asks for soft-capping or attention sinks, or for a window
            in a tree.
    """
    if unused.get("softcap") is not None or unused.get("s_aux") is not None:
        raise NotImplementedError("packed attention has no soft-capping and no sinks")
    layout = tree or make_layout([query.shape[2]], [query.shape[2]], depth=query.shape[2])
    if torch.is_autocast_enabled(query.device.type):  # only SDPA casts by itself
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if layout.is_flat:
        out = _attend_rows(module, query, key, value, layout, scaling, sliding_window)
    elif sliding_window is not None and sliding_window < layout.depth:
        raise NotImplementedError("attention within a window has no trees of longer rows")
    elif query.device.type == "cpu":
        out = _TreeAttention.apply(query, key, value, layout, scaling)
    else:
        out = _attend_flex(query, key, value, layout, scaling)
    return out.transpose(1, 2), None


def _attend_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    options = {"scale": scaling, "enable_gqa": getattr(module, "num_key_value_groups", 1) > 1}
    calls = _plan_calls(layout.lengths_M, shared=query.device.type in SHARING_DEVICES)
    sizes = [sum(call) for call in calls]
    tokens_first = (x[0].transpose(0, 1).split(sizes) for x in (query, key, value))
    parts = []
    for call, *packed in zip(calls, *tokens_first, strict=True):
        query_RNLD, key_RNLD, value_RNLD = (
            x_TND.unflatten(0, (len(call), -1)).transpose(1, 2) for x_TND in packed
        )
        window = _window_mask(query_RNLD, sliding_window)
        out_RNLD = scaled_dot_product_attention(
            query_RNLD,
            key_RNLD,
            value_RNLD,
            attn_mask=window,
            is_causal=window is None,
            **options,
        )
        parts.append(out_RNLD.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None].transpose(1, 2)


def _plan_calls(lengths: tuple[int, ...], *, shared: bool) -> list[tuple[int, ...]]:
    """Row lengths -> neighbours that share a call."""
    if not shared:
        return [(length,) for length in lengths]
    return [tuple(call) for _, call in groupby(lengths)]


def _window_mask(query: Tensor, sliding_window: int | None) -> Tensor | None:
    """Band mask for a row longer than the window; None when plain causal attention is the same."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=query.device)
    distance = distance[:, None] - distance[None, :]
    return (distance >= 0) & (distance < sliding_window)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    return None


class _TreeAttention(torch.autograd.Function):
    """[1, N, T, D] each -> [1, N, T, D]; keys may have fewer heads than queries."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float | None
    ) -> Tensor:
        # in the order of memory that the layers around it have: nothing is copied on the way
        out = torch.empty_like(query)
        lse = query.new_empty(
            query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32)
        )
        for node, seeing, causal, is_first in _plan_nodes(layout):
            part, part_lse = _flash(
                query[:, :, seeing], key[:, :, node], value[:, :, node], 0.0, causal, scale=scale
            )
            if is_first:
                out[:, :, seeing], lse[:, :, seeing] = part, part_lse
                continue
            both = torch.logaddexp(lse[:, :, seeing], part_lse)
            kept = (lse[:, :, seeing] - both).exp_()[..., None].to(out.dtype)
            added = (part_lse - both).exp_()[..., None].to(out.dtype)
            out[:, :, seeing].mul_(kept).addcmul_(part, added)
            lse[:, :, seeing] = both
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad_out = grads[0]
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        for node, seeing, causal, _ in _plan_nodes(ctx.layout):
            parts = _flash_backward(
                grad_out[:, :, seeing],
                query[:, :, seeing],
                key[:, :, node],
                value[:, :, node],
                out[:, :, seeing],
                lse[:, :, seeing],
                0.0,
                causal,
                scale=ctx.scale,
            )
            grad_query[:, :, seeing] += parts[0]
            grad_key[:, :, node] += parts[1]
            grad_value[:, :, node] += parts[2]
        return grad_query, grad_key, grad_value, None, None


_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@lru_cache(maxsize=8)
def _plan_nodes(layout: TreeLayout) -> list[tuple[slice, slice, bool, bool]]:
    """Calls: (keys, queries that see them, causal, whether these queries have seen nothing yet)."""
    calls, start, root_end = [], 0, 0
    for length, end in zip(layout.lengths_M, layout.ends_M, strict=True):
        node = slice(start, start + length)
        is_root = start >= root_end
        root_end = max(root_end, end)
        calls.append((node, node, True, is_root))
        if node.stop < end:
            calls.append((node, slice(node.stop, end), False, is_root))
        start += length
    return calls


def _attend_flex(
    query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float | None
) -> Tensor:
    """One compiled FlexAttention call; CUDA only, as it has no backward pass on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = _compile(flex_attention)
    mask = _make_block_mask(layout, query.device)
    return compiled(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


@lru_cache(maxsize=2)
def _make_block_mask(layout: TreeLayout, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    num_tokens = sum(layout.lengths_M)
    lengths_M, ends_M = (torch.tensor(each) for each in (layout.lengths_M, layout.ends_M))
    ends_T = ends_M.repeat_interleave(lengths_M).to(device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends_T[key])

    return create_block_mask(sees, None, None, num_tokens, num_tokens, device=str(device))


@lru_cache(maxsize=1)
def _compile(function: Any) -> Any:
    return torch.compile(function, dynamic=True)
