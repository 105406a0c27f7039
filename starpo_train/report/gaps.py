"""What a page was not given -> a line each, with the command that would give it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starpo_train.report.evidence import EvidenceView
from starpo_train.report.inputs import ReportExtras
from starpo_train.report.policies import EvaluatedPolicy
from starpo_train.report.training import DatasetView


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that is not on the page."""

    what: str
    how: str
    """Commands are in backquotes."""


def list_gaps(
    *,
    verdict: dict[str, Any] | None,
    policies: Sequence[EvaluatedPolicy],
    extras: ReportExtras,
    training: DatasetView | None,
    has_runs: bool,
    evidence: EvidenceView,
) -> list[Gap]:
    """In the order of the page."""
    roles = {policy.role for policy in policies}
    gaps = []

    def add(is_absent: bool, what: str, how: str) -> None:  # noqa: FBT001
        if is_absent:
            gaps.append(Gap(what=what, how=how))

    add(
        verdict is None,
        "A verdict and its forest plot",
        "`starpo-train gate ...`, then `--verdict gate`",
    )
    for role in ("baseline", "candidate"):
        add(
            role not in roles,
            f"The {role}'s numbers",
            f"`starpo-train evaluate EVAL.toml`, then `--{role} NAME=DATASET`",
        )
    for policy in policies:
        named, at = policy.name, policy.dataset
        add(
            named not in extras.scores,
            f"Evaluators of {named}",
            f"`starpo-train score {at} -o scores.parquet`, then `--scores NAME=scores.parquet`",
        )
        add(
            named not in extras.credit,
            f"Credit of {named}",
            f"`starpo-train credit {at} -o credit.parquet`, then `--credit NAME=credit.parquet`",
        )
    add(not has_runs, "Training curves", "`--run RUN_DIR` of `starpo-train run`")
    add(
        training is None,
        "The training data: reward variance, policy lag, what was left out",
        "`--dataset DATASET`",
    )
    add(
        training is not None and training.lag is None,
        "Policy lag of the training data",
        "name the policies in order in the recipe of `starpo-trace export`: "
        '`[freshness] policies = ["oldest", ..., "newest"]`',
    )
    add(
        verdict is not None and not evidence.rivals,
        "The comparison with filtered behaviour cloning",
        "`starpo-train gate --evidence filtered_bc=DATASET`",
    )
    add(
        verdict is not None and evidence.ope is None,
        "Off-policy evaluation",
        "`starpo-train ope ... --json ope.json`, then `starpo-train gate --ope ope.json`",
    )
    add(
        not evidence.judges,
        "A judge's scores and pin",
        "`starpo-train judge ...`, then `--judge DIR`",
    )
    add(
        extras.trace_link is None and {"baseline", "candidate"} <= roles,
        "Links from runs to their traces",
        '`--trace-link "https://VIEWER/{trace_id}"`',
    )
    return gaps
