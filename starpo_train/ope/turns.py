"""Trajectories, their rows and a policy's scores -> turn ratios and rewards.

Suffixes: N trajectories, K turns (padded), R rows, A trained tokens of a row.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from starpo_train.behaviour.table import Behaviour
from starpo_train.credit.turns import TokenizedTrajectories
from starpo_train.dataset import Trajectory
from starpo_train.leftout import LeftOut
from starpo_train.ope.evaluation import LoggedTurns
from starpo_train.ope.verdict import Provenance
from starpo_train.provenance import explain_inexact, has_estimates
from starpo_train.tokens import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Trajectories that an evaluation rests on."""

    trajectories: list[Trajectory]
    provenance: Provenance
    num_rewarded: int
    left_out: LeftOut
    """Why the others are not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTurn:
    """Where a turn is in the rows, and its log-probability under both policies."""

    turn: int
    row: int
    first: int
    """Position in the row of its first scored token."""
    last: int
    logprob: float
    """Sum over its tokens, under the policy that is evaluated."""
    behaviour_logprob: float | None


def select_trajectories(
    trajectories: Sequence[Trajectory],
    *,
    models: Sequence[str] = (),
    estimates: Behaviour | None = None,
) -> Selection:
    """Those with exact log-probabilities; without any, those with estimates; else all with content.

    With `estimates` of a fitted model, exact and estimated ones together, and all count as
    estimated. Log-probabilities that were recorded but are not those that were sampled from are
    estimates too.
    """
    rewarded = [t for t in trajectories if t.reward is not None]
    left_out = LeftOut()
    left_out["no_reward"] += len(trajectories) - len(rewarded)
    reasons = [explain_inexact(t, models=models) for t in rewarded]
    fitted = [has_estimates(t, models=models, estimates=estimates) for t in rewarded]
    provenance: Provenance = "missing"
    if any(reason is not None and fit for reason, fit in zip(reasons, fitted, strict=True)):
        provenance = "estimated"
        taken = [r is None or fit for r, fit in zip(reasons, fitted, strict=True)]
    elif any(reason is None for reason in reasons):
        provenance = "exact"
        taken = [reason is None for reason in reasons]
    elif any(_has_uncertain(t, models) for t in rewarded):
        provenance = "estimated"
        taken = [_has_uncertain(t, models) for t in rewarded]
        rewarded = [_accept_uncertain(t) for t in rewarded]
    else:
        taken = [t.usable_for != "none" for t in rewarded]
    for is_taken, reason, trajectory in zip(taken, reasons, rewarded, strict=True):
        if not is_taken:
            left_out[reason or f"usable_for_{trajectory.usable_for}"] += 1
    return Selection(
        trajectories=[t for t, is_taken in zip(rewarded, taken, strict=True) if is_taken],
        provenance=provenance,
        num_rewarded=len(rewarded),
        left_out=left_out,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectories:
    """Trajectories with their scored turns, in order."""

    trajectories: list[Trajectory]
    turns_N: list[list[ScoredTurn]]
    tokenized: TokenizedTrajectories
    """What the turns' rows are positions in."""

    def drop_incomplete(self, left_out: Counter[str]) -> "ScoredTrajectories":
        """Without trajectories of which a turn has no log-probability of the behaviour policy."""
        whole = [all(t.behaviour_logprob is not None for t in turns) for turns in self.turns_N]
        left_out["logprob_missing"] += len(whole) - sum(whole)
        return ScoredTrajectories(
            trajectories=[t for t, ok in zip(self.trajectories, whole, strict=True) if ok],
            turns_N=[turns for turns, ok in zip(self.turns_N, whole, strict=True) if ok],
            tokenized=self.tokenized,
        )


def list_turns(
    tokenized: TokenizedTrajectories, logprobs_R: Sequence[np.ndarray]
) -> ScoredTrajectories:
    """Scores of rows -> scored turns of each trajectory; sums in float64."""
    turns_N = []
    for rows in tokenized.rows_of_N:
        turns = [turn for r in rows for turn in _split_row(r, tokenized.rows[r], logprobs_R[r])]
        turns_N.append(sorted(turns, key=lambda turn: turn.turn))
    return ScoredTrajectories(
        trajectories=tokenized.trajectories, turns_N=turns_N, tokenized=tokenized
    )


