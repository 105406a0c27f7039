"""Hidden states and a head's weight -> log-probabilities of given tokens, by every way there is.

All compute the same loss, minus the mean log-probability, forward and backward, at random weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear_cross_entropy

from starpo_train.head import compute_logprobs

HIDDEN, ROWS, ROW_LENGTH = 256, 16, 128
VOCABULARY = 151_936


@dataclass(frozen=True, kw_only=True)
class Head:
    title: str
    compute_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(hidden [A, H], weight [V, H], ids [A]) -> scalar."""
    is_slow: bool = False
    """Left out of quick runs."""


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden_AH = torch.randn(ROWS * ROW_LENGTH, HIDDEN, requires_grad=True)
    weight_VH = (torch.randn(VOCABULARY, HIDDEN) * 0.02).requires_grad_()
    return hidden_AH, weight_VH, torch.randint(VOCABULARY, (len(hidden_AH),))


def _use_ours(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> Tensor:
    logprobs_A, _entropies_A = compute_logprobs(hidden_AH, weight_VH, None, ids_A)
    return -logprobs_A.mean()


def _use_full(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> Tensor:
    logprobs_AV = torch.log_softmax(hidden_AH @ weight_VH.T, dim=-1)
    return -logprobs_AV.gather(1, ids_A[:, None]).mean()


def _use_trl_chunks(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = ChunkedLogProbFunction.apply(
        hidden_AH,
        weight_VH,
        None,
        ids_A,
        1.0,
        _CHUNKED_LOGPROB_CHUNK_SIZE,
        None,
        1.0,
        ("log_probs", "entropy"),
    )
    return -outputs[0].mean()


def _use_trl_selective(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return -selective_log_softmax(hidden_AH @ weight_VH.T, ids_A).mean()


def _use_liger(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> Tensor:
    """At advantage 1 and a ratio of 1 its gradient is that of the mean log-probability."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, loss_type="bnpo", temperature=1.0
    )
    ids_BT = ids_A.view(-1, ROW_LENGTH)
    told = loss(
        hidden_AH.view(*ids_BT.shape, -1),
        weight_VH,
        ids_BT,
        torch.ones_like(ids_BT),
        torch.ones(len(ids_BT)),
    )
    return told[0]


def _use_torch(hidden_AH: Tensor, weight_VH: Tensor, ids_A: Tensor) -> Tensor:
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    return linear_cross_entropy(hidden_AH, weight_VH, ids_A, reduction="mean", options=options)


HEADS = {
    "ours": Head(title="Starpo, with entropies", compute_loss=_use_ours),
    "full": Head(title="full log_softmax, gather", compute_loss=_use_full),
    "trl-selective": Head(title="TRL selective_log_softmax", compute_loss=_use_trl_selective),
    "trl-chunked": Head(title="TRL chunked, with entropies", compute_loss=_use_trl_chunks),
    "liger": Head(title="Liger FusedLinearGRPOLoss, not compiled", compute_loss=_use_liger),
    "torch": Head(title="torch linear_cross_entropy", compute_loss=_use_torch, is_slow=True),
}
