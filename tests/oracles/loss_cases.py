"""Random batches for the comparisons of losses, and the comparison itself.

Suffixes: B rows, T token columns, A trained tokens (row by row, in order), N trajectories.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starpo_train.losses.aggregation import Aggregation, compute_row_coefficients
from starpo_train.losses.output import LossOutput

NUM_CASES = 200
EXACT = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows as a trainer pads them; everything float64."""

    logprobs_BT: Tensor
    behaviour_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor
    generator: torch.Generator

    @property
    def row_of(self) -> Tensor:
        """Row of each trained token, [A]."""
        return self.mask_BT.nonzero()[:, 0]

    def flatten(self, values_BT: Tensor) -> Tensor:
        return values_BT[self.mask_BT.bool()]

    def coefficients(self, mode: Aggregation, horizon: float | None = None) -> Tensor:
        rows = len(self.mask_BT)
        coefficients_R = compute_row_coefficients(
            self.mask_BT.sum(1), torch.ones(rows), torch.arange(rows), mode=mode, horizon=horizon
        )
        return coefficients_R[self.row_of]

    def means(self, values_BT: Tensor) -> Tensor:
        return (values_BT * self.mask_BT).sum(1) / self.mask_BT.sum(1).clamp(min=1)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=self.generator))


def make_batch(
    seed: int, *, spread: float | None = None, rows_alike: bool = False, empty_rows: bool = True
) -> Batch:
    """Rows of several turns (the mask has holes); `spread` scales log pi - log mu.

    Without a spread it is .3, and 30 in every fifth batch, so that limits are reached.
    `rows_alike`: one advantage per row. `empty_rows`: some rows have no trained token.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, columns = 1 + seed % 6, 1 + seed % 11
    spread = spread or (30.0 if seed % 5 == 0 else 0.3)
    logprobs_BT = -normal(rows, columns).abs() * 2.0
    behaviour_BT = (logprobs_BT + spread * normal(rows, columns)).clamp(max=0.0)
    advantages_BT = normal(rows, 1 if rows_alike else columns).expand(rows, columns).clone()
    if seed % 7 == 0:
        advantages_BT[0] = 0.0
    mask_BT = (torch.rand(rows, columns, generator=generator) < 0.7).double()
    if empty_rows and rows > 1 and seed % 3 == 0:
        mask_BT[1] = 0.0
    for row in range(rows):
        if mask_BT[row].sum() == 0 and not (empty_rows and rows > 1 and row == 1):
            mask_BT[row, 0] = 1.0
    return Batch(
        logprobs_BT=logprobs_BT,
        behaviour_BT=behaviour_BT,
        advantages_BT=advantages_BT,
        mask_BT=mask_BT,
        generator=generator,
    )


def differentiate(loss: Tensor, leaf: Tensor) -> Tensor:
    """Gradient at a leaf, zeros where it has no part in the loss."""
    (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def assert_equal(actual: Any, expected: Any, tolerance: float = EXACT) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def compare(
    function: str,
    ours: Callable[..., LossOutput],
    inputs: dict[str, Tensor],
    options: dict[str, Any],
    oracle: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Value of our loss and gradient at its first input against the oracle's; a golden case."""
    leaf, *rest = inputs.values()
    leaf = leaf.detach().clone().requires_grad_()
    output = ours(leaf, *rest, **options)
    assert_equal(output.loss, oracle[0])
    assert_equal(differentiate(output.loss, leaf), oracle[1])
    return {
        "function": function,
        "ours": f"{ours.__module__}.{ours.__name__}",
        "inputs": inputs,
        "options": options,
        "outputs": {"loss": float(oracle[0]), "gradient": oracle[1]},
    }


def compare_token_loss(
    function: str,
    ours: Callable[..., LossOutput],
    oracle: Callable[[Tensor], Tensor],
    batch: Batch,
    coefficients_A: Tensor,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The same for a loss on tokens; `oracle(logprobs_BT)` gives a scalar."""
    leaf_BT = batch.logprobs_BT.clone().requires_grad_()
    expected = oracle(leaf_BT)
    gradient_A = batch.flatten(differentiate(expected, leaf_BT))
    inputs = {
        "logprobs_A": batch.flatten(batch.logprobs_BT),
        "behaviour_logprobs_A": batch.flatten(batch.behaviour_BT),
        "advantages_A": batch.flatten(batch.advantages_BT),
        "coefficients_A": coefficients_A,
    }
    return compare(function, ours, inputs, options, (expected, gradient_A))
