"""Causal attention over packed rows, registered with transformers as `starpo_packed`.

Each row is its own `is_causal` call of SDPA: no mask is ever built, so the cost is that of the
rows, not of the pack squared (a dense block mask is slower than padding on a CPU). On CUDA, where a
short row costs less than its call, neighbours of one length share a call.

Suffixes: T packed tokens, N heads, D their width, R rows of a call, L their length.
"""

from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

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
    row_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query [1, heads, T, D] -> [1, T, heads, D].

    `row_lengths` reaches this through the model's keyword arguments; without it the whole
    sequence is one row.

    Raises:
        NotImplementedError: the layer asks for soft-capping or attention sinks.
    """
    if unused.get("softcap") is not None or unused.get("s_aux") is not None:
        raise NotImplementedError("packed attention has no soft-capping and no sinks")
    lengths = row_lengths or (query.shape[2],)
    options = {"scale": scaling, "enable_gqa": getattr(module, "num_key_value_groups", 1) > 1}
    calls = _plan_calls(lengths, shared=query.device.type in SHARING_DEVICES)
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
    return torch.cat(parts)[None], None


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
