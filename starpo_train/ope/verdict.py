"""Estimates -> supported | contradicted | inconclusive, each doubt by name.

The claim is that the policy earns more than what was recorded. Off-policy evidence never promotes
by itself; it says whether the recorded data speak for the claim, against it, or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from starpo_train.ope.bootstrap import Interval
from starpo_train.ope.ess import WeightFacts

Provenance = Literal["exact", "estimated", "missing"]
"""Of the behaviour policy's log-probabilities."""
Outcome = Literal["supported", "contradicted", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When data are too thin for an answer."""

    least_ess: float = 30.0
    least_ess_share: float = 0.05
    """Of the trajectories."""
    largest_share: float = 0.2
    """Weight that one trajectory may have, of all weight."""
    mean_weight_slack: float = 0.01
    """How far the interval of the weights' mean may be from 1: rounding, where policies are equal."""
    largest_left_out: float = 0.1
    """Share of the rewarded trajectories that may be without a ratio."""

    def find_floor(self, num_trajectories: int) -> float:
        """Effective sample size below which nothing is concluded: max(30, 5 % of n)."""
        return max(self.least_ess, self.least_ess_share * num_trajectories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One estimator's answer."""

    name: str
    value: float | None
    """None: not to be had, `reason` says why."""
    interval: Interval | None = None
    change: Interval | None = None
    """Of value - behaviour mean, both resampled together."""
    reason: str | None = None
    is_estimated: bool = False
    """Formed with log-probabilities that are not exactly the behaviour policy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Why nothing is concluded."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the recorded data say about the claim."""

    outcome: Outcome
    by: str | None
    """The estimator whose interval it rests on."""
    doubts: tuple[Doubt, ...]
    """Empty unless inconclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What estimates rest on."""

    num_trajectories: int
    num_left_out: int = 0
    """Rewarded trajectories that are not among them."""
    provenance: Provenance
    is_trained_on: bool = False
    """The policy was trained on these trajectories."""
    weights: WeightFacts | None = None
    """Of the whole trajectories; None without ratios."""
    mean_weight: Estimate | None = None
    """Expected to be 1."""


def decide_verdict(
    estimates: Sequence[Estimate],
    basis: Basis,
    *,
    behaviour_mean: float,
    rules: Rules | None = None,
) -> Verdict:
    """Every doubt there is; without any, whether the interval is above or below what was earned.

    The interval is WIS's, or FQE's where there are no ratios: of the estimators with ratios WIS
    alone keeps its coverage where weights are heavy (docs/ope.md).
    """
    rules = rules or Rules()
    doubts = _doubt_weights(basis, rules)
    doubts += _doubt_mean_weight(basis.mean_weight, rules)
    doubts += _doubt_origin(basis, rules)
    main = _find_main(estimates)
    if main is None:
        doubts.append(Doubt(name="no_estimate", detail="no estimator has an answer"))
    else:
        doubts += _doubt_interval(main, behaviour_mean)
    doubts += _doubt_signs(estimates, behaviour_mean)
    by = None if main is None else main.name
    if doubts or main is None or main.interval is None:
        return Verdict(outcome="inconclusive", by=by, doubts=tuple(doubts))
    is_above = main.interval.low > behaviour_mean
    return Verdict(outcome="supported" if is_above else "contradicted", by=by, doubts=())


def _find_main(estimates: Sequence[Estimate]) -> Estimate | None:
    known = {e.name: e for e in estimates if e.value is not None and e.interval is not None}
    return known.get("WIS") or known.get("FQE")


def _doubt_weights(basis: Basis, rules: Rules) -> list[Doubt]:
    weights = basis.weights
    if weights is None:
        return []
    doubts = []
    floor = rules.find_floor(basis.num_trajectories)
    if weights.ess < floor:
        detail = f"effective sample size {weights.ess:.1f}, below {floor:g}"
        doubts.append(Doubt(name="ess_below_floor", detail=detail))
    if weights.largest_share > rules.largest_share:
        detail = (
            f"one trajectory has {weights.largest_share:.0%} of the weight, "
            f"more than {rules.largest_share:.0%}"
        )
        doubts.append(Doubt(name="weight_concentrated", detail=detail))
    return doubts


def _doubt_mean_weight(mean_weight: Estimate | None, rules: Rules) -> list[Doubt]:
    """What ESS cannot see: runs so heavy that none was recorded, or log-probabilities that are off."""
    if mean_weight is None or mean_weight.value is None or mean_weight.interval is None:
        return []
    low, high = mean_weight.interval.low, mean_weight.interval.high
    if low - rules.mean_weight_slack <= 1 <= high + rules.mean_weight_slack:
        return []
    detail = (
        f"the weights' mean is {mean_weight.value:.4g} and in [{low:.4g}, {high:.4g}], "
        "where it should be 1"
    )
    return [Doubt(name="mean_weight_off", detail=detail)]


def _doubt_origin(basis: Basis, rules: Rules) -> list[Doubt]:
    doubts = []
    if basis.provenance != "exact":
        detail = {
            "estimated": "the behaviour policy's log-probabilities are estimates",
            "missing": "the behaviour policy's log-probabilities were not recorded",
        }[basis.provenance]
        doubts.append(Doubt(name=f"behaviour_{basis.provenance}", detail=detail))
    total = basis.num_trajectories + basis.num_left_out
    if basis.num_left_out > rules.largest_left_out * total:
        detail = f"{basis.num_left_out} of {total} rewarded trajectories could not be scored"
        doubts.append(Doubt(name="trajectories_left_out", detail=detail))
    if basis.is_trained_on:
        detail = "the policy was trained on these very trajectories, which flatters it"
        doubts.append(Doubt(name="trained_on_these", detail=detail))
    return doubts


def _doubt_interval(main: Estimate, behaviour_mean: float) -> list[Doubt]:
    interval, change = main.interval, main.change
    if interval is None:
        return []
    if interval.low == interval.high:
        detail = f"{main.name}'s interval has no width: all that counts earned the same"
        return [Doubt(name="no_spread", detail=detail)]
    if interval.contains(behaviour_mean):
        detail = (
            f"{main.name} is in [{interval.low:.4g}, {interval.high:.4g}], and so is the mean "
            f"of what was recorded, {behaviour_mean:.4g}"
        )
        return [Doubt(name="interval_contains_behaviour", detail=detail)]
    if change is not None and change.contains(0.0):
        detail = f"{main.name} less that mean is in [{change.low:.4g}, {change.high:.4g}]"
        return [Doubt(name="change_contains_zero", detail=detail)]
    return []


def _doubt_signs(estimates: Sequence[Estimate], behaviour_mean: float) -> list[Doubt]:
    slack = 1e-9 * (1 + abs(behaviour_mean))
    changes = {e.name: e.value - behaviour_mean for e in estimates if e.value is not None}
    above = [name for name, change in changes.items() if change > slack]
    below = [name for name, change in changes.items() if change < -slack]
    if not above or not below:
        return []
    detail = f"{', '.join(above)} above what was recorded, {', '.join(below)} below"
    return [Doubt(name="signs_disagree", detail=detail)]
