"""The gate on made-up evaluations: verdicts, error rates, what it says about gaps in the data."""

import json

import numpy as np
import polars as pl
import pytest
from gate_data import make_rows, write_dataset
from polars.testing import assert_frame_equal

from starpo_train.errors import ConfigError, DataError
from starpo_train.gate import GateConfig, decide_release, read_gate_config, run_gate
from starpo_train.gate.pairing import pair_tasks, summarize_tasks

SUCCESS_ONLY = GateConfig(guardrails=())
QUICK = GateConfig(bootstrap_resamples=400)


def draw_release(rng, *, num_tasks, change, attempts=4):
    """Rewards of baseline and candidate with a true success difference of exactly `change`."""
    rates_T = np.clip(rng.beta(1.2, 1.2, num_tasks), max(0.0, -change), min(1.0, 1 - change))
    base_TK = rng.random((num_tasks, attempts)) < rates_T[:, None]
    cand_TK = rng.random((num_tasks, attempts)) < rates_T[:, None] + change
    return make_rows(cand_TK, policy="new"), make_rows(base_TK, policy="old")


def count_verdicts(*, change, num_tasks, repeats, seed):
    """Share of each verdict over simulated releases."""
    rng = np.random.default_rng(seed)
    verdicts = [
        decide_release(
            *draw_release(rng, num_tasks=num_tasks, change=change), config=SUCCESS_ONLY
        ).verdict.value
        for _ in range(repeats)
    ]
    return {name: verdicts.count(name) / repeats for name in ("PROMOTE", "BLOCK", "INCONCLUSIVE")}


@pytest.mark.slow
def test_promotes_at_the_margin_no_more_often_than_alpha():
    """A candidate truly 3 points worse is promoted in at most 5% of 400 releases, give or take."""
    shares = count_verdicts(change=-0.03, num_tasks=100, repeats=400, seed=1)
    assert shares["PROMOTE"] <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert shares["BLOCK"] <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.slow
def test_rare_total_losses_are_not_promoted_more_often_than_alpha():
    """Losing 3% of tasks for good, tying the rest: a plain t bound promotes every sixth time."""
    rng = np.random.default_rng(2)
    promoted = 0
    for _ in range(300):
        lost_T = rng.random(60) < 0.03
        candidate, baseline = make_rows(~lost_T[:, None]), make_rows(np.ones((60, 1)))
        decision = decide_release(candidate, baseline, config=SUCCESS_ONLY)
        promoted += decision.verdict == "PROMOTE"
    assert promoted / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.slow
def test_longer_tail_at_the_margin_is_promoted_no_more_often_than_alpha():
    """A p95 of steps exactly 15% longer passes in at most 5% of releases, give or take."""
    rng = np.random.default_rng(3)
    config = GateConfig(bootstrap_resamples=300, guardrails=("steps_p95",))
    passed = 0
    for _ in range(150):
        scale_T = rng.gamma(8, 1 / 8, 100)[:, None]
        base_TK = 100 + (200 * scale_T * rng.gamma(4, 1, (100, 4))).round()
        cand_TK = 1.15 * (100 + (200 * scale_T * rng.gamma(4, 1, (100, 4))).round())
        frames = [
            make_rows(np.ones((100, 4))).with_columns(num_steps=pl.Series(s.ravel().astype(int)))
            for s in (cand_TK, base_TK)
        ]
        decision = decide_release(*frames, config=config)
        passed += next(c for c in decision.comparisons if c.metric == "steps_p95").outcome == "pass"
    assert passed / 150 <= 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


@pytest.mark.slow
def test_clear_winners_promote_and_clear_losers_block():
    """Ten points better promotes, fifteen worse blocks, nearly always with 150 tasks."""
    assert count_verdicts(change=0.10, num_tasks=150, repeats=60, seed=4)["PROMOTE"] >= 0.95
    assert count_verdicts(change=-0.15, num_tasks=150, repeats=60, seed=5)["BLOCK"] >= 0.95


def test_success_numbers_by_hand():
    """Four tasks, differences 1/2, 0, -1/2, 1: means 0.625 and 0.375, change 0.25."""
    candidate = make_rows([[1, 1], [0, 0], [0, 1], [1, 1]])
    baseline = make_rows([[1, 0], [0, 0], [1, 1], [0, 0]])
    decision = decide_release(candidate, baseline, config=GateConfig(guardrails=(), min_tasks=2))
    success = decision.comparisons[0]
    assert (success.baseline, success.candidate, success.change) == (0.375, 0.625, 0.25)
    # Tango with 1 whole gain, 1 loss is wider than t here; t: SE = sqrt(5/12) / 2
    assert success.low <= 0.25 - 2.353363 * (5 / 12) ** 0.5 / 2
    assert decision.verdict == "INCONCLUSIVE"


