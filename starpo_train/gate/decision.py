"""Two evaluated policies -> may the candidate ship?

PROMOTE needs every metric to be shown no worse than its margin (an intersection-union test, so no
multiplicity penalty); BLOCK needs one metric shown worse than its margin, or one cohort shown
harmed; anything else is INCONCLUSIVE, with the number of tasks that would decide. "The mean is at
least the baseline's" promotes a policy five points worse one time in five; this does not.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

from starpo_trace.schema import MANIFEST_FILE
from starpo_train import stats
from starpo_train.dataset import read_manifest, scan_table
from starpo_train.errors import ConfigError, DataError
from starpo_train.gate.comparing import (
    compare_cohorts,
    compare_evidence,
    compare_metrics,
    split_strata,
)
from starpo_train.gate.margins import GateConfig, read_gate_config
from starpo_train.gate.pairing import (
    NEEDED_COLUMNS,
    PairedTasks,
    find_obstacles,
    list_notes,
    pair_tasks,
)
from starpo_train.gate.verdict import (
    METRIC_TITLES,
    STRATUM_TITLES,
    CohortResult,
    Comparison,
    EvidenceResult,
    GateDecision,
    Verdict,
    format_p_value,
)
from starpo_train.tomlfile import to_json_dict

__all__ = [
    "GateConfig",
    "GateDecision",
    "Verdict",
    "decide_release",
    "read_gate_config",
    "run_gate",
]

VERDICT_FILE = "verdict.json"
VERDICT_SCHEMA_VERSION = "1"


def decide_release(
    candidate: pl.DataFrame,
    baseline: pl.DataFrame,
    *,
    config: GateConfig,
    evidence: Mapping[str, pl.DataFrame] | None = None,
) -> GateDecision:
    """Rows of the `trajectories` table of both policies -> decision. Pure.

    Tasks are paired by `task_id`; attempts at a task are averaged first. In- and
    out-of-distribution tasks are judged apart. `evidence` is compared with the candidate beside
    the verdict and never changes it.

    Raises:
        DataError: a column is missing, no task is shared, or a task has two cohorts.
    """
    paired = pair_tasks(candidate, baseline, success_threshold=config.success_threshold)
    strata = split_strata(paired, config=config)
    comparisons = [
        comparison
        for stratum, part in strata.items()
        for comparison in compare_metrics(part, stratum=stratum, config=config)
    ]
    if list(strata) == ["ood"]:  # nothing else decides, so these must
        comparisons = [_let_decide(comparison) for comparison in comparisons]
    cohorts = compare_cohorts(paired, config=config)
    obstacles = find_obstacles(candidate, baseline)
    verdict, reasons = _judge_release(comparisons, cohorts, obstacles)
    needed = _largest_needed(comparisons) if verdict is Verdict.INCONCLUSIVE else None
    p_value, superiority = _test_superiority(next(iter(strata.values())), config=config)
    return GateDecision(
        verdict=verdict,
        sentence=_summarize(verdict, comparisons, cohorts, obstacles),
        reasons=tuple(reasons),
        tasks_needed=needed,
        comparisons=tuple(comparisons),
        improved=p_value is not None and p_value <= config.alpha,
        superiority_p_value=p_value,
        superiority=superiority,
        cohorts=tuple(cohorts),
        evidence=tuple(_weigh_evidence(candidate, evidence or {}, config=config)),
        notes=tuple(list_notes(candidate, baseline, paired)),
        accounting={
            "tasks_paired": len(paired.task_ids),
            "tasks_only_candidate": len(paired.only_candidate),
            "tasks_only_baseline": len(paired.only_baseline),
            "only_candidate": list(paired.only_candidate[:20]),
            "only_baseline": list(paired.only_baseline[:20]),
            "trajectories_without_task": paired.num_without_task,
            "trajectories_candidate": paired.candidate.num_trajectories,
            "trajectories_baseline": paired.baseline.num_trajectories,
            "rewards_missing_candidate": paired.candidate.num_missing_rewards,
            "rewards_missing_baseline": paired.baseline.num_missing_rewards,
            "tasks_by_stratum": {name: len(part.task_ids) for name, part in strata.items()},
        },
    )


def run_gate(
    *,
    baseline: Path,
    candidate: Path,
    evidence: Mapping[str, Path],
    config: GateConfig,
    output: Path,
) -> GateDecision:
    """Dataset folders -> decision, written to `verdict.json`.

    `output` is a folder, or a file name ending in `.json`; it is written in one piece. The file
    holds the decision, the configuration and the digest of every dataset that was read.

    Raises:
        ConfigError: `output` cannot be written.
        DataError: a dataset is missing or unreadable, both are the same one, or the two cannot be
            compared.
    """
    target = _check_output(output)
    _refuse_same_dataset(baseline, candidate)
    decision = decide_release(
        _read_rows(candidate),
        _read_rows(baseline),
        config=config,
        evidence={name: _read_rows(path) for name, path in evidence.items()},
    )
    sources = {"baseline": baseline, "candidate": candidate}
    record = {
        "schema_version": VERDICT_SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "starpo_version": installed_version(),
        **decision.to_dict(),
        "config": to_json_dict(config),
        "inputs": {role: identify_dataset(path) for role, path in sources.items()}
        | {"evidence": {name: identify_dataset(path) for name, path in evidence.items()}},
    }
    write_atomically(target, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return decision


def identify_dataset(path: Path) -> dict[str, Any]:
    """Dataset folder -> what pins it: path, its digest, its manifest's hash, table versions."""
    manifest = read_manifest(path)
    data = (path / MANIFEST_FILE).read_bytes()
    return {
        "path": str(path),
        "digest": manifest.digest,
        "manifest_blake2b": blake2b(data, digest_size=16).hexdigest(),
        "table_versions": manifest.versions,
    }


