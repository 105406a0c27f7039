"""Verdicts and rollbacks -> a record that only grows, and the rate of rollbacks.

One JSON object a line: a verdict of the gate, or that a release it promoted was taken back.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from starpo_train.errors import ConfigError, DataError
from starpo_train.gate.signing import identify_verdict
from starpo_train.stats import Estimate, estimate_success_rate

_EVENTS = {"PROMOTE": "promoted", "BLOCK": "blocked", "INCONCLUSIVE": "inconclusive"}
ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRate:
    """How often a promoted release was taken back."""

    num_promoted: int
    """Different candidates that were promoted."""
    num_rolled_back: int
    """Those of them that were taken back."""
    rate: Estimate | None
    """Their share, with a 95% interval; None before the first promotion."""

    def describe(self) -> str:
        """The rate as a sentence."""
        if self.rate is None:
            return "No release was promoted yet."
        return (
            f"{self.num_rolled_back} of {self.num_promoted} promoted releases rolled back: "
            f"{100 * self.rate.value:.1f}% (95% interval {100 * self.rate.low:.1f}% to "
            f"{100 * self.rate.high:.1f}%)."
        )


def describe_verdict(record: Mapping[str, Any], verdict_id: str, path: Path) -> dict[str, Any]:
    """Verdict -> its line in the record."""
    return {
        "event": _EVENTS[record["verdict"]],
        "created": record["created"],
        "verdict_id": verdict_id,
        "verdict": str(path),
        "release": _name_release(record),
        "candidate": record.get("evaluation", {}).get("candidate", {}).get("policy_id", []),
        "digest": record["inputs"]["candidate"]["digest"],
        "weights_sha256": _find_weights(record),
        "sentence": record["sentence"],
    }


def list_releases(path: Path) -> list[dict[str, Any]]:
    """The record's lines; none when there is no file yet.

    Raises:
        DataError: a line is no event; which one is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            _ = event["verdict_id"], event["release"]
            if event["event"] not in (*_EVENTS.values(), ROLLED_BACK):
                raise ValueError(event["event"])  # noqa: TRY301
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not a release event ({error!r}); repair or remove the line"
            ) from None
        events.append(event)
    return events


def append_release(path: Path, event: Mapping[str, Any]) -> None:
    """Add a line to the record, whole and on disk; several processes may do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(event, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # of an editor, or of a writer that was killed
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def roll_back(path: Path, verdict: Path, *, reason: str) -> RollbackRate:
    """Record that the release of a verdict was taken back; returns the rate with it.

    Raises:
        ConfigError: the reason is empty.
        DataError: not a verdict, one that the record does not hold as promoted, or one already
            taken back.
    """
    if not reason.strip():
        raise ConfigError("--reason is empty: say why the release was taken back.")
    try:
        record = json.loads(verdict.read_text(encoding="utf-8"))
        verdict_id, release = identify_verdict(record), _name_release(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{verdict}: not a verdict ({error!r})") from None
    events = list_releases(path)
    if not any(e["event"] == "promoted" and e["verdict_id"] == verdict_id for e in events):
        raise DataError(
            f"{path}: does not hold {verdict} as promoted; give the verdict.json that promoted the "
            "release, unchanged"
        )
    if any(e["event"] == ROLLED_BACK and e["release"] == release for e in events):
        raise DataError(f"{path}: {verdict} is recorded as rolled back already")
    event = {
        "event": ROLLED_BACK,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict_id": verdict_id,
        "verdict": str(verdict),
        "release": release,
        "reason": reason,
    }
    append_release(path, event)
    return measure_rollbacks([*events, event])


def measure_rollbacks(events: Sequence[Mapping[str, Any]]) -> RollbackRate:
    """Events -> share of the promoted releases that were taken back; a release counts once."""
    promoted = {event["release"] for event in events if event["event"] == "promoted"}
    taken_back = {event["release"] for event in events if event["event"] == ROLLED_BACK} & promoted
    rate = None
    if promoted:
        is_back = np.array([float(release in taken_back) for release in sorted(promoted)])
        rate = estimate_success_rate(is_back)
    return RollbackRate(num_promoted=len(promoted), num_rolled_back=len(taken_back), rate=rate)


def _name_release(record: Mapping[str, Any]) -> str:
    """What is the same for every verdict about one candidate: its weights, or its evaluation."""
    candidate = record["inputs"]["candidate"]
    return _find_weights(record) or str(candidate["digest"] or candidate["manifest_blake2b"])


def _find_weights(record: Mapping[str, Any]) -> str | None:
    checkpoints = record.get("also_seen", {}).get("checkpoints", {})
    return checkpoints.get("candidate", {}).get("weights_sha256")
