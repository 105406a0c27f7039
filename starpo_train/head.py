"""Hidden states at action positions -> log-probabilities and entropies, never all logits at once.

Suffixes: A action tokens, H hidden, V vocabulary, C tokens of one chunk.
"""

from typing import Any

import torch
from torch import Tensor

from starpo_train.headtiles import compute_tiled_logprobs

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits held at once, by kind of device: 16 MiB and 1 GiB in float32."""


def compute_logprobs(
    hidden_AH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    ids_A: Tensor,
    temperatures_A: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(logprobs_A, entropies_A) in nats of softmax((hidden @ weight.T + bias) / T), in float32.

    T is 1, or that of `temperatures_A`.

    Works in chunks of tokens, on a CPU in tiles of tokens and vocabulary (`headtiles.py`), and
    recomputes the logits in the backward pass. Under autocast the products are of its type, in both
    passes, and their results float32 where the device can.
    """
    kinds = {hidden_AH.dtype, weight_VH.dtype}
    if (
        hidden_AH.device.type == "cpu"
        and kinds == {torch.float32}
        and not torch.is_autocast_enabled("cpu")
        and (temperatures_A is None or bias_V is None)
    ):
        if temperatures_A is not None:
            hidden_AH = hidden_AH / temperatures_A[:, None].to(hidden_AH.dtype)
        return compute_tiled_logprobs(hidden_AH, weight_VH, bias_V, ids_A)
    return _ChunkedLogprobs.apply(hidden_AH, weight_VH, bias_V, ids_A, temperatures_A)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_AH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_A: Tensor,
        temperatures_A: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_AH.device.type
        ctx.dtype = hidden_AH.dtype
        if torch.is_autocast_enabled(device):
            ctx.dtype = torch.get_autocast_dtype(device)
        low_AH, low_VH = hidden_AH.to(ctx.dtype), weight_VH.to(ctx.dtype)
        logprobs_A = hidden_AH.new_empty(len(ids_A), dtype=torch.float32)
        entropies_A, totals_A = torch.empty_like(logprobs_A), torch.empty_like(logprobs_A)
        for chunk in _chunks(len(ids_A), weight_VH):
            logits_CV = _compute_logits(low_AH[chunk], low_VH, bias_V)
            if temperatures_A is not None:
                logits_CV.div_(temperatures_A[chunk, None])
            chosen_C = logits_CV.gather(1, ids_A[chunk, None])[:, 0]
            logprobs_CV = torch.log_softmax(logits_CV, dim=1)
            logprobs_A[chunk] = logprobs_CV.gather(1, ids_A[chunk, None])[:, 0]
            totals_A[chunk] = chosen_C - logprobs_A[chunk]
            probs_CV = torch.exp(logprobs_CV, out=logits_CV)
            entropies_A[chunk] = -probs_CV.mul_(logprobs_CV).sum(1)
        ctx.save_for_backward(
            *(hidden_AH, weight_VH, bias_V, ids_A, temperatures_A, entropies_A, totals_A)
        )
        return logprobs_A, entropies_A

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_AH, weight_VH, bias_V, ids_A, *kept = ctx.saved_tensors
        temperatures_A, entropies_A, totals_A = kept
        grad_logprobs_A, grad_entropies_A = grads
        low_AH, low_VH = hidden_AH.to(ctx.dtype), weight_VH.to(ctx.dtype)
        grad_hidden_AH = torch.empty_like(hidden_AH)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = (
            torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        )
        has_entropy_grad = bool(grad_entropies_A.any())
        for chunk in _chunks(len(ids_A), weight_VH):
            logits_CV = _compute_logits(low_AH[chunk], low_VH, bias_V)
            if temperatures_A is not None:
                logits_CV.div_(temperatures_A[chunk, None])
            logprobs_CV = logits_CV.sub_(totals_A[chunk, None])
            at_C1, scale_C1 = ids_A[chunk, None], -grad_logprobs_A[chunk, None]
            # d logp / d logits = onehot - p;  d entropy / d logits = -p (logp + entropy)
            chosen_C1 = logprobs_CV.gather(1, at_C1).exp()
            grad_CV = torch.empty_like(logprobs_CV, dtype=ctx.dtype)
            if has_entropy_grad:
                factor_CV = logprobs_CV + entropies_A[chunk, None]
                factor_CV.mul_(grad_entropies_A[chunk, None]).sub_(scale_C1)
                chosen_C1 = chosen_C1 * factor_CV.gather(1, at_C1) + scale_C1
                torch.mul(logprobs_CV.exp_(), factor_CV, out=grad_CV)
                scale_C1 = torch.full_like(scale_C1, -1.0)
            else:  # a token's gradient is one vector times one number, which can wait
                chosen_C1 = chosen_C1 - 1
                torch.exp(logprobs_CV, out=grad_CV)
            grad_CV.scatter_(1, at_C1, chosen_C1.to(ctx.dtype))
            if temperatures_A is not None:  # d scaled logits / d logits
                scale_C1 = scale_C1 / temperatures_A[chunk, None]
            if grad_bias_V is not None:
                grad_bias_V += (grad_CV * scale_C1).sum(0).to(grad_bias_V.dtype)
            grad_hidden_AH[chunk] = _multiply(grad_CV, low_VH) * scale_C1
            if grad_weight_VH is not None:
                scaled_CH = (low_AH[chunk] * scale_C1).to(ctx.dtype)
                _add_product(grad_weight_VH, grad_CV.T, scaled_CH)
        return grad_hidden_AH, grad_weight_VH, grad_bias_V, None, None


def _compute_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """Float32 logits that the caller may write over.

    In bfloat16 they would be off by up to 0.06 at 16.
    """
    logits_CV = _multiply(hidden_CH, weight_VH.T)
    return logits_CV.float() if bias_V is None else (logits_CV + bias_V).float()


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`; on CUDA in float32 as it was added up, whatever the type of the factors."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, added up in the type of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and total.dtype == torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += (left @ right).to(total.dtype)


def _chunks(num_tokens: int, weight_VH: Tensor) -> list[slice]:
    elements = CHUNK_ELEMENTS.get(weight_VH.device.type, CHUNK_ELEMENTS["cpu"])
    size = max(1, elements // len(weight_VH))
    return [slice(start, start + size) for start in range(0, num_tokens, size)]
