"""Hidden states at turn starts + logged returns -> state values: the turn-level critic.

The policy that acted is fixed, so its value function is too: the value head is fitted once, on
the starting model's hidden states, before the policy changes. It is a ridge regression fitted on
the other tasks' trajectories (cross-fitting), so that a value never contains its own return.

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
    """1 - var(return - value) / var(return), on held-out tasks; nan without variance."""


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
    `usable_K` (trajectories cut by a limit) are unknown and take no part in the fit.
    """
    features_KH = features_KH.to(torch.float64)
    returns_K = returns_K.to(torch.float64)
    fold_of_K = group_of_K % NUM_FOLDS
    candidates = [torch.zeros_like(returns_K) for _ in RIDGE_GRID]
    for fold in range(NUM_FOLDS):
        held_K = fold_of_K == fold
        fit_K = ~held_K & usable_K
        if not held_K.any():
            continue
        if fit_K.sum() < 2:
            fit_K = usable_K  # too few tasks to hold one out
        for values_K, predicted in zip(
            candidates,
            _ridge(features_KH[fit_K], returns_K[fit_K], features_KH[held_K]),
            strict=True,
        ):
            values_K[held_K] = predicted
    errors = [float(((v - returns_K)[usable_K] ** 2).mean()) for v in candidates]
    best = candidates[errors.index(min(errors))]
    variance = float(returns_K[usable_K].var()) if usable_K.sum() > 1 else 0.0
    explained = 1.0 - min(errors) / variance if variance > 0 else float("nan")
    return TurnValues(values_K=best, explained_variance=explained)


def _ridge(features_KH: Tensor, returns_K: Tensor, wanted_KH: Tensor) -> list[Tensor]:
    """Predictions at `wanted_KH` for each penalty of the grid."""
    if len(returns_K) == 0:
        return [torch.zeros(len(wanted_KH), dtype=torch.float64) for _ in RIDGE_GRID]
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
