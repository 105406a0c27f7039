"""What single sections of the report say, by hand-made numbers."""

import json

import numpy as np
import polars as pl
import pytest
from report_data import (
    HOSTILE,
    credit_plays,
    list_plays,
    make_play,
    make_release,
    merge,
    score_plays,
    write_checkpoint,
    write_dataset,
)

from starpo_train.errors import ConfigError, DataError
from starpo_train.gate import GateConfig, GateExtras, run_gate
from starpo_train.report import PolicyResult, ReportExtras, check_trace_link, render_report
from starpo_train.report.cohorts import build_fail_tables, read_scores
from starpo_train.report.evidence import view_evidence
from starpo_train.report.heat import build_heatmaps, colour_credit, read_credit
from starpo_train.report.inputs import link_trace
from starpo_train.report.length import choose_edges, view_lengths
from starpo_train.report.policies import read_policy
from starpo_train.report.provenance import collect_sources, trace_checkpoint
from starpo_train.report.variance import split_variance, view_groups
from starpo_train.report.verdict import check_signature, read_verdict, view_verdict


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict:
    return make_release(tmp_path_factory.mktemp("release"))


def read(path, plays, name="p", role="baseline"):
    """Hand-made runs -> the policy that the sections are made from."""
    policy = PolicyResult(name=name, dataset=write_dataset(path, merge(plays)), role=role)
    return read_policy(policy, success_threshold=0.5, ood_cohorts=())


# Verdict ----------------------------------------------------------------------------------------


def decide(tmp_path, **changes):
    """A verdict of equal policies, changed -> its banner."""
    plays = list_plays([0, 1, 2, 2] * 10)
    for name in ("old", "new"):
        write_dataset(tmp_path / name, merge(plays))
    run_gate(
        baseline=tmp_path / "old",
        candidate=tmp_path / "new",
        evidence={},
        config=GateConfig(bootstrap_resamples=10),
        output=tmp_path / "gate",
    )
    file = tmp_path / "gate" / "verdict.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return view_verdict(read_verdict(tmp_path / "gate"), signature=None)


def test_next_step_of_each_verdict(tmp_path):
    """Ship, do not, or how many more tasks; broken tasks come first."""
    comparison = {"metric": "success", "stratum": "ood", "relative": False, "baseline": 0.5}
    comparison |= {"higher_is_better": True, "candidate": 0.5, "change": 0.0, "low": -0.1}
    comparison |= {"high": 0.1, "margin": 0.03, "outcome": "unclear", "decides": True}
    comparison |= {"num_tasks": 40, "tasks_needed": 1500}
    steps = {
        "PROMOTE": "Ship exactly the weights that were evaluated",
        "BLOCK": "Do not ship. Start with the first reason",
        "INCONCLUSIVE": "about 1,500 tasks out of distribution, 1,460 more than the 40 so far (new",
    }
    for number, (verdict, words) in enumerate(steps.items()):
        changes = {"verdict": verdict, "tasks_needed": 1500, "comparisons": [comparison]}
        assert words in decide(tmp_path / str(number), **changes).next_step
    broken = [{"agent": "null", "num_tasks": 9, "wrong": ["t"], "unplayed": [], "elsewhere": None}]
    banner = decide(tmp_path / "broken", verdict="INCONCLUSIVE", preflight=broken)
    assert banner.next_step.startswith("Repair or leave out the tasks")
    assert "gate --baseline" in view_verdict(None, signature=None).next_step


def test_checks_say_how_far_the_verdict_can_be_relied_on(tmp_path):
    """Preflight not run, half run and passed; the first look, a second one, and an e-process."""

    def state(number, **changes):
        checks = decide(tmp_path / str(number), **changes).checks
        return {check.name: (check.css, check.state) for check in checks}

    oracle, null = (
        {"agent": agent, "num_tasks": 9, "wrong": [], "unplayed": [], "elsewhere": None}
        for agent in ("oracle", "null")
    )
    assert state(0) == {"Preflight": ("reported", "not run"), "Looks": ("pass", "first look")}
    assert state(1, preflight=[oracle])["Preflight"] == ("unclear", "half run")
    assert state(2, preflight=[oracle, null])["Preflight"] == ("pass", "passed")
    again = {"mode": "once", "number": 2, "earlier": 1}
    assert state(3, looks=again)["Looks"] == ("unclear", "look 2")
    looks = {"mode": "sequential", "number": 3, "earlier": 2, "note": "Once was looked before."}
    banner = decide(tmp_path / "4", looks=looks, superiority_p_value=0.04)
    assert banner.checks[1].state == "look 3, sequential"
    assert banner.checks[1].detail == (
        "The bounds hold at every look. The e-process against “no better” stands at 25 (20 is "
        "proof). Once was looked before."
    )


