"""What a writer made of a dataset: which trajectories to take, and what became of each."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starpo_trace.convert.verdict import NOT_EVEN_SFT
from starpo_trace.convert.writers.stream import Row, TrajectoryRows

Advance = Callable[[int], None]
"""Called with the number of trajectories that are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which trajectories are written."""

    split: str | None = None
    """Only `train`, `validation` or `test`."""
    min_reward: float | None = None
    """Only those with at least this reward."""
    needs_content: bool = True
    """Leave out those that there is nothing to learn from, or that the recipe excluded."""

    def find_refusal(self, row: Row) -> str | None:
        """Row of `trajectories` -> why it is left out, if it is."""
        if self.split is not None and row["split"] != self.split:
            return "other_split"
        if self.needs_content and row["usable_for"] == "none":
            return next((each for each in row["reasons"] if each in NOT_EVEN_SFT), "not_usable")
        if self.needs_content and row["excluded_because"]:
            return "excluded"
        if self.min_reward is not None and row["reward"] is None:
            return "no_reward"
        if self.min_reward is not None and row["reward"] < self.min_reward:
            return "below_min_reward"
        return None


EVERYTHING: Final = Selection(needs_content=False)
"""All trajectories, whatever they are good for."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts while a file is written."""

    num_written: int = 0
    """Entries of the file."""
    num_trajectories: int = 0
    """Trajectories that gave at least one."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> trajectories that gave none."""
    losses: Counter[str] = field(default_factory=Counter)
    """What of trajectories that were written has no place in the form -> how many have it."""

    def report(self, unit: str, output: Path) -> "WriteReport":
        """The counts, the most frequent reasons first."""
        return WriteReport(
            output=output,
            unit=unit,
            num_written=self.num_written,
            num_trajectories=self.num_trajectories,
            left_out=_order(self.left_out),
            losses=_order(self.losses),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What became of a dataset's trajectories."""

    output: Path
    """The file."""
    unit: str
    """What its entries are: `conversations`, `pairs` ..."""
    num_written: int
    """Entries written."""
    num_trajectories: int
    """Trajectories that gave at least one."""
    left_out: Mapping[str, int]
    """Reason -> trajectories that gave none; the most frequent first, then by name."""
    losses: Mapping[str, int]
    """What the form could not hold of written trajectories -> how many trajectories have it."""

    def describe(self) -> Iterator[str]:
        """The report in lines."""
        yield (
            f"{self.output}: {self.num_written} {self.unit} of {self.num_trajectories} trajectories"
        )
        for reason, count in self.left_out.items():
            yield f"  left out: {count} trajectories, {reason}"
        for loss, count in self.losses.items():
            yield f"  not kept: {loss}, in {count} trajectories"


def select_trajectories(
    trajectories: Iterator[TrajectoryRows],
    selection: Selection,
    tally: Tally,
    advance: Advance | None = None,
) -> Iterator[TrajectoryRows]:
    """Trajectories -> the selected ones; the others are counted by reason."""
    for num_done, each in enumerate(trajectories, start=1):
        reason = selection.find_refusal(each.row)
        if reason is None:
            yield each
        else:
            tally.left_out[reason] += 1
        if advance is not None:
            advance(num_done)


def _order(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
