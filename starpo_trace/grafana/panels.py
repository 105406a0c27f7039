"""What the dashboard shows: rows of panels, each with its queries.

Names are those that an OpenTelemetry Collector or Prometheus' own OTLP receiver gives by default:
dots become underscores, the unit and `_total` are appended. After a change here run
`python -m starpo_trace.grafana.build`.
"""

from dataclasses import dataclass
from typing import Final, Literal

PanelType = Literal["stat", "timeseries", "heatmap", "bargauge"]

FILTER: Final = (
    'starpo_policy_id=~"$policy",starpo_environment_name=~"$environment",starpo_cohort=~"$cohort"'
)
_OF_RUNS: Final = f'{FILTER},starpo_reward_scope="trajectory"'
_WINDOW: Final = "$__rate_interval"
_WHOLE: Final = "$__range"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSpec:
    """One panel."""

    title: str
    about: str
    """What a reader needs to act on it."""
    type: PanelType
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's name of a unit."""
    width: int = 12
    """Of 24."""
    is_stacked: bool = False


def _ratio(above: str, below: str, by: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}({above}) / {grouped}({below})"


def _mean(metric: str, by: str = "", window: str = _WINDOW, more: str = "") -> str:
    return _ratio(
        f"increase({metric}_sum{{{FILTER}{more}}}[{window}])",
        f"increase({metric}_count{{{FILTER}{more}}}[{window}])",
        by,
    )


def _fails(by: str = "", window: str = _WINDOW) -> str:
    return _ratio(
        f"increase(starpo_evaluation_fails_total{{{_OF_RUNS}}}[{window}])",
        f"increase(starpo_evaluation_count_total{{{_OF_RUNS}}}[{window}])",
        by,
    )


def _quantile(share: float, metric: str, labels: str, by: str = "", window: str = _WINDOW) -> str:
    grouped = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({share}, "
        f"sum by ({grouped}) (increase({metric}_bucket{{{labels}}}[{window}])))"
    )


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(
        Query(expr=_quantile(share, metric, FILTER), legend=f"p{share * 100:g}")
        for share in (0.5, 0.95, 0.99)
    )


