"""Ways to keep attention within packed rows: time of a forward and backward pass, and error."""

from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from clock import free, measure, summarize
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from starpo_train.attention import attend_packed
from starpo_train.tree import make_layout

PACKS = {
    "1 x 8192": [8192],
    "8 x 1024": [1024] * 8,
    "32 x 256": [256] * 32,
    "128 x 64": [64] * 128,
    "4 to 256": [*range(256, 0, -4)],
}
TREES = {"8 runs of 2048 after 1024": (1024, [2048] * 8), "64 of 64 after 4096": (4096, [64] * 64)}
"""What all rows begin with, and what each goes on with."""
TINY_TREES = {"4 runs of 16 after 24": (24, [16] * 4)}
TINY_PACKS = {"1 x 64": [64], "4 x 16": [16] * 4}


def attend_ours(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """`starpo_train`'s: [1, heads, T, D] -> [1, T, heads, D]."""
    module = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])
    layout = make_layout(lengths, list(accumulate(lengths)), depth=max(lengths))
    return attend_packed(module, query, key, value, None, tree=layout)[0]


def build_flex(lengths: list[int], device: str) -> Callable[..., Tensor]:
    """FlexAttention, compiled, with a block mask of the rows."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    row_of_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def is_seen(_batch: Tensor, _head: Tensor, to: Tensor, source: Tensor) -> Tensor:
        return (row_of_T[to] == row_of_T[source]) & (to >= source)

    total = sum(lengths)
    mask = create_block_mask(is_seen, None, None, total, total, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor, _lengths: list[int]) -> Tensor:
        return compiled(query, key, value, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return attend


def build_varlen(lengths: list[int], device: str) -> Callable[..., Tensor]:
    """PyTorch's own kernel for rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        flat = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return varlen_attn(*flat, ends, ends, max(lengths), max(lengths), window_size=(-1, 0))[None]

    return attend


def measure_attentions(*, device: str, is_tiny: bool) -> dict[str, Any]:
    """Each way on packs of one length made of rows of different ones, bfloat16."""
    results: dict[str, Any] = {}
    heads, kv, width = (4, 2, 16) if is_tiny else (12, 2, 128)
    for title, lengths in (TINY_PACKS if is_tiny else PACKS).items():
        total = sum(lengths)
        torch.manual_seed(0)
        leaves = [torch.randn(1, n, total, width, device=device) for n in (heads, kv, kv)]
        factors = torch.randn(1, total, heads, width, device=device)
        exact = _run(attend_ours, leaves, factors, lengths, dtype=torch.float32)
        ways: dict[str, Callable[..., Any]] = {"starpo_train": lambda *_: attend_ours}
        if device == "cuda":
            ways |= {"flex_attention": build_flex, "varlen_attn": build_varlen}
        results[title] = {}
        for name, build in ways.items():
            free(device)
            try:
                attend = build(lengths, device)

                def work(
                    attend: Any = attend, leaves: Any = leaves, f: Any = factors, n: Any = lengths
                ) -> list[Tensor]:
                    return _run(attend, leaves, f, n, dtype=torch.bfloat16)

                got = work()
            except (ImportError, RuntimeError, TypeError) as error:
                results[title][name] = {"unavailable": f"{type(error).__name__}: {error}"[:300]}
                continue
            errors = [float((a - b).abs().max()) for a, b in zip(got, exact, strict=True)]
            seconds = measure(work, device=device, repeats=3 if is_tiny else 20, warmups=3)
            results[title][name] = {**summarize(seconds), "largest_errors": errors}
    return results


def measure_trees(*, device: str, is_tiny: bool) -> dict[str, Any]:
    """Attention of rows that share their beginning, as a tree and each by itself, bfloat16.

    Errors are against one dense mask in float32.
    """
    heads, kv, width = (4, 2, 16) if is_tiny else (12, 2, 128)
    results: dict[str, Any] = {}
    for title, (shared, rest) in (TINY_TREES if is_tiny else TREES).items():
        ends = [shared + sum(rest), *(shared + end for end in accumulate(rest))]
        layout = make_layout([shared, *rest], ends, depth=shared + max(rest))
        flat = [shared + length for length in rest]
        module = SimpleNamespace(num_key_value_groups=heads // kv)

        def attend_tree(
            query: Tensor, key: Tensor, value: Tensor, _lengths: list[int], layout: Any = layout
        ) -> Tensor:
            return attend_packed(module, query, key, value, None, tree=layout)[0]  # noqa: B023

        torch.manual_seed(0)
        total = shared + sum(rest)
        leaves = [torch.randn(1, n, total, width, device=device) for n in (heads, kv, kv)]
        factors = torch.randn(1, total, heads, width, device=device)
        exact = _run(_attend_dense(layout, device), leaves, factors, [], dtype=torch.float32)
        got = _run(attend_tree, leaves, factors, [], dtype=torch.bfloat16)
        apart = [torch.randn(1, n, sum(flat), width, device=device) for n in (heads, kv, kv)]
        factors_apart = torch.randn(1, sum(flat), heads, width, device=device)

        def work_tree(f: Any = attend_tree, x: Any = leaves, y: Any = factors) -> list[Tensor]:
            return _run(f, x, y, [], dtype=torch.bfloat16)

        def work_apart(x: Any = apart, y: Any = factors_apart, n: Any = flat) -> list[Tensor]:
            return _run(attend_ours, x, y, n, dtype=torch.bfloat16)

        options = {"device": device, "repeats": 3 if is_tiny else 20, "warmups": 3}
        results[title] = {
            "tree": summarize(measure(work_tree, **options))
            | {
                "tokens": total,
                "largest_errors": [
                    float((a - b).abs().max()) for a, b in zip(got, exact, strict=True)
                ],
            },
            "rows apart": summarize(measure(work_apart, **options)) | {"tokens": sum(flat)},
        }
        free(device)
    return results


def _attend_dense(layout: Any, device: str) -> Callable[..., Tensor]:
    places = torch.arange(sum(layout.lengths_M), device=device)
    lengths_M, ends_M = (torch.tensor(x, device=device) for x in (layout.lengths_M, layout.ends_M))
    ends_T = ends_M.repeat_interleave(lengths_M)
    mask = (places[None] <= places[:, None]) & (places[:, None] < ends_T[None])

    def attend(query: Tensor, key: Tensor, value: Tensor, _lengths: list[int]) -> Tensor:
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    return attend


def _run(
    attend: Any, leaves: list[Tensor], factors: Tensor, lengths: list[int], *, dtype: torch.dtype
) -> list[Tensor]:
    inputs = [leaf.to(dtype).requires_grad_() for leaf in map(torch.clone, leaves)]
    out = attend(*inputs, lengths)
    (out.float() * factors).sum().backward()
    return [out.detach().float(), *(x.grad.float() for x in inputs if x.grad is not None)]
