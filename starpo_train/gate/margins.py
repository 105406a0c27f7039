"""TOML gate file -> GateConfig: what must be shown before a candidate ships, and how surely."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starpo_train.errors import ConfigError
from starpo_train.tomlfile import read_config

GUARDRAILS = ("tokens_per_trace", "steps_p95")

_OF_TASKS = (lambda x: 0 < x < 1, "above 0 and below 1: 0.03 is three points")
_OF_COST = (
    lambda x: 0 < x <= 1,
    "above 0, 1 at most: 0.15 is 15 %, and what may more than double is left out of gate.guardrails",
)
_MUST: dict[str, tuple[Callable[[float], bool], str]] = {
    "alpha": (lambda x: 0 < x < 0.5, "a probability below 0.5"),
    "power": (lambda x: 0 < x < 1, "a probability"),
    "margin_success": _OF_TASKS,
    "margin_success_ood": _OF_TASKS,
    "margin_cohort": _OF_TASKS,
    "margin_tokens": _OF_COST,
    "margin_steps_p95": _OF_COST,
    "min_tasks": (lambda x: x >= 2, "at least 2"),
    "min_cohort_tasks": (lambda x: x > 0, "greater than 0"),
    "max_unmeasured_fraction": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "bootstrap_resamples": (
        lambda x: x >= 200,
        "at least 200: the ends of a range are read off its tails",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What must be shown, and how surely. One `[gate]` table of a TOML file."""

    alpha: float = 0.05
    """Chance of promoting a candidate that sits exactly at a margin."""
    power: float = 0.80
    """Chance of deciding that `tasks_needed` is computed for."""
    success_threshold: float = 0.5
    """A reward at or above this is a success."""
    margin_success: float = 0.03
    """Largest acceptable drop of the success rate: 0.03 is three points."""
    margin_success_ood: float = 0.03
    """The same on out-of-distribution tasks."""
    margin_tokens: float = 0.15
    """Largest acceptable rise of the tokens per trace, relative to the baseline's."""
    margin_steps_p95: float = 0.15
    """Largest acceptable rise of the 95th percentile of steps, relative to the baseline's."""
    margin_cohort: float = 0.10
    """A cohort shown to lose more success than this blocks."""
    guardrails: tuple[str, ...] = GUARDRAILS
    """Metrics beside success that must hold: tokens_per_trace, steps_p95."""
    min_tasks: int = 30
    """Fewer paired tasks in a deciding stratum decide nothing."""
    min_cohort_tasks: int = 10
    """Smaller cohorts are shown but not tested."""
    ood_cohorts: tuple[str, ...] = ()
    """Cohorts that are out of distribution, besides those whose name starts with "ood"."""
    ood_decides: Literal["both", "block"] = "both"
    """both: out-of-distribution tasks must pass too; block: they can only block."""
    max_unmeasured_fraction: float = 0.05
    """Largest share of tasks without token or step counts; missing rewards are bounded instead."""
    looks: Literal["once", "sequential"] = "once"
    """once: bounds for a single look; sequential: bounds that hold however often one looks."""
    bootstrap_resamples: int = 10_000
    """Resamples behind the bounds on percentiles."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        """Refuse values that no gate could use."""
        for name, (is_fine, must) in _MUST.items():
            if not is_fine(getattr(self, name)):
                raise ConfigError(f"gate.{name} = {getattr(self, name)}: must be {must}.")
        for name in self.guardrails:
            if name not in GUARDRAILS:
                raise ConfigError(f"gate.guardrails: {name!r} is none of {', '.join(GUARDRAILS)}.")

    @property
    def confidence(self) -> float:
        """Of a two-sided interval whose ends are one-sided bounds at `alpha`."""
        return 1 - 2 * self.alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFile:
    """A gate file: one `[gate]` table."""

    gate: GateConfig = field(default_factory=GateConfig)
    """What must be shown, and how surely."""


def read_gate_config(path: Path) -> GateConfig:
    """TOML file with a `[gate]` table -> GateConfig; what it leaves out keeps its default.

    Raises:
        ConfigError: no such file, no TOML, an unknown key (the nearest known one is named), or a
            value of the wrong type or range.
    """
    return read_config(path, GateFile, kind="gate file").gate
