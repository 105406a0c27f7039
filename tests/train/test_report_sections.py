"""What single sections of the report say, by hand-made numbers."""

import numpy as np
import polars as pl
import pytest
from report_data import credit_plays, list_plays, make_play, merge, score_plays, write_dataset
from report_releases import make_release

from starpo_train.errors import ConfigError, DataError
from starpo_train.report import PolicyResult, ReportExtras, render_report
from starpo_train.report.cohorts import build_fail_tables, read_scores
from starpo_train.report.heat import build_heatmaps, colour_credit, read_credit
from starpo_train.report.length import choose_edges, view_lengths
from starpo_train.report.policies import read_policy
from starpo_train.report.variance import split_variance, view_groups


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict:
    return make_release(tmp_path_factory.mktemp("release"))


def read(path, plays, name="p", role="baseline"):
    """Hand-made runs -> the policy that the sections are made from."""
    policy = PolicyResult(name=name, dataset=write_dataset(path, merge(plays)), role=role)
    return read_policy(policy, success_threshold=0.5, ood_cohorts=())


# Variance ---------------------------------------------------------------------------------------


def test_variance_within_and_between_tasks_by_hand():
    """Rewards 0 0 | 1 1 | 0 1: MSW = .5/3 = 1/6, MSB = 2 x .5/2 = 1/2, between = (1/2 - 1/6)/2."""
    rows = pl.DataFrame({"task_id": list("aabbcc"), "reward": [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]})
    view = view_groups(rows, 0.5)
    assert view.within == pytest.approx(1 / 6)
    assert view.between == pytest.approx(1 / 6)
    assert view.share_within == pytest.approx(0.5)
    assert (view.num_still, view.num_varied, view.num_groups) == (2, 1, 3)
    assert [count for _, _, count in view.shares] == [1, 1, 1, 0]
    assert view.largest_deviation == 0.5


def test_variance_is_unbiased_with_unequal_attempts():
    """Over 4,000 draws: within .09 and between .04, whatever the number of attempts."""
    rng = np.random.default_rng(1)
    size = np.array([2, 3, 5, 8, 2, 4])
    means = rng.normal(0, 0.2, (4000, 6))
    found = []
    for task_means in means:
        draws = [rng.normal(m, 0.3, n) for m, n in zip(task_means, size, strict=True)]
        groups = {"size": size, "mean": [d.mean() for d in draws]}
        frame = pl.DataFrame(groups | {"variance": [d.var(ddof=1) for d in draws]})
        found.append(split_variance(frame))
    within, between = np.array(found).T
    assert within.mean() == pytest.approx(0.09, abs=0.003)
    # what is cut off at 0 adds a little
    assert between.mean() == pytest.approx(0.04, abs=0.005)


def test_variance_of_single_attempts_is_unknown():
    """One attempt a task: nothing within, and nothing can be taken off between."""
    view = view_groups(pl.DataFrame({"task_id": ["a", "b"], "reward": [0.0, 1.0]}), 0.5)
    assert (view.within, view.between, view.share_within) == (None, None, None)
    assert view.shares[3] == ("one attempt only", "share-single", 2)
    assert view_groups(pl.DataFrame({"task_id": ["a"], "reward": [None]}), 0.5) is None


# Cohorts ----------------------------------------------------------------------------------------


def test_fail_rates_by_cohort_and_evaluator(tmp_path):
    """Tasks 0 of 2, 1 of 2 | 2 of 2: half of one cohort's scores fail, none of the other's."""
    plays = [*list_plays([0, 1], cohort="a"), *list_plays([2], cohort="b")]
    for number, play in enumerate(plays):
        play["trajectories"][0] |= {"trajectory_id": str(number), "task_id": f"t{number // 2}"}
    policy = read(tmp_path / "data", plays)
    scores = read_scores(score_plays(tmp_path / "s.parquet", plays, "path"), policy)
    tables = build_fail_tables([policy], {"p": scores}, fail_below=0.5, harmed=frozenset("b"))
    assert [table.title for table in tables] == ["No success, as the gate counts it", "path"]
    for table in tables:
        rates = {row.cohort: row.rates[0][2].value for row in table.rows}
        assert rates == {"a": 0.75, "b": 0.0}
    assert [row.harmed for row in tables[0].rows] == [False, True]
    assert [row.harmed for row in tables[1].rows] == [False, False]
    strict = build_fail_tables([policy], {"p": scores}, fail_below=0.0, harmed=frozenset())
    assert [row.rates[0][2].value for row in strict[1].rows] == [0.0, 0.0]


def test_runs_without_a_score_are_counted_and_neither_fail_nor_pass(tmp_path):
    """Two null scores of four: the rate is of the others; all null: a line and no table."""
    plays = list_plays([0, 2])
    policy = read(tmp_path / "data", plays)
    path = score_plays(tmp_path / "s.parquet", plays, "path")
    rows = pl.read_parquet(path)
    missing = pl.col("task_id") == "task-00"
    rows = rows.with_columns(score=pl.when(~missing).then("score"))
    empty = rows.with_columns(evaluator=pl.lit("tools"), score=pl.lit(None, pl.Float64))
    pl.concat([rows, empty]).write_parquet(path)
    _, some, none = build_fail_tables(
        [policy], {"p": read_scores(path, policy)}, fail_below=0.5, harmed=frozenset()
    )
    assert (some.rows[0].rates[0][2].value, some.rows[0].num_tasks) == (0.0, 1)
    assert some.without == (("p", 2, 4),)
    assert (none.rows, none.without) == ((), (("p", 4, 4),))


