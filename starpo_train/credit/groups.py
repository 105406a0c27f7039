"""Rewards + task names -> groups, and what each reward is compared with.

Suffixes: N trajectories (each once, however many rows it has), G groups.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Singleton = Literal["drop", "global_baseline", "learned_value"]
"""What a lone attempt is compared with: nothing, all trajectories, a critic's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Attempts at the same task, in numbers."""

    group_of_N: Tensor
    """int64: index in G of each trajectory."""
    size_G: Tensor
    """int64."""
    mean_G: Tensor
    std_G: Tensor
    """Deviation of the rewards; exactly 0 for a lone attempt and where all are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """What each trajectory's reward is compared with."""

    mean_N: Tensor
    std_N: Tensor
    size_N: Tensor
    """Rewards that the mean is of, the trajectory's own among them; 1 for a critic's value."""
    is_scored_N: Tensor
    """False: there is nothing to learn, the advantage is 0."""


def build_groups(
    rewards_N: Tensor, groups_N: Sequence[Hashable | None], *, ddof: int = 1
) -> Groups:
    """Group rewards by name; a name of None makes a trajectory a group of its own.

    `ddof` of the deviation: 1 as in verl, RAGEN and TRL, 0 as in ART. Rewards (1, 0, 0) of one
    task and 5 of another: means (1/3, 5), deviations (.5774, 0), sizes (3, 1).
    """
    group_of_N = number_groups(groups_N)
    num_groups = int(group_of_N.max()) + 1 if len(group_of_N) else 0
    size_G = torch.bincount(group_of_N, minlength=num_groups)
    zeros_G = rewards_N.new_zeros(num_groups)
    mean_G = zeros_G.index_add(0, group_of_N, rewards_N) / size_G
    squares_N = (rewards_N - mean_G[group_of_N]) ** 2
    std_G = (zeros_G.index_add(0, group_of_N, squares_N) / (size_G - ddof).clamp(min=1)).sqrt()
    # equal rewards may differ from their rounded mean: they have no deviation all the same
    low_G = zeros_G.scatter_reduce(0, group_of_N, rewards_N, "amin", include_self=False)
    high_G = zeros_G.scatter_reduce(0, group_of_N, rewards_N, "amax", include_self=False)
    return Groups(
        group_of_N=group_of_N,
        size_G=size_G,
        mean_G=mean_G,
        std_G=torch.where(low_G == high_G, torch.zeros_like(std_G), std_G),
    )


def number_groups(groups_N: Sequence[Hashable | None]) -> Tensor:
    """Names -> int64 numbers in order of appearance; every None is a group of its own."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor(
        [
            numbers.setdefault(("lone", i) if group is None else ("group", group), len(numbers))
            for i, group in enumerate(groups_N)
        ],
        dtype=torch.long,
    )


def compute_baselines(
    rewards_N: Tensor,
    groups_N: Sequence[Hashable | None],
    *,
    singleton: Singleton = "drop",
    values_N: Tensor | None = None,
    ddof: int = 1,
) -> Baselines:
    """What each reward is compared with: its group, and for a lone attempt as `singleton` says.

    `drop`: nothing. `global_baseline`: all trajectories, as if they were one group.
    `learned_value`: the critic's value of the trajectory's first turn in place of the mean, and the
    deviation of all trajectories. The raw reward is never an advantage.

    Raises:
        ValueError: `learned_value` without `values_N` for a lone attempt.
    """
    groups = build_groups(rewards_N, groups_N, ddof=ddof)
    mean_N, std_N = groups.mean_G[groups.group_of_N], groups.std_G[groups.group_of_N]
    size_N = groups.size_G[groups.group_of_N]
    if singleton != "drop":
        lone_N = size_N == 1
        overall = build_groups(rewards_N, [0] * len(rewards_N), ddof=ddof)
        others_N, count = overall.mean_G.expand_as(rewards_N), len(rewards_N)
        if singleton == "learned_value":
            if values_N is None and bool(lone_N.any()):
                raise ValueError(
                    "singleton = 'learned_value' without values_N; pass the critic's value of each "
                    "trajectory's first turn."
                )
            if values_N is not None:
                others_N, count = values_N.to(rewards_N.dtype), 1
        mean_N = torch.where(lone_N, others_N, mean_N)
        std_N = torch.where(lone_N, overall.std_G.expand_as(rewards_N), std_N)
        size_N = torch.where(lone_N, count, size_N)
    return Baselines(mean_N=mean_N, std_N=std_N, size_N=size_N, is_scored_N=std_N > 0)


def zero_unscored(advantages_N: Tensor, baselines: Baselines) -> Tensor:
    """Advantages, exactly 0 where there is nothing to learn."""
    return torch.where(baselines.is_scored_N, advantages_N, torch.zeros_like(advantages_N))
