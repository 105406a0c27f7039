"""TrainingData: rows of tokens with all that their loss needs, computed once before the first step.

Suffixes: N trajectories, R rows, A trained tokens of a row, P pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.objective import Objective, TrajectoryTerms
from starpo_train.proximal import Proximal
from starpo_train.tokens import TokenSequence

if TYPE_CHECKING:  # a step needs no data library
    from starpo_train.dataset import Manifest
    from starpo_train.provenance import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Trajectories that are scored and not trained on."""

    trajectory_ids_N: list[str]
    rows: list[TokenSequence]
    rows_of_N: list[list[int]]
    is_good_N: np.ndarray
    """bool: the reward is at or above the threshold."""
    task_of_N: np.ndarray
    """int64: the same number for attempts at one task."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What the training loop goes through."""

    manifest: "Manifest"
    choice: "Choice"
    """Algorithm that runs and why."""
    objective: Objective
    """Its loss."""
    trajectory_ids_N: list[str]
    task_of_N: np.ndarray
    """int64: the same number for attempts at one task."""
    rewards_N: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64: as recorded."""
    rows: list[TokenSequence]
    rows_of_N: list[list[int]]
    """Rows of each trajectory; branches make it more than one."""
    advantages_R: list[np.ndarray] = field(default_factory=list)
    """float32 [A] per row: advantages, or weights (AWR, AWAC); empty where the loss takes none."""
    outcomes_N: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64: rewards, less what they are compared with."""
    desirable_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    """bool: the reward is at or above the threshold (KTO)."""
    pairs_P2: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    """int64: better and worse attempts (DPO)."""
    reference_R: list[np.ndarray] = field(default_factory=list)
    """float32 [A] per row: under the model that the run began with; empty where none is needed."""
    mismatched: list[TokenSequence] = field(default_factory=list)
    """Answers to other prompts, one for each trajectory (KTO)."""
    mismatched_reference_R: list[np.ndarray] = field(default_factory=list)
    """float32 [A] for each of them."""
    held_back: HeldBack | None = None
    """Trajectories of the other split, to be scored; None: there are none, or none were asked for."""
    kept: dict[str, Tensor]
    """What the starting model was asked for, so that a resumed run has the same."""
    facts: dict[str, Any]
    """Counts for the first metrics record."""

    def weight_sum(self, trajectory: int) -> float:
        """Summed weight of a trajectory's trained tokens."""
        rows = (self.rows[row] for row in self.rows_of_N[trajectory])
        return sum(row.weight * row.num_actions for row in rows)

    @cached_property
    def horizon(self) -> int:
        """Most trained tokens that a row has (Dr.GRPO's constant)."""
        return max(row.num_actions for row in self.rows)

    @cached_property
    def origins(self) -> list[np.ndarray]:
        """What drift is measured from, float32 [A] per row: mu, nan where it has no log-probabilities;
        where it has none at all, the model that the run began with, if that was asked.
        """  # noqa: D205
        if all(row.logprobs_T is None for row in self.rows):
            return self.reference_R
        return [
            np.full(row.num_actions, np.nan, dtype=np.float32)
            if row.logprobs_T is None
            else row.recorded_logprobs()
            for row in self.rows
        ]

    def name_row(self, row: int) -> str:
        """Trajectory that a row belongs to."""
        return next(
            name
            for name, rows in zip(self.trajectory_ids_N, self.rows_of_N, strict=True)
            if row in rows
        )

    def describe_trajectories(
        self,
        trajectories: Sequence[int],
        coefficient_of: Mapping[int, float],
        proximal: Proximal | None = None,
    ) -> TrajectoryTerms:
        """What a loss on trajectories needs of some, in this order; a coefficient for each row."""
        behaviour_R = None
        if self.objective.needs_behaviour:
            behaviour_R = self.origins if proximal is None else proximal.logprobs_R
        gains_N, losses_N = self._sum_advantages(trajectories, coefficient_of, proximal)
        place_of = {n: i for i, n in enumerate(trajectories)}
        pairs = [
            [place_of[better], place_of[worse]]
            for better, worse in self.pairs_P2.tolist()
            if better in place_of and worse in place_of
        ]
        chosen = list(trajectories)
        return TrajectoryTerms(
            outcomes_N=torch.from_numpy(self.outcomes_N[chosen]),
            lengths_N=torch.tensor([self.weight_sum(n) for n in chosen], dtype=torch.float64),
            behaviour_N=self._sum_rows(behaviour_R, chosen),
            reference_N=self._sum_rows(self.reference_R, chosen),
            desirable_N=torch.from_numpy(self.desirable_N[chosen]),
            pairs_P2=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
            gains_N=gains_N,
            losses_N=losses_N,
        )

    def _sum_rows(
        self, values_R: list[np.ndarray] | None, trajectories: Sequence[int]
    ) -> Tensor | None:
        if not values_R:
            return None
        sums = [
            sum(self.rows[r].weight * float(values_R[r].sum(dtype=np.float64)) for r in rows)
            for rows in (self.rows_of_N[n] for n in trajectories)
        ]
        return torch.tensor(sums, dtype=torch.float64)

    def _sum_advantages(
        self,
        trajectories: Sequence[int],
        coefficient_of: Mapping[int, float],
        proximal: Proximal | None,
    ) -> tuple[Tensor, Tensor]:
        """Positive and negative ones, each times its token's coefficient."""
        sums = torch.zeros(2, len(trajectories), dtype=torch.float64)
        if not self.advantages_R:
            return sums[0], sums[1]
        for i, n in enumerate(trajectories):
            for r in self.rows_of_N[n]:
                factor = coefficient_of[r] * self.rows[r].weight
                weighted_A = factor * self.advantages_R[r].astype(np.float64)
                if proximal is not None:
                    weighted_A = weighted_A * proximal.weights_R[r]
                sums[0, i] += float(weighted_A[weighted_A > 0].sum())
                sums[1, i] -= float(weighted_A[weighted_A < 0].sum())
        return sums[0], sums[1]
