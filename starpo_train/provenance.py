"""What the data holds -> which algorithms are legal on it, and why.

No ratio of 1 and no log-probability of 0 is ever assumed: a loss that needs what was not
recorded is refused.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from starpo_train.behaviour.table import Behaviour
from starpo_train.dataset import Trajectory
from starpo_train.errors import DataError, ProvenanceError
from starpo_train.leftout import name_reason
from starpo_train.objective import WITH_RATIOS

_MOST_USED: Final = 0.5
"""`auto` takes an algorithm that needs log-probabilities when this share of the data has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What a list of trajectories holds, counted."""

    num_trajectories: int
    num_rewarded: int
    num_exact: int
    """Rewarded, and every trained turn has exact ids and log-probabilities."""
    num_estimated: int
    """Rewarded, usable and not exact, with log-probabilities of a fitted behaviour model."""
    num_usable: int
    """Rewarded, and the converter found them fit for supervised training at least."""
    num_groups: int
    """Tasks among the exact ones, lone attempts included."""
    num_comparable_groups: int
    """Tasks with two exact attempts or more whose rewards differ."""
    num_usable_groups: int
    """Tasks among the usable ones, lone attempts included."""
    num_paired_groups: int
    """Tasks with two usable attempts or more whose rewards differ."""
    reward_low: float
    reward_high: float
    exact_range: tuple[float, float]
    """Lowest and highest reward of the exact ones; nan without any."""
    usable_range: tuple[float, float]
    """The same of the usable ones."""
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
    estimated: bool = False
    """It takes estimated log-probabilities: everything that comes of it is stamped so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How an algorithm would be run on the data."""

    needs_groups: bool = True
    """StarPO's advantages compare attempts at the same task and nothing else."""
    accept_estimated: bool = False
    """Log-probabilities of a fitted behaviour model will do."""
    has_threshold: bool = False
    """algorithm.reward_threshold says what is good."""
    good_from: float | None = None
    """Reward from which on a trajectory is good; None: the middle of the range."""


def explain_inexact(trajectory: Trajectory, *, models: Sequence[str] = ()) -> str | None:
    """Why no importance ratio can be formed on a trajectory; None when it can.

    Log-probabilities of tokens whose ids were not recorded belong to no token: they are missing.
    """
    trained = [turn for turn in trajectory.turns if not models or turn.model in models]
    if trajectory.usable_for != "rl":
        return name_reason(trajectory.reasons, trajectory.usable_for)
    if not trained:
        return "no_trained_turn"
    if any(turn.response_ids_T is None for turn in trained):
        return "token_ids_missing"
    if any(turn.logprobs_T is None for turn in trained):
        return "logprob_missing"
    if not all(turn.logprobs_exact for turn in trained):
        return "logprob_estimated"
    return None


def has_estimates(
    trajectory: Trajectory, *, models: Sequence[str] = (), estimates: Behaviour | None = None
) -> bool:
    """Whether every trained turn has log-probabilities, some of them from a fitted model."""
    return (
        estimates is not None
        and estimates.provenance == "estimated"
        and trajectory.usable_for != "none"
        and estimates.covers(trajectory, models=models)
    )


def describe_data(
    trajectories: Sequence[Trajectory],
    *,
    models: Sequence[str] = (),
    estimates: Behaviour | None = None,
) -> DataFacts:
    """Trajectories, and log-probabilities that were fitted to them -> DataFacts."""
    reasons: Counter[str] = Counter()
    exact: dict[str, list[float]] = {}
    usable: dict[str, list[float]] = {}
    num_estimated = 0
    for i, trajectory in enumerate(trajectories):
        group = f"task:{trajectory.task_id}" if trajectory.task_id is not None else f"lone:{i}"
        if trajectory.reward is None:
            reasons["no_reward"] += 1
            continue
        if trajectory.usable_for != "none":
            usable.setdefault(group, []).append(trajectory.reward)
        reason = explain_inexact(trajectory, models=models)
        if reason is None:
            exact.setdefault(group, []).append(trajectory.reward)
        else:
            reasons[reason] += 1
            num_estimated += has_estimates(trajectory, models=models, estimates=estimates)
    rewards = [t.reward for t in trajectories if t.reward is not None]
    return DataFacts(
        num_trajectories=len(trajectories),
        num_rewarded=len(rewards),
        num_exact=sum(map(len, exact.values())),
        num_estimated=num_estimated,
        num_usable=sum(map(len, usable.values())),
        num_groups=len(exact),
        num_comparable_groups=sum(max(r) > min(r) for r in exact.values()),
        num_usable_groups=len(usable),
        num_paired_groups=sum(max(r) > min(r) for r in usable.values()),
        reward_low=min(rewards, default=float("nan")),
        reward_high=max(rewards, default=float("nan")),
        exact_range=_find_range(exact),
        usable_range=_find_range(usable),
        reasons=dict(reasons.most_common()),
    )