def name_row(tokenized: TokenizedTrajectories, row: int) -> str:
    """Trajectory that a row belongs to."""
    owner = next(n for n, rows in enumerate(tokenized.rows_of_N) if row in rows)
    return tokenized.trajectories[owner].trajectory_id


def build_logged_turns(
    trajectories: Sequence[Trajectory],
    turns_N: Sequence[Sequence[ScoredTurn]],
    *,
    provenance: Provenance,
    num_left_out: int,
    is_trained_on: bool = False,
    cluster: Literal["task", "user"] = "task",
    process_reward_weight: float = 0.0,
) -> LoggedTurns:
    """Padded arrays. The outcome is earned at the last scored turn.

    A turn's own reward counts `process_reward_weight`, at that turn, or at the last one before it
    that is scored. A trajectory without task (or user) is a cluster of its own.
    """
    shape = (len(turns_N), max(len(turns) for turns in turns_N))
    log_ratios_NK, rewards_NK = torch.zeros(2, *shape, dtype=torch.float64)
    mask_NK = torch.zeros(shape, dtype=torch.bool)
    for n, (trajectory, turns) in enumerate(zip(trajectories, turns_N, strict=True)):
        mask_NK[n, : len(turns)] = True
        rewards_NK[n, len(turns) - 1] = trajectory.reward or 0.0
        numbers = [turn.turn for turn in turns]
        for own in trajectory.turns if process_reward_weight else ():
            at = max(int(np.searchsorted(numbers, own.turn, side="right")) - 1, 0)
            rewards_NK[n, at] += process_reward_weight * (own.reward or 0.0)
        if provenance != "missing":
            for k, turn in enumerate(turns):
                log_ratios_NK[n, k] = turn.logprob - (turn.behaviour_logprob or 0.0)
    return LoggedTurns(
        rewards_NK=rewards_NK,
        mask_NK=mask_NK,
        cluster_of_N=torch.tensor(_number_clusters(trajectories, cluster)),
        log_ratios_NK=None if provenance == "missing" else log_ratios_NK,
        provenance=provenance,
        num_left_out=num_left_out,
        is_trained_on=is_trained_on,
    )


def _split_row(index: int, row: TokenSequence, logprobs_A: np.ndarray) -> list[ScoredTurn]:
    where_A = np.flatnonzero(row.action_mask_T)
    turn_of_A = row.turn_T[where_A]
    behaviour_A = None if row.logprobs_T is None else row.recorded_logprobs()
    turns = []
    for turn in np.unique(turn_of_A):
        of_turn = turn_of_A == turn
        recorded = (
            None if behaviour_A is None else float(behaviour_A[of_turn].sum(dtype=np.float64))
        )
        turns.append(
            ScoredTurn(
                turn=int(turn),
                row=index,
                first=int(where_A[of_turn][0]),
                last=int(where_A[of_turn][-1]),
                logprob=float(logprobs_A[of_turn].sum(dtype=np.float64)),
                behaviour_logprob=recorded,
            )
        )
    return turns


def _has_uncertain(trajectory: Trajectory, models: Sequence[str]) -> bool:
    trained = [turn for turn in trajectory.turns if not models or turn.model in models]
    return (
        trajectory.usable_for != "none"
        and bool(trained)
        and all(turn.logprobs_T is not None for turn in trained)
    )


def _accept_uncertain(trajectory: Trajectory) -> Trajectory:
    turns = (replace(turn, logprobs_exact=turn.logprobs_T is not None) for turn in trajectory.turns)
    return replace(trajectory, turns=tuple(turns))


def _number_clusters(trajectories: Sequence[Trajectory], cluster: str) -> list[int]:
    numbers: dict[Hashable, int] = {}
    names = [t.user_id if cluster == "user" else t.task_id for t in trajectories]
    keys = [("lone", n) if name is None else ("named", name) for n, name in enumerate(names)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
