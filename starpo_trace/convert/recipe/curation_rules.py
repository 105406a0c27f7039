"""What a recipe says of groups, splits, age, repeats, quotas and outliers, as records."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from starpo_trace.convert.recipe.limits import check_finite, check_similarity, check_time
from starpo_trace.errors import ConfigError

Split = Literal["train", "validation", "test"]
QuotaKey = Literal["source", "cohort", "task", "policy", "environment", "group"]
Seen = Literal["tools", "environment", "cohort", "agent"]

_SIMILARITY: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRules:
    """`[groups]`: which trajectories are attempts at the same thing."""

    lone: Literal["none", "signature", "cluster"] = "none"
    """How trajectories whose task is not repeated are grouped: not at all; by equal first user
    message (words with digits masked) and tools; or by similar first user message."""
    similarity: float = _SIMILARITY
    """For `cluster`: least Jaccard similarity of two first messages' three-word runs."""

    def __post_init__(self) -> None:
        """Refuse a similarity that means nothing."""
        check_similarity("similarity", self.similarity)
        if self.similarity != _SIMILARITY and self.lone != "cluster":
            raise ConfigError('similarity: says nothing without lone = "cluster"')


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRules:
    """`[splits]`: what is held out. A task or group is never in two splits."""

    test: float = 0.0
    """Share of the groups, by hash of their id, that form `test`."""
    validation: float = 0.0
    """Share of the groups, by hash, that form `validation`."""
    test_after: datetime | None = None
    """Groups first seen at this time or later are `test`."""
    validation_after: datetime | None = None
    """Groups first seen at this time or later, and before `test_after`, are `validation`."""
    straddling: Literal["train", "test", "exclude"] = "train"
    """A group with trajectories before and after a cutoff: goes to the earlier side, to the
    later one, or is left out."""
    seed: int = 0
    """Another seed holds out other groups."""

    def __post_init__(self) -> None:
        """Refuse shares beyond 1 and cutoffs in the wrong order."""
        if not (0.0 <= self.test <= 1.0 and 0.0 <= self.validation <= 1.0):
            raise ConfigError(f"test = {self.test}, validation = {self.validation}: must be 0 to 1")
        if self.test + self.validation > 1.0:
            raise ConfigError(f"test + validation = {self.test + self.validation:g}: at most 1")
        for name in ("test", "validation"):
            cutoff = getattr(self, f"{name}_after")
            check_time(f"{name}_after", cutoff)
            if cutoff is not None and getattr(self, name):
                raise ConfigError(f"{name} and {name}_after both say what {name} is; give one")
        has_cutoff = self.test_after is not None or self.validation_after is not None
        if self.straddling != "train" and not has_cutoff:
            raise ConfigError("straddling: says nothing without test_after or validation_after")
        if self.test_after and self.validation_after and self.test_after <= self.validation_after:
            raise ConfigError("validation_after must be before test_after")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionRules:
    """`[distribution]`: what counts as out of distribution."""

    ood_cohorts: tuple[str, ...] = ()
    ood_environments: tuple[str, ...] = ()
    """Names of environments."""
    ood_tools: tuple[str, ...] = ()
    """Names of tools: one of them offered or called is enough."""
    ood_task_prefixes: tuple[str, ...] = ()
    """Beginnings of task ids."""
    unseen: tuple[Seen, ...] = ()
    """Out of distribution too: what never occurs in the trajectories kept for `train`."""
    hold_out: bool = True
    """Groups with a declared out-of-distribution trajectory are `test`, whatever `[splits]` says."""

    @property
    def is_declared(self) -> bool:
        """Whether anything is said about distributions."""
        lists = (self.ood_cohorts, self.ood_environments, self.ood_tools, self.ood_task_prefixes)
        return any(lists) or bool(self.unseen)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessRules:
    """`[freshness]`: how old data may be."""

    policies: tuple[str, ...] = ()
    """Policy ids from the oldest to the newest."""
    current_policy: str | None = None
    """The policy that lag is counted from; default the last of `policies`."""
    max_policy_lag: int | None = None
    """Most policies that may lie between."""
    environment_versions: tuple[str, ...] = ()
    """Versions that count, `version` or `name@version`; empty: all."""
    max_age_days: float | None = None
    as_of: datetime | None = None
    """When ages are counted from; default when the newest trajectory began."""
    unknown: Literal["exclude", "keep"] = "exclude"
    """Trajectories that do not say what is asked for here."""

    def __post_init__(self) -> None:
        """Refuse a lag that nothing says how to count."""
        check_time("as_of", self.as_of)
        if len(set(self.policies)) < len(self.policies):
            raise ConfigError("policies: an id is there twice")
        current = self.current_policy
        if current is not None and self.policies and current not in self.policies:
            raise ConfigError(f"current_policy = {current!r} is none of policies")
        if self.max_policy_lag is not None:
            if self.max_policy_lag < 0:
                raise ConfigError(f"max_policy_lag = {self.max_policy_lag}: must be 0 or more")
            if current is None and not self.policies:
                raise ConfigError("max_policy_lag needs policies = [oldest, ..., newest]")
        if self.max_age_days is not None and not 0 < self.max_age_days < math.inf:
            raise ConfigError(f"max_age_days = {self.max_age_days}: must be more than 0")
        if self.as_of is not None and self.max_age_days is None:
            raise ConfigError("as_of: says nothing without max_age_days")


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateRules:
    """`[duplicates]`: which repeats are left out."""

    exact: bool = False
    """Same observations and same actions, word for word; ids of calls do not count."""
    near: float | None = None
    """Least Jaccard similarity of the three-word runs of two whole trajectories."""
    keep: Literal["first", "latest", "best"] = "first"
    """Which one stays: the earliest, the latest, or the one of highest reward."""

    def __post_init__(self) -> None:
        """Refuse a similarity that means nothing."""
        if self.near is not None:
            check_similarity("near", self.near)
        elif self.keep != "first" and not self.exact:
            raise ConfigError("keep: says nothing without exact = true or near = 0.N")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRule:
    """`[quotas.NAME]`: most trajectories that may share a value."""

    by: QuotaKey
    max: int | None = None
    """Most trajectories per value."""
    max_share: float | None = None
    """Greatest share of what is left that one value may have."""
    splits: tuple[Split, ...] = ("train",)
    """Splits it applies to, each by itself."""
    seed: int = 0
    """Another seed leaves out other trajectories."""

    def __post_init__(self) -> None:
        """Refuse a quota without a limit."""
        if (self.max is None) == (self.max_share is None):
            raise ConfigError("give either max = N or max_share = 0.N")
        if self.max is not None and self.max < 1:
            raise ConfigError(f"max = {self.max}: must be 1 or more")
        if self.max_share is not None and not 0.0 < self.max_share < 1.0:
            raise ConfigError(f"max_share = {self.max_share}: must be between 0 and 1")
        if not self.splits:
            raise ConfigError("splits = []: name one at least")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierRule:
    """`[outliers.NAME]`: a number per trajectory, and what is too far out."""

    expr: Any
    """SQL expression over the columns of a trajectory, or a Polars expression."""
    min: float | None = None
    max: float | None = None
    robust_z: float | None = None
    """Greatest distance from the median, in standard deviations estimated from the median
    absolute deviation."""
    iqr: float | None = None
    """Greatest distance from the quartiles, in interquartile ranges."""

    def __post_init__(self) -> None:
        """Refuse a rule without a limit."""
        limits = (self.min, self.max, self.robust_z, self.iqr)
        if all(limit is None for limit in limits):
            raise ConfigError("give min, max, robust_z or iqr")
        for limit in limits:
            if limit is not None:
                check_finite("limit", limit)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"min = {self.min}, max = {self.max}: nothing is between them")
        if any(scale is not None and scale <= 0 for scale in (self.robust_z, self.iqr)):
            raise ConfigError("robust_z and iqr must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludeRule:
    """`[exclude.NAME]`: trajectories left out because a condition holds."""

    where: Any
    """SQL condition over the columns of a trajectory, or a Polars expression."""