def installed_version() -> str:
    """Version of the installed distribution; "unknown" in a bare source tree."""
    try:
        return version("starpo")
    except PackageNotFoundError:
        return "unknown"


def write_atomically(path: Path, text: str) -> None:
    """Text -> file, whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _check_output(output: Path) -> Path:
    """The file the verdict goes to; refused before anything is computed when it cannot."""
    is_file = output.suffix == ".json"
    target = output if is_file else output / VERDICT_FILE
    folder = target.parent
    blocking = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    if blocking.exists() and not blocking.is_dir():
        raise ConfigError(
            f"--output {output}: {blocking} is a file; give a folder, or a name ending in .json."
        )
    if target.is_dir():
        raise ConfigError(f"--output {output}: {target} is a folder; give another output.")
    return target


def _refuse_same_dataset(baseline: Path, candidate: Path) -> None:
    """A policy against itself is never worse: such a PROMOTE would say nothing."""
    digests = [read_manifest(path).digest for path in (baseline, candidate)]
    same_content = digests[0] == digests[1] != ""
    if same_content or baseline.resolve() == candidate.resolve():
        raise DataError(
            f"baseline {baseline} and candidate {candidate} are the same dataset (digest "
            f"{digests[0] or 'unknown'}); give the evaluations of two policies."
        )


def _read_rows(path: Path) -> pl.DataFrame:
    rows = scan_table(path, "trajectories").select(NEEDED_COLUMNS).collect()
    if rows.is_empty():
        raise DataError(f"{path}: the dataset holds no trajectory; evaluate the policy first")
    return rows


def _judge_release(
    comparisons: Sequence[Comparison], cohorts: Sequence[CohortResult], obstacles: Sequence[str]
) -> tuple[Verdict, list[str]]:
    """The rule of the module docstring, with its reasons."""
    failed = [c.describe() for c in comparisons if c.outcome == "fail"]
    failed += [
        f"Cohort {c.cohort}: success fell by {-100 * (c.change or 0):.1f} points, more than the "
        f"cohort margin (Holm-adjusted {format_p_value(c.p_value_harm or 0.0)})."
        for c in cohorts
        if c.harmed
    ]
    unclear = [c.describe() for c in comparisons if c.decides and c.outcome == "unclear"]
    passed = [c.describe() for c in comparisons if c.decides and c.outcome == "pass"]
    if obstacles:
        return Verdict.INCONCLUSIVE, [*obstacles, *failed, *unclear, *passed]
    if failed:
        return Verdict.BLOCK, [*failed, *unclear, *passed]
    if unclear:
        return Verdict.INCONCLUSIVE, [*unclear, *passed]
    return Verdict.PROMOTE, passed


def _summarize(
    verdict: Verdict,
    comparisons: Sequence[Comparison],
    cohorts: Sequence[CohortResult],
    obstacles: Sequence[str],
) -> str:
    """The verdict in one sentence, two when it takes more tasks."""
    success = comparisons[0]
    if verdict is Verdict.PROMOTE:
        rates = [_format_rate(rate) for rate in (success.candidate, success.baseline)]
        return (
            f"The candidate may ship: success is {rates[0]} against {rates[1]}, and every metric "
            "is shown to stay within its margin."
        )
    if verdict is Verdict.BLOCK:
        return f"The candidate must not ship: {_list_faults(comparisons, cohorts)}."
    if obstacles:
        return f"The data does not decide. {obstacles[0]}"
    unclear = [c for c in comparisons if c.decides and c.outcome == "unclear"]
    widest = max(unclear, key=lambda c: c.tasks_needed or 0)
    more = ""
    if widest.tasks_needed:
        where = f" {STRATUM_TITLES.get(widest.stratum, '')}".rstrip()
        more = f" About {widest.tasks_needed:,} paired tasks{where} would decide."
    return f"The data does not show that the candidate stays within margin on {_list_titles(unclear)}.{more}"


def _list_faults(comparisons: Sequence[Comparison], cohorts: Sequence[CohortResult]) -> str:
    """The first fault in full, the others by name."""
    failed = [c for c in comparisons if c.outcome == "fail"]
    harmed = [f"cohort {c.cohort}" for c in cohorts if c.harmed]
    if not failed:
        return f"success fell beyond the cohort margin in {', '.join(harmed)}"
    first = failed[0]
    others = [_list_titles(failed[1:]), *harmed]
    listed = ", ".join(other for other in others if other)
    return (
        f"{first.title.lower()} changed by {first.format_change(first.change)}, beyond the margin "
        f"of {first.format_change(first.signed_margin)}"
        + (f"; also beyond theirs: {listed}" if listed else "")
    )


def _list_titles(comparisons: Sequence[Comparison]) -> str:
    """Comparisons -> "success, tokens per trace; out of distribution: success"."""
    parts = []
    for stratum in dict.fromkeys(c.stratum for c in comparisons):
        metrics = [METRIC_TITLES[c.metric].lower() for c in comparisons if c.stratum == stratum]
        where = STRATUM_TITLES.get(stratum, stratum)
        parts.append(f"{', '.join(metrics)}{' ' * bool(where)}{where}")
    return "; ".join(parts)


def _largest_needed(comparisons: Sequence[Comparison]) -> int | None:
    unclear = [c for c in comparisons if c.decides and c.outcome == "unclear"]
    return max((c.tasks_needed for c in unclear if c.tasks_needed), default=None)


def _format_rate(rate: float | None) -> str:
    return "unknown" if rate is None else f"{100 * rate:.1f}%"


def _let_decide(comparison: Comparison) -> Comparison:
    return replace(comparison, decides=comparison.margin is not None)


def _test_superiority(paired: PairedTasks, *, config: GateConfig) -> tuple[float | None, str]:
    """P-value of "success did not rise", missing rewards at their worst, and what it says."""
    cand, base = paired.candidate, paired.baseline
    worst_T = cand.success_low_T - base.success_high_T
    if cand.num_missing_rewards == cand.num_trajectories:
        return None, "Improvement cannot be judged: the candidate has no rewards."
    p_value = stats.p_value_below(-worst_T, 0.0)
    if p_value <= config.alpha:
        return p_value, f"Success improved over the baseline (one-sided {format_p_value(p_value)})."
    return p_value, f"An improvement of success is not shown (one-sided {format_p_value(p_value)})."


def _weigh_evidence(
    candidate: pl.DataFrame, evidence: Mapping[str, pl.DataFrame], *, config: GateConfig
) -> list[EvidenceResult]:
    results = []
    for name, rows in evidence.items():
        try:
            paired = pair_tasks(candidate, rows, success_threshold=config.success_threshold)
        except DataError as error:  # evidence is beside the verdict: it must not stop it
            results.append(
                EvidenceResult(
                    name=name,
                    num_tasks=0,
                    candidate=None,
                    other=None,
                    change=None,
                    low=None,
                    high=None,
                    statement=f"not comparable with {name}: {error}",
                )
            )
        else:
            results.append(compare_evidence(paired, name=name, config=config))
    return results
