"""What the data holds -> which algorithms are legal on it, and why.

No ratio of 1 and no log-probability of 0 is ever assumed: a loss that needs what was not
recorded is refused.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from starpo_train.dataset import Trajectory
from starpo_train.errors import DataError, ProvenanceError

ALGORITHMS = ("starpo", "filtered_bc")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What a list of trajectories holds, counted."""

    num_trajectories: int
    num_rewarded: int
    num_exact: int
    """Rewarded, and every trained turn has exact ids and log-probabilities."""
    num_usable: int
    """Rewarded, and the converter found them fit for supervised training at least."""
    num_groups: int
    """Tasks among the exact ones, lone attempts included."""
    num_comparable_groups: int
    """Tasks with two exact attempts or more whose rewards differ."""
    reward_low: float
    reward_high: float
    reasons: dict[str, int]
    """Why trajectories are not exact: reason -> trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """Whether one algorithm may run on the data."""

    algorithm: str
    legal: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The algorithm that runs, and why."""

    algorithm: str
    reason: str


def explain_inexact(trajectory: Trajectory, *, models: Sequence[str] = ()) -> str | None:
    """Why no importance ratio can be formed on a trajectory; None when it can."""
    if trajectory.usable_for != "rl":
        return (
            trajectory.reasons[0] if trajectory.reasons else f"usable_for_{trajectory.usable_for}"
        )
    trained = [turn for turn in trajectory.turns if not models or turn.model in models]
    if not trained:
        return "no_trained_turn"
    if any(turn.response_ids_T is None for turn in trained):
        return "token_ids_missing"
    if any(turn.logprobs_T is None for turn in trained):
        return "logprob_missing"
    if not all(turn.logprobs_exact for turn in trained):
        return "logprob_estimated"
    return None


def describe_data(trajectories: Sequence[Trajectory], *, models: Sequence[str] = ()) -> DataFacts:
    """Trajectories -> DataFacts."""
    reasons: Counter[str] = Counter()
    rewards_of: dict[str, list[float]] = {}
    num_exact = 0
    for i, trajectory in enumerate(trajectories):
        reason = explain_inexact(trajectory, models=models)
        if trajectory.reward is None:
            reason = "no_reward"
        if reason is not None:
            reasons[reason] += 1
        elif trajectory.reward is not None:
            num_exact += 1
            group = f"task:{trajectory.task_id}" if trajectory.task_id is not None else f"lone:{i}"
            rewards_of.setdefault(group, []).append(trajectory.reward)
    rewards = [t.reward for t in trajectories if t.reward is not None]
    return DataFacts(
        num_trajectories=len(trajectories),
        num_rewarded=len(rewards),
        num_exact=num_exact,
        num_usable=sum(t.reward is not None and t.usable_for != "none" for t in trajectories),
        num_groups=len(rewards_of),
        num_comparable_groups=sum(max(r) > min(r) for r in rewards_of.values()),
        reward_low=min(rewards, default=float("nan")),
        reward_high=max(rewards, default=float("nan")),
        reasons=dict(reasons.most_common()),
    )


def judge_algorithms(facts: DataFacts, *, needs_groups: bool = True) -> list[Ruling]:
    """DataFacts -> one Ruling per algorithm, with the reason either way.

    `needs_groups`: advantages compare attempts at the same task and nothing else.
    """
    return [
        _judge_starpo(facts, needs_groups=needs_groups),
        _judge_filtered_bc(facts),
    ]


def choose_algorithm(requested: str, facts: DataFacts, *, needs_groups: bool = True) -> Choice:
    """The requested algorithm if it is legal; for `auto` the first legal one.

    Raises:
        DataError: no trajectory has a reward.
        ProvenanceError: the requested algorithm, or every algorithm, is refused.
    """
    if facts.num_rewarded == 0:
        raise DataError(
            f"none of {facts.num_trajectories} trajectories has a trusted reward; record one with "
            "`starpo_trace.reward(...)` or name its source as trusted in `starpo-trace export`."
        )
    rulings = judge_algorithms(facts, needs_groups=needs_groups)
    if requested == "auto":
        refused = []
        for ruling in rulings:
            if ruling.legal:
                because = "".join(f"{r.algorithm} refused ({r.reason}); " for r in refused)
                return Choice(algorithm=ruling.algorithm, reason=because + ruling.reason)
            refused.append(ruling)
        detail = "; ".join(f"{ruling.algorithm}: {ruling.reason}" for ruling in refused)
        raise ProvenanceError(f"algorithm.name = 'auto': nothing is legal on this data. {detail}.")
    ruling = next(ruling for ruling in rulings if ruling.algorithm == requested)
    if ruling.legal:
        return Choice(algorithm=requested, reason=f"requested; {ruling.reason}")
    others = ", ".join(r.algorithm for r in rulings if r.legal) or "none"
    raise ProvenanceError(
        f"algorithm.name = {requested!r} is refused: {ruling.reason}. Legal on this data: {others}."
    )


def _judge_starpo(facts: DataFacts, *, needs_groups: bool) -> Ruling:
    refusal = _refuse_starpo(facts, needs_groups=needs_groups)
    if refusal is not None:
        return Ruling(algorithm="starpo", legal=False, reason=refusal)
    left_out = facts.num_trajectories - facts.num_exact
    return Ruling(
        algorithm="starpo",
        legal=True,
        reason=(
            f"{facts.num_exact} of {facts.num_trajectories} trajectories have a reward, exact ids "
            f"and log-probabilities{f' ({left_out} left out)' if left_out else ''}; "
            f"{facts.num_comparable_groups} of {facts.num_groups} tasks have attempts to compare"
        ),
    )


def _refuse_starpo(facts: DataFacts, *, needs_groups: bool) -> str | None:
    if facts.num_exact == 0:
        why = ", ".join(f"{reason} in {count}" for reason, count in facts.reasons.items())
        return (
            "importance ratios need recorded token ids and their exact log-probabilities, which "
            f"none of {facts.num_trajectories} trajectories has ({why})"
        )
    if facts.reward_low == facts.reward_high:
        return f"every reward is {facts.reward_low:g}, so no advantage differs from 0"
    if needs_groups and facts.num_comparable_groups == 0:
        return f"none of {facts.num_groups} tasks has attempts with different rewards to compare"
    return None


def _judge_filtered_bc(facts: DataFacts) -> Ruling:
    total = facts.num_trajectories
    if facts.num_usable == 0:
        reason = f"none of {total} trajectories has both a reward and content"
        return Ruling(algorithm="filtered_bc", legal=False, reason=reason)
    reason = f"{facts.num_usable} of {total} trajectories have a reward and content"
    return Ruling(algorithm="filtered_bc", legal=True, reason=reason)
