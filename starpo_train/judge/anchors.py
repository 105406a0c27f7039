"""Frozen items with expected scores, judged anew each run -> does the judge still judge as it did?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from starpo_train.errors import ConfigError
from starpo_train.judge.judge import Judge
from starpo_train.judge.records import JudgeItem, JudgeScore

DRIFT_TOLERANCE = 0.1
"""Mean distance to the expected scores, relative to the rubric's range, that is still the same judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """An item, and what the judge should say of it."""

    item: JudgeItem
    expected: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorResult:
    """One anchor, judged again."""

    item_id: str
    expected: float
    score: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorReport:
    """Whether a run's judgements mean what they meant."""

    is_stable: bool
    """False: the run's verdict is INCONCLUSIVE."""
    reason: str
    tolerance: float
    """Mean distance allowed, in the unit of the scores."""
    mean_distance: float | None
    """Mean of |score - expected|; None: an anchor has no score."""
    mean_change: float | None
    """Mean of score - expected: the direction of the drift."""
    results: tuple[AnchorResult, ...]

    @property
    def worst(self) -> AnchorResult | None:
        """The anchor furthest from what was expected."""
        scored = [result for result in self.results if result.score is not None]
        return max(scored, key=lambda r: abs((r.score or 0.0) - r.expected), default=None)


def check_anchors(
    judge: Judge, anchors: Sequence[Anchor], *, tolerance: float = DRIFT_TOLERANCE
) -> AnchorReport:
    """Judge every anchor again, past the cache, and compare with what is expected.

    Args:
        judge: whom to check.
        anchors: the frozen set.
        tolerance: mean distance allowed, as a share of the rubric's range.

    Raises:
        ConfigError: no anchors, or one whose expected score is outside of the rubric's range.
        JudgeError: the endpoint takes no request at all.
    """
    if not anchors:
        raise ConfigError("no anchors: give some items with expected scores.")
    rubric = judge.rubric
    for anchor in anchors:
        if not rubric.low <= anchor.expected <= rubric.high:
            raise ConfigError(
                f"anchor {anchor.item.item_id!r}: expected = {anchor.expected:g}: "
                f"{rubric.name} scores from {rubric.low:g} to {rubric.high:g}."
            )
    scores: dict[str, JudgeScore] = {}
    for item, score in judge.score_all([anchor.item for anchor in anchors], is_fresh=True):
        scores[item.item_id] = score
    allowed = tolerance * (rubric.high - rubric.low)
    return compare_anchors(anchors, scores, allowed=allowed)


def compare_anchors(
    anchors: Sequence[Anchor], scores: dict[str, JudgeScore], *, allowed: float
) -> AnchorReport:
    """Anchors and what was said of them -> the report; an anchor without a score is no agreement."""
    results = tuple(
        AnchorResult(
            item_id=anchor.item.item_id,
            expected=anchor.expected,
            score=scores[anchor.item.item_id].score,
            reason=scores[anchor.item.item_id].reason,
        )
        for anchor in anchors
    )
    changes = [result.score - result.expected for result in results if result.score is not None]
    num_null = len(results) - len(changes)
    mean_distance = mean_change = None
    if num_null:
        first = next(result for result in results if result.score is None)
        reason = (
            f"{num_null} of {len(results)} anchors have no score ({first.item_id}: {first.reason})"
        )
        is_stable = False
    else:
        mean_distance = sum(map(abs, changes)) / len(changes)
        mean_change = sum(changes) / len(changes)
        is_stable = mean_distance <= allowed + 1e-12
        reason = (
            f"{len(results)} anchors are {mean_distance:.3f} from what is expected on average "
            f"({mean_change:+.3f}); {allowed:.3f} is allowed"
        )
    return AnchorReport(
        is_stable=is_stable,
        reason=reason,
        tolerance=allowed,
        mean_distance=mean_distance,
        mean_change=mean_change,
        results=results,
    )


def read_anchors(path: Path, *, expected_sha256: str | None = None) -> list[Anchor]:
    """JSON Lines file, `{"id", "parts", "expected"}` each -> anchors.

    Raises:
        ConfigError: it cannot be read, is another file than the one frozen, or a line is unusable.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"anchors.file = {str(path)!r}: {error.strerror}.") from None
    digest = sha256(content).hexdigest()
    if expected_sha256 is not None and digest != expected_sha256.removeprefix("sha256:"):
        raise ConfigError(
            f"anchors.file = {str(path)!r}: has SHA-256 {digest}, not that of anchors.sha256; "
            "anchors stay as they were frozen."
        )
    anchors: list[Anchor] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            anchors.append(_read_anchor(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'{path}:{number}: no anchor ({error!r}); write {{"id", "parts", "expected"}}.'
            ) from None
    ids = [anchor.item.item_id for anchor in anchors]
    repeated = next((each for each in ids if ids.count(each) > 1), None)
    if repeated is not None:
        raise ConfigError(f"{path}: two anchors have the id {repeated!r}.")
    return anchors


def _read_anchor(values: dict[str, Any]) -> Anchor:
    expected, parts = values["expected"], values["parts"]
    if isinstance(expected, bool) or not isfinite(float(expected)) or not isinstance(parts, dict):
        raise ValueError("expected must be a number, parts an object")
    return Anchor(item=JudgeItem(item_id=str(values["id"]), parts=parts), expected=float(expected))
