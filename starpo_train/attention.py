"""Causal attention over packed rows, registered with transformers as `starpo_packed`.

Each row is its own `is_causal` call of SDPA: no mask is ever built, so the cost is that of the
rows, not of the pack squared (a dense block mask is slower than padding on a CPU).
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED_ATTENTION: Final = "starpo_packed"


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
    lengths = list(row_lengths or (query.shape[2],))
    grouped = getattr(module, "num_key_value_groups", 1) > 1
    rows = []
    for query_L, key_L, value_L in zip(
        query.split(lengths, dim=2),
        key.split(lengths, dim=2),
        value.split(lengths, dim=2),
        strict=True,
    ):
        window = _window_mask(query_L, sliding_window)
        rows.append(
            scaled_dot_product_attention(
                query_L,
                key_L,
                value_L,
                attn_mask=window,
                is_causal=window is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2), None


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
