"""Causal attention over packed rows, registered with transformers as `starpo_packed`.

No mask is ever built, so the cost is that of the rows, not of the pack squared (a dense block mask
is slower than padding on a CPU). Each row is its own `is_causal` call of SDPA, or on CUDA in half
precision all are one call: of many short rows the calls cost more than the work.
"""

from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED_ATTENTION: Final = "starpo_packed"
_HAS_VARLEN: Final = find_spec("torch.nn.attention.varlen") is not None


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
    lengths = tuple(row_lengths or (query.shape[2],))
    is_low = query.is_cuda and query.dtype in {torch.bfloat16, torch.float16}
    attend = attend_at_once if is_low and len(lengths) > 1 and _HAS_VARLEN else attend_row_by_row
    return attend(query, key, value, lengths, scaling=scaling, window=sliding_window), None


def attend_row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """A call of SDPA for each row."""
    grouped = query.shape[1] != key.shape[1]
    rows = []
    for query_L, key_L, value_L in zip(
        query.split(lengths, dim=2),
        key.split(lengths, dim=2),
        value.split(lengths, dim=2),
        strict=True,
    ):
        mask = _window_mask(query_L, window)
        rows.append(
            scaled_dot_product_attention(
                query_L,
                key_L,
                value_L,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2)


def attend_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """One call of PyTorch's kernel for rows of different lengths: CUDA, half precision."""
    from torch.nn.attention.varlen import varlen_attn

    ends_R = _row_ends(lengths, query.device)
    query_THD, key_THD, value_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = max(lengths)
    reach = -1 if window is None else window - 1  # tokens before its own that a token sees
    out_THD = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        ends_R,
        ends_R,
        longest,
        longest,
        scale=scaling,
        window_size=(reach, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", out_THD)[None]


@lru_cache(maxsize=16)
def _row_ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor((0, *accumulate(lengths)), dtype=torch.int32, device=device)


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