def _find_range(rewards_of: dict[str, list[float]]) -> tuple[float, float]:
    rewards = [reward for group in rewards_of.values() for reward in group]
    return min(rewards, default=float("nan")), max(rewards, default=float("nan"))


def judge_algorithms(facts: DataFacts, terms: Terms | None = None) -> list[Ruling]:
    """DataFacts -> one Ruling per algorithm, with the reason either way."""
    terms = terms or Terms()
    rulings = []
    for name, find_refusal in _REFUSALS.items():
        refusal = find_refusal(facts, terms)
        reason = refusal or _describe_use(name, facts, terms)
        rulings.append(Ruling(algorithm=name, legal=refusal is None, reason=reason))
    return rulings


def choose_algorithm(requested: str, facts: DataFacts, terms: Terms | None = None) -> Choice:
    """The requested algorithm if it is legal; for `auto` the one that suits the data.

    Raises:
        DataError: no trajectory has a reward.
        ProvenanceError: the requested algorithm, or every algorithm, is refused.
    """
    terms = terms or Terms()
    if facts.num_rewarded == 0:
        raise DataError(
            f"none of {facts.num_trajectories} trajectories has a trusted reward; record one with "
            "`starpo_trace.reward(...)` or name its source as trusted in `starpo-trace export`."
        )
    rulings = {ruling.algorithm: ruling for ruling in judge_algorithms(facts, terms)}
    if requested == "auto":
        return _choose_automatically(facts, rulings)
    ruling = rulings[requested]
    if ruling.legal:
        return Choice(
            algorithm=requested,
            reason=f"requested; {ruling.reason}",
            estimated=requested in WITH_RATIOS and _takes_estimates(facts, terms),
        )
    others = ", ".join(r.algorithm for r in rulings.values() if r.legal) or "none"
    raise ProvenanceError(
        f"algorithm.name = {requested!r} is refused: {ruling.reason}. Legal on this data: {others}."
    )


def _choose_automatically(facts: DataFacts, rulings: dict[str, Ruling]) -> Choice:
    """TOPR, with the reference in mu's place where most of the data lacks it; else cloning.

    Measured in docs/learning.md.
    """
    refused = []
    few = facts.num_exact < _MOST_USED * facts.num_usable
    for name in ("topr", "topr_reference", "filtered_bc"):
        ruling = rulings[name]
        if not ruling.legal:
            refused.append(f"{name} refused ({ruling.reason})")
        elif name in WITH_RATIOS and few:
            refused.append(
                f"{name} would leave out {facts.num_usable - facts.num_exact} of "
                f"{facts.num_usable} usable trajectories, which lack exact log-probabilities"
            )
        else:
            return Choice(algorithm=name, reason="; ".join([*refused, ruling.reason]))
    detail = "; ".join(f"{ruling.algorithm}: {ruling.reason}" for ruling in rulings.values())
    raise ProvenanceError(f"algorithm.name = 'auto': nothing is legal on this data. {detail}.")


def _refuse_starpo(facts: DataFacts, terms: Terms) -> str | None:
    refusal = _refuse_without_exact(facts, terms) or _refuse_equal_ratios(facts, terms)
    if refusal is not None or not terms.needs_groups:
        return refusal
    with_attempts, tasks = _count_groups(facts, terms)
    if with_attempts:
        return None
    return (
        f"none of {tasks} tasks has attempts with different rewards to compare; a critic needs none "
        "(algorithm.advantage = 'bilevel_gae'), nor does algorithm.singleton = 'global_baseline'"
    )


def _refuse_topr(facts: DataFacts, terms: Terms) -> str | None:
    return _refuse_without_exact(facts, terms) or _refuse_equal_ratios(facts, terms)


def _refuse_weighted(facts: DataFacts, terms: Terms) -> str | None:
    return _refuse_unusable(facts, terms) or _refuse_equal(facts.usable_range)


def _refuse_kto(facts: DataFacts, terms: Terms) -> str | None:
    refusal = _refuse_weighted(facts, terms)
    low, high = facts.usable_range
    if refusal is None and terms.good_from is not None and not low < terms.good_from <= high:
        kind = "good" if low >= terms.good_from else "bad"
        return (
            f"every trajectory is {kind}, from algorithm.reward_threshold = {terms.good_from:g} on; "
            "set one between the rewards"
        )
    return refusal


