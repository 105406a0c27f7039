"""Hidden states at action positions -> log-probabilities and entropies, never all logits at once.

Suffixes: A action tokens, H hidden, V vocabulary, C tokens of one chunk.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once (16 MiB in float32)."""


def compute_logprobs(
    hidden_AH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, ids_A: Tensor
) -> tuple[Tensor, Tensor]:
    """(logprobs_A, entropies_A) in nats of softmax(hidden @ weight.T + bias), in float32.

    Works in chunks of tokens and recomputes the logits in the backward pass.
    """
    return _ChunkedLogprobs.apply(hidden_AH, weight_VH, bias_V, ids_A)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_AH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, ids_A: Tensor
    ) -> tuple[Tensor, Tensor]:
        logprobs_A = hidden_AH.new_empty(len(ids_A), dtype=torch.float32)
        entropies_A = torch.empty_like(logprobs_A)
        for chunk in _chunks(len(ids_A), len(weight_VH)):
            logprobs_CV = _log_softmax(hidden_AH[chunk], weight_VH, bias_V)
            logprobs_A[chunk] = logprobs_CV.gather(1, ids_A[chunk, None])[:, 0]
            entropies_A[chunk] = -(logprobs_CV.exp() * logprobs_CV).sum(1)
        ctx.save_for_backward(hidden_AH, weight_VH, bias_V, ids_A, entropies_A)
        return logprobs_A, entropies_A

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_AH, weight_VH, bias_V, ids_A, entropies_A = ctx.saved_tensors
        grad_logprobs_A, grad_entropies_A = grads
        grad_hidden_AH = torch.empty_like(hidden_AH)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = (
            torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        )
        has_entropy_grad = bool(grad_entropies_A.any())
        for chunk in _chunks(len(ids_A), len(weight_VH)):
            logprobs_CV = _log_softmax(hidden_AH[chunk], weight_VH, bias_V)
            probs_CV = logprobs_CV.exp()
            # d logp / d logits = onehot - p;  d entropy / d logits = -p (logp + entropy)
            scale_C = grad_logprobs_A[chunk, None]
            if has_entropy_grad:
                scale_C = scale_C + grad_entropies_A[chunk, None] * (
                    logprobs_CV + entropies_A[chunk, None]
                )
            grad_CV = probs_CV.mul_(scale_C).neg_()
            grad_CV.scatter_add_(1, ids_A[chunk, None], grad_logprobs_A[chunk, None])
            grad_CV = grad_CV.to(hidden_AH.dtype)
            grad_hidden_AH[chunk] = grad_CV @ weight_VH.to(hidden_AH.dtype)
            if grad_weight_VH is not None:
                grad_weight_VH.addmm_(
                    grad_CV.T.to(weight_VH.dtype), hidden_AH[chunk].to(weight_VH.dtype)
                )
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0).to(grad_bias_V.dtype)
        return grad_hidden_AH, grad_weight_VH, grad_bias_V, None


def _log_softmax(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_CV = hidden_CH @ weight_VH.to(hidden_CH.dtype).T
    if bias_V is not None:
        logits_CV = logits_CV + bias_V
    return torch.log_softmax(logits_CV.float(), dim=1)


def _chunks(num_tokens: int, num_vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // num_vocabulary)
    return [slice(start, start + size) for start in range(0, num_tokens, size)]
