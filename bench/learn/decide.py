"""Candidates and the truth about them -> how often the gate was right, and OPE's ranking.

The gate sees half of a candidate's unseen tasks, the truth is measured on the other half. A candidate
is truly better or worse when the 95 % interval of its paired difference there leaves out 0.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr
from scipy.stats import t as student_t

from learn.cells import BEHAVIOUR, Cell
from starpo_train.gate.decision import decide_release
from starpo_train.gate.margins import GateConfig

CONFIG = GateConfig(guardrails=(), bootstrap_resamples=200)
"""The default margin of three points on success, which alone is compared with the truth here."""


def read_halves(root: Path, cell: Cell, split: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Runs of a policy -> those that the gate sees, and those that tell the truth."""
    runs = pl.read_parquet(root / cell.place / f"{split}.parquet").with_columns(
        policy_id=pl.lit(cell.method),
        environment_name=pl.lit(cell.environment),
        environment_version=pl.lit("1"),
    )
    tasks = runs["task_id"].unique().sort().to_list()
    seen = set(tasks[::2])
    return runs.filter(pl.col("task_id").is_in(seen)), runs.filter(~pl.col("task_id").is_in(seen))


def measure_difference(
    candidate: pl.DataFrame, baseline: pl.DataFrame
) -> tuple[float, float, float]:
    """Paired difference of success by task: mean, and its 95 % interval."""
    by_task = [
        frame.group_by("task_id").agg(rate=(pl.col("reward") >= 0.5).mean()).sort("task_id")
        for frame in (candidate, baseline)
    ]
    differences = (by_task[0]["rate"] - by_task[1]["rate"]).to_numpy()
    mean = float(differences.mean())
    half = float(student_t.ppf(0.975, len(differences) - 1)) * float(differences.std(ddof=1))
    half /= float(np.sqrt(len(differences)))
    return mean, mean - half, mean + half


def judge(root: Path, cell: Cell) -> list[dict[str, Any]]:
    """A candidate -> of each kind of unseen tasks: the truth, and what the gate says."""
    judged = []
    for split in cell.splits:
        base = Cell(environment=cell.environment, data="exact", method=BEHAVIOUR, seed=cell.seed)
        seen, truth = read_halves(root, cell, split)
        base_seen, base_truth = read_halves(root, base, split)
        mean, low, high = measure_difference(truth, base_truth)
        judged.append(
            {
                "split": split,
                "truth": round(mean, 4),
                "truly": "better" if low > 0 else "worse" if high < 0 else "unclear",
                "verdict": decide_release(seen, base_seen, config=CONFIG).verdict.value,
            }
        )
    return judged


def summarize(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Verdicts by truth, and the shares that are aimed at."""
    judged = [each for record in records for each in record.get("judged", ())]
    counts = Counter((each["truly"], each["verdict"]) for each in judged)
    worse = sum(n for (truly, _), n in counts.items() if truly == "worse")
    better = sum(n for (truly, _), n in counts.items() if truly == "better")
    decided = sum(
        n
        for (truly, verdict), n in counts.items()
        if truly != "unclear" and verdict != "INCONCLUSIVE"
    )
    return {
        "candidates": len(judged),
        "verdicts": {f"{truly}: {verdict}": n for (truly, verdict), n in sorted(counts.items())},
        "promoted_of_worse": counts["worse", "PROMOTE"] / worse if worse else None,
        "blocked_of_better": counts["better", "BLOCK"] / better if better else None,
        "decided_of_different": decided / (worse + better) if worse + better else None,
        "inconclusive": sum(n for (_, v), n in counts.items() if v == "INCONCLUSIVE")
        / max(1, len(judged)),
    }


def rank_ope(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of what off-policy evaluation expects with the truth, where it answers.

    Within an environment and seed, then the mean over those of three candidates and more: that some
    environments are harder than others is no merit of the estimate.
    """
    verdicts: Counter[str] = Counter()
    pairs: dict[str, dict[tuple[str, int], list[tuple[float, float]]]] = {
        "answered": {},
        "all with an estimate": {},
    }
    for record in records:
        told = record.get("ope")
        if told is None or "failed" in told:
            continue
        verdicts[told["verdict"]] += 1
        if told["value"] is None:
            continue
        truth = next(each["truth"] for each in record["judged"] if each["split"] == "test")
        place = record["environment"], record["seed"]
        pair = told["value"] - told["behaviour"], truth
        pairs["all with an estimate"].setdefault(place, []).append(pair)
        if told["verdict"] != "inconclusive":
            pairs["answered"].setdefault(place, []).append(pair)
    return {"verdicts": dict(verdicts)} | {name: _correlate(found) for name, found in pairs.items()}


def _correlate(found: Mapping[tuple[str, int], list[tuple[float, float]]]) -> dict[str, Any]:
    groups = [pairs for pairs in found.values() if len(pairs) >= 3]
    values = [float(spearmanr(*zip(*pairs, strict=True)).statistic) for pairs in groups]
    known = [value for value in values if math.isfinite(value)]
    return {
        "candidates": sum(map(len, found.values())),
        "groups": len(known),
        "spearman": round(statistics.fmean(known), 3) if known else None,
    }
