"""Log-probability heads: time, peak memory and error against float32, at Qwen's vocabulary."""

from collections.abc import Callable
from typing import Any

import torch
from clock import free, measure, measure_peak_mib, summarize
from torch import Tensor

from starpo_train.head import compute_logprobs


def full_log_softmax(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> tuple[Tensor, Tensor]:
    """What a plain training loop does: all logits, in the type of the product, then float32."""
    logprobs_AV = torch.log_softmax((hidden_AH @ weight_VH.T).float(), -1)
    entropies_A = -(logprobs_AV.exp() * logprobs_AV).sum(1)
    return logprobs_AV.gather(1, ids_A[:, None])[:, 0], entropies_A


def chunked(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> tuple[Tensor, Tensor]:
    return compute_logprobs(hidden_AH, weight_VH, None, ids_A)


HEADS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "starpo_train": chunked,
    "full log-softmax": full_log_softmax,
}


def measure_heads(*, device: str, is_tiny: bool) -> dict[str, Any]:
    """Forward and backward of each head under bfloat16 autocast, beside float32."""
    num_actions, hidden, vocabulary = (64, 32, 500) if is_tiny else (8192, 1536, 151_936)
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    # logits of a confident model: about 4 x a standard normal
    leaves = draw(num_actions, hidden), draw(vocabulary, hidden) * (4 / hidden**0.5)
    ids_A = torch.randint(vocabulary, (num_actions,), device=device, generator=generator)
    factors_A = draw(num_actions)
    expected = _run(full_log_softmax, leaves, ids_A, factors_A, is_low=False)
    results = {}
    for name, head in HEADS.items():
        free(device)

        def work(head: Any = head) -> list[Tensor]:
            return _run(head, leaves, ids_A, factors_A, is_low=True)

        got = work()
        results[name] = {
            "peak_mib": measure_peak_mib(work, device=device),
            **summarize(measure(work, device=device, repeats=3 if is_tiny else 10)),
            **{
                f"{what}_error": float((ours.float() - theirs).abs().max() / theirs.abs().max())
                for what, ours, theirs in zip(
                    ("logprob", "entropy", "hidden_grad", "weight_grad"), got, expected, strict=True
                )
            },
            "logprob_error_mean_nats": float((got[0] - expected[0]).abs().mean()),
            "logprob_error_max_nats": float((got[0] - expected[0]).abs().max()),
        }
    return {"actions": num_actions, "hidden": hidden, "vocabulary": vocabulary, "heads": results}


def _run(
    head: Any, leaves: tuple[Tensor, Tensor], ids_A: Tensor, factors_A: Tensor, *, is_low: bool
) -> list[Tensor]:
    hidden_AH, weight_VH = (leaf.detach().clone().requires_grad_() for leaf in leaves)
    with torch.autocast(hidden_AH.device.type, dtype=torch.bfloat16, enabled=is_low):
        logprobs_A, entropies_A = head(hidden_AH, weight_VH, ids_A)
    (factors_A * logprobs_A).sum().backward()
    assert hidden_AH.grad is not None
    assert weight_VH.grad is not None
    return [logprobs_A.detach(), entropies_A.detach(), hidden_AH.grad, weight_VH.grad]
