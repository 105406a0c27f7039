"""What a judge's run found -> the verdict, why it may not count, and summary.json."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from starpo_train.dataset import Manifest
from starpo_train.guards.judges import names_snapshot
from starpo_train.judge.anchors import AnchorReport
from starpo_train.judge.canaries import CanaryReport
from starpo_train.judge.judge import Judge
from starpo_train.judge.records import JudgeItem, JudgeScore
from starpo_train.judge.settings import JudgeConfig
from starpo_train.judge.store import Budget
from starpo_train.tomlfile import to_json_dict

UNFINISHED: Final = ("outage", "budget", "stopped")
"""Statuses that another start may turn into scores."""

Judged = list[tuple[JudgeItem, JudgeScore]]


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a run has found so far."""

    num_items: int
    """What there is to judge, judged or not."""
    judged: Judged = field(default_factory=list)
    anchors: AnchorReport | None = None
    canaries: CanaryReport | None = None
    is_interrupted: bool = False


def summarize_judge(
    judge: Judge, config: JudgeConfig, manifest: Manifest, found: Findings
) -> dict[str, Any]:
    """Everything that summary.json holds."""
    scores = [score for _, score in found.judged]
    numbers = [score.score for score in scores if score.score is not None]
    spent = judge.read_spent()
    reasons = list_doubts(config, found.anchors, found.canaries, scores, num_items=found.num_items)
    return {
        "verdict": "INCONCLUSIVE" if reasons else "VALID",
        "reasons": reasons,
        "notes": _list_notes(config, judge, scores),
        "rubric": judge.rubric.name,
        "judge_id": judge.pin.judge_id,
        "judge_prompt_hash": judge.pin.prompt_hash,
        "pin": asdict(judge.pin) | {"digest": judge.pin.digest},
        "num_items": found.num_items,
        "num_judged": len(scores),
        "num_scored": len(numbers),
        "num_cached": sum(score.is_cached for score in scores),
        "score_mean": sum(numbers) / len(numbers) if numbers else None,
        "scores": {f"{n:g}": count for n, count in sorted(Counter(numbers).items())},
        "statuses": dict(sorted(Counter(score.status for score in scores).items())),
        "num_neutralised": sum(score.num_neutralised for score in scores),
        "anchors": _describe_anchors(config, found.anchors),
        "canaries": None if found.canaries is None else found.canaries.describe(),
        "cost": {
            "calls": spent.calls,
            "input_tokens": spent.input_tokens,
            "output_tokens": spent.output_tokens,
            "cost": _find_cost(judge.budget, spent.input_tokens, spent.output_tokens),
            "calls_without_usage": spent.unsettled,
            "failed_requests_of_this_start": judge.num_failures,
        },
        "answer_formats": _count(score.answer_format for score in scores),
        "fingerprints": _count(score.fingerprint for score in scores),
        "dataset": {"path": str(config.judge.dataset), "digest": manifest.digest},
        "endpoint": _describe_url(config.judge.base_url),
        "config": _hide_url(to_json_dict(config)),
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "is_interrupted": found.is_interrupted,
    }


def list_doubts(
    config: JudgeConfig,
    anchors: AnchorReport | None,
    canaries: CanaryReport | None,
    scores: Sequence[JudgeScore],
    *,
    num_items: int,
) -> list[str]:
    """Why a run's scores cannot be relied on; empty: the verdict is VALID."""
    doubts = []
    if anchors is None:
        doubts.append("no anchors were judged, so drift cannot be seen; give anchors.file")
    elif not anchors.is_stable:
        doubts.append(f"the anchors did not hold: {anchors.reason}")
    unfinished = Counter(score.status for score in scores if score.status in UNFINISHED)
    num_left = num_items - len(scores) + unfinished.total()
    if num_left:
        why = next((s.reason for s in scores if s.status in ("outage", "budget")), "stopped")
        doubts.append(f"{num_left} of {num_items} items are not judged yet ({why})")
    num_others = sum(score.status == "other_model" for score in scores)
    if num_others:
        why = next(s.reason for s in scores if s.status == "other_model")
        doubts.append(f"{num_others} items were {why}")
    if scores and not num_left and not any(score.score is not None for score in scores):
        doubts.append(f"no item has a score; the first: {scores[0].reason}")
    if canaries is not None:
        doubts += _list_canary_doubts(config, canaries)
    elif config.canaries.items and scores and not num_left:
        doubts.append("no canaries were judged, so what injections do cannot be seen")
    return doubts


def _list_canary_doubts(config: JudgeConfig, canaries: CanaryReport) -> list[str]:
    limit = config.canaries.max_flip_rate
    if not canaries.is_complete:
        return ["not all canaries are judged yet"]
    if canaries.flip_rate is None and canaries.num_items:
        return ["no canary has a score: injections make the judge say nothing"]
    if canaries.flip_rate is not None and canaries.flip_rate > limit:
        return [
            f"{len(canaries.flipped)} of {canaries.num_judged} injections moved the score as they "
            f"demanded ({canaries.flip_rate:.0%}); {limit:.0%} is allowed"
        ]
    return []


def _list_notes(config: JudgeConfig, judge: Judge, scores: Sequence[JudgeScore]) -> list[str]:
    notes = []
    if not names_snapshot(judge.pin.model):
        notes.append(
            f"{judge.pin.model} may be another model tomorrow: name a snapshot, or give "
            "judge.snapshot the digest of its weights"
        )
    if not config.canaries.items:
        notes.append("canaries.items = 0: nobody knows what injections do to this judge")
    if len({score.fingerprint for score in scores if score.fingerprint}) > 1:
        notes.append("the endpoint's system_fingerprint changed between answers")
    if config.judge.structured and any(score.answer_format == "text" for score in scores):
        notes.append("the endpoint does not know JSON schemas; answers were parsed strictly")
    return notes


def _describe_anchors(config: JudgeConfig, anchors: AnchorReport | None) -> dict[str, Any] | None:
    if anchors is None:
        return None
    worst = anchors.worst
    return asdict(anchors) | {
        "file": str(config.anchors.file),
        "worst": None if worst is None else asdict(worst),
    }


def _find_cost(budget: Budget, input_tokens: int, output_tokens: int) -> float | None:
    if not (budget.input_price or budget.output_price):
        return None
    return round(budget.price(input_tokens, output_tokens), 6)


def _count(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name is not None).items()))


def _describe_url(url: str | None) -> str | None:
    """Address without user, password and query."""
    if url is None:
        return None
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _hide_url(config: dict[str, Any]) -> dict[str, Any]:
    config["judge"]["base_url"] = _describe_url(config["judge"]["base_url"])
    return config
