"""Run folders and their dataset -> curves, policy lag, and what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from starpo_train.dataset import read_manifest, scan_table
from starpo_train.errors import DataError
from starpo_train.metrics import MEASURED, STEP, read_metrics
from starpo_train.report import svg

CURVES = {
    "loss": ("Loss", "policy loss of the step"),
    "advantage_mean_abs": ("Advantage", "mean size; 0 teaches nothing"),
    "approx_kl": ("KL", "nats per token from the recorded policy"),
    "clip_fraction": ("Clip fraction", "share of tokens whose ratio was clipped"),
    "ess_fraction": ("Effective samples", "share left after importance weights"),
    "entropy": ("Entropy", "nats per token; collapse goes to 0"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", "as scheduled"),
    "in_group_reward_std": ("Reward deviation", "within the tasks of the step"),
    "mi_per_sequence": ("Mutual information", "nats that an answer shares with its prompt"),
    "good_change": ("Good runs held back", "nats per token since the start; a fall is unlearning"),
    "retrieval_at_1": ("Prompt found", "share of answers likeliest behind their own prompt"),
}

FACTS = {
    "num_trajectories": "trajectories",
    "num_rows": "token rows",
    "num_tokens": "tokens",
    "num_action_tokens": "trained tokens",
    "reward_mean": "mean reward",
    "critic_explained_variance": "of the returns on held-out tasks explained by the critic",
    "logprob_drift_mean_abs": "mean difference (nats per token) from the recorded model",
}
"""Values of the start record that the page shows, in words."""

MOST_LAGS = 12
_BROKEN = ("early_stop", "alarm")
_ROLLBACKS = {
    "rollback": ("went back", "from step {}: the result is {}"),
    "no_rollback": (
        "could not go back",
        "from step {}: no checkpoint is left that still found successful runs likely; the result is {}",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric over the steps of a run."""

    title: str
    hint: str
    low: float
    high: float
    last: float
    picture: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What the page shows of a training run."""

    name: str
    algorithm: str | None
    num_steps: int
    facts: tuple[tuple[str, Any], ...]
    """The run's own start record, without what is too long to show."""
    stops: tuple[tuple[bool, str], ...]
    """(whether it ended the run, what was found and when), of each rule that was broken."""
    rollbacks: tuple[tuple[str, str], ...]
    """(Whether the run went back to an earlier checkpoint or could not, from where and to which), in words."""
    curves: tuple[Curve, ...]
    config_text: str
    """The resolved run file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One bar of the funnel."""

    name: str
    count: int
    share: float
    picture: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class LagView:
    """How many policies lie between the one that acted and the current one."""

    low: int
    high: int
    num_known: int
    num_unknown: int
    histogram: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetView:
    """What the page shows of the training dataset."""

    spans: tuple[Stage, ...]
    trajectories: tuple[Stage, ...]
    rejected: tuple[tuple[str, int], ...]
    """Spans by the reason they were left out."""
    reasons: tuple[tuple[str, int], ...]
    """Trajectories by why they are not better."""
    balanced: bool | None
    """Whether used + rejected + duplicate spans are exactly the spans read; None: not counted."""
    lag: LagView | None
    """None where the dataset does not know the order of its policies."""
    train: pl.DataFrame
    """Task and reward of each trajectory of the training split."""
    train_tasks: frozenset[str]
    """Tasks trained on."""


def view_run(path: Path) -> RunView:
    """Run folder -> RunView.

    Raises:
        DataError: the folder has no metrics.
    """
    file = path / "metrics.jsonl"
    if not file.is_file():
        raise DataError(f"{path}: no training run here (metrics.jsonl is missing)")
    records = [record for record in read_metrics(file) if isinstance(record, dict)]
    steps = [r for r in records if "event" not in r and _is_number(r.get("step"))]
    measured = [
        r for r in records if r.get("event", STEP) in MEASURED and _is_number(r.get("step"))
    ]
    broken = [r for r in records if r.get("event") in _BROKEN and _is_number(r.get("step"))]
    marks = [(r["step"], str(r.get("rule"))) for r in broken]
    start = next((r for r in records if r.get("event") == "start"), {})
    config = path / "run.toml"
    return RunView(
        name=path.name,
        algorithm=next((str(r["algorithm"]) for r in reversed(steps) if r.get("algorithm")), None),
        num_steps=len(steps),
        facts=tuple(
            (words, start[key])
            for key, words in FACTS.items()
            if start.get(key) is not None and not isinstance(start[key], dict | list)
        ),
        stops=tuple(
            (r["event"] == "early_stop", f"step {r['step']}, {r.get('rule')}: {r.get('reason')}")
            for r in broken
        ),
        rollbacks=tuple(
            (
                _ROLLBACKS[r["event"]][0],
                _ROLLBACKS[r["event"]][1].format(r["step"], r["checkpoint"]),
            )
            for r in records
            if r.get("event") in _ROLLBACKS
        ),
        curves=tuple(
            curve for key in CURVES if (curve := _build_curve(key, measured, marks)) is not None
        ),
        config_text=config.read_text(encoding="utf-8", errors="replace")
        if config.is_file()
        else "",
    )