def test_winner_promotes_with_all_guardrails():
    """A candidate that wins everywhere at equal cost is promoted, with exit code 0."""
    candidate = make_rows([[1]] * 100, policy="new")
    baseline = make_rows([[task % 2] for task in range(100)], policy="old")
    decision = decide_release(candidate, baseline, config=QUICK)
    assert (decision.verdict, decision.exit_code) == ("PROMOTE", 0)
    assert {c.metric: c.outcome for c in decision.comparisons} == {
        "success": "pass",
        "tokens_per_trace": "pass",
        "steps_p95": "pass",
        "steps_p99": "reported",
    }
    assert decision.improved
    assert decision.tasks_needed is None


@pytest.mark.parametrize(
    ("change", "metric"), [({"tokens": 200}, "tokens_per_trace"), ({"steps": 12}, "steps_p95")]
)
def test_guardrail_blocks_a_winner(change, metric):
    """Better success does not pay for tokens or steps beyond the margin."""
    candidate = make_rows([[1]] * 100, policy="new", **change)
    baseline = make_rows([[0]] * 100, policy="old")
    decision = decide_release(candidate, baseline, config=QUICK)
    assert (decision.verdict, decision.exit_code) == ("BLOCK", 10)
    assert [c.metric for c in decision.comparisons if c.outcome == "fail"] == [metric]
    assert decision.improved


def test_no_worse_is_not_called_improved():
    """A tie over 200 tasks promotes but claims no improvement."""
    frame = make_rows([[task % 2] for task in range(200)])
    decision = decide_release(frame, frame, config=QUICK)
    assert decision.verdict == "PROMOTE"
    assert not decision.improved
    assert decision.superiority_p_value == 1.0
    assert "same policy" in decision.notes[0]


def test_inconclusive_names_the_tasks_needed():
    """A noisy tie on 60 tasks asks for more, and at least for the published formula's number."""
    rng = np.random.default_rng(8)
    candidate, baseline = draw_release(rng, num_tasks=60, change=0.0)
    decision = decide_release(candidate, baseline, config=SUCCESS_ONLY)
    assert (decision.verdict, decision.exit_code) == ("INCONCLUSIVE", 20)
    paired = pair_tasks(candidate, baseline, success_threshold=0.5)
    deviation = (paired.candidate.success_T - paired.baseline.success_T).std(ddof=1)
    expected = ((1.6448536 + 0.8416212) * deviation / 0.03) ** 2
    assert decision.tasks_needed == int(np.ceil(expected))
    assert str(decision.tasks_needed) in decision.sentence


def test_too_few_tasks_decide_nothing():
    """Twenty lost tasks out of twenty are below the minimum of thirty."""
    decision = decide_release(make_rows([[0]] * 20), make_rows([[1]] * 20), config=SUCCESS_ONLY)
    # the cohort test needs only ten tasks and shows the harm
    assert decision.comparisons[0].outcome == "unclear"
    assert "fewer than the minimum of 30" in decision.comparisons[0].note
    config = GateConfig(guardrails=(), min_cohort_tasks=21)
    decision = decide_release(make_rows([[0]] * 20), make_rows([[1]] * 20), config=config)
    assert (decision.verdict, decision.tasks_needed) == ("INCONCLUSIVE", 30)


def test_missing_rewards_count_at_their_worst_and_best():
    """Five lost rewards of 100 neither promote a tie nor block it; they are not zeros."""
    tied = [[1]] * 100
    holes = [[None]] * 5 + [[1]] * 95
    assert (
        decide_release(make_rows(tied), make_rows(tied), config=SUCCESS_ONLY).verdict == "PROMOTE"
    )
    decision = decide_release(make_rows(holes), make_rows(tied), config=SUCCESS_ONLY)
    success = decision.comparisons[0]
    assert decision.verdict == "INCONCLUSIVE"
    assert (success.candidate, success.change) == (1.0, 0.0)
    assert success.low < -0.05
    assert success.high > 0
    assert "5 of 100 trajectories of the candidate have no reward" in decision.notes[0]


