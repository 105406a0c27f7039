"""Random batches as other packages lay them out: rows of tokens, padded, with holes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUM_CASES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """N trajectories in rows of L places: sampled tokens, tool tokens between, padding."""

    rewards_N: Tensor
    names_N: list[str]
    mask_NL: Tensor
    """float64: 1 at sampled tokens."""
    rewards_NL: Tensor
    """Turns' rewards at turn ends; they add up to `rewards_N`."""
    turn_ends_NL: Tensor
    values_NL: Tensor
    """Of tool tokens and padding, too: whatever a critic says there must not count."""
    gamma: float
    lam: float

    @property
    def names(self) -> np.ndarray:
        """Task of each trajectory as verl takes it."""
        return np.array(self.names_N, dtype=object)

    @property
    def sampled(self) -> Tensor:
        """bool [N, L]."""
        return self.mask_NL.bool()

    @property
    def num_tokens(self) -> list[int]:
        """Sampled tokens of each trajectory."""
        return self.mask_NL.sum(1).long().tolist()

    def describe(self, **more: Any) -> dict[str, Any]:
        """Inputs of a golden case for what has one number per trajectory."""
        return {"rewards_N": self.rewards_N, "names_N": self.names_N, **more}

    def describe_tokens(self, **more: Any) -> dict[str, Any]:
        """Inputs of a golden case for what goes from token to token."""
        return {
            "num_tokens_N": self.num_tokens,
            "rewards_A": self.rewards_NL[self.sampled],
            "gamma": self.gamma,
            **more,
        }


def make_batch(seed: int, *, min_group: int = 2) -> Batch:
    """Two to five tasks of `min_group` to five attempts, in random order, no two rewards equal."""
    source = np.random.default_rng(seed)
    names = [
        f"task{g}"
        for g in range(source.integers(2, 6))
        for _ in range(source.integers(min_group, 6))
    ]
    source.shuffle(names)
    length = 24
    mask, ends = np.zeros((len(names), length)), np.zeros((len(names), length), dtype=bool)
    for i in range(len(names)):
        place = source.integers(0, 2)
        for _ in range(source.integers(1, 4)):
            sampled = source.integers(1, 5)
            mask[i, place : place + sampled] = 1
            ends[i, place + sampled - 1] = True
            place += sampled + source.integers(1, 4)  # a tool's tokens
    rewards = np.where(ends, source.normal(size=ends.shape), 0.0)
    return Batch(
        rewards_N=torch.from_numpy(rewards.sum(1)),
        names_N=names,
        mask_NL=torch.from_numpy(mask),
        rewards_NL=torch.from_numpy(rewards),
        turn_ends_NL=torch.from_numpy(ends),
        values_NL=torch.from_numpy(source.normal(size=ends.shape)),
        gamma=float(source.uniform(0.8, 1.0)),
        lam=float(source.uniform(0.5, 1.0)),
    )


def assert_equal(actual: Tensor, expected: Tensor, *, tolerance: float = 1e-10) -> None:
    """Every number within `tolerance`."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0.0, atol=tolerance, equal_nan=False
    )
