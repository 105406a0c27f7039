"""The invented shop in numbers, worked out by hand."""

import polars as pl

from starpo_trace.convert.manifest import read_manifest, scan_table
from starpo_trace.look.opened import open_path
from starpo_trace.look.overview import MAX_ROWS, summarize


def test_each_stage_is_divided_exactly(shop):
    """Spans, trees and trajectories, with the reasons of those that stay behind."""
    funnel = summarize(open_path(shop)).funnel
    shares = [[(share.name, share.count) for share in stage.shares] for stage in funnel.stages]
    assert shares == [
        [
            ("used", 93),
            ("rejected: not_an_agent_span", 4),
            ("rejected: unknown_dialect", 3),
            ("further copies", 0),
        ],
        # One of the three traces with rejected spans has a trajectory too.
        [("with a trajectory", 12), ("with rejected spans, where no trajectory begins", 2)],
        [("for RL", 7), ("for imitation (sft)", 4), ("for nothing", 1)],
    ]
    assert [stage.total for stage in funnel.stages] == [100, 14, 12]
    assert funnel.is_closed
    assert read_manifest(shop).accounting.is_closed


def test_reasons_say_what_alone_stands_in_the_way(shop):
    """Two reasons together are nobody's only one; remarks are none."""
    rows = summarize(open_path(shop)).funnel.reasons
    assert [(r.verdict, r.reason, r.num_trajectories, r.num_alone) for r in rows] == [
        ("rl", "call_error", 1, None),
        ("sft", "logprob_missing", 2, 0),
        ("sft", "token_ids_missing", 2, 0),
        ("sft", "no_reward", 1, 1),
        ("sft", "unended", 1, 1),
        ("none", "no_llm_call", 1, 1),
        ("none", "no_reward", 1, None),
    ]


def test_rewards_by_cohort_and_within_tasks(shop):
    """Cohorts share the bins of all; the one task whose attempts differ has signal."""
    overview = summarize(open_path(shop))
    assert overview.reward.counts == (4, 6)
    assert overview.breakdowns[0].title == "Cohort"
    cohorts = {row.name: row for row in overview.breakdowns[0].rows}
    assert {name: row.reward.counts for name, row in cohorts.items()} == {
        "orders": (1, 6),
        "refunds": (3, 0),
        None: (0, 0),
    }
    assert cohorts["orders"].verdicts == {"rl": 7, "sft": 1, "none": 0}
    kinds = [("varied", 1), ("equal", 2), ("single", 1), ("unrewarded", 1)]
    assert overview.groups.kinds == kinds
    assert (overview.groups.num_groups, overview.groups.num_without_task) == (5, 1)
    first = overview.groups.tasks[0]
    assert (first.task_id, first.reward.mean) == ("stock-a7", 0.75)
    assert overview.reward_records == (
        ("counts", 20),
        ("does not count: source judge is not trusted", 1),
    )


def test_every_breakdown_adds_up(shop):
    """Each column's rows are all trajectories, also where values are too many to list."""
    trajectories = scan_table(shop, "trajectories").collect()
    opened = open_path(shop)
    for table in summarize(opened).breakdowns:
        assert sum(row.num_trajectories for row in table.rows) == trajectories.height
    many = pl.concat([trajectories] * 4).with_columns(
        cohort=pl.Series([f"c{i}" if i else None for i in range(48)])
    )
    tables = {"trajectories": many, "rewards": opened.scan("rewards").collect()}
    tables["rejected"] = opened.scan("rejected").collect()
    changed = type(opened)(
        path=shop,
        scan=lambda name: tables[name].lazy(),
        accounting=opened.accounting,
        manifest=None,
    )
    rows = summarize(changed).breakdowns[0].rows
    assert len(rows) == MAX_ROWS + 1
    assert rows[-1].num_values == 48 - MAX_ROWS
    assert sum(row.num_trajectories for row in rows) == 48


def test_no_trajectory_at_all(tmp_path, shop):
    """A dataset whose spans were all rejected has a funnel and no numbers."""
    opened = open_path(shop)
    empty = type(opened)(
        path=shop,
        scan=lambda name: opened.scan(name).head(0),
        accounting=opened.accounting,
        manifest=None,
    )
    overview = summarize(empty)
    assert (overview.num_trajectories, overview.reward.mean) == (0, None)
    assert overview.groups.kinds == [("varied", 0), ("equal", 0), ("single", 0), ("unrewarded", 0)]