def test_no_rewards_at_all_is_inconclusive_with_the_reason():
    """Without a single reward there is nothing to decide."""
    decision = decide_release(make_rows([[None]] * 50), make_rows([[1]] * 50), config=SUCCESS_ONLY)
    assert decision.verdict == "INCONCLUSIVE"
    assert "no task has a reward on both sides" in decision.reasons[0]
    assert decision.comparisons[0].change is None
    assert not decision.improved


def test_nan_reward_is_missing_not_failure():
    """A reward that is not a number is treated like none."""
    candidate = make_rows([[1]] * 50).with_columns(reward=pl.lit(float("nan")))
    decision = decide_release(candidate, make_rows([[1]] * 50), config=SUCCESS_ONLY)
    assert decision.accounting["rewards_missing_candidate"] == 50
    assert decision.verdict == "INCONCLUSIVE"


def test_unrecorded_tokens_are_unclear_not_free():
    """Usage missing on more than 5% of tasks makes the token guardrail unclear."""
    candidate = make_rows([[1]] * 100).with_columns(
        input_tokens=pl.when(pl.int_range(pl.len()) >= 10).then(pl.col("input_tokens"))
    )
    decision = decide_release(candidate, make_rows([[0]] * 100), config=QUICK)
    tokens = next(c for c in decision.comparisons if c.metric == "tokens_per_trace")
    assert (tokens.outcome, tokens.note) == ("unclear", "10 of 100 tasks do not record it")
    assert decision.tasks_needed is None
    assert "More tasks would not decide" in decision.sentence
    assert decision.verdict == "INCONCLUSIVE"


def test_tasks_of_one_side_are_reported_and_left_out():
    """Unpaired tasks and rows without a task do not enter, and the notes say so."""
    candidate = make_rows([[1]] * 40)
    baseline = make_rows([[1]] * 43).with_columns(
        task_id=pl.when(pl.col("task_id") != "task-0042").then(pl.col("task_id"))
    )
    decision = decide_release(candidate, baseline, config=SUCCESS_ONLY)
    assert decision.accounting["tasks_paired"] == 40
    assert decision.accounting["only_baseline"] == ["task-0040", "task-0041"]
    assert decision.accounting["trajectories_without_task"] == 1
    assert decision.notes[0].startswith("2 tasks of the baseline that the candidate never")


def test_out_of_distribution_is_judged_apart():
    """A gain in distribution does not pay for a loss outside; pooled, it would."""
    cohorts = ["easy"] * 150 + ["ood-maps"] * 50
    baseline = make_rows([[0]] * 150 + [[1]] * 50, cohorts=cohorts)
    candidate = make_rows([[1]] * 150 + [[0]] * 50, cohorts=cohorts)
    config = GateConfig(guardrails=(), min_cohort_tasks=1000)
    decision = decide_release(candidate, baseline, config=config)
    assert [(c.stratum, c.outcome, c.change) for c in decision.comparisons] == [
        ("id", "pass", 1.0),
        ("ood", "fail", -1.0),
    ]
    assert decision.verdict == "BLOCK"


def test_ood_cohorts_can_be_listed_and_made_to_only_block():
    """`ood_cohorts` names strata without the prefix; "block" lets them only block."""
    cohorts = ["easy"] * 150 + ["new-city"] * 10
    frame = make_rows([[1]] * 160, cohorts=cohorts)
    both = GateConfig(guardrails=(), ood_cohorts=("new-city",))
    assert decide_release(frame, frame, config=both).verdict == "INCONCLUSIVE"
    block = GateConfig(guardrails=(), ood_cohorts=("new-city",), ood_decides="block")
    assert decide_release(frame, frame, config=block).verdict == "PROMOTE"


def test_harmed_cohort_blocks_after_holm():
    """One cohort of 20 tasks lost entirely blocks although the mean rose."""
    cohorts = ["big"] * 200 + ["small"] * 20 + ["tiny"] * 5
    baseline = make_rows([[0]] * 200 + [[1]] * 25, cohorts=cohorts)
    candidate = make_rows([[1]] * 200 + [[0]] * 25, cohorts=cohorts)
    decision = decide_release(candidate, baseline, config=SUCCESS_ONLY)
    assert decision.comparisons[0].outcome == "pass"
    assert [(c.cohort, c.harmed) for c in decision.cohorts] == [
        ("big", False),
        ("small", True),
        ("tiny", False),
    ]
    assert decision.cohorts[2].p_value_harm is None
    assert decision.verdict == "BLOCK"
    assert "Cohort small: success fell by 100.0 points" in decision.reasons[0]