def view_dataset(path: Path) -> DatasetView:
    """Training dataset -> funnel, policy lag and the tasks trained on.

    Raises:
        DataError: the dataset is missing or unreadable.
    """
    manifest = read_manifest(path).values
    rows = (
        scan_table(path, "trajectories")
        .select("task_id", "reward", "usable_for", "reasons", "split", "policy_lag")
        .collect()
    )
    accounting = manifest.get("accounting") or {}
    train = rows.filter(pl.col("split") == "train")
    rewarded = rows["reward"].is_not_null()
    return DatasetView(
        spans=_build_stages(
            {"read": accounting.get("spans_read"), "used": accounting.get("spans_used")}
        ),
        trajectories=_build_stages(
            {
                "recorded": len(rows),
                "with a trusted reward": int(rewarded.sum()),
                "trainable (rl)": int((rows["usable_for"] == "rl").sum()),
                "trainable, training split": int((train["usable_for"] == "rl").sum()),
            }
        ),
        rejected=_sort_counts(accounting.get("spans_rejected_by_reason") or {}),
        reasons=_sort_counts(
            dict(
                rows.explode("reasons", empty_as_null=True)
                .drop_nulls("reasons")
                .group_by("reasons")
                .len()
                .iter_rows()
            )
        ),
        balanced=_is_balanced(accounting),
        lag=_view_lag(train["policy_lag"]),
        train=train.select("task_id", "reward"),
        train_tasks=frozenset(train["task_id"].drop_nulls()),
    )


def _build_curve(
    key: str, records: list[dict[str, Any]], marks: list[tuple[float, str]]
) -> Curve | None:
    points = [(r["step"], r[key]) for r in records if _is_number(r.get(key))]
    if not points:
        return None
    title, hint = CURVES[key]
    values = [y for _, y in points]
    return Curve(
        title=title,
        hint=hint,
        low=min(values),
        high=max(values),
        last=values[-1],
        picture=svg.draw_curve(
            points,
            label=f"{title}: {values[0]:.4g} at first, {values[-1]:.4g} at last",
            marks=marks,
        ),
    )


def _build_stages(counts: Mapping[str, Any]) -> tuple[Stage, ...]:
    known = {name: int(count) for name, count in counts.items() if _is_number(count)}
    whole = max([*known.values(), 1])
    return tuple(
        Stage(
            name=name,
            count=count,
            share=count / whole,
            picture=svg.draw_meter(count / whole, label=f"{name}: {count}"),
        )
        for name, count in known.items()
    )


def _view_lag(lags: pl.Series) -> LagView | None:
    known = lags.drop_nulls()
    if known.is_empty():
        return None
    low, high = int(known.min()), int(known.max())  # pyright: ignore[reportArgumentType]
    width = max(1, ceil((high - low + 1) / MOST_LAGS))
    counts = [0] * ceil((high - low + 1) / width)
    for lag in known:
        counts[(lag - low) // width] += 1
    return LagView(
        low=low,
        high=high,
        num_known=len(known),
        num_unknown=lags.null_count(),
        histogram=svg.draw_histogram(
            counts, label=f"Trajectories by policy lag, from {low} to {high}"
        ),
    )


def _is_balanced(accounting: Mapping[str, Any]) -> bool | None:
    try:
        rejected = sum(accounting["spans_rejected_by_reason"].values())
        accounted = accounting["spans_used"] + rejected + accounting["duplicates"]
        return accounted == accounting["spans_read"]
    except (KeyError, TypeError, AttributeError):
        return None


def _sort_counts(counts: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    known = [(str(name), int(count)) for name, count in counts.items() if _is_number(count)]
    return tuple(sorted(known, key=lambda item: (-item[1], item[0])))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
