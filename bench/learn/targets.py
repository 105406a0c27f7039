"""Figures -> what was aimed at, and whether it was reached."""

from collections.abc import Mapping, Sequence
from typing import Any


def list_quick_targets(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a run of two seeds can decide: that everything ran, and that `auto` did no harm."""
    worse = sum(row["worse_than_behaviour"] for row in figures["auto"])
    failed = sum(row.get("result") == "failed" for row in figures["rows"])
    return [
        _at_most("auto worse than the recorded policy, cells", worse, 0),
        _at_most("trainings that failed", failed, 0),
        _at_least("places where auto ran", len(figures["auto"]), 4),
    ]


def list_targets(figures: Mapping[str, Any], *, unseen: Sequence[str]) -> list[dict[str, Any]]:
    """`auto`'s targets, on all environments and on those that nothing was chosen on; the gate's."""
    targets = []
    everything = figures["auto"]
    for title, rows in (
        ("all", everything),
        ("unseen", [row for row in everything if row["environment"] in unseen]),
    ):
        if not rows:
            continue
        for name, key, least in (
            ("auto as good as the best method, share of cells", "as_good_as_best", 0.8),
            ("auto better than filtered BC, share of cells", "better_than_filtered_bc", 0.6),
        ):
            share = sum(row[key] for row in rows) / len(rows)
            targets.append(_at_least(f"{name}, {title}", share, least))
        worse = sum(row["worse_than_behaviour"] for row in rows)
        targets.append(_at_most(f"auto worse than the recorded policy, cells, {title}", worse, 0))
    gate = figures["gate"]
    for name, key in (
        ("truly worse candidates promoted", "promoted_of_worse"),
        ("truly better candidates blocked", "blocked_of_better"),
    ):
        if gate[key] is not None:
            targets.append(_at_most(name, gate[key], 0.05))
    if gate["decided_of_different"] is not None:
        name = "truly different candidates decided"
        targets.append(_at_least(name, gate["decided_of_different"], 0.5))
    widest = [
        (row[key]["high"] - row[key]["low"]) / 2
        for row in figures["rows"]
        for key in ("over_behaviour", "over_filtered_bc")
        if row.get(key) and row[key]["low"] is not None
    ]
    if widest:
        share = sum(width <= 0.05 for width in widest) / len(widest)
        targets.append(_at_least("intervals within 5 points, share", share, 1.0))
    return targets


def _at_least(name: str, value: float, target: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "target": target, "met": value >= target}


def _at_most(name: str, value: float, target: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "target": target, "met": value <= target}
