"""Whatever the trajectories: order and partitions play no part, counts close, groups stay whole."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.curation import (
    curate_trajectories,
    describe_trajectories,
    summarise_curation,
)
from starpo_trace.convert.curation.similar import connect
from starpo_trace.convert.recipe import build_recipe
from starpo_trace.schema import MESSAGES, TRAJECTORIES, TURNS

SKETCHES = [list(range(i, i + 64)) for i in (0, 1000)] + [[*range(60), 7, 8, 9, 10]]

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "task_id": st.sampled_from(["a", "b", "c", "d", None]),
            "cohort": st.sampled_from(["x", "y", "z", None]),
            "policy_id": st.sampled_from(["p0", "p1", None]),
            "environment_version": st.sampled_from(["1", "2", None]),
            "tool_names": st.sampled_from([["t"], ["t", "u"], [], None]),
            "started_ns": st.integers(0, 4).map(lambda day: day * 86_400 * 10**9),
            "num_turns": st.integers(0, 50),
            "reward": st.sampled_from([0.0, 0.5, 1.0, None]),
            "signature": st.sampled_from(["s", "r", None]),
            "content_digest": st.sampled_from(["d0", "d1", "d2", None]),
            "task_sketch": st.sampled_from([*SKETCHES, None]),
            "content_sketch": st.sampled_from([*SKETCHES, None]),
        }
    ),
    max_size=14,
)
RECIPES = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([{"lone": each} for each in ("none", "signature", "cluster")]),
        "splits": st.sampled_from(
            [
                {"test": 0.4, "validation": 0.3},
                {"test_after": "1970-01-03T00:00:00Z"},
                {"test_after": "1970-01-03T00:00:00Z", "straddling": "exclude"},
                {"test_after": "1970-01-03T00:00:00Z", "straddling": "test", "validation": 0.5},
            ]
        ),
        "distribution": st.sampled_from(
            [{}, {"ood_cohorts": ["z"]}, {"unseen": ["tools", "cohort"], "ood_tools": ["u"]}]
        ),
        "freshness": st.sampled_from(
            [{}, {"policies": ["p0", "p1"], "max_policy_lag": 0}, {"max_age_days": 2}]
        ),
        "duplicates": st.sampled_from(
            [{}, {"exact": True, "keep": "best"}, {"exact": True, "near": 0.8, "keep": "latest"}]
        ),
        "quotas": st.sampled_from([{}, {"q": {"by": "cohort", "max": 2}}]),
        "outliers": st.sampled_from([{}, {"o": {"expr": "num_turns", "robust_z": 2, "iqr": 1}}]),
        "exclude": st.sampled_from([{}, {"e": {"where": "reward IS NULL"}}]),
    }
)


def make_table(rows, columns):
    return pl.DataFrame(
        [{name: row.get(name) for name in columns} for row in rows], schema=polars_schema(columns)
    )


def make_trajectories(rows):
    return make_table([{"trajectory_id": f"t{i:02}"} | r for i, r in enumerate(rows)], TRAJECTORIES)


@settings(deadline=None)
@given(ROWS, RECIPES, st.randoms(use_true_random=False))
def test_the_order_of_rows_plays_no_part(rows, sections, random):
    """Shuffled rows get the same labels, to the bit."""
    table, recipe = make_trajectories(rows), build_recipe(sections)
    order = random.sample(range(table.height), table.height)
    labelled = curate_trajectories(table, recipe)
    assert curate_trajectories(table[order], recipe).equals(labelled)
    assert summarise_curation(labelled[order], recipe) == summarise_curation(labelled, recipe)


@settings(deadline=None)
@given(ROWS, RECIPES)
def test_counts_close_and_nothing_else_changes(rows, sections):
    """Kept + left out by first reason = all, and every other column is as it was."""
    table, recipe = make_trajectories(rows), build_recipe(sections)
    labelled = curate_trajectories(table, recipe)
    summary = summarise_curation(labelled, recipe)
    assert summary["kept"] + sum(summary["excluded_by_first_reason"].values()) == table.height
    assert summary["trajectories"] == table.height
    assert sum(each["kept"] for each in summary["splits"].values()) == summary["kept"]
    labels = ["group_id", "split", "distribution", "policy_lag", "duplicate_of", "excluded_because"]
    assert labelled.drop(labels).equals(table.drop(labels))
    assert labelled["split"].is_in(["train", "validation", "test"]).all()
    assert labelled["distribution"].is_in(["id", "ood", "unknown"]).all()
    kept = set(labelled.filter(pl.col("excluded_because").list.len() == 0)["trajectory_id"])
    repeats = labelled.filter(pl.col("duplicate_of").is_not_null())
    assert repeats.filter(pl.col("excluded_because").list.len() != 1).is_empty()
    assert not kept & set(repeats["trajectory_id"])


@settings(deadline=None)
@given(ROWS, RECIPES)
def test_no_task_or_group_is_in_two_splits(rows, sections):
    """Whatever holds out, all attempts at a thing are on one side."""
    labelled = curate_trajectories(make_trajectories(rows), build_recipe(sections))
    for column in ("group_id", "task_id"):
        sides = labelled.drop_nulls(column).group_by(column).agg(pl.col("split").n_unique())
        assert (sides["split"] == 1).all()


WORDS = st.lists(st.sampled_from(["refund", "order", "12", "a-9", "退货", "é", '"']), max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), st.integers(0, 6), st.data())
def test_partitions_play_no_part_in_descriptions(texts, cut, data):
    """Described apart or together, in any order, a trajectory gets the same columns."""
    ids = [f"t{i}" for i in range(len(texts))]
    turns, messages = [], []
    for name, (question, answer) in zip(ids, texts, strict=True):
        text = " ".join(answer) or None
        turns.append({"trajectory_id": name, "turn": 0, "outcome": "ok", "text": text})
        for depth, words in enumerate((["be", "brief"], question)):
            role = ("system", "user")[depth]
            content = " ".join(words)
            messages.append(
                {"trajectory_id": name, "node_id": f"{depth}", "depth": depth, "role": role}
                | {"message": content}
            )
    tables = [
        make_table([{"trajectory_id": name} for name in ids], TRAJECTORIES),
        make_table(turns, TURNS),
        make_table(messages, MESSAGES),
    ]

    def describe(some):
        parts = [table.filter(pl.col("trajectory_id").is_in(some)) for table in tables]
        return describe_trajectories(*parts, has_task_sketch=True, has_content_sketch=True)

    whole = describe(ids).sort("trajectory_id")
    apart = pl.concat([describe(ids[:cut]), describe(ids[cut:])]).sort("trajectory_id")
    assert apart.equals(whole)
    shuffled = [table[data.draw(st.permutations(range(table.height)))] for table in tables]
    again = describe_trajectories(*shuffled, has_task_sketch=True, has_content_sketch=True)
    assert again.sort("trajectory_id").equals(whole)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_those_of_union_find(pairs):
    """Labels agree with a plain search over the graph."""
    parent = list(range(20))

    def find(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    edges = pl.DataFrame(pairs, schema={"a": pl.UInt32, "b": pl.UInt32}, orient="row")
    assert connect(20, edges).to_list() == [find(node) for node in range(20)]