def _refuse_dpo(facts: DataFacts, terms: Terms) -> str | None:
    refusal = _refuse_weighted(facts, terms)
    if refusal is None and facts.num_paired_groups == 0:
        return (
            f"none of {facts.num_usable_groups} tasks has two attempts with different rewards, "
            "and a pair is of one task"
        )
    return refusal


def _refuse_unusable(facts: DataFacts, terms: Terms) -> str | None:
    if facts.num_usable == 0:
        return f"none of {facts.num_trajectories} trajectories has both a reward and content"
    return None


def _refuse_without_exact(facts: DataFacts, terms: Terms) -> str | None:
    if facts.num_exact or _takes_estimates(facts, terms):
        return None
    why = ", ".join(f"{reason} in {count}" for reason, count in facts.reasons.items())
    refusal = (
        "importance ratios need recorded token ids and their exact log-probabilities, which "
        f"none of {facts.num_trajectories} trajectories has ({why})"
    )
    if facts.num_estimated:
        refusal += (
            f"; {facts.num_estimated} have estimated ones, which algorithm.estimated_logprobs = "
            "'accept' takes"
        )
    return refusal


def _refuse_cloning(facts: DataFacts, terms: Terms) -> str | None:
    refusal = _refuse_unusable(facts, terms)
    low, high = facts.usable_range
    if refusal is None and low == high and high <= 0 and not terms.has_threshold:
        return (
            f"every reward is {high:g}, and what failed is not to be cloned; if that is good, say "
            "so by algorithm.reward_threshold"
        )
    return refusal


def _refuse_equal_ratios(facts: DataFacts, terms: Terms) -> str | None:
    """Of the trajectories that ratios can be formed on."""
    return _refuse_equal(
        facts.usable_range if _takes_estimates(facts, terms) else facts.exact_range
    )


def _refuse_equal(rewards: tuple[float, float]) -> str | None:
    low, high = rewards
    if low == high:
        return f"every reward is {low:g}, so no advantage differs from 0"
    return None


def _takes_estimates(facts: DataFacts, terms: Terms) -> bool:
    return terms.accept_estimated and facts.num_estimated > 0


def _count_groups(facts: DataFacts, terms: Terms) -> tuple[int, int]:
    """Tasks that StarPO can compare within, of how many."""
    if _takes_estimates(facts, terms):
        return facts.num_paired_groups, facts.num_usable_groups
    return facts.num_comparable_groups, facts.num_groups


def _describe_use(algorithm: str, facts: DataFacts, terms: Terms) -> str:
    if algorithm not in WITH_RATIOS:
        use = (
            f"{facts.num_usable} of {facts.num_trajectories} trajectories have a reward and content"
        )
        if algorithm == "dpo":
            use += f"; {facts.num_paired_groups} of {facts.num_usable_groups} tasks have pairs"
        return use
    estimated = _takes_estimates(facts, terms)
    num_used = facts.num_exact + (facts.num_estimated if estimated else 0)
    left_out = facts.num_trajectories - num_used
    kind = "exact or estimated" if estimated else "exact"
    use = (
        f"{num_used} of {facts.num_trajectories} trajectories have a reward, {kind} ids "
        f"and log-probabilities{f' ({left_out} left out)' if left_out else ''}"
    )
    if algorithm == "starpo":
        with_attempts, tasks = _count_groups(facts, terms)
        use += f"; {with_attempts} of {tasks} tasks have attempts to compare"
    return use


_REFUSALS: Final[dict[str, Callable[[DataFacts, Terms], str | None]]] = {
    "starpo": _refuse_starpo,
    "topr": _refuse_topr,
    "topr_reference": _refuse_weighted,
    "awr": _refuse_weighted,
    "awac": _refuse_weighted,
    "dro": _refuse_weighted,
    "kto": _refuse_kto,
    "dpo": _refuse_dpo,
    "filtered_bc": _refuse_cloning,
}
"""The table of what is legal for which data: algorithm -> why it is refused, or None.

==============================  ===================  =========  =======
log-probabilities               exact, of exact ids  estimated  missing
==============================  ===================  =========  =======
starpo topr                     yes                  opt-in     no
topr_reference                  yes                  yes        yes
awr awac dro kto dpo            yes                  yes        yes
filtered_bc                     yes                  yes        yes
==============================  ===================  =========  =======
"""

ALGORITHMS: Final = tuple(_REFUSALS)
