"""Policies, verdict, runs, dataset -> the page.

The page needs no network and no script: a strict content security policy forbids both, every
value is escaped by the template engine, and control characters are made visible first.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import polars as pl

from starpo_train.errors import ConfigError
from starpo_train.gate.margins import GateConfig
from starpo_train.installed import installed_version
from starpo_train.report.cohorts import build_fail_tables, find_harmed, read_scores
from starpo_train.report.evidence import view_evidence
from starpo_train.report.forest import build_forest
from starpo_train.report.gaps import list_gaps
from starpo_train.report.heat import build_heatmaps, read_credit
from starpo_train.report.inputs import PolicyResult, ReportExtras, check_trace_link
from starpo_train.report.length import view_lengths
from starpo_train.report.pairs import Example, choose_examples
from starpo_train.report.policies import EvaluatedPolicy, build_strata, read_policy
from starpo_train.report.provenance import collect_sources, find_strangers
from starpo_train.report.text import make_environment
from starpo_train.report.training import DatasetView, view_dataset, view_run
from starpo_train.report.variance import view_variance
from starpo_train.report.verdict import check_signature, read_verdict, view_verdict
from starpo_train.wholefile import write_atomically

PAGE_FILE = "report.html"

SECTIONS = {
    "verdict": "Verdict",
    "guardrails": "What had to hold",
    "distribution": "In and out of distribution",
    "variance": "Reward variance",
    "cohorts": "Fails by cohort",
    "length": "Steps and tokens",
    "credit": "Credit by step",
    "pairs": "Worst regressed pairs",
    "training": "Training",
    "evidence": "Other evidence",
    "gaps": "Not on this page",
    "provenance": "Provenance",
}
"""In the order of the page; one that there is nothing to show for is left out, and named in `gaps`."""


def render_report(
    *,
    output: Path,
    policies: Sequence[PolicyResult],
    verdict: Path | None,
    runs: Sequence[Path],
    dataset: Path | None,
    title: str,
    extras: ReportExtras | None = None,
) -> Path:
    """Everything known about a release -> one self-contained HTML file; returns its path.

    Args:
        output: the file (ending in .html) or the folder to put `report.html` in.
        policies: evaluated policies, in the order of the tables.
        verdict: `verdict.json` of the gate, or the folder that holds it.
        runs: training run folders.
        dataset: the dataset that was trained on.
        title: heading of the page.
        extras: scores, credit, judges, and how to link to traces.

    Raises:
        ConfigError: scores or credit are of no policy that is named, or the link leads nowhere.
        DataError: something is missing or unreadable; nothing is written then.
    """
    values = collect_page(
        policies=policies,
        verdict=verdict,
        runs=runs,
        dataset=dataset,
        extras=extras or ReportExtras(),
    )
    html = make_environment().get_template("page.html.j2").render(title=title, **values)
    target = output if output.suffix in (".html", ".htm") else output / PAGE_FILE
    write_atomically(target, html)
    return target


def collect_page(
    *,
    policies: Sequence[PolicyResult],
    verdict: Path | None,
    runs: Sequence[Path],
    dataset: Path | None,
    extras: ReportExtras,
) -> dict[str, Any]:
    """Everything known about a release -> what the template shows, by section."""
    _check_extras(policies, extras)
    decision = read_verdict(verdict)
    config = (decision or {}).get("config") or {}
    threshold = float(config.get("success_threshold", GateConfig().success_threshold))
    ood = [str(name) for name in config.get("ood_cohorts") or ()]
    evaluated = [read_policy(p, success_threshold=threshold, ood_cohorts=ood) for p in policies]
    training = view_dataset(dataset) if dataset else None
    credit = _read_tables(evaluated, extras.credit, read_credit)
    evidence = view_evidence(decision, extras.judges)
    signature = (
        check_signature(verdict, decision, extras.key_file) if verdict and decision else None
    )
    strata = build_strata(evaluated)
    values = {
        "banner": view_verdict(decision, signature=signature),
        "verdict": decision,
        "strangers": find_strangers(decision, policies),
        "tiles": strata[0] if strata else None,
        "forest": build_forest(decision) if decision else None,
        "strata": strata,
        "lag": training.lag if training else None,
        "seen_tasks": count_seen(evaluated, training),
        "variance": view_variance(
            evaluated, training.train if training else None, success_threshold=threshold
        ),
        "fail_tables": build_fail_tables(
            evaluated,
            _read_tables(evaluated, extras.scores, read_scores),
            fail_below=extras.fail_below,
            harmed=find_harmed(decision),
        ),
        "fail_below": extras.fail_below,
        "lengths": view_lengths(evaluated),
        "heatmaps": build_heatmaps(evaluated, credit),
        "examples": _choose_examples(policies, threshold, credit, extras.trace_link),
        "is_paired": {"baseline", "candidate"} <= {policy.role for policy in policies},
        "runs": [view_run(path) for path in runs],
        "training": training,
        "evidence": evidence,
        "gaps": list_gaps(
            verdict=decision,
            policies=evaluated,
            extras=extras,
            training=training,
            has_runs=bool(runs),
            evidence=evidence,
        ),
        "sources": collect_sources(
            verdict=decision, policies=policies, dataset=dataset, runs=runs, judges=evidence.judges
        ),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": installed_version(),
    }
    return values | {"sections": list_sections(values)}


def list_sections(values: Mapping[str, Any]) -> dict[str, str]:
    """Sections that there is something to show for, id -> heading."""
    needs = {
        "guardrails": ("forest",),
        "distribution": ("strata", "lag"),
        "variance": ("variance",),
        "cohorts": ("fail_tables",),
        "length": ("lengths",),
        "credit": ("heatmaps",),
        "pairs": ("is_paired",),
        "training": ("runs", "training"),
        "gaps": ("gaps",),
    }
    has_evidence = any(
        (values["evidence"].rivals, values["evidence"].ope, values["evidence"].judges)
    )
    return {
        key: heading
        for key, heading in SECTIONS.items()
        if (
            has_evidence
            if key == "evidence"
            else any(values[n] for n in needs.get(key, ("banner",)))
        )
    }


def count_seen(policies: Sequence[EvaluatedPolicy], training: DatasetView | None) -> int | None:
    """Evaluated tasks that were also trained on; None when that is not known."""
    if training is None or not policies:
        return None
    evaluated = {task for policy in policies for task in policy.tasks["task_id"]}
    return len(evaluated & training.train_tasks)


def _check_extras(policies: Sequence[PolicyResult], extras: ReportExtras) -> None:
    names = [policy.name for policy in policies]
    double = next((name for name in names if names.count(name) > 1), None)
    for option, given in (("scores", extras.scores), ("credit", extras.credit)):
        if stranger := next((name for name in given if name not in names), None):
            raise ConfigError(
                f"--{option} {stranger}=...: no policy has this name; there are {', '.join(names)}."
            )
        if given and double:
            raise ConfigError(f"--{option}: two policies are named {double!r}; rename one.")
    if not isfinite(extras.fail_below):
        raise ConfigError(f"--fail-below {extras.fail_below}: must be a number.")
    if extras.trace_link is not None:
        check_trace_link(extras.trace_link)


def _read_tables(
    policies: Sequence[EvaluatedPolicy], paths: Mapping[str, Path], read: Any
) -> dict[str, pl.DataFrame]:
    return {p.name: read(paths[p.name], p) for p in policies if p.name in paths}


def _choose_examples(
    policies: Sequence[PolicyResult],
    threshold: float,
    credit: Mapping[str, pl.DataFrame],
    trace_link: str | None,
) -> list[Example]:
    by_role = {policy.role: policy for policy in reversed(policies)}
    if "baseline" not in by_role or "candidate" not in by_role:
        return []
    return choose_examples(
        by_role["baseline"],
        by_role["candidate"],
        success_threshold=threshold,
        credit=credit,
        trace_link=trace_link,
    )
