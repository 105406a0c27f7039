"""Cells -> success on unseen tasks, differences with intervals, and what they say of `auto`.

Seeds are what is drawn: each has its own model, log and tasks. An interval is Student's t over the
seeds' differences, so it holds the noise of training, of the log and of the tasks.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from learn.cells import BEHAVIOUR, RESULT_FILE, Cell
from learn.conditions import DATA_OF
from learn.methods import METHODS

SAME_DATA = {"closed": "exact"}
"""TRL's trainers read neither ids nor log-probabilities: their data are the same in both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds, 95 %."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def estimate(values: Sequence[float]) -> Interval:
    """Seeds' values -> their mean; unbounded for a single seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=-math.inf, high=math.inf)
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def find_cell(environment: str, condition: str, method: str, seed: int) -> Cell:
    """The training behind a place in the table."""
    data = DATA_OF.get(condition, condition)
    if method == BEHAVIOUR:
        data = "exact"
    elif METHODS[method].trl is not None:
        data = SAME_DATA.get(data, data)
    return Cell(environment=environment, data=data, method=method, seed=seed)


def read_success(root: Path, cell: Cell, condition: str) -> float | str:
    """Share of successes on the condition's unseen tasks, or `refused` or `failed`."""
    result = json.loads((root / cell.place / RESULT_FILE).read_text())
    for word in ("refused", "failed"):
        if word in result:
            return word
    return result["shifted" if condition == "shift" else "test"]


def read_place(
    root: Path, environment: str, condition: str, seeds: Sequence[int]
) -> dict[str, list[float | str]]:
    """Method -> what each seed came to, of the methods that every seed has."""
    found: dict[str, list[float | str]] = {}
    for method in (BEHAVIOUR, *METHODS):
        cells = [find_cell(environment, condition, method, seed) for seed in seeds]
        if all((root / cell.place / RESULT_FILE).exists() for cell in cells):
            found[method] = [read_success(root, cell, condition) for cell in cells]
    return found


def build_rows(
    root: Path, environments: Iterable[str], conditions: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """One row for each environment, condition and method."""
    rows = []
    for environment in environments:
        for condition in conditions:
            found = read_place(root, environment, condition, seeds)
            rows += compare_methods(environment, condition, found)
    return rows


def compare_methods(
    environment: str, condition: str, found: Mapping[str, Sequence[float | str]]
) -> list[dict[str, Any]]:
    """Methods' success by seed -> rows with differences to the recorded policy and filtered BC."""
    rows = []
    for method, values in found.items():
        row: dict[str, Any] = {"environment": environment, "condition": condition, "method": method}
        words = [value for value in values if isinstance(value, str)]
        if words:
            rows.append(row | {"result": words[0], "in_seeds": len(words)})
            continue
        row["success"] = describe(estimate([float(v) for v in values]))
        for other in (BEHAVIOUR, "filtered_bc"):
            if method != other and not any(isinstance(v, str) for v in found.get(other, ("",))):
                row[f"over_{other}"] = describe(compare(values, found[other]))
        rows.append(row)
    return rows


def compare(values: Sequence[float | str], others: Sequence[float | str]) -> Interval:
    """Difference by seed."""
    return estimate([float(a) - float(b) for a, b in zip(values, others, strict=True)])


def describe(interval: Interval) -> dict[str, float | None]:
    finite = math.isfinite(interval.low)
    return {
        "mean": round(interval.mean, 4),
        "low": round(interval.low, 4) if finite else None,
        "high": round(interval.high, 4) if finite else None,
    }


def judge_auto(
    root: Path, environments: Iterable[str], conditions: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """For each environment and condition: `auto` beside the best single method and the others."""
    found = []
    for environment in environments:
        for condition in conditions:
            values = read_place(root, environment, condition, seeds)
            numbers = {
                name: [float(v) for v in each]
                for name, each in values.items()
                if not any(isinstance(v, str) for v in each)
            }
            singles = {
                name: statistics.fmean(each)
                for name, each in numbers.items()
                if name not in (BEHAVIOUR, "auto")
            }
            if "auto" not in numbers or not singles:
                continue
            best = max(singles, key=lambda name: singles[name])
            against = {
                name: compare(numbers["auto"], numbers[name])
                for name in (best, "filtered_bc", BEHAVIOUR)
                if name in numbers
            }
            found.append(
                {
                    "environment": environment,
                    "condition": condition,
                    "auto": round(statistics.fmean(numbers["auto"]), 4),
                    "best": best,
                    "over_best": describe(against[best]),
                    "as_good_as_best": against[best].high >= 0,
                    "over_filtered_bc": describe(against["filtered_bc"]),
                    "better_than_filtered_bc": against["filtered_bc"].low > 0,
                    "over_behaviour": describe(against[BEHAVIOUR]),
                    "worse_than_behaviour": against[BEHAVIOUR].high < 0,
                }
            )
    return found
