"""Rows of trajectories -> their turns in order, the turns' rewards, and the way back to tokens.

Suffixes: N trajectories, R rows, K turns (in row order: those of the first row, the second ...),
A trained tokens of all rows, T those of one trajectory in the order of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starpo_train.config import AlgorithmSection
from starpo_train.dataset import Trajectory
from starpo_train.errors import DataError
from starpo_train.tokens import TokenSequence


@dataclass(slots=True, kw_only=True)
class TokenizedTrajectories:
    """Trajectories with their rows."""

    trajectories: list[Trajectory]
    rows: list[TokenSequence]
    rows_of_N: list[list[int]]
    """Rows of each trajectory; branches make it more than one."""

    def name_row(self, row: int) -> str:
        """Trajectory that a row belongs to."""
        owner = next(n for n, rows in enumerate(self.rows_of_N) if row in rows)
        return self.trajectories[owner].trajectory_id


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLayout:
    """Where each trained turn is."""

    turn_K: list[int]
    """Number of the turn in its trajectory."""
    trajectory_of_K: Tensor
    """int64."""
    num_tokens_K: Tensor
    """int64: trained tokens."""
    first_K: Tensor
    """int64: place in A of its first trained token."""
    places_N: list[Tensor]
    """int64: a trajectory's turns in the order of time, as places in K."""
    num_actions_R: list[int]

    def list_turns(self, trajectory: int) -> list[int]:
        """Numbers of a trajectory's trained turns in order."""
        return [self.turn_K[k] for k in self.places_N[trajectory].tolist()]

    def list_tokens(self, trajectory: int) -> Tensor:
        """int64 [T]: a trajectory's trained tokens in the order of time, as places in A."""
        places = self.places_N[trajectory]
        spans = zip(self.first_K[places].tolist(), self.num_tokens_K[places].tolist(), strict=True)
        return torch.cat([torch.arange(first, first + count) for first, count in spans])


def lay_out_turns(tokenized: TokenizedTrajectories) -> TurnLayout:
    """Trained turns of all rows."""
    turn_K: list[int] = []
    owners_K: list[int] = []
    counts_K: list[int] = []
    places_N = []
    for n, rows in enumerate(tokenized.rows_of_N):
        first = len(turn_K)
        for row in (tokenized.rows[r] for r in rows):
            turns, counts = np.unique(row.turn_T[row.action_mask_T], return_counts=True)
            turn_K += turns.tolist()
            counts_K += counts.tolist()
        owners_K += [n] * (len(turn_K) - first)
        places_N.append(first + torch.tensor(np.argsort(turn_K[first:], kind="stable")))
    num_tokens_K = torch.tensor(counts_K, dtype=torch.long)
    return TurnLayout(
        turn_K=turn_K,
        trajectory_of_K=torch.tensor(owners_K, dtype=torch.long),
        num_tokens_K=num_tokens_K,
        first_K=num_tokens_K.cumsum(0) - num_tokens_K,
        places_N=places_N,
        num_actions_R=[row.num_actions for row in tokenized.rows],
    )


def split_by_row(values_A: Tensor, num_actions_R: Sequence[int]) -> list[np.ndarray]:
    """One value per trained token -> [A of the row] for each row."""
    return [part.numpy() for part in values_A.split(list(num_actions_R))] if num_actions_R else []


def compute_turn_rewards(
    trajectory: Trajectory, turns: Sequence[int], section: AlgorithmSection
) -> list[float]:
    """Weighted process rewards and shaping, and the outcome at the last trained turn.

    Raises:
        DataError: no reward, or no shaping where it has a weight.
    """
    own = {turn.turn: turn.reward or 0.0 for turn in trajectory.turns}
    rewards = [section.process_reward_weight * own[turn] for turn in turns]
    if section.shaping_weight:
        shaping = _read_shaping(trajectory)
        for i, turn in enumerate(turns):
            rewards[i] += section.shaping_weight * shaping[turn]
    rewards[-1] += read_reward(trajectory)
    return rewards


def read_reward(trajectory: Trajectory) -> float:
    """A trajectory's outcome.

    Raises:
        DataError: it has none.
    """
    if trajectory.reward is None:
        raise DataError(f"trajectory {trajectory.trajectory_id} has no reward.")
    return trajectory.reward


def keep_trajectories(
    tokenized: TokenizedTrajectories, advantages_R: list[np.ndarray], kept_N: list[bool]
) -> tuple[TokenizedTrajectories, list[np.ndarray]]:
    """Some of the trajectories, their rows, and what there is for each row."""
    kept = TokenizedTrajectories(trajectories=[], rows=[], rows_of_N=[])
    advantages = []
    for n, rows in enumerate(tokenized.rows_of_N):
        if not kept_N[n]:
            continue
        kept.rows_of_N.append(list(range(len(kept.rows), len(kept.rows) + len(rows))))
        kept.rows += [tokenized.rows[r] for r in rows]
        kept.trajectories.append(tokenized.trajectories[n])
        advantages += [advantages_R[r] for r in rows] if advantages_R else []
    return kept, advantages


def _read_shaping(trajectory: Trajectory) -> dict[int, float]:
    shaping = {turn.turn: turn.shaping for turn in trajectory.turns}
    known = {turn: value for turn, value in shaping.items() if value is not None}
    if len(known) < len(shaping):
        lacking = next(turn for turn in shaping if turn not in known)
        raise DataError(
            f"trajectory {trajectory.trajectory_id}, turn {lacking}: has no shaping, but "
            "algorithm.shaping_weight is set; export with a recipe that has [shaping.NAME], with "
            "`missing = 0` where nothing is meant to be 0."
        )
    return known
