"""`[rewards.NAME]` and `[shaping.NAME]` of a recipe as records."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from starpo_trace.convert.recipe.limits import check_finite
from starpo_trace.errors import ConfigError

Source = Literal["environment", "user", "rule", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRule:
    """`[rewards.NAME]`: how the rewards of this name count."""

    weight: float = 1.0
    """Factor in the weighted sum."""
    range: tuple[float, float] | None = None
    """Least and greatest value; a reward outside of it counts for nothing and says so."""
    direction: Literal["higher", "lower"] | None = None
    """Which is better, default higher. A value of which lower is better counts negated."""
    scope: Literal["trajectory", "turn"] = "trajectory"
    """Which recorded rewards: those of whole trajectories, or those of turns and steps."""
    into: Literal["trajectory", "turn"] | None = None
    """Whose reward they make, default that of their scope. A trajectory's makes no turn's."""
    several: Literal["latest", "mean", "sum", "min", "max"] | None = None
    """Which value counts where a trajectory has several: default the latest, of turns the sum."""
    missing: Literal["missing", "skip"] | float = "missing"
    """Where a trajectory has none: its total is missing, the others make the total alone, or
    this value stands for it (before range and direction are applied)."""
    normalise: bool = False
    """Map `range` to 0..1, 1 being best."""
    trust: tuple[Source, ...] | None = None
    """Sources that count for this name; default those of the build."""
    recorded_by: tuple[str, ...] = ()
    """Instrumentation scopes, `*` for any characters, whose rewards of this name count although
    starpo_trace did not record them. Whoever writes spans can name any scope."""
    signed: bool | None = None
    """Whether only signed ones count; default as in the build."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        check_finite("weight", self.weight)
        if self.range is not None:
            low, high = self.range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"range = [{low}, {high}]: must be [least, greatest]")
        if self.normalise and self.range is None:
            raise ConfigError("normalise = true needs range = [least, greatest]")
        if self.into == "turn" and self.scope == "trajectory":
            raise ConfigError('into = "turn": only rewards with scope = "turn" belong to a turn')
        if self.counts_into == "turn":
            self._check_turn()
        if not isinstance(self.missing, str):
            self._check_missing(self.missing)
        if self.trust is not None and not self.trust:
            raise ConfigError("trust = []: nothing would count; name a source, or leave it out")
        if self.recorded_by:
            stated = {"trust": self.trust, "range": self.range, "direction": self.direction}
            if lacking := [name for name, value in stated.items() if value is None]:
                raise ConfigError(
                    f"recorded_by: others' scores have no source, range or direction that is "
                    f"known; state {', '.join(lacking)} too"
                )

    def _check_turn(self) -> None:
        if self.several is not None:
            raise ConfigError('several: a turn\'s rewards are summed; use into = "trajectory"')
        if self.missing != "missing":
            raise ConfigError('missing: a turn without a reward has none; use into = "trajectory"')

    def _check_missing(self, value: float) -> None:
        check_finite("missing", value)
        if self.range is not None and not self.range[0] <= value <= self.range[1]:
            raise ConfigError(f"missing = {value}: is outside of range {list(self.range)}")

    @property
    def counts_into(self) -> str:
        """Whose reward these make: `trajectory` or `turn`."""
        return self.into or self.scope


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingRule:
    """`[shaping.NAME]`: a reward for every turn, computed from its columns."""

    expr: Any = None
    """SQL expression over the columns of a turn, or a Polars expression."""
    potential: Any = None
    """phi(s): SQL or Polars expression over what is known before the turn acts. The turn gets
    gamma * phi(next turn) - phi(turn), with 0 after the last one."""
    gamma: float = 1.0
    """Discount of the potential; the trainer's discount per turn keeps the optimal policy."""
    weight: float = 1.0
    """Factor in the turn's sum."""
    missing: Literal["missing"] | float = "missing"
    """What a null counts: the turn's shaping is missing, or this value."""

    def __post_init__(self) -> None:
        """Refuse both forms at once, and neither."""
        if (self.expr is None) == (self.potential is None):
            raise ConfigError('give either expr = "..." or potential = "..."')
        check_finite("weight", self.weight)
        if not 0.0 <= self.gamma <= 1.0:
            raise ConfigError(f"gamma = {self.gamma}: must be between 0 and 1")
        if self.expr is not None and self.gamma != 1.0:
            raise ConfigError("gamma: belongs to potential, not to expr")
        if not isinstance(self.missing, str):
            check_finite("missing", self.missing)