ROWS: Final[dict[str, tuple[PanelSpec, ...]]] = {
    "Outcome": (
        PanelSpec(
            title="Runs",
            about="Runs that ended in the time shown.",
            type="stat",
            width=4,
            queries=(
                Query(expr=f"sum(increase(starpo_trajectory_count_total{{{FILTER}}}[{_WHOLE}]))"),
            ),
        ),
        PanelSpec(
            title="Success",
            about="Rewards of whole runs that are not below STARPO_METRICS_FAIL_BELOW.",
            type="stat",
            width=4,
            unit="percentunit",
            queries=(Query(expr=f"1 - {_fails(window=_WHOLE)}"),),
        ),
        PanelSpec(
            title="Mean reward",
            about="Scaled to 0..1 where the reward has min and max, else as given.",
            type="timeseries",
            width=16,
            queries=(
                Query(
                    expr=_mean(
                        "starpo_trajectory_reward", "starpo_policy_id, gen_ai_evaluation_name"
                    ),
                    legend="{{starpo_policy_id}} {{gen_ai_evaluation_name}}",
                ),
            ),
        ),
        PanelSpec(
            title="Distribution of rewards",
            about="A mean hides two groups; this shows them.",
            type="heatmap",
            width=24,
            queries=(
                Query(
                    expr=f"sum by (le) (increase(starpo_trajectory_reward_bucket{{{FILTER}}}[{_WINDOW}]))",
                    legend="{{le}}",
                ),
            ),
        ),
    ),
    "Failed evaluations": (
        PanelSpec(
            title="Share failed, by cohort",
            about="A cohort that rises alone is what an average hides.",
            type="timeseries",
            unit="percentunit",
            queries=(Query(expr=_fails("starpo_cohort"), legend="{{starpo_cohort}}"),),
        ),
        PanelSpec(
            title="Share failed, by evaluator",
            about="Late rewards count with their runs' labels where this process ended the run.",
            type="timeseries",
            unit="percentunit",
            queries=(
                Query(expr=_fails("gen_ai_evaluation_name"), legend="{{gen_ai_evaluation_name}}"),
            ),
        ),
    ),
    "Steps and tokens": (
        PanelSpec(
            title="Steps of a run",
            about="Within a bucket a quantile is interpolated; p99 needs some hundred runs.",
            type="timeseries",
            queries=_quantiles("starpo_trajectory_steps"),
        ),
        PanelSpec(
            title="Tokens of a run",
            about="Mean over the runs whose every call said what it used.",
            type="timeseries",
            queries=(
                Query(
                    expr=_mean("starpo_trajectory_tokens", "gen_ai_token_type"),
                    legend="{{gen_ai_token_type}}",
                ),
            ),
        ),
    ),
    "Ends": (
        PanelSpec(
            title="How runs end",
            about="terminated: by itself; truncated: by a limit; abandoned: nobody waited; error.",
            type="timeseries",
            is_stacked=True,
            queries=(
                Query(
                    expr="sum by (starpo_trajectory_end) "
                    f"(increase(starpo_trajectory_count_total{{{FILTER}}}[{_WINDOW}]))",
                    legend="{{starpo_trajectory_end}}",
                ),
            ),
        ),
        PanelSpec(
            title="Duration of a run",
            about="From begin to end, with what the program does between calls.",
            type="timeseries",
            unit="s",
            queries=_quantiles("starpo_trajectory_duration_seconds"),
        ),
    ),
    "Policies compared": (
        PanelSpec(
            title="Mean reward",
            about="No verdict: the runs are not paired by task. `starpo-train gate` decides.",
            type="bargauge",
            width=6,
            queries=(
                Query(
                    expr=_mean(
                        "starpo_trajectory_reward",
                        "starpo_policy_id, gen_ai_evaluation_name",
                        _WHOLE,
                    ),
                    legend="{{starpo_policy_id}} {{gen_ai_evaluation_name}}",
                ),
            ),
        ),
        PanelSpec(
            title="Share failed",
            about="Of the rewards of whole runs.",
            type="bargauge",
            unit="percentunit",
            width=6,
            queries=(
                Query(expr=_fails("starpo_policy_id", _WHOLE), legend="{{starpo_policy_id}}"),
            ),
        ),
        PanelSpec(
            title="Steps, p95",
            about="Longer runs cost more and fail more.",
            type="bargauge",
            width=6,
            queries=(
                Query(
                    expr=_quantile(
                        0.95, "starpo_trajectory_steps", FILTER, "starpo_policy_id", _WHOLE
                    ),
                    legend="{{starpo_policy_id}}",
                ),
            ),
        ),
        PanelSpec(
            title="Output tokens of a run",
            about="What it costs.",
            type="bargauge",
            width=6,
            queries=(
                Query(
                    expr=_mean(
                        "starpo_trajectory_tokens",
                        "starpo_policy_id",
                        _WHOLE,
                        ',gen_ai_token_type="output"',
                    ),
                    legend="{{starpo_policy_id}}",
                ),
            ),
        ),
    ),
    "Model calls (all, whatever is chosen above)": (
        PanelSpec(
            title="Tokens per second",
            about="By model, as the server counted them.",
            type="timeseries",
            queries=(
                Query(
                    expr="sum by (gen_ai_request_model, gen_ai_token_type) "
                    f"(rate(gen_ai_client_token_usage_sum[{_WINDOW}]))",
                    legend="{{gen_ai_request_model}} {{gen_ai_token_type}}",
                ),
            ),
        ),
        PanelSpec(
            title="Duration of a call, p95",
            about="By model, failed calls included.",
            type="timeseries",
            unit="s",
            queries=(
                Query(
                    expr="histogram_quantile(0.95, sum by (le, gen_ai_request_model) "
                    f"(rate(gen_ai_client_operation_duration_seconds_bucket[{_WINDOW}])))",
                    legend="{{gen_ai_request_model}}",
                ),
            ),
        ),
    ),
}

VARIABLES: Final = {
    "policy": "label_values(starpo_trajectory_count_total, starpo_policy_id)",
    "environment": "label_values(starpo_trajectory_count_total, starpo_environment_name)",
    "cohort": "label_values(starpo_trajectory_count_total, starpo_cohort)",
}
