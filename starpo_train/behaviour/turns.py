"""Scored rows -> log-probabilities by turn, and how far they can be believed.

Suffixes: R rows, A trained tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starpo_train.behaviour.settings import BehaviourSection
from starpo_train.behaviour.table import TurnLogprobs, digest_ids
from starpo_train.dataset import Trajectory, read_manifest
from starpo_train.tokens import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well a model fits turns that it was not fitted to, in nats per token."""

    model: str | None
    policy_id: str | None
    num_turns: int
    num_tokens: int
    nll: float
    """Mean -log p of the tokens that were sampled."""
    entropy: float
    """Mean entropy of the model at them: what `nll` would be if its probabilities were right."""

    @property
    def overconfidence(self) -> float:
        """`nll` - `entropy`: above 0 the model is surer than it may be, below 0 less sure."""
        return self.nll - self.entropy


def describe_dataset(section: BehaviourSection) -> dict[str, Any]:
    """What the log-probabilities are of."""
    return {
        "path": str(section.dataset),
        "digest": read_manifest(section.dataset).digest,
        "split": section.split,
        "models": list(section.models),
    }


def split_by_turn(
    trajectory: Trajectory, row: TokenSequence, logprobs_A: np.ndarray
) -> list[TurnLogprobs]:
    """One scored row -> its turns; one whose answer begins the row has no first token's."""
    found = []
    where_A = np.flatnonzero(row.action_mask_T)
    turn_of_A = row.turn_T[where_A]
    for turn in np.unique(turn_of_A):
        of_turn = where_A[turn_of_A == turn]
        start, end = int(of_turn[0]), int(of_turn[-1]) + 1
        ids_T = row.input_ids_T
        recorded = next(t for t in trajectory.turns if t.turn == turn)
        response_T = ids_T[start:end]
        if recorded.response_ids_T is not None and len(recorded.response_ids_T) != end - start:
            continue
        found.append(
            TurnLogprobs(
                trajectory_id=trajectory.trajectory_id,
                turn=int(turn),
                ids_digest=digest_ids(ids_T[:start], response_T),
                logprobs_T=logprobs_A[turn_of_A == turn].astype(np.float32),
            )
        )
    return found


def measure_calibration(
    trajectories: Sequence[Trajectory],
    rows: Sequence[TokenSequence],
    logprobs_R: Sequence[np.ndarray],
    entropies_R: Sequence[np.ndarray],
) -> list[Calibration]:
    """One for each model and policy that acted; `row.trajectory` is a position in the first."""
    sums: dict[tuple[str | None, str | None], np.ndarray] = {}
    for row, logprobs_A, entropies_A in zip(rows, logprobs_R, entropies_R, strict=True):
        trajectory = trajectories[row.trajectory]
        models = {turn.turn: turn.model for turn in trajectory.turns}
        turn_of_A = row.turn_T[row.action_mask_T]
        for turn in np.unique(turn_of_A):
            of_turn = turn_of_A == turn
            found = np.array(
                [
                    1,
                    of_turn.sum(),
                    -logprobs_A[of_turn].sum(dtype=np.float64),
                    entropies_A[of_turn].sum(dtype=np.float64),
                ]
            )
            key = (models[int(turn)], trajectory.policy_id)
            sums[key] = sums.get(key, 0) + found
    return [
        Calibration(
            model=model,
            policy_id=policy_id,
            num_turns=int(found[0]),
            num_tokens=int(found[1]),
            nll=float(found[2] / found[1]),
            entropy=float(found[3] / found[1]),
        )
        for (model, policy_id), found in sums.items()
    ]
