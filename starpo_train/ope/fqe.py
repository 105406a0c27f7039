"""Transitions with the features of the policy's own actions -> fitted Q evaluation.

Q(h, a) = theta . phi(h, a), a ridge regression on features of a state and the action taken in it;
what the policy would do there comes in as the mean of phi(h, a') over its actions a'. No ratio is
needed. Only sums over clusters enter, so that a fit without some clusters (a fold, a resample) is
another sum.

Suffixes: M turns of all trajectories in order, N trajectories, H features, C clusters, B fits.
Source: Le, Voloshin, Yue 2019 (arXiv 1903.08738), algorithm 3, with a linear class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_ITERATIONS = 200
SETTLED = 1e-8
"""Change of the weights, relative to the largest, at which the iteration ends."""
PENALTY = 1e-2
"""Of the ridge, relative to the features' mean square."""
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """Turns as a regression sees them, a trajectory's in order and together."""

    taken_MH: Tensor
    """phi(h, a) of the recorded action."""
    expected_MH: Tensor
    """Mean of phi(h, a') over actions a' of the policy that is evaluated."""
    rewards_M: Tensor
    trajectory_of_M: Tensor
    """0.. without a gap."""

    def compute_following(self) -> Tensor:
        """`expected_MH` of the next turn; 0 after a trajectory's last, where nothing is earned."""
        goes_on_M = self.trajectory_of_M[1:] == self.trajectory_of_M[:-1]
        following_MH = torch.zeros_like(self.expected_MH)
        following_MH[:-1] = self.expected_MH[1:] * goes_on_M[:, None]
        return following_MH

    def find_starts(self) -> Tensor:
        """Position in M of each trajectory's first turn, [N]."""
        is_first_M = torch.ones_like(self.trajectory_of_M, dtype=torch.bool)
        is_first_M[1:] = self.trajectory_of_M[1:] != self.trajectory_of_M[:-1]
        return is_first_M.nonzero()[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class FqeResult:
    """Values of the policy that is evaluated."""

    value: float
    """Mean of V(h_0), fitted on everything; nan when the iteration did not settle."""
    values_B: Tensor
    """The same for each resample of clusters, fitted again."""
    q_values_M: Tensor
    """Q(h, a) of every turn, fitted without the turn's fold."""
    state_values_M: Tensor
    """V(h) = E_pi Q(h, a), likewise."""
    bellman_error: float
    """Mean squared r + gamma V(h') - Q(h, a) on the folds that were held out."""
    bellman_error_of_zero: float
    """What Q = 0 would have: the mean squared reward."""


def evaluate_fqe(
    transitions: Transitions,
    cluster_of_N: Tensor,
    counts_BC: Tensor,
    *,
    gamma: float = 1.0,
    penalty: float = PENALTY,
    num_folds: int = 5,
) -> FqeResult:
    """Q <- argmin sum (r + gamma E_pi Q(h', a') - Q(h, a))^2 + ridge, again and again from 0.

    V = mean over trajectories of E_pi Q(h_0, a). Folds and resamples are of whole clusters.
    A constant feature without penalty is added. One turn, reward 1, features 1: Q = V = 1.
    """
    moments = _sum_moments(transitions, cluster_of_N, counts_BC.shape[1], gamma)
    ones_1C = torch.ones_like(counts_BC[:1])
    values_B = [
        moments.evaluate(part_BC, penalty)
        for part_BC in counts_BC.split(max(1, _CHUNK_CELLS // moments.size))
    ]
    q_values_M, state_values_M, error_M = _cross_fit(
        transitions, cluster_of_N, moments, gamma=gamma, penalty=penalty, num_folds=num_folds
    )
    return FqeResult(
        value=float(moments.evaluate(ones_1C, penalty)),
        values_B=torch.cat(values_B) if values_B else torch.zeros(0),
        q_values_M=q_values_M,
        state_values_M=state_values_M,
        bellman_error=float((error_M**2).mean()),
        bellman_error_of_zero=float((transitions.rewards_M**2).mean()),
    )


def reduce_features(
    taken_MH: Tensor, expected_MH: Tensor, *, most: int = 32
) -> tuple[Tensor, Tensor]:
    """Both in the `most` main directions of the taken ones, each scaled to variance 1 or less.

    Hidden states have thousands of directions and datasets hundreds of turns. Rewards take no
    part, so nothing of them leaks into a held-out fold.
    """
    center_H = taken_MH.mean(0)
    centered_MH = taken_MH - center_H
    _, singular_F, directions_FH = torch.linalg.svd(centered_MH, full_matrices=False)
    directions_HF = directions_FH[:most].T
    scale = singular_F.max() / max(len(taken_MH), 1) ** 0.5
    scale = scale if float(scale) > 0 else torch.ones_like(scale)
    return centered_MH @ directions_HF / scale, (expected_MH - center_H) @ directions_HF / scale


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """Sums over each cluster's turns, all that a fit needs."""

    squares_CHH: Tensor
    """phi phi^T."""
    cross_CHH: Tensor
    """gamma phi phi'^T, phi' the next turn's expected features."""
    rewards_CH: Tensor
    """phi r."""
    starts_CH: Tensor
    """Expected features of first turns."""
    num_starts_C: Tensor

    @property
    def size(self) -> int:
        return self.squares_CHH[0].numel()

    def fit(self, counts_BC: Tensor, penalty: float) -> Tensor:
        """Weights of each of B weightings of the clusters, [B, H]; nan where it does not settle."""
        squares_BHH = torch.tensordot(counts_BC, self.squares_CHH, 1)
        cross_BHH = torch.tensordot(counts_BC, self.cross_CHH, 1)
        rewards_BH1 = (counts_BC @ self.rewards_CH)[..., None]
        diagonal_BH = squares_BHH.diagonal(dim1=1, dim2=2)
        ridge_BH = diagonal_BH.mean(1, keepdim=True).clamp(min=1e-12).repeat(1, self.size_H)
        ridge_BH = ridge_BH * penalty
        ridge_BH[:, -1] = 0  # the constant
        solved_BHX = torch.linalg.solve(
            squares_BHH + torch.diag_embed(ridge_BH + 1e-12),
            torch.cat([cross_BHH, rewards_BH1], dim=2),
        )
        step_BHH, start_BH1 = solved_BHX[..., :-1].contiguous(), solved_BHX[..., -1:].contiguous()
        weights_BH1 = start_BH1  # of one iteration from 0
        settled_B = torch.zeros(len(counts_BC), dtype=torch.bool)
        for iteration in range(2, NUM_ITERATIONS + 1):
            before_BH1 = weights_BH1
            weights_BH1 = torch.baddbmm(start_BH1, step_BHH, weights_BH1)
            if iteration % 10 and iteration > 2:
                continue
            moved_B = (weights_BH1 - before_BH1).abs().amax((1, 2))
            settled_B = moved_B <= SETTLED * (1 + weights_BH1.abs().amax((1, 2)))
            if bool(settled_B.all()):
                break
        return torch.where(settled_B[:, None], weights_BH1[..., 0], torch.nan)

    @property
    def size_H(self) -> int:  # noqa: N802 (a shape suffix)
        return self.rewards_CH.shape[1]

    def evaluate(self, counts_BC: Tensor, penalty: float) -> Tensor:
        """Mean V(h_0) of each weighting, [B]."""
        starts_BH = counts_BC @ self.starts_CH / (counts_BC @ self.num_starts_C)[:, None]
        return (self.fit(counts_BC, penalty) * starts_BH).sum(1)


def _sum_moments(
    transitions: Transitions, cluster_of_N: Tensor, num_clusters: int, gamma: float
) -> _Moments:
    taken_MH = _add_constant(transitions.taken_MH)
    following_MH = _add_following_constant(transitions)
    expected_MH = _add_constant(transitions.expected_MH)
    cluster_of_M = cluster_of_N[transitions.trajectory_of_M]
    starts_N = transitions.find_starts()
    num_features = taken_MH.shape[1]
    square = taken_MH.new_zeros((num_clusters, num_features, num_features))
    cross = torch.zeros_like(square)
    for cluster in range(num_clusters):  # M H^2 numbers at once would not fit
        mine_M = cluster_of_M == cluster
        square[cluster] = taken_MH[mine_M].T @ taken_MH[mine_M]
        cross[cluster] = gamma * taken_MH[mine_M].T @ following_MH[mine_M]
    flat_CH = taken_MH.new_zeros((num_clusters, num_features))
    ones_N = taken_MH.new_ones(len(starts_N))
    return _Moments(
        squares_CHH=square,
        cross_CHH=cross,
        rewards_CH=flat_CH.index_add(0, cluster_of_M, taken_MH * transitions.rewards_M[:, None]),
        starts_CH=flat_CH.index_add(0, cluster_of_N, expected_MH[starts_N]),
        num_starts_C=flat_CH[:, 0].index_add(0, cluster_of_N, ones_N),
    )


def _cross_fit(
    transitions: Transitions,
    cluster_of_N: Tensor,
    moments: _Moments,
    *,
    gamma: float,
    penalty: float,
    num_folds: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, V and Bellman error of every turn under the fit without its fold."""
    num_clusters = len(moments.num_starts_C)
    fold_of_C = torch.arange(num_clusters) % min(num_folds, num_clusters)
    outside_FC = (fold_of_C[None] != torch.arange(int(fold_of_C.max()) + 1)[:, None]).to(
        moments.rewards_CH.dtype
    )
    if num_clusters == 1:
        outside_FC = torch.ones_like(outside_FC)  # too few to hold one out
    weights_MH = moments.fit(outside_FC, penalty)[
        fold_of_C[cluster_of_N[transitions.trajectory_of_M]]
    ]
    q_values_M = (_add_constant(transitions.taken_MH) * weights_MH).sum(1)
    state_values_M = (_add_constant(transitions.expected_MH) * weights_MH).sum(1)
    following_M = (_add_following_constant(transitions) * weights_MH).sum(1)
    error_M = transitions.rewards_M + gamma * following_M - q_values_M
    return q_values_M, state_values_M, error_M


def _add_constant(features_MH: Tensor) -> Tensor:
    return torch.cat([features_MH, torch.ones_like(features_MH[:, :1])], dim=1)


def _add_following_constant(transitions: Transitions) -> Tensor:
    """The constant is 0 after a trajectory's end, so that nothing is earned there."""
    trajectory_of_M = transitions.trajectory_of_M
    goes_on_M = torch.zeros_like(transitions.rewards_M)
    goes_on_M[:-1] = (trajectory_of_M[1:] == trajectory_of_M[:-1]).to(goes_on_M.dtype)
    return torch.cat([transitions.compute_following(), goes_on_M[:, None]], dim=1)