def test_different_environments_cannot_be_compared():
    """Another environment version makes even a clear win inconclusive."""
    baseline = make_rows([[0]] * 100).with_columns(environment_version=pl.lit("2"))
    decision = decide_release(make_rows([[1]] * 100), baseline, config=SUCCESS_ONLY)
    assert decision.verdict == "INCONCLUSIVE"
    assert "versions 1 for the candidate, 2 for the baseline" in decision.reasons[0]


def test_a_candidate_of_several_policies_is_none():
    """Half of it is the baseline itself: no verdict is about what would ship."""
    baseline = make_rows([[0]] * 100, policy="old")
    mixed = pl.concat([baseline, make_rows([[1]] * 100, policy="new")])
    decision = decide_release(mixed, baseline, config=SUCCESS_ONLY)
    assert decision.verdict == "INCONCLUSIVE"
    assert "The candidate mixes 2 policies (new, old)" in decision.reasons[0]
    decision = decide_release(make_rows([[1]] * 100, policy="new"), mixed, config=SUCCESS_ONLY)
    assert decision.verdict == "PROMOTE"
    assert "The baseline mixes 2 policies: new, old." in decision.notes


@pytest.mark.parametrize(
    ("rewards", "threshold", "words"),
    [
        ((0, 1), 5.0, "No run of either side reaches gate.success_threshold = 5"),
        ((0, 0), 0.5, "rewards go from 0 to 0"),
        ((1, 0), -1.0, "although rewards go from 0 to 1, so that success says nothing"),
        ((1, 1), 0.5, None),
    ],
)
def test_a_success_that_all_or_none_have_says_nothing(rewards, threshold, words):
    """A threshold beside the rewards; that all runs succeed with one and the same reward is no fault."""
    candidate, baseline = (make_rows([[reward]] * 100) for reward in rewards)
    config = GateConfig(guardrails=(), success_threshold=threshold)
    decision = decide_release(candidate, baseline, config=config)
    assert decision.verdict == ("PROMOTE" if words is None else "INCONCLUSIVE")
    assert words is None or words in decision.reasons[0]


def test_a_mistyped_cohort_is_named():
    """It would turn the judging of out-of-distribution tasks off."""
    frame = make_rows([[1]] * 100, cohorts=["few-holes"] * 60 + ["many-holes"] * 40)
    config = GateConfig(guardrails=(), ood_cohorts=("many-hole",))
    decision = decide_release(frame, frame, config=config)
    assert decision.verdict == "INCONCLUSIVE"
    assert "cohort 'many-hole'; there are few-holes, many-holes." in decision.reasons[0]


def test_tasks_needed_are_for_what_was_seen_where_that_excludes_no_change():
    """Tokens rose by about 23 %, margin 15 %: a true rise of 0 is out of the question."""
    rng = np.random.default_rng(5)
    baseline = make_rows(np.ones((60, 1)), policy="old")
    factor = np.exp(rng.normal(0.17, 0.4, 60))
    tokens = (baseline["input_tokens"].to_numpy() * factor).astype(int)
    candidate = make_rows(np.ones((60, 1)), policy="new").with_columns(
        input_tokens=pl.Series(tokens), output_tokens=baseline["output_tokens"]
    )
    decision = decide_release(candidate, baseline, config=QUICK)
    found = next(c for c in decision.comparisons if c.metric == "tokens_per_trace")
    assert found.outcome == "unclear"
    assert found.low > 0
    error = (found.high - found.low) / (2 * 1.6448536)  # what the bounds imply, about
    as_seen = ((1.6448536 + 0.8416212) * error * 60**0.5 / (found.change - 0.15)) ** 2
    assert found.tasks_needed == pytest.approx(as_seen, rel=0.1)


def test_evidence_never_changes_the_verdict():
    """A far better filtered-cloning policy is stated, the verdict stays."""
    candidate = make_rows([[task % 2] for task in range(100)])
    baseline = make_rows([[0]] * 100)
    other = make_rows([[1]] * 100)
    alone = decide_release(candidate, baseline, config=SUCCESS_ONLY)
    stranger = other.with_columns(task_id=pl.lit("elsewhere"))
    beside = decide_release(
        candidate, baseline, config=SUCCESS_ONLY, evidence={"bc": other, "x": stranger}
    )
    assert (alone.verdict, beside.verdict) == ("PROMOTE", "PROMOTE")
    assert beside.evidence[0].statement == "worse than bc by 50.0 points"
    assert "share no task_id" in beside.evidence[1].statement


