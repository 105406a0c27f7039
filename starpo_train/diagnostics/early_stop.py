"""Metrics of the steps so far -> which rule says that the run has collapsed, and why.

A history keeps of each metric its first values and its last ones; a rule is a predicate on them. Both
are pure, and a history is plain JSON, so a resumed run judges as one that was never stopped.
Thresholds are wide: a rule must hold for several steps running, against a median of several.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final

NUM_FIRST: Final = 10
NUM_LAST: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is remembered of one metric."""

    first: tuple[float, ...] = ()
    """Its first 10 values."""
    last: tuple[float, ...] = ()
    """Its last 24 values, oldest first."""
    count: int = 0
    """How many there were."""

    def add(self, value: float) -> "Window":
        """This window and one more value."""
        return Window(
            first=(*self.first, value)[:NUM_FIRST],
            last=(*self.last, value)[-NUM_LAST:],
            count=self.count + 1,
        )


History = Mapping[str, Window]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way for a run to collapse."""

    name: str
    metric: str
    find: Callable[[Window], str | None]
    """What it saw, in words; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that holds."""

    rule: str
    reason: str


def extend_history(history: History, record: Mapping[str, Any]) -> dict[str, Window]:
    """History and the record of one more step or measurement."""
    values = {
        name: float(value)
        for name, value in _select_values(record).items()
        if value is not None and math.isfinite(value)
    }
    return dict(history) | {
        name: history.get(name, Window()).add(value) for name, value in values.items()
    }


def judge_history(history: History, record: Mapping[str, Any]) -> list[Finding]:
    """Rules that hold, of those whose metric is in the record that the history ends with."""
    present = {name for name, value in _select_values(record).items() if value is not None}
    found = [
        (rule.name, rule.find(history[rule.metric]))
        for rule in RULES
        if rule.metric in present and rule.metric in history
    ]
    return [Finding(rule=name, reason=reason) for name, reason in found if reason is not None]


def _select_values(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics that rules go by: a record's own, and its entropy where that is to be kept."""
    values = {name: record.get(name) for name in _PLAIN}
    if record.get("algorithm") == "starpo":  # what is cloned may well have no entropy
        values["starpo_entropy"] = record.get("entropy")
    return values


_PLAIN: Final = (
    "entropy",
    "grad_norm",
    "approx_kl",
    "advantage_mean_abs",
    "in_group_reward_std",
    "validation_success",
    "retrieval_excess",
    "good_lost_excess",
)


def find_low_deviation(window: Window) -> str | None:
    """RAGEN-2: the last 10 in-group deviations are each below 0.1 x the mean of the first 10."""
    if window.count <= NUM_FIRST:
        return None
    limit = 0.1 * fmean(window.first)
    if max(window.last[-10:]) >= limit:
        return None
    return f"for 10 steps attempts at one task have differed in reward by less than {limit:.3g}"


def find_low_success(window: Window) -> str | None:
    """RAGEN-2: success below 1 % in five validations running."""
    if window.count < 5 or max(window.last[-5:]) >= 0.01:
        return None
    return "five validations running solved less than 1 % of the tasks"


def find_empty_steps(window: Window) -> str | None:
    """RAGEN-2: five steps running whose data teaches nothing, as all advantages are 0."""
    if window.count < 5 or any(window.last[-5:]):
        return None
    return "five steps running had no advantages: attempts at one task have all had the same reward"


def find_lost_gradient(window: Window) -> str | None:
    """Ten gradients running are exactly 0: every ratio is clipped, or beyond what a float holds.

    Either the data has no more to teach, or a few steps have thrown the policy far off it. The
    optimizer's momentum moves the policy on all the same, with nothing to hold it.
    """
    if window.count < 10 or any(window.last[-10:]):
        return None
    return "ten steps running had no gradient, every ratio being clipped: only momentum is left"


def find_entropy_collapse(window: Window) -> str | None:
    """The last 10 entropies are each below 0.05 x the run's start.

    The start is the larger of the first value, before any step, and the median of the first 10.
    """
    if window.count <= NUM_FIRST:
        return None
    start = max(window.first[0], median(window.first))
    if max(window.last[-10:]) >= 0.05 * start:
        return None
    return f"for 10 steps entropy has been below 5 % of the {start:.3g} nats/token at the start"


