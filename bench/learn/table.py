"""Records -> success on unseen tasks, differences with intervals, and what they say of `auto`.

Seeds are what is drawn: each has its own model, log and tasks, and an interval holds the noise of
training, of the log and of the tasks. A difference is paired by seed; how much it varies is pooled over
the environment's conditions, so Student's t has that many times four degrees of freedom.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

from learn.cells import BEHAVIOUR, Cell
from learn.conditions import DATA_OF
from learn.methods import METHODS
from learn.records import Record

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


def compare(
    values: Sequence[float | str], others: Sequence[float | str], family: Iterable[Sequence[float]]
) -> Interval:
    """Mean difference by seed; `family`: the same two methods' differences in every condition.

    >>> compare([0.5, 0.6], [0.4, 0.4], [[0.1, 0.2], [0.0, 0.1]]).high < 0.4
    True
    """
    differences = [float(a) - float(b) for a, b in zip(values, others, strict=True)]
    mean = statistics.fmean(differences)
    known = [each for each in family if len(each) > 1]
    freedom = sum(len(each) - 1 for each in known)
    if not freedom:
        return Interval(mean=mean, low=-math.inf, high=math.inf)
    pooled = math.sqrt(sum(statistics.variance(d) * (len(d) - 1) for d in known) / freedom)
    half = float(student_t.ppf(0.975, freedom)) * pooled / math.sqrt(len(differences))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def find_cell(environment: str, condition: str, method: str, seed: int) -> Cell:
    """The training behind a place in the table."""
    data = DATA_OF.get(condition, condition)
    if method == BEHAVIOUR:
        data = "exact"
    elif METHODS[method].trl is not None:
        data = SAME_DATA.get(data, data)
    return Cell(environment=environment, data=data, method=method, seed=seed)


def is_run(condition: str, method: str) -> bool:
    """TRL's trainers, the slowest, are run on one kind of data, which is two conditions, and its shift."""
    return method == BEHAVIOUR or METHODS[method].trl is None or condition not in ("single", "late")


def read_success(record: Record, condition: str) -> float | str:
    """Share of successes on the condition's unseen tasks, or `refused` or `failed`."""
    for word in ("refused", "failed"):
        if word in record:
            return word
    return record["shifted" if condition == "shift" else "test"]


class Place:
    """One environment: method -> success by seed, in every condition, of the methods every seed has."""

    def __init__(
        self,
        records: Mapping[tuple[str, str, str, int], Record],
        environment: str,
        conditions: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        self.environment = environment
        self.found: dict[str, dict[str, list[float | str]]] = {}
        for condition in conditions:
            found = self.found[condition] = {}
            for method in (BEHAVIOUR, *METHODS):
                cells = [find_cell(environment, condition, method, seed) for seed in seeds]
                keys = [(cell.environment, cell.data, cell.method, cell.seed) for cell in cells]
                if is_run(condition, method) and all(key in records for key in keys):
                    found[method] = [read_success(records[key], condition) for key in keys]

    def has_numbers(self, condition: str, method: str) -> bool:
        """Whether the method ran in every seed."""
        values = self.found[condition].get(method, ("",))
        return not any(isinstance(value, str) for value in values)

    def compare(self, condition: str, method: str, other: str) -> Interval:
        """`method` over `other`."""
        family = [
            [float(a) - float(b) for a, b in zip(found[method], found[other], strict=True)]
            for each, found in self.found.items()
            if self.has_numbers(each, method) and self.has_numbers(each, other)
        ]
        found = self.found[condition]
        return compare(found[method], found[other], family)

    def list_rows(self) -> list[dict[str, Any]]:
        """One row for each condition and method, compared with the recorded policy and filtered BC."""
        rows = []
        for condition, found in self.found.items():
            for method, values in found.items():
                row: dict[str, Any] = {
                    "environment": self.environment,
                    "condition": condition,
                    "method": method,
                }
                words = [value for value in values if isinstance(value, str)]
                if words:
                    rows.append(row | {"result": words[0], "in_seeds": len(words)})
                    continue
                row["success"] = describe(estimate([float(v) for v in values]))
                row["by_seed"] = values
                for other in (BEHAVIOUR, "filtered_bc"):
                    if method != other and self.has_numbers(condition, other):
                        row[f"over_{other}"] = describe(self.compare(condition, method, other))
                rows.append(row)
        return rows

    def judge_auto(self) -> list[dict[str, Any]]:
        """For each condition: `auto` beside the best single method, filtered BC and the recorded policy."""
        judged = []
        for condition, found in self.found.items():
            means = {
                method: statistics.fmean(float(v) for v in values)
                for method, values in found.items()
                if self.has_numbers(condition, method)
            }
            singles = [method for method in means if method not in (BEHAVIOUR, "auto")]
            if "auto" not in means or "filtered_bc" not in means:
                continue
            best = max(singles, key=lambda method: means[method])
            over_best, over_bc, over_behaviour = (
                self.compare(condition, "auto", other) for other in (best, "filtered_bc", BEHAVIOUR)
            )
            judged.append(
                {
                    "environment": self.environment,
                    "condition": condition,
                    "auto": round(means["auto"], 4),
                    "best": best,
                    "over_best": describe(over_best),
                    "as_good_as_best": over_best.high >= 0,
                    "over_filtered_bc": describe(over_bc),
                    "better_than_filtered_bc": over_bc.low > 0,
                    "over_behaviour": describe(over_behaviour),
                    "worse_than_behaviour": over_behaviour.high < 0,
                }
            )
        return judged


def describe(interval: Interval) -> dict[str, float | None]:
    """As JSON; an end that is not known is null."""
    finite = math.isfinite(interval.low)
    return {
        "mean": round(interval.mean, 4),
        "low": round(interval.low, 4) if finite else None,
        "high": round(interval.high, 4) if finite else None,
    }