def test_incomparable_data_is_an_error():
    """No shared task, two cohorts of a task and a missing column are refused by name."""
    rows = make_rows([[1]] * 3, cohorts=["a"] * 3)
    with pytest.raises(DataError, match="share no task_id"):
        decide_release(rows, rows.with_columns(task_id=pl.lit("x")), config=SUCCESS_ONLY)
    with pytest.raises(DataError, match=r"'task-0000' has the cohorts 'a' and 'b'"):
        decide_release(rows, rows.with_columns(cohort=pl.lit("b")), config=SUCCESS_ONLY)
    with pytest.raises(DataError, match="candidate has no column 'reward'"):
        decide_release(rows.drop("reward"), rows, config=SUCCESS_ONLY)


def test_gate_file_names_the_nearest_key(tmp_path):
    """A mistyped key is an error that names the right one; lists and numbers arrive typed."""
    file = tmp_path / "gate.toml"
    file.write_text("[gate]\nmargin_succes = 0.05\n")
    with pytest.raises(ConfigError, match="margin_success"):
        read_gate_config(file)
    file.write_text('[gate]\nalpha = 0.1\nguardrails = ["steps_p95"]\n')
    assert read_gate_config(file) == GateConfig(alpha=0.1, guardrails=("steps_p95",))


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": 0.7},
        {"margin_success": 0.0},
        {"min_tasks": 1},
        {"guardrails": ("speed",)},
        {"power": 1.0},
        {"margin_success": 3.0},
        {"margin_success_ood": 1.0},
        {"margin_cohort": 10.0},
        {"margin_tokens": 15.0},
        {"margin_steps_p95": float("nan")},
        {"max_unmeasured_fraction": 5.0},
        {"bootstrap_resamples": 1},
    ],
)
def test_unusable_settings_are_refused(values):
    """Each error names the setting."""
    with pytest.raises(ConfigError, match=f"gate.{next(iter(values))}"):
        GateConfig(**values)


def test_run_gate_writes_what_it_saw(tmp_path):
    """verdict.json holds verdict, numbers, configuration and the digest of every dataset."""
    baseline = write_dataset(tmp_path / "old", make_rows([[0]] * 40))
    candidate = write_dataset(tmp_path / "new", make_rows([[1]] * 40))
    other = write_dataset(tmp_path / "bc", make_rows([[1]] * 40))
    decision = run_gate(
        baseline=baseline,
        candidate=candidate,
        evidence={"bc": other},
        config=QUICK,
        output=tmp_path / "out",
    )
    record = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert record["verdict"] == decision.verdict.value == "PROMOTE"
    assert record["exit_code"] == 0
    assert record["inputs"]["candidate"]["digest"] == "digest-of-new"
    assert record["inputs"]["baseline"]["table_versions"] == {"trajectories": 0}
    assert record["inputs"]["evidence"]["bc"]["digest"] == "digest-of-bc"
    assert record["config"]["margin_success"] == 0.03
    assert [c["metric"] for c in record["comparisons"]][:2] == ["success", "tokens_per_trace"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["verdict.json"]


def test_run_gate_writes_nothing_for_unusable_data(tmp_path):
    """A missing dataset is an error and leaves no verdict behind."""
    candidate = write_dataset(tmp_path / "new", make_rows([[1]] * 40))
    with pytest.raises(DataError, match="no dataset here"):
        run_gate(
            baseline=tmp_path / "absent",
            candidate=candidate,
            evidence={},
            config=QUICK,
            output=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_what_an_interrupted_evaluation_left_behind_is_not_missing():
    """An unrewarded trajectory whose task and attempt were played again changes nothing."""
    rows = make_rows([[1, 0], [0, 1]]).with_columns(attempt=pl.Series([0, 1, 0, 1]))
    torn = rows.head(1).with_columns(reward=pl.lit(None, pl.Float64), num_steps=pl.lit(99))
    torn = torn.with_columns(pl.col("num_steps").cast(rows.schema["num_steps"]))
    lone = torn.with_columns(attempt=pl.lit(7, pl.Int64))
    whole = summarize_tasks(rows, 0.5)
    assert_frame_equal(summarize_tasks(pl.concat([rows, torn]), 0.5), whole)
    assert summarize_tasks(pl.concat([rows, lone]), 0.5)["num_trajectories"].to_list() == [3, 2]
