"""The records a gate decision is made of, and what they say in words."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import isfinite
from typing import Any


class Verdict(StrEnum):
    """May the candidate ship?"""

    PROMOTE = "PROMOTE"
    BLOCK = "BLOCK"
    INCONCLUSIVE = "INCONCLUSIVE"


EXIT_CODES = {Verdict.PROMOTE: 0, Verdict.BLOCK: 10, Verdict.INCONCLUSIVE: 20}

METRIC_TITLES = {
    "success": "Success",
    "tokens_per_trace": "Tokens per trace",
    "steps_p95": "95th percentile of steps",
    "steps_p99": "99th percentile of steps",
}

STRATUM_TITLES = {"all": "", "id": "in distribution", "ood": "out of distribution"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One metric of the candidate against the baseline, in one stratum."""

    metric: str
    """Key of `METRIC_TITLES`."""
    stratum: str
    """all | id | ood; the last two are never pooled."""
    relative: bool
    """Change is a share of the baseline's value, not a difference."""
    higher_is_better: bool
    """Direction of the metric."""
    baseline: float | None
    """The metric's value; None when it was not recorded."""
    candidate: float | None
    """The metric's value; None when it was not recorded."""
    change: float | None
    """Candidate against baseline; None when it was not recorded."""
    low: float | None
    """One-sided lower bound of `change` at level alpha; None when unbounded."""
    high: float | None
    """One-sided upper bound of `change` at level alpha; None when unbounded."""
    margin: float | None
    """Largest acceptable worsening, positive; None when the metric is only reported."""
    outcome: str
    """pass: shown to be within the margin. fail: shown to be worse. unclear. reported."""
    decides: bool
    """Whether the verdict depends on this metric in this stratum."""
    num_tasks: int
    """Paired tasks behind the numbers."""
    tasks_needed: int | None
    """About how many tasks would settle an unclear outcome; None when clear or out of reach."""
    note: str | None = None
    """Why the outcome is unclear, when it is not for the width of the interval."""

    @property
    def title(self) -> str:
        """Metric and stratum as a person reads them."""
        suffix = STRATUM_TITLES.get(self.stratum, self.stratum)
        title = METRIC_TITLES.get(self.metric, self.metric)
        return f"{title} ({suffix})" if suffix else title

    def describe(self) -> str:
        """The outcome as one sentence."""
        if self.change is None:
            return f"{self.title}: not measured; {self.note or 'no data'}."
        change = self.format_change(self.change)
        start = f"{self.title} changed by {change} (range {self.format_range()})"
        if self.margin is None:
            return f"{start}; reported only."
        limit = f"the margin of {self.format_change(self.signed_margin)}"
        ending = {
            "pass": f"; even the unfavourable end is within {limit}.",
            "fail": f"; even the favourable end is beyond {limit}.",
        }.get(self.outcome)
        if ending is None:
            ending = f"; {self.note}." if self.note else f"; the interval reaches past {limit}."
        return start + ending

    @property
    def signed_margin(self) -> float:
        """The change at which the candidate becomes unacceptable."""
        margin = self.margin or 0.0
        return -margin if self.higher_is_better else margin

    def format_change(self, change: float | None) -> str:
        """Change -> "+3.1 points" or "-12.0%"; unbounded when None."""
        if change is None:
            return "unbounded"
        percent = round(100 * change, 1) + 0.0  # + 0.0: "-0.0" reads like a decrease
        return f"{percent:+.1f}{'%' if self.relative else ' points'}"

    def format_range(self) -> str:
        """Both bounds -> "+1.0 to +5.2 points"."""
        low, high = self.format_change(self.low), self.format_change(self.high)
        return f"{low.removesuffix(' points')} to {high}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortResult:
    """Success of one cohort: does it hide harm that the mean does not show?"""

    cohort: str
    """Name; "(no cohort)" for tasks that name none."""
    num_tasks: int
    """Paired tasks."""
    baseline: float | None
    """Success of the baseline."""
    candidate: float | None
    """Success of the candidate."""
    change: float | None
    """Difference."""
    low: float | None
    """One-sided lower bound at alpha, not adjusted for the number of cohorts."""
    high: float | None
    """One-sided upper bound at alpha, not adjusted for the number of cohorts."""
    p_value_harm: float | None
    """Holm-adjusted p-value of "not worse than the cohort margin"; None: too few tasks."""
    harmed: bool
    """Shown to be worse than the cohort margin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceResult:
    """The candidate against another policy, such as filtered behaviour cloning."""

    name: str
    """What the other policy is."""
    num_tasks: int
    """Paired tasks."""
    candidate: float | None
    """Success of the candidate on these tasks."""
    other: float | None
    """Success of the other policy."""
    change: float | None
    """candidate - other."""
    low: float | None
    """End of the two-sided interval at confidence 1 - alpha."""
    high: float | None
    """End of the two-sided interval at confidence 1 - alpha."""
    statement: str
    """better | worse | not distinguishable | not comparable, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """The verdict and everything it rests on."""

    verdict: Verdict
    """PROMOTE, BLOCK or INCONCLUSIVE."""
    sentence: str
    """The verdict in one plain sentence."""
    reasons: tuple[str, ...]
    """Why, most important first."""
    tasks_needed: int | None
    """INCONCLUSIVE only: about how many paired tasks would decide."""
    comparisons: tuple[Comparison, ...]
    """Every metric in every stratum."""
    improved: bool
    """Separate claim: success is higher than the baseline's, not merely no worse."""
    superiority_p_value: float | None
    """One-sided p-value of that claim."""
    superiority: str
    """That claim in a sentence."""
    cohorts: tuple[CohortResult, ...]
    """Success by cohort."""
    evidence: tuple[EvidenceResult, ...]
    """Beside the verdict; never part of it."""
    notes: tuple[str, ...]
    """What a reader must know about the data: exclusions, gaps."""
    accounting: dict[str, Any]
    """Counts of tasks and trajectories used and left out."""
    preflight: tuple[dict[str, Any], ...] = ()
    """What an oracle and a null agent did on the tasks."""
    ope: dict[str, Any] | None = None
    """Off-policy evaluation, beside the verdict; never part of it."""
    looks: dict[str, Any] | None = None
    """Which look at this evaluation it is, and what earlier ones leave to it."""
    faults: tuple[str, ...] = ()
    """Slips in the data or the gate file, for which nothing was decided and no look is recorded."""

    @property
    def exit_code(self) -> int:
        """Process exit code: PROMOTE 0, BLOCK 10, INCONCLUSIVE 20."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"exit_code": self.exit_code, **asdict(self), "verdict": self.verdict.value}


def finite_or_none(value: float | None) -> float | None:
    """JSON has neither nan nor infinity: both become None."""
    return value if value is not None and isfinite(value) else None


def format_p_value(p_value: float) -> str:
    """0.0312 -> "p = 0.031"; tiny ones are "p < 0.001"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