def test_signature_is_verified_not_verified_and_broken(tmp_path, monkeypatch):
    """With the key, without it, with another one, after an edit, and when there is none."""
    monkeypatch.delenv("STARPO_VERDICT_KEY", raising=False)
    monkeypatch.delenv("STARPO_VERDICT_KEY_FILE", raising=False)
    keys = {name: tmp_path / f"{name}.keys" for name in ("ci", "other")}
    for number, (name, path) in enumerate(keys.items()):
        path.write_text(f"{name} {number + 1:064x}\n")
    plays = list_plays([0, 1, 2, 2] * 10)
    data = {name: write_dataset(tmp_path / name, merge(plays)) for name in ("old", "new")}
    run_gate(
        baseline=data["old"],
        candidate=data["new"],
        evidence={},
        config=GateConfig(bootstrap_resamples=10),
        output=tmp_path / "gate",
        extras=GateExtras(key_file=keys["ci"]),
    )
    file = tmp_path / "gate" / "verdict.json"

    def check(key):
        found = check_signature(tmp_path / "gate", read_verdict(file), key)
        return found.css, found.state, found.detail

    assert check(keys["ci"])[:2] == ("pass", "verified")
    assert check(None)[:2] == ("unclear", "signed, not verified here")
    assert check(keys["other"])[:2] == ("fail", "broken")
    assert "key ci is not among the keys" in check(keys["other"])[2]
    signed = file.read_text()
    file.write_text(json.dumps(json.loads(signed) | {"sentence": "All is well."}))
    assert check(keys["ci"])[:2] == ("fail", "broken")
    assert "did not sign what it says now" in check(keys["ci"])[2]
    file.write_text(json.dumps(json.loads(signed) | {"signature": None}))
    assert check(keys["ci"])[:2] == ("unclear", "not signed")


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


# Links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "javascript:alert('{trace_id}')",
        "data:text/html,{trace_id}",
        "//evil/{trace_id}",
        "https:///{trace_id}",
        "https://{trace_id}.evil/",
        "https://viewer/",
        "https://viewer/ {trace_id}",
        "java\nscript:{trace_id}",
        "https://[/{trace_id}",
    ],
)
def test_trace_links_lead_to_a_web_page(template):
    """Another scheme, no host, the id in the host or nowhere: refused, and named."""
    with pytest.raises(ConfigError, match="--trace-link"):
        check_trace_link(template)


def test_a_trace_id_stays_one_part_of_the_link():
    """Whatever it holds is escaped; without an id or a template there is no link."""
    assert link_trace("https://v/{trace_id}?x", "a/../?#é") == "https://v/a%2F..%2F%3F%23%C3%A9?x"
    assert link_trace("https://v/{trace_id}", None) is None
    assert link_trace(None, "ab") is None
    for text in HOSTILE:
        assert not set(link_trace("https://v/{trace_id}", text)) & set("<>\"' \x00\x1b\u202e")


# Evidence and provenance ------------------------------------------------------------------------


def test_evidence_beside_the_verdict(release):
    """Rivals on one symmetric axis, OPE's estimators with what they lack, the judge's pin."""
    view = view_evidence(read_verdict(release["verdict"]), release["extras"].judges)
    (rival,) = view.rivals
    assert rival.name == "filtered_bc"
    assert view.reach == pytest.approx(115 * max(abs(rival.low), abs(rival.high)))
    assert view.ope.estimates == (("dr", 0.61, "0.4 to 0.8", ""), ("wis", None, "", "too few runs"))
    (judge,) = view.judges
    assert (judge.verdict, judge.anchors, judge.pin["parser"]) == (
        "INCONCLUSIVE",
        "drifted",
        "json-1",
    )
    with pytest.raises(DataError, match="no summary here; run `starpo-train judge`"):
        view_evidence(None, [release["dataset"]])


def test_provenance_follows_a_checkpoint_to_its_data(tmp_path, release):
    """Base model, dataset and configuration from COMMIT; another dataset is warned about."""
    source = trace_checkpoint(release["runs"][0], "digest-of-train")
    facts = dict(source.facts)
    assert facts["base model"] == "models/base"
    assert facts["trained on"] == "train, digest digest-of-train"
    assert facts["algorithm"] == "starpo, seed 7"
    assert source.warning is None
    assert "another dataset" in trace_checkpoint(release["runs"][0], "else").warning
    assert "none committed" in trace_checkpoint(tmp_path, None).facts[0][1]
    write_checkpoint(tmp_path, "x")
    (tmp_path / "checkpoints/step_000003/COMMIT").write_text("[]")
    assert "none committed" in trace_checkpoint(tmp_path, None).facts[0][1]


def test_provenance_names_everything(release):
    """The gate, both evaluations, the training data, the checkpoint, the judge; digests in full."""
    verdict = read_verdict(release["verdict"])
    judges = view_evidence(None, release["extras"].judges).judges
    sources = collect_sources(
        verdict=verdict,
        policies=release["policies"],
        dataset=release["dataset"],
        runs=release["runs"],
        judges=judges,
    )
    assert [source.title for source in sources] == [
        "Gate",
        "recorded policy (baseline): evaluation",
        "StarPO (candidate): evaluation",
        "Training dataset",
        "Checkpoint of run-starpo",
        "Judge: refund_policy",
    ]
    assert dict(sources[0].facts)["candidate"] == "digest digest-of-new"
    assert dict(sources[5].facts)["prompt hash"] == "ab"
