"""Other policies and off-policy evaluation -> what is said beside the verdict, and never part of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from starpo_train.errors import DataError
from starpo_train.gate.comparing import compare_evidence
from starpo_train.gate.files import hash_file
from starpo_train.gate.margins import GateConfig
from starpo_train.gate.pairing import pair_tasks
from starpo_train.gate.verdict import EvidenceResult

_OUTCOMES = {
    "supported": "Off-policy evaluation supports the claim that the candidate earns more than what "
    "was recorded",
    "contradicted": "Off-policy evaluation contradicts the claim that the candidate earns more than "
    "what was recorded",
    "inconclusive": "Off-policy evaluation is inconclusive",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeEvidence:
    """What `starpo-train ope` found."""

    path: str
    sha256: str
    """Of the file."""
    outcome: str
    """supported | contradicted | inconclusive."""
    by: str | None
    """The estimator it rests on."""
    doubts: tuple[str, ...]
    """Why nothing is concluded."""
    behaviour: float | None
    """Mean of what was recorded."""
    estimates: tuple[dict[str, Any], ...]
    """Name, value, interval and reason of each estimator."""
    weights_sha256: str | None
    """Of the checkpoint that was asked about."""
    dataset_digest: str | None
    """Of the recorded data."""

    @property
    def statement(self) -> str:
        """The outcome in a sentence."""
        text = _OUTCOMES[self.outcome]
        main = next((e for e in self.estimates if e.get("name") == self.by), None)
        if self.outcome != "inconclusive" and main and main.get("interval"):
            low, high = main["interval"][:2]
            was = "" if self.behaviour is None else f", recorded {self.behaviour:.3g}"
            text += f" ({self.by} {main['value']:.3g}, interval {low:.3g} to {high:.3g}{was})"
        elif self.doubts:
            text += f": {'; '.join(self.doubts)}"
        return f"{text}. It never promotes by itself."


def read_ope(path: Path) -> OpeEvidence:
    """The file that `starpo-train ope --json` wrote -> OpeEvidence.

    Raises:
        DataError: no such file, or it is none of these.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        verdict = record["verdict"]
        if verdict["outcome"] not in _OUTCOMES:
            raise ValueError(f"outcome {verdict['outcome']!r}")  # noqa: TRY301
        evidence = OpeEvidence(
            path=str(path),
            sha256=hash_file(path),
            outcome=verdict["outcome"],
            by=verdict["by"],
            doubts=tuple(str(doubt["detail"]) for doubt in verdict["doubts"]),
            behaviour=record["behaviour"]["value"],
            estimates=tuple(record["estimates"]),
            weights_sha256=record["checkpoint"]["weights_sha256"],
            dataset_digest=record["dataset"]["digest"],
        )
        _ = evidence.statement  # every number in it is one
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `starpo-train ope` first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not an ope.json ({error!r}); run `starpo-train ope` again"
        ) from None
    return evidence


def weigh_evidence(
    candidate: pl.DataFrame, evidence: Mapping[str, pl.DataFrame], *, config: GateConfig
) -> list[EvidenceResult]:
    """The candidate against each other policy; one that cannot be compared says why."""
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