def test_scores_and_credit_of_other_runs_are_refused(tmp_path, release):
    """A file of other runs, one with other columns, none, and a name that no policy has."""
    plays = list_plays([0, 2])
    policy = read(tmp_path / "data", plays)
    other = [make_play("elsewhere", 0, 1.0)]
    strange = score_plays(tmp_path / "other.parquet", other, "path")
    with pytest.raises(DataError, match="is about none of the runs in"):
        read_scores(strange, policy)
    with pytest.raises(DataError, match="has no column 'turn'; run `starpo-train credit"):
        read_credit(strange, policy)
    with pytest.raises(DataError, match="no such file; run `starpo-train score"):
        read_scores(tmp_path / "absent.parquet", policy)
    (tmp_path / "torn.parquet").write_text("PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "torn.parquet", policy)
    extras = ReportExtras(credit={"Starpo": strange})
    with pytest.raises(
        ConfigError, match=r"--credit Starpo=\.\.\.: no policy has this name; there"
    ):
        render_report(output=tmp_path, **release | {"extras": extras})


# Lengths ----------------------------------------------------------------------------------------


def test_lengths_by_hand(tmp_path):
    """Steps 1 to 100: median 50, p95 95, p99 99 resting on one run; a missing count is counted."""
    plays = [make_play(f"t{n}", 0, 1.0, turns=1, num_steps=n) for n in range(1, 101)]
    plays.append(make_play("t-none", 0, 1.0, turns=1, num_steps=None, input_tokens=None))
    steps, tokens = view_lengths([read(tmp_path / "data", plays)])
    (row,) = steps.rows
    assert (row.mean, row.median, row.p95, row.p99, row.largest) == (50.5, 50, 95, 99, 100)
    assert (row.num_runs, row.num_missing, row.num_beyond_p99) == (100, 1, 1)
    assert (steps.first, steps.last) == (1, 101)
    assert (tokens.rows[0].median, tokens.rows[0].num_missing) == (110.0, 1)


def test_bins_have_whole_equal_widths():
    """Few whole values have a bin each; many share bins of a whole width."""
    assert choose_edges(np.array([1.0, 3.0])).tolist() == [0.5, 1.5, 2.5, 3.5]
    edges = choose_edges(np.array([0.0, 1000.0]))
    assert set(np.diff(edges)) == {42.0}
    assert edges[-1] >= 1000


# Credit -----------------------------------------------------------------------------------------


def test_heatmap_cells_by_hand(tmp_path):
    """Mean and count by kind and place, one scale for both policies, few steps without colour."""
    plays = [make_play(f"t{n}", 0, float(n % 2), turns=2 + (n == 0)) for n in range(6)]
    policies = [read(tmp_path / n, plays, n, r) for n, r in (("a", "baseline"), ("b", "candidate"))]
    paths = {
        "a": credit_plays(tmp_path / "a.parquet", plays, lambda r, t: r - 0.5 + 0.1 * t),
        "b": credit_plays(tmp_path / "b.parquet", plays, lambda r, t: 0.4),
    }
    credit = {p.name: read_credit(paths[p.name], p) for p in policies}
    (heatmap,) = build_heatmaps(policies, credit)
    assert heatmap.largest == pytest.approx(0.4)
    old, new = heatmap.tables
    assert old.columns == ("1", "2", "3")
    cells = {
        kind: [None if c is None else (round(c.mean, 3), c.count, c.css) for c in row]
        for kind, row in old.rows
    }
    assert cells == {
        "planner": [(0.0, 6, "heat-z"), (-0.4, 1, "heat-few"), None],
        "finalizer": [None, (0.2, 5, "heat-p2"), (-0.3, 1, "heat-few")],
    }
    assert new.rows[0][1][0].css == "heat-p4"


def test_heatmap_by_tool_where_there_are_several(tmp_path):
    """The tool that a turn called first; a turn without a call is named as that."""
    plays = [make_play(f"t{n}", 0, 1.0, turns=3) for n in range(5)]
    for play in plays:
        play["turns"][1]["tool_calls"] = [{"id": "c", "name": "look", "arguments": "{}"}]
        play["turns"][2]["tool_calls"] = []
    policy = read(tmp_path / "data", plays)
    path = credit_plays(tmp_path / "c.parquet", plays, lambda r, t: None if t == 0 else 0.5)
    _, tools = build_heatmaps([policy], {"p": read_credit(path, policy)})
    (table,) = tools.tables
    assert [name for name, _ in table.rows] == ["look", "no call"]
    assert table.num_without == 5


def test_colour_of_credit_is_symmetric():
    """Nine levels, the middle one around nothing; no scale, no colour."""
    levels = [colour_credit(x / 8, 1.0) for x in range(-8, 9)]
    assert levels[:2] == ["heat-n4", "heat-n4"]
    assert [level.replace("n", "p") for level in levels] == levels[::-1] or all(
        a.replace("-n", "-p") == b.replace("-n", "-p")
        for a, b in zip(levels, levels[::-1], strict=True)
    )
    assert colour_credit(1.0, 0.0) == "heat-z"
