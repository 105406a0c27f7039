"""Recipe file -> what rewards count, how turns are shaped, and which trajectories are trained on."""

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
from starpo_trace.convert.recipe.reading import (
    build_recipe,
    check_recipe,
    describe_recipe,
    digest_partition_rules,
    read_recipe,
)
from starpo_trace.convert.recipe.reward_rules import RewardRule, ShapingRule
from starpo_trace.convert.recipe.sections import NO_RECIPE, Recipe

__all__ = [
    "NO_RECIPE",
    "DistributionRules",
    "DuplicateRules",
    "ExcludeRule",
    "FreshnessRules",
    "GroupRules",
    "OutlierRule",
    "QuotaRule",
    "Recipe",
    "RewardRule",
    "ShapingRule",
    "SplitRules",
    "build_recipe",
    "check_recipe",
    "describe_recipe",
    "digest_partition_rules",
    "read_recipe",
]
