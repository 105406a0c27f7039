"""Rewards of attempts at the same task -> one advantage per trajectory (GRPO, Dr.GRPO).

Suffixes: N trajectories, G groups.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

STD_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdvantages:
    """Advantages and what the groups looked like."""

    advantages_N: Tensor
    """float64; 0 for dropped singletons and for groups whose rewards are all equal."""
    group_of_N: Tensor
    """Index in G of each trajectory."""
    std_G: Tensor
    """Reward deviation of each group (ddof 1); 0 for a singleton."""
    size_G: Tensor


def compute_group_advantages(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    *,
    normalize_std: bool = True,
    singleton: Literal["drop", "global_baseline"] = "drop",
) -> GroupAdvantages:
    """(r - mean of its group) / (std of its group + 1e-6), or without the division.

    GRPO (arXiv 2402.03300, ddof 1 as in verl): rewards (1, 0, 0) give (1.1547, -.5774, -.5774).
    Dr.GRPO (arXiv 2503.20783), `normalize_std=False`: (.6667, -.3333, -.3333). Both conventions
    leave a lone attempt without a baseline, so the policy is explicit: `drop` gives 0,
    `global_baseline` compares it with all trajectories. The raw reward is never an advantage.
    A group name of None makes a trajectory its own group.
    """
    rewards_N = rewards_N.to(torch.float64)
    group_of_N = _number_groups(groups_N)
    num_groups = int(group_of_N.max()) + 1 if len(group_of_N) else 0
    size_G = torch.zeros(num_groups, dtype=torch.float64)
    size_G.index_add_(0, group_of_N, torch.ones_like(rewards_N))
    sum_G = torch.zeros_like(size_G).index_add_(0, group_of_N, rewards_N)
    centered_N = rewards_N - (sum_G / size_G)[group_of_N]
    squares_G = torch.zeros_like(size_G).index_add_(0, group_of_N, centered_N**2)
    std_G = (squares_G / (size_G - 1).clamp(min=1)).sqrt()
    std_G = torch.where(_all_equal(rewards_N, group_of_N, num_groups), 0.0, std_G)
    advantages_N = centered_N
    if normalize_std:
        advantages_N = advantages_N / (std_G[group_of_N] + STD_EPSILON)
    advantages_N = torch.where(std_G[group_of_N] == 0, 0.0, advantages_N)
    if singleton == "global_baseline" and len(rewards_N) > 1:
        lone_N = size_G[group_of_N] == 1
        overall_N = rewards_N - rewards_N.mean()
        if normalize_std:
            overall_N = overall_N / (rewards_N.std() + STD_EPSILON)
        advantages_N = torch.where(lone_N, overall_N, advantages_N)
    return GroupAdvantages(
        advantages_N=advantages_N, group_of_N=group_of_N, std_G=std_G, size_G=size_G.long()
    )


def select_groups(std_G: Tensor, *, keep: float) -> Tensor:
    """StarPO-S (arXiv 2504.20073): which groups to train on, the `keep` share of highest std.

    Returns a bool mask over G with int(keep * G) groups set, at least one; groups of equal
    rewards teach nothing and are never among them unless every group is kept.
    """
    if keep >= 1.0:
        return torch.ones_like(std_G, dtype=torch.bool)
    num_kept = max(1, int(keep * len(std_G)))
    chosen = torch.argsort(std_G, descending=True, stable=True)[:num_kept]
    mask_G = torch.zeros_like(std_G, dtype=torch.bool)
    mask_G[chosen] = True
    return mask_G & (std_G > 0)


def _number_groups(groups_N: Sequence[Hashable | None]) -> Tensor:
    numbers: dict[Hashable, int] = {}
    return torch.tensor(
        [
            numbers.setdefault(("lone", i) if group is None else ("group", group), len(numbers))
            for i, group in enumerate(groups_N)
        ],
        dtype=torch.long,
    )


def _all_equal(rewards_N: Tensor, group_of_N: Tensor, num_groups: int) -> Tensor:
    """Groups whose largest and smallest reward are the same number (std is then rounding)."""
    low_G = torch.full((num_groups,), torch.inf, dtype=torch.float64)
    high_G = torch.full((num_groups,), -torch.inf, dtype=torch.float64)
    low_G.scatter_reduce_(0, group_of_N, rewards_N, "amin")
    high_G.scatter_reduce_(0, group_of_N, rewards_N, "amax")
    return low_G == high_G
