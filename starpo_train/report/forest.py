"""verdict.json -> rows of the forest plot, every metric in units of its own margin."""

from dataclasses import dataclass, fields, replace
from typing import Any

from markupsafe import Markup

from starpo_train.gate.margins import GateConfig
from starpo_train.gate.verdict import METRIC_TITLES, STRATUM_TITLES, Comparison
from starpo_train.report import svg

OUTCOMES = {
    "pass": "within margin",
    "fail": "worse than margin",
    "unclear": "not shown",
    "reported": "reported only",
}

_LOWEST, _HIGHEST = -6.0, 7.0
"""Margins shown at most; an interval that reaches further ends in an arrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """One metric."""

    title: str
    stratum: str
    """Heading of the rows that belong together; empty when there is one stratum."""
    values: str
    """Baseline to candidate."""
    change: str
    interval: str
    margin: str | None
    default_margin: str | None
    """The margin without a gate file, where this one differs from it."""
    outcome: str
    """pass | fail | unclear | reported."""
    outcome_text: str
    note: str | None
    is_tail: bool
    """p99: it rests on a handful of runs."""
    num_tasks: int
    picture: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """The forest plot."""

    axis: Markup
    rows: tuple[ForestRow, ...]


def build_forest(verdict: dict[str, Any]) -> Forest:
    """A verdict's comparisons -> Forest; one shared margin line, right is better."""
    known = {field.name for field in fields(Comparison)}
    comparisons = [
        Comparison(**{key: value for key, value in record.items() if key in known})
        for record in verdict["comparisons"]
    ]
    default = float((verdict.get("config") or {}).get("margin_steps_p95") or 0.15)
    ends = [
        end
        for comparison in comparisons
        for worst, value, best in [_to_margins(comparison, default)]
        if value is not None and _LOWEST < value < _HIGHEST  # else it gets an arrow
        for end in (worst, value, best)
        if end is not None
    ]
    low = max(_LOWEST, min([-2.0, *(end - 0.3 for end in ends)]))
    high = min(_HIGHEST, max([1.8, *(end + 0.3 for end in ends)]))
    # some room right of "no change", for the words above the plot
    scale = svg.Scale(low=low, high=max(high, -0.6 * low))
    return Forest(
        axis=svg.draw_forest_axis(scale),
        rows=tuple(_build_row(comparison, default, scale) for comparison in comparisons),
    )


def _to_margins(
    comparison: Comparison, default: float
) -> tuple[float | None, float | None, float | None]:
    """(worst, estimate, best) in margins, better upwards."""
    unit = comparison.margin or default
    sign = 1 if comparison.higher_is_better else -1
    low, value, high = (
        None if number is None else sign * number / unit
        for number in (comparison.low, comparison.change, comparison.high)
    )
    return (low, value, high) if sign == 1 else (high, value, low)


def _build_row(comparison: Comparison, default: float, scale: svg.Scale) -> ForestRow:
    worst, value, best = _to_margins(comparison, default)
    return ForestRow(
        title=METRIC_TITLES.get(comparison.metric, comparison.metric),
        stratum=STRATUM_TITLES.get(comparison.stratum, comparison.stratum).capitalize(),
        values=f"{_format_level(comparison, comparison.baseline)} → "
        f"{_format_level(comparison, comparison.candidate)}",
        change="not measured"
        if comparison.change is None
        else comparison.format_change(comparison.change),
        interval=comparison.format_range(),
        margin=None
        if comparison.margin is None
        else comparison.format_change(comparison.signed_margin),
        default_margin=_find_default(comparison),
        outcome=comparison.outcome,
        outcome_text=OUTCOMES.get(comparison.outcome, comparison.outcome),
        note=comparison.note,
        is_tail=comparison.metric == "steps_p99",
        num_tasks=comparison.num_tasks,
        picture=svg.draw_forest_row(
            low=worst,
            value=value,
            high=best,
            scale=scale,
            css=f"mark {comparison.outcome}",
            label=comparison.describe(),
        ),
    )


def _find_default(comparison: Comparison) -> str | None:
    option = {
        "success": "margin_success_ood" if comparison.stratum == "ood" else "margin_success",
        "tokens_per_trace": "margin_tokens",
        "steps_p95": "margin_steps_p95",
    }.get(comparison.metric)
    if comparison.margin is None or option is None:
        return None
    default = getattr(GateConfig(), option)
    if comparison.margin == default:
        return None
    return comparison.format_change(replace(comparison, margin=default).signed_margin)


def _format_level(comparison: Comparison, level: float | None) -> str:
    if level is None:
        return "—"
    return f"{level:,.0f}" if comparison.relative else f"{100 * level:.1f}%"
