"""Recipe files: every key, what is refused and how, and what the manifest keeps."""

import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.curation import curate_trajectories, summarise_curation
from starpo_trace.convert.recipe import (
    NO_RECIPE,
    GroupRules,
    QuotaRule,
    Recipe,
    RewardRule,
    ShapingRule,
    SplitRules,
    build_recipe,
    check_recipe,
    describe_recipe,
    digest_partition_rules,
    read_recipe,
)
from starpo_trace.errors import ConfigError
from starpo_trace.schema import TRAJECTORIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipe.md"


def read_text(folder, text) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(text)
    return read_recipe(file)


def read_example() -> str:
    """The complete recipe of the document."""
    (example,) = re.findall(r"```toml\n(# recipe\.toml.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return example


def test_an_empty_file_is_the_recipe_without_rules(tmp_path):
    """Nothing said changes nothing."""
    assert read_text(tmp_path, "") == NO_RECIPE


def test_tables_become_records(tmp_path):
    """Names, numbers, lists and times by hand."""
    recipe = read_text(
        tmp_path,
        """
        [rewards.quality]
        weight = 2
        range = [0, 5]
        normalise = true
        [shaping.errors]
        expr = "CASE WHEN has_error THEN -0.1 ELSE 0 END"
        [groups]
        lone = "signature"
        [splits]
        test_after = 2026-03-01T00:00:00Z
        [quotas.cohort]
        by = "cohort"
        max = 10
        """,
    )
    assert recipe == Recipe(
        rewards={"quality": RewardRule(weight=2.0, range=(0.0, 5.0), normalise=True)},
        shaping={"errors": ShapingRule(expr="CASE WHEN has_error THEN -0.1 ELSE 0 END")},
        groups=GroupRules(lone="signature"),
        splits=SplitRules(test_after=datetime(2026, 3, 1, tzinfo=UTC)),
        quotas={"cohort": QuotaRule(by="cohort", max=10)},
    )


def test_the_documents_example_is_a_recipe_with_every_table(tmp_path):
    """The complete example in docs/recipe.md reads, and leaves no table out."""
    recipe = read_text(tmp_path, read_example())
    empty = describe_recipe(NO_RECIPE)
    same = [name for name, table in describe_recipe(recipe).items() if table == empty[name]]
    assert same == []


def test_what_the_manifest_keeps_is_the_recipe(tmp_path):
    """The resolved recipe has every default and reads back equal."""
    recipe = read_text(tmp_path, read_example())
    described = describe_recipe(recipe)
    assert build_recipe(described) == recipe
    assert described["splits"]["seed"] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[reward.x]", r"unknown key \[reward\]; did you mean `rewards`\?"),
        ("[splits]\ntest_fraction = 0.1", r"unknown key splits.test_fraction; did you mean `test"),
        ("[rewards.x]\nwieght = 1", r"unknown key rewards.x.wieght; did you mean `weight`\?"),
        ("rewards = 3", r"rewards = 3: must be a table"),
        ("[rewards]\nx = 3", r"rewards.x = 3: must be a table, \[rewards.x\]"),
        ('[rewards.x]\nweight = "1"', r"rewards.x: weight: Expected `float`, got `str`"),
        ("[rewards.x]\nweight = nan", r"rewards.x: weight = nan: must be a finite number"),
        ("[rewards.x]\nrange = [1, 0]", r"rewards.x: range = \[1.0, 0.0\]: must be \[least"),
        ("[rewards.x]\nnormalise = true", r"normalise = true needs range"),
        ('[rewards.x]\nmissing = "zero"', r"missing: Invalid enum value 'zero'"),
        ("[rewards.x]\nrange = [0, 1]\nmissing = 2", r"missing = 2.0: is outside of range"),
        ('[rewards.x]\ninto = "turn"', r'into = "turn": only rewards with scope = "turn"'),
        ('[rewards.x]\nscope = "turn"\nseveral = "sum"', r"several: a turn's rewards are summed"),
        ('[rewards.x]\nscope = "turn"\nmissing = 0', r"missing: a turn without a reward has none"),
        ('[rewards.x]\nrecorded_by = ["*"]', r"state trust, range, direction too"),
        ('[rewards.x]\ntrust = ["agent"]', r"trust\[0\]: Invalid enum value 'agent'"),
        ("[shaping.x]", r"shaping.x: give either expr"),
        ('[shaping.x]\npotential = "turn"\ngamma = 2', r"gamma = 2.0: must be between 0 and 1"),
        ('[shaping.x]\nexpr = "trun"', r"shaping.x.expr: unknown column trun; .* `turn`\?"),
        ('[shaping.x]\npotential = "trajectory_reward"', r"unknown column trajectory_reward"),
        ("[shaping.x]\nexpr = 3", r"shaping.x.expr = 3: must be an expression in a string"),
        ("[splits]\ntest = 0.7\nvalidation = 0.7", r"test \+ validation = 1.4: at most 1"),
        ("[splits]\ntest = -1", r"test = -1.0, validation = 0.0: must be 0 to 1"),
        ('[splits]\ntest_after = "soon"', r"test_after: Invalid RFC3339"),
        ("[splits]\ntest_after = 2026-01-01T00:00:00", r"say the zone"),
        ("[freshness]\nas_of = 9999-12-31T00:00:00Z", r"must be between 1970 and 2261"),
        ("[splits]\ntest = 0.1\ntest_after = 2026-01-01T00:00:00Z", r"both say what test is"),
        ("[freshness]\nmax_policy_lag = 1", r"max_policy_lag needs policies"),
        ('[freshness]\npolicies = ["a", "a"]', r"policies: an id is there twice"),
        ('[freshness]\npolicies = ["a"]\ncurrent_policy = "b"', r"'b' is none of policies"),
        ("[duplicates]\nnear = 0.1", r"near = 0.1: must be between 0.3 and 1"),
        ("[quotas.x]\nmax = 1", r"quotas.x.by is missing; write `by = ...`"),
        ('[quotas.x]\nby = "cohort"', r"quotas.x: give either max = N or max_share"),
        ('[outliers.x]\nexpr = "num_turns"', r"outliers.x: give min, max, robust_z or iqr"),
        ('[outliers.x]\nexpr = "cohort"\nmin = 0', r"outliers.x.expr: is String, must be a number"),
        ('[exclude.x]\nwhere = "num_turns"', r"exclude.x.where: is Int64, must be true or false"),
        ("[exclude.x]\nwhere = \"split = 'test'\"", r"exclude.x.where: unknown column split"),
        ("[splits", r"not a TOML file"),
        ('[rewards.x]\ndirection = "down"', r"Invalid enum value 'down'; use higher, lower"),
        ('[rewards.x]\nmissing = "zero"', r"Invalid enum value 'zero'; use missing, skip"),
        ('[rewards.x]\ntrust = ["bot"]', r"use environment, user, rule, judge"),
        ("[rewards.x]\ntrust = []", r"trust = \[\]: nothing would count"),
        ('[distribution]\nunseen = ["x"]', r"use tools, environment, cohort, agent"),
        ("[groups]\nsimilarity = 0.5", r'similarity: says nothing without lone = "cluster"'),
        ('[splits]\ntest = 0.1\nstraddling = "exclude"', r"straddling: says nothing without"),
        ("[freshness]\nas_of = 2026-01-01T00:00:00Z", r"as_of: says nothing without max_age_days"),
        ('[duplicates]\nkeep = "best"', r"keep: says nothing without exact = true or near"),
        ('[quotas.x]\nby = "task"\nmax = 1\nsplits = []', r"splits = \[\]: name one at least"),
        ('[outliers.x]\nexpr = "reward"\nmin = 2\nmax = 1', r"nothing is between them"),
        ("[exclude.x]\nwhere = 'cohort = \"a\"'", r"texts stand in 'single quotes'"),
        (
            '[shaping.x]\nexpr = "MEDIAN(turn)"',
            r"MEDIAN\(...\) OVER \(PARTITION BY trajectory_id\)",
        ),
    ],
)
def test_what_no_build_could_use_is_refused(tmp_path, text, said):
    """The error names the file, the key, the value and what to write instead."""
    with pytest.raises(ConfigError, match=rf"recipe\.toml: .*{said}"):
        read_text(tmp_path, text)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    """No such file, a folder, and bytes that are no text."""
    with pytest.raises(ConfigError, match=r"absent\.toml: no such recipe"):
        read_recipe(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="the recipe cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_recipe(tmp_path / "bytes.toml")


def test_polars_expressions_are_kept_as_printed():
    """From Python an expression may be Polars' own; its columns are checked all the same."""
    recipe = Recipe(shaping={"late": ShapingRule(expr=pl.col("turn") * -0.01)})
    check_recipe(recipe)
    assert 'col("turn")' in describe_recipe(recipe)["shaping"]["late"]["expr"]
    with pytest.raises(ConfigError, match="unknown column trun"):
        check_recipe(Recipe(shaping={"late": ShapingRule(expr=pl.col("trun"))}))


def test_only_rules_within_partitions_change_their_digest():
    """Other splits or quotas need no partition built again; rewards, shaping and sketches do."""
    plain = digest_partition_rules(NO_RECIPE)
    curated = Recipe(splits=SplitRules(test=0.5), quotas={"c": QuotaRule(by="cohort", max=1)})
    assert digest_partition_rules(curated) == plain
    others = [
        Recipe(rewards={"x": RewardRule()}),
        Recipe(rewards={"x": RewardRule(weight=2.0)}),
        Recipe(shaping={"x": ShapingRule(expr="turn")}),
        Recipe(groups=GroupRules(lone="cluster")),
    ]
    assert len({plain, *map(digest_partition_rules, others)}) == 5


def test_an_empty_dataset_has_empty_labels(tmp_path):
    """No trajectory and every rule of the document's example."""
    recipe = read_text(tmp_path, read_example())
    labelled = curate_trajectories(pl.DataFrame(schema=polars_schema(TRAJECTORIES)), recipe)
    assert labelled.height == 0
    assert dict(labelled.schema) == dict(polars_schema(TRAJECTORIES))
    assert summarise_curation(labelled, recipe)["kept"] == 0
