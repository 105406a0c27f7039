"""Hidden states at turn starts + logged returns -> state values: the turn-level critic.

StarPO's critic learns while the policy does, because V^pi changes with pi: a value head with a warm-up,
trained on each step's fresh rollouts. Offline the policy that acted is fixed, and with it V^mu, the one
value function that logged returns are samples of. So the head is fitted once, on the starting model's
hidden states, before the first step: what a warm-up on logged returns would end at, without its
learning rate. It is a ridge regression fitted on the other tasks' trajectories (cross-fitting), so that
a value never contains its own return. A_k = r_k + gamma V_{k+1} - V_k is then the advantage under mu,
as PPO's ratio asks; V^pi would need OPE's FQE.

V depends on the history before the turn and on nothing that the turn decides, so no turn is charged for
being reached, as by a mean over turns of the same index when the policy chooses when to stop; and a
state's value is fitted on all that reached it, those that failed later included. One selection is left:
returns of trajectories that a limit cut are unknown and not fitted, so where long means failing, V is
too high at states that only long trajectories reach (`data.truncated`, docs/diagnostics.md).

Suffixes: K turns of all trajectories, H hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_FOLDS = 5
RIDGE_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties tried, relative to the features' mean eigenvalue; the best held-out one is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnValues:
    """Values of every turn start."""

    values_K: Tensor
    """float64."""
    explained_variance: float
    """1 - mean (return - value)^2 / var(return), on held-out tasks; nan without such or variance.

    0 is what a constant does, below 0 is worse than that."""


def compute_turn_returns(rewards: list[float], *, gamma_turn: float) -> list[float]:
    """Discounted reward still to come at each turn: G_k = r_k + gamma G_{k+1}."""
    returns = []
    following = 0.0
    for reward in reversed(rewards):
        following = reward + gamma_turn * following
        returns.append(following)
    return returns[::-1]


def fit_turn_values(
    features_KH: Tensor, returns_K: Tensor, group_of_K: Tensor, usable_K: Tensor
) -> TurnValues:
    """Fit the value head and evaluate it at every turn start.

    `group_of_K` is the task of each turn: a fold holds whole tasks. Returns of turns outside
    `usable_K` (trajectories cut by a limit) are unknown and take no part in the fit. A fold beside
    which there is no other task gets the mean return: more features than turns would fit each return
    to itself, and leave no advantage.
    """
    features_KH = features_KH.to(torch.float64)
    returns_K = returns_K.to(torch.float64)
    fold_of_K = group_of_K % NUM_FOLDS
    mean = float(returns_K[usable_K].mean()) if usable_K.any() else 0.0
    candidates = [torch.full_like(returns_K, mean) for _ in RIDGE_GRID]
    judged_K = torch.zeros_like(usable_K)
    for fold in range(NUM_FOLDS):
        held_K = fold_of_K == fold
        fit_K = ~held_K & usable_K
        if not held_K.any() or fit_K.sum() < 2:
            continue
        judged_K |= held_K & usable_K
        for values_K, predicted in zip(
            candidates,
            _ridge(features_KH[fit_K], returns_K[fit_K], features_KH[held_K]),
            strict=True,
        ):
            values_K[held_K] = predicted
    if not judged_K.any():
        return TurnValues(values_K=candidates[0], explained_variance=float("nan"))
    errors = [float(((v - returns_K)[judged_K] ** 2).mean()) for v in candidates]
    best = candidates[errors.index(min(errors))]
    variance = float(returns_K[judged_K].var(correction=0))
    explained = 1.0 - min(errors) / variance if variance > 0 else float("nan")
    return TurnValues(values_K=best, explained_variance=explained)


def _ridge(features_KH: Tensor, returns_K: Tensor, wanted_KH: Tensor) -> list[Tensor]:
    """Predictions at `wanted_KH` for each penalty of the grid."""
    center_H = features_KH.mean(0)
    offset = returns_K.mean()
    centered_KH = features_KH - center_H
    eigenvalues_H, eigenvectors_HH = torch.linalg.eigh(centered_KH.T @ centered_KH)
    moments_H = eigenvectors_HH.T @ (centered_KH.T @ (returns_K - offset))
    projected_KH = (wanted_KH - center_H) @ eigenvectors_HH
    scale = eigenvalues_H.clamp(min=0).mean().clamp(min=1e-12)
    return [
        offset + projected_KH @ (moments_H / (eigenvalues_H.clamp(min=0) + penalty * scale))
        for penalty in RIDGE_GRID
    ]
