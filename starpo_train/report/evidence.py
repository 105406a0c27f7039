"""Verdict, judges' summaries -> what stands beside the verdict and never promotes alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup

from starpo_train.errors import DataError
from starpo_train.report import svg


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The candidate against another policy."""

    name: str
    statement: str
    num_tasks: int
    candidate: float | None
    other: float | None
    low: float | None
    high: float | None
    picture: Markup | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeView:
    """Off-policy evaluation."""

    outcome: str
    css: str
    statement: str
    behaviour: float | None
    estimates: tuple[tuple[str, float | None, str, str], ...]
    """(estimator, value, its interval, why it says nothing)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeView:
    """One run of a judge."""

    rubric: str
    verdict: str
    css: str
    reasons: tuple[str, ...]
    score_mean: float | None
    num_scored: int
    num_items: int
    anchors: str
    judge_id: str
    pin: dict[str, Any]
    dataset_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceView:
    """Everything beside the verdict."""

    rivals: tuple[Rival, ...]
    reach: float
    """Ends of the rivals' axis, in points."""
    ope: OpeView | None
    judges: tuple[JudgeView, ...]


def view_evidence(verdict: dict[str, Any] | None, judges: Sequence[Path]) -> EvidenceView:
    """A verdict's record and the judges' output folders -> EvidenceView.

    Raises:
        DataError: a judge's summary cannot be read.
    """
    found = (verdict or {}).get("evidence", ())
    ends = [abs(x) for row in found for x in (row.get("low"), row.get("high")) if x is not None]
    reach = max([0.1, *(1.15 * end for end in ends)])
    ope = (verdict or {}).get("ope")
    return EvidenceView(
        rivals=tuple(_view_rival(row, reach) for row in found),
        reach=100 * reach,
        ope=None if not ope else view_ope(ope),
        judges=tuple(read_judge(path) for path in judges),
    )


def view_ope(record: dict[str, Any]) -> OpeView:
    """What the gate kept of `ope.json` -> OpeView."""
    outcome = str(record.get("outcome", "inconclusive"))
    estimates = []
    for row in record.get("estimates") or ():
        interval = row.get("interval") or ()
        numbers = [f"{x:.3g}" for x in interval[:2] if _is_number(x)]
        value = row.get("value")
        estimates.append(
            (
                str(row.get("name")),
                value if _is_number(value) else None,
                " to ".join(numbers) if len(numbers) == 2 else "",
                str(row.get("reason") or ""),
            )
        )
    behaviour = record.get("behaviour")
    return OpeView(
        outcome=outcome,
        css={"supported": "pass", "contradicted": "fail"}.get(outcome, "unclear"),
        statement=str(record["statement"]),
        behaviour=behaviour if _is_number(behaviour) else None,
        estimates=tuple(estimates),
    )


def read_judge(path: Path) -> JudgeView:
    """Output folder of `starpo-train judge`, or its summary.json -> JudgeView.

    Raises:
        DataError: it cannot be read.
    """
    file = path / "summary.json" if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        anchors = record["anchors"]
        said = "none given" if not anchors else "stable" if anchors["is_stable"] else "drifted"
        return JudgeView(
            rubric=str(record["rubric"]),
            verdict=str(record["verdict"]),
            css="pass" if record["verdict"] == "VALID" else "unclear",
            reasons=tuple(map(str, record["reasons"])),
            score_mean=None if record["score_mean"] is None else float(record["score_mean"]),
            num_scored=int(record["num_scored"]),
            num_items=int(record["num_items"]),
            anchors=said,
            judge_id=str(record["judge_id"]),
            pin=dict(record["pin"]),
            dataset_digest=str(record["dataset"]["digest"]),
        )
    except FileNotFoundError:
        raise DataError(f"{file}: no summary here; run `starpo-train judge` first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a judge's summary ({error!r}); run the judge again") from None


def _view_rival(row: dict[str, Any], reach: float) -> Rival:
    low, value, high = (row.get(key) for key in ("low", "change", "high"))
    return Rival(
        name=str(row["name"]),
        statement=str(row["statement"]),
        num_tasks=int(row.get("num_tasks") or 0),
        candidate=row.get("candidate"),
        other=row.get("other"),
        low=low,
        high=high,
        picture=None
        if value is None
        else svg.draw_difference(
            low=low, value=value, high=high, reach=reach, label=row["statement"]
        ),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
