"""Hidden states at action positions -> log-probabilities and entropies, tile by tile; for a CPU.

A tile is some tokens times some of the vocabulary. It stays in the cache between the product that makes
it and those that use it, and each weight's gradient is written once. What tiles know of a token is
merged as in the online softmax (Milakov and Gimelshein, arXiv:1805.02867).

Suffixes: A action tokens, H hidden, V vocabulary, C tokens and S words of one tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE_TOKENS, TILE_WORDS = 1024, 1024
"""4 MiB in float32."""


def compute_tiled_logprobs(
    hidden_AH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, ids_A: Tensor
) -> tuple[Tensor, Tensor]:
    """As `head.compute_logprobs`, of float32 on a CPU."""
    return _TiledLogprobs.apply(hidden_AH, weight_VH, bias_V, ids_A)


class _TiledLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_AH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, ids_A: Tensor
    ) -> tuple[Tensor, Tensor]:
        # sums over the words so far, in float64: there may be hundreds of tiles
        log_sum_A = hidden_AH.new_full(ids_A.shape, -torch.inf, dtype=torch.float64)
        mean_logit_A = torch.zeros_like(log_sum_A)
        spaces = _reserve(hidden_AH, weight_VH), _reserve(hidden_AH, weight_VH)
        for words, tokens in _tiles(weight_VH, ids_A):
            logits_CS = _compute_logits(hidden_AH, weight_VH, bias_V, tokens, words, spaces[0])
            largest_C1 = logits_CS.amax(1, keepdim=True)
            shifted_CS = logits_CS.sub_(largest_C1)
            raised_CS = torch.exp(shifted_CS, out=_view(spaces[1], logits_CS))
            sum_C = raised_CS.sum(1).double()
            mean_C = raised_CS.mul_(shifted_CS).sum(1) / sum_C + largest_C1[:, 0]
            log_sum_C = sum_C.log() + largest_C1[:, 0]
            both_C = torch.logaddexp(log_sum_A[tokens], log_sum_C)
            share_C = (log_sum_C - both_C).exp()
            mean_logit_A[tokens] += share_C * (mean_C - mean_logit_A[tokens])
            log_sum_A[tokens] = both_C
        chosen_A = (hidden_AH * weight_VH[ids_A]).sum(1)
        if bias_V is not None:
            chosen_A += bias_V[ids_A]
        logprobs_A = (chosen_A - log_sum_A).float()
        entropies_A = (log_sum_A - mean_logit_A).float()
        ctx.save_for_backward(hidden_AH, weight_VH, bias_V, ids_A, entropies_A, log_sum_A.float())
        return logprobs_A, entropies_A

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_AH, weight_VH, bias_V, ids_A, entropies_A, log_sum_A = ctx.saved_tensors
        grad_logprobs_A1, grad_entropies_A1 = grads[0][:, None], grads[1][:, None]
        has_entropy_grad = bool(grad_entropies_A1.any())
        grad_hidden_AH = torch.zeros_like(hidden_AH)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = (
            torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        )
        space = _reserve(hidden_AH, weight_VH)
        for words, tokens in _tiles(weight_VH, ids_A):
            logits_CS = _compute_logits(hidden_AH, weight_VH, bias_V, tokens, words, space)
            logprobs_CS = logits_CS.sub_(log_sum_A[tokens, None])
            # d logp / d logits = onehot - p;  d entropy / d logits = -p (logp + entropy)
            if has_entropy_grad:
                factor_CS = logprobs_CS + entropies_A[tokens, None]
                factor_CS.mul_(grad_entropies_A1[tokens]).add_(grad_logprobs_A1[tokens])
                probs_CS = logprobs_CS.exp_().mul_(factor_CS)
                scaled_CH = hidden_AH[tokens]
            else:  # a token's gradient is one vector times one number, which can wait
                probs_CS = logprobs_CS.exp_()
                scaled_CH = hidden_AH[tokens] * grad_logprobs_A1[tokens]
            grad_hidden_AH[tokens].addmm_(probs_CS, weight_VH[words])
            if grad_weight_VH is not None:
                grad_weight_VH[words].addmm_(probs_CS.T, scaled_CH, alpha=-1)
            if grad_bias_V is not None:
                scale_C1 = 1.0 if has_entropy_grad else grad_logprobs_A1[tokens]
                grad_bias_V[words] -= (probs_CS * scale_C1).sum(0)
        if not has_entropy_grad:
            grad_hidden_AH *= grad_logprobs_A1
        grad_hidden_AH = (grad_logprobs_A1 * weight_VH[ids_A]).sub_(grad_hidden_AH)
        if grad_weight_VH is not None:
            grad_weight_VH.index_add_(0, ids_A, hidden_AH * grad_logprobs_A1)
        if grad_bias_V is not None:
            grad_bias_V.index_add_(0, ids_A, grads[0])
        return grad_hidden_AH, grad_weight_VH, grad_bias_V, None


def _tiles(weight_VH: Tensor, ids_A: Tensor) -> Iterator[tuple[slice, slice]]:
    """(words, tokens) of each tile; all tokens of some words before the next words."""
    for word in range(0, len(weight_VH), TILE_WORDS):
        for token in range(0, len(ids_A), TILE_TOKENS):
            yield slice(word, word + TILE_WORDS), slice(token, token + TILE_TOKENS)


def _reserve(hidden_AH: Tensor, weight_VH: Tensor) -> Tensor:
    """Room for one tile, used again for each: fresh memory costs more than the product."""
    return hidden_AH.new_empty(
        min(TILE_TOKENS, len(hidden_AH)) * min(TILE_WORDS, len(weight_VH)),
    )


def _view(space: Tensor, like: Tensor) -> Tensor:
    return space[: like.numel()].view(like.shape)


def _compute_logits(
    hidden_AH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    tokens: slice,
    words: slice,
    space: Tensor,
) -> Tensor:
    hidden_CH, weight_SH = hidden_AH[tokens], weight_VH[words]
    out_CS = space[: len(hidden_CH) * len(weight_SH)].view(len(hidden_CH), len(weight_SH))
    torch.mm(hidden_CH, weight_SH.T, out=out_CS)
    return out_CS if bias_V is None else out_CS.add_(bias_V[words])
