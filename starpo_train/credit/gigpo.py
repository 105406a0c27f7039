"""Trajectory advantages + turn returns + anchors -> GiGPO advantages.

Suffixes: N trajectories, K turns of all trajectories.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

from torch import Tensor

from starpo_train.credit.dr_grpo import compute_dr_grpo_advantages
from starpo_train.credit.grpo import compute_grpo_advantages


def compute_gigpo_advantages(
    episode_N: Tensor,
    groups_N: Sequence[Hashable | None],
    returns_K: Tensor,
    trajectory_of_K: Tensor,
    anchors_K: Sequence[Hashable],
    *,
    omega: float = 1.0,
    normalize: Literal["mean", "mean_std"] = "mean",
) -> Tensor:
    """A_episode + omega A_step at each turn (arXiv 2505.10978).

    `episode_N` compares each trajectory, counted once, with its task's: Dr.GRPO's advantages for
    `mean`, the source's default, GRPO's for `mean_std`; so lone attempts have what `singleton` gives
    them there (the source gives them their raw reward). A_step compares in the same way a turn's
    discounted return G_k = r_k + gamma G_{k+1} with those of all turns of the same task that had the
    same observation before them (its anchor), also within one trajectory; a turn whose anchor does
    not recur has 0.

    One task, rewards (1, 0); both begin at `s`, then one is at `x`, the other at `y`; gamma .95:
    returns (.95, 1) and (0, 0). Episode .5, -.5; step at `s` .475, -.475, elsewhere 0: turns
    .975, .5 and -.975, -.5.
    """
    keys_K = [
        (("lone", n) if groups_N[n] is None else ("group", groups_N[n]), anchor)
        for n, anchor in zip(trajectory_of_K.tolist(), anchors_K, strict=True)
    ]
    compute = compute_dr_grpo_advantages if normalize == "mean" else compute_grpo_advantages
    return episode_N[trajectory_of_K] + omega * compute(returns_K, keys_K)
