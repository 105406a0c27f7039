"""Recipe: every table of a recipe file as a record. Each refuses what no build could use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from starpo_trace.convert.recipe.curation_rules import (
    DistributionRules,
    DuplicateRules,
    ExcludeRule,
    FreshnessRules,
    GroupRules,
    OutlierRule,
    QuotaRule,
    SplitRules,
)
from starpo_trace.convert.recipe.reward_rules import RewardRule, ShapingRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How trajectories become a data set to train on; an empty one changes nothing."""

    rewards: Mapping[str, RewardRule] = field(default_factory=dict)
    shaping: Mapping[str, ShapingRule] = field(default_factory=dict)
    groups: GroupRules = field(default_factory=GroupRules)
    splits: SplitRules = field(default_factory=SplitRules)
    distribution: DistributionRules = field(default_factory=DistributionRules)
    freshness: FreshnessRules = field(default_factory=FreshnessRules)
    duplicates: DuplicateRules = field(default_factory=DuplicateRules)
    quotas: Mapping[str, QuotaRule] = field(default_factory=dict)
    outliers: Mapping[str, OutlierRule] = field(default_factory=dict)
    exclude: Mapping[str, ExcludeRule] = field(default_factory=dict)

    @property
    def needs_task_sketch(self) -> bool:
        """Whether first user messages are compared."""
        return self.groups.lone == "cluster"

    @property
    def needs_content_sketch(self) -> bool:
        """Whether whole trajectories are compared."""
        return self.duplicates.near is not None


NO_RECIPE: Final = Recipe()