def find_entropy_explosion(window: Window) -> str | None:
    """The last 10 entropies are each above 3 x the run's start, and above 2 nats per token.

    The start is the smaller of the first value and the median of the first 10. At 2 nats a token is
    chosen among 7 or more on average: recorded agents have 0.05 to 1.
    """
    if window.count <= NUM_FIRST:
        return None
    start = min(window.first[0], median(window.first))
    if min(window.last[-10:]) <= max(2.0, 3.0 * start):
        return None
    return (
        f"for 10 steps entropy has been above three times the {start:.3g} nats/token at the start, "
        "and above 2"
    )


def find_erratic_entropy(window: Window) -> str | None:
    """Entropy jumps from step to step twice as far as it ever did in the first 10 steps.

    r_t = |e_t - (e_{t-1} + e_{t+1}) / 2| is 0 on any straight line, so a steady fall or rise is not
    erratic. The median r of the last 20 steps must be above 2 x the largest of the first 10, which
    holds what the data itself varies, and above 0.4 x the median entropy both then and now: what varies
    in proportion to a level is not erratic either.
    """
    if window.count < 3 * NUM_FIRST:
        return None
    recent = window.last[-20:]
    before, now = max(_list_jumps(window.first)), median(_list_jumps(recent))
    if now <= max(2.0 * before, 0.4 * median(window.first), 0.4 * median(recent)):
        return None
    return f"entropy jumps by {now:.3g} nats/token from step to step; at the start by {before:.3g}"


def find_gradient_spike(window: Window) -> str | None:
    """Three norms running are each above 10 x the median of the 20 before, and of the first 10.

    One bad step is a bad step; and a norm that was nearly 0, as everything was clipped, may come back.
    """
    before, spike = window.last[:-3][-20:], window.last[-3:]
    if len(before) < NUM_FIRST:
        return None
    usual = max(median(before), median(window.first))
    if usual <= 0.0 or min(spike) <= 10.0 * usual:
        return None
    return f"three gradient norms running are above ten times the usual {usual:.3g}"


def find_left_data(window: Window) -> str | None:
    """KL(mu | pi) in three steps running above 0.15 nats per token, and twice what it was at the start.

    In twelve runs of bench/learn (six methods, two games) it was below 0.13 but for single steps; two
    policies that had lost their skill were at 0.2 to 1.2, a third lost it below 0.15, unseen by
    this rule. Data of another policy is far from the start.
    """
    limit = 0.15 + 2.0 * max(window.first[0], 0.0)
    if window.count <= 3 or min(window.last[-3:]) <= limit:
        return None
    return (
        f"for three steps the policy has been more than {limit:.3g} nats/token from the one that was "
        "recorded"
    )


def find_forgotten_input(window: Window) -> str | None:
    """Three measurements running, prompts are retrieved no better than by chance; the first was.

    The metric is accuracy - chance - 2 sqrt(chance (1 - chance) / N).
    """
    if window.count < 4 or window.first[0] <= 0.0 or max(window.last[-3:]) > 0.0:
        return None
    return "three measurements running, answers do not tell their prompts apart any more"


def find_lost_good(window: Window) -> str | None:
    """Good trajectories of tasks held back have become too unlikely (`summarize_change`)."""
    if window.last[-1] <= 0.0:
        return None
    return (
        "successful runs of tasks held back have become much less likely: the policy is unlearning what "
        "worked"
    )


def _list_jumps(values: Sequence[float]) -> list[float]:
    triples = zip(values, values[1:], values[2:], strict=False)
    return [abs(middle - (left + right) / 2) for left, middle, right in triples]


RULES: Final = (
    Rule(name="reward_deviation_gone", metric="in_group_reward_std", find=find_low_deviation),
    Rule(name="validation_failed", metric="validation_success", find=find_low_success),
    Rule(name="empty_steps", metric="advantage_mean_abs", find=find_empty_steps),
    Rule(name="gradient_gone", metric="grad_norm", find=find_lost_gradient),
    Rule(name="entropy_collapse", metric="starpo_entropy", find=find_entropy_collapse),
    Rule(name="entropy_explosion", metric="entropy", find=find_entropy_explosion),
    Rule(name="entropy_erratic", metric="entropy", find=find_erratic_entropy),
    Rule(name="gradient_spike", metric="grad_norm", find=find_gradient_spike),
    Rule(name="left_the_data", metric="approx_kl", find=find_left_data),
    Rule(name="input_forgotten", metric="retrieval_excess", find=find_forgotten_input),
    Rule(name="good_runs_lost", metric="good_lost_excess", find=find_lost_good),
)
