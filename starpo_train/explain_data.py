"""Dataset -> what may be trained on it and why, what is suspicious, and what `auto` would do."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from starpo_train.config import AlgorithmSection
from starpo_train.dataset import Manifest, Trajectory, has_split, read_manifest
from starpo_train.errors import DataError, ProvenanceError
from starpo_train.guards import GuardFinding, run_guards
from starpo_train.leftout import name_reason
from starpo_train.provenance import (
    Choice,
    DataFacts,
    Ruling,
    Terms,
    choose_algorithm,
    describe_data,
    judge_algorithms,
)
from starpo_train.targets import find_threshold
from starpo_train.truncation import leave_out_truncated

_STYLES = {"refuse": "bold red", "hold_back": "red", "warn": "yellow", "review": "cyan"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloningCounts:
    """What filtered BC would train on, by its reward threshold."""

    threshold: float | None
    """The middle of the range of rewards, unless the run file names another; None: no rewards."""
    num_kept: int
    left_out: dict[str, int]
    """Reason -> trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataExplanation:
    """Everything that can be said of a dataset before training on it."""

    manifest: Manifest
    split: str
    facts: DataFacts
    rulings: list[Ruling]
    findings: list[GuardFinding]
    choice: Choice | None
    """What `algorithm.name = "auto"` runs; None when it refuses."""
    refusal: str | None
    """Why it refuses."""
    num_cut: int
    """Failed trajectories that `auto` leaves out, as a limit cut them."""
    holds_back: bool
    """Whether there is a split `test`, which `good_runs_lost` and off-policy evaluation go by."""
    cloning: CloningCounts

    def describe(self) -> dict[str, Any]:
        """As JSON has it; a number that is none is null."""
        values = {
            "dataset": str(self.manifest.path),
            "digest": self.manifest.digest,
            "split": self.split,
            "facts": asdict(self.facts),
            "rulings": [asdict(ruling) for ruling in self.rulings],
            "guards": [finding.describe() for finding in self.findings],
            "auto": {
                "algorithm": self.choice.algorithm if self.choice else None,
                "reason": self.choice.reason if self.choice else self.refusal,
                "num_cut": self.num_cut,
            },
            "holds_back": self.holds_back,
            "filtered_bc": asdict(self.cloning),
        }
        return _drop_nan(values)


def explain_data(
    dataset: Path,
    trajectories: Sequence[Trajectory],
    *,
    split: str,
    policy_id: str | None = None,
    baseline_policy_id: str | None = None,
    now_ns: int | None = None,
) -> DataExplanation:
    """Trajectories of a dataset's split -> what they allow, and what `run_guards` finds.

    Raises:
        DataError: the dataset's tables are not those of its manifest, or a policy has no trajectory.
    """
    manifest = read_manifest(dataset)
    _require_policies(dataset, split, trajectories, policy_id, baseline_policy_id)
    facts = describe_data(trajectories)
    choice, refusal, num_cut = None, None, 0
    try:
        threshold = find_threshold(AlgorithmSection(), trajectories)
        kept = leave_out_truncated(trajectories, "drop_failed", threshold=threshold)
        num_cut = len(trajectories) - len(kept)
        choice = choose_algorithm("auto", describe_data(kept), Terms(good_from=threshold))
    except (ProvenanceError, DataError) as error:
        refusal = str(error)
    return DataExplanation(
        manifest=manifest,
        split=split,
        facts=facts,
        rulings=judge_algorithms(facts),
        findings=run_guards(
            trajectories,
            manifest,
            policy_id=policy_id,
            baseline_policy_id=baseline_policy_id,
            now_ns=now_ns,
        ),
        choice=choice,
        refusal=refusal,
        num_cut=num_cut,
        holds_back=has_split(dataset, "test"),
        cloning=count_cloned(trajectories),
    )


def _require_policies(
    dataset: Path, split: str, trajectories: Sequence[Trajectory], *policies: str | None
) -> None:
    known = sorted({t.policy_id for t in trajectories if t.policy_id is not None})
    for policy in policies:
        if policy is not None and policy not in known:
            raise DataError(
                f"{dataset} ({split}): no trajectory is of policy {policy!r}; there are "
                f"{', '.join(known) or 'none'}."
            )


def count_cloned(
    trajectories: Sequence[Trajectory], *, threshold: float | None = None
) -> CloningCounts:
    """Trajectories -> what filtered BC keeps at a threshold, by default the middle of the range.

    Rewards 0, 0, 1 and one without: threshold .5, one kept, two below it, one without a reward.
    """
    rewards = [t.reward for t in trajectories if t.reward is not None]
    if threshold is None and rewards:
        threshold = (min(rewards) + max(rewards)) / 2
    left_out: Counter[str] = Counter()
    for trajectory in trajectories:
        if trajectory.reward is None or threshold is None:
            left_out["no_reward"] += 1
        elif trajectory.usable_for == "none":
            left_out[name_reason(trajectory.reasons, trajectory.usable_for)] += 1
        elif trajectory.reward < threshold:
            left_out["below_threshold"] += 1
    return CloningCounts(
        threshold=threshold,
        num_kept=len(trajectories) - left_out.total(),
        left_out=dict(left_out.most_common()),
    )


def print_explanation(explanation: DataExplanation, *, console: Console | None = None) -> None:
    """Rulings, what filtered BC leaves out, guards, and the choice of `auto`, for people."""
    console = console or Console(highlight=False)
    console.print(_draw_rulings(explanation.rulings))
    cloning = explanation.cloning
    if cloning.threshold is not None:
        reasons = "".join(f", {count} {reason}" for reason, count in cloning.left_out.items())
        _print_line(
            console,
            f"filtered_bc at reward >= {cloning.threshold:g}: {cloning.num_kept} kept{reasons}",
        )
    if explanation.findings:
        console.print(_draw_findings(explanation.findings))
    else:
        _print_line(console, "guards: none of the checks of docs/guards.md fires")
    if explanation.choice is not None:
        choice = explanation.choice
        _print_line(console, f"auto: {choice.algorithm}; {choice.reason}")
    else:
        _print_line(console, f"auto: refused; {explanation.refusal}")
    if explanation.num_cut:
        count = f"{explanation.num_cut} of {explanation.facts.num_trajectories}"
        _print_line(
            console, f"auto leaves out {count} that failed as a limit cut them (data.truncated)"
        )
    if not explanation.holds_back:
        _print_line(
            console,
            "there is no split 'test': `good_runs_lost` and `starpo-train ope` have nothing to go by "
            "(`starpo-trace export --test-fraction 0.2`)",
        )


def write_explanation(path: Path, values: dict[str, Any]) -> None:
    """Write what was found as one JSON object."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _draw_rulings(rulings: Sequence[Ruling]) -> Table:
    table = Table("algorithm", "allowed?", "reason", box=box.SIMPLE_HEAD)
    for ruling in rulings:
        verdict = "[green]yes[/]" if ruling.legal else "[red]no[/]"
        table.add_row(ruling.algorithm, verdict, _escape(ruling.reason))
    return table


def _draw_findings(findings: Sequence[GuardFinding]) -> Table:
    table = Table("guard", "severity", "found, and what to do", box=box.SIMPLE_HEAD)
    for finding in findings:
        severity = f"[{_STYLES[finding.severity]}]{finding.severity}[/]"
        table.add_row(finding.name, severity, _escape(f"{finding.explanation}\n→ {finding.advice}"))
    return table


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _drop_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_drop_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
