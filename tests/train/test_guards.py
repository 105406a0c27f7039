"""Common mistakes of trajectory training: each check fires on its mistake, and not on its twin."""

import json
from pathlib import Path

import numpy as np
import pytest

from starpo_train.dataset import read_manifest, read_trajectories
from starpo_train.guards import run_guards
from starpo_train.guards.judges import names_snapshot
from starpo_train.guards.registry import GUARDS
from starpo_train.guards.trend import estimate_trend

DAY = 86_400 * 10**9
NOW = 20_600 * DAY  # in May 2026


@pytest.fixture
def find(hand, tmp_path):
    """Runs -> what the checks find in a dataset of them, by name."""
    count = iter(range(100))

    def run(runs, **options):
        path = hand.dataset(tmp_path / f"data{next(count)}", runs)
        found = run_guards(
            read_trajectories(path), read_manifest(path), **{"now_ns": NOW, **options}
        )
        return {finding.name: finding for finding in found}

    return run


@pytest.fixture
def make(hand):
    """One run, with further tables by name."""

    def build(
        name,
        *,
        reward=1.0,
        task="k",
        num_turns=2,
        turn=None,
        rewards=(),
        read=(),
        states=(),
        **columns,
    ):
        turns = [hand.turn([20, 21], [40, 1], step=2 * i, **(turn or {})) for i in range(num_turns)]
        run = hand.trajectory(
            name,
            turns,
            reward=reward,
            task_id=task,
            **{"policy_id": "p1", "started_ns": NOW - DAY, **columns},
        )
        run["rewards"] = [
            {
                "trajectory_id": name,
                "name": "reward",
                "scope": "trajectory",
                "kind": "outcome",
                "source": "environment",
                "trusted": True,
                "superseded": False,
                "time_ns": NOW - DAY,
                **row,
            }
            for row in rewards
        ]
        run["messages"] = [
            {"trajectory_id": name, "node_id": str(i), "first_turn": 0, "role": "tool"}
            | (row if isinstance(row, dict) else {"message": say(row)})
            for i, row in enumerate(read)
        ]
        run["states"] = [{"trajectory_id": name, "name": "s", **row} for row in states]
        return run

    return build


def say(text):
    return json.dumps({"role": "tool", "parts": [{"type": "text", "content": text}]})


def test_terminal_reward_only(make, find):
    """Three turns and a reward at the end alone; one turn's own reward, or shaping, ends it."""
    ends = [make("a", num_turns=3), make("b", num_turns=1, reward=0.0)]
    found = find(ends)["terminal_reward_only"]
    assert found.severity == "warn"
    assert found.numbers == {
        "num_multi_turn": 1,
        "num_with_process_rewards": 0,
        "mean_turns": 3.0,
    }
    for turn in ({"reward": 0.0}, {"shaping": 0.5}):
        assert "terminal_reward_only" not in find([make("a", num_turns=3, turn=turn), ends[1]])


THOUGHT = "The hole is on the right, so the goal must be reached by going down twice."


def test_thoughts_scored_as_evidence_by_name_and_by_text(make, find):
    """A judge's reward on reasoning, or a reward whose explanation is the reasoning."""
    turn = {"reasoning": THOUGHT}
    judged = {"source": "judge", "judge_id": "j-2026-01-01", "judge_prompt_hash": "h", "value": 1.0}
    rule = {"source": "rule", "value": 1.0}
    named = make("a", turn=turn, rewards=[rule, judged | {"name": "reasoningQuality"}])
    copied = make("a", turn=turn, rewards=[rule, judged | {"explanation": f"Good:  {THOUGHT}"}])
    for run, count in ((named, 0), (copied, 1)):
        found = find([run])["thoughts_scored_as_evidence"]
        assert found.severity == "warn"
        assert found.numbers["num_runs_whose_reward_text_is_reasoning"] == count
    twin = make("a", turn=turn, rewards=[rule, judged | {"explanation": "It reached the goal."}])
    assert "thoughts_scored_as_evidence" not in find([twin])


def test_what_a_lone_judge_was_shown_cannot_be_seen(make, find):
    """Reasoning and no reward but a judge's: for somebody to look at; without reasoning, nothing."""
    judged = {"source": "judge", "judge_id": "j-2026-01-01", "judge_prompt_hash": "h", "value": 1.0}
    found = find([make("a", turn={"reasoning": THOUGHT}, rewards=[judged])])
    assert found["thoughts_scored_as_evidence"].severity == "review"
    assert "is not recorded" in found["thoughts_scored_as_evidence"].explanation
    assert "thoughts_scored_as_evidence" not in find([make("a", rewards=[judged])])


def test_stale_rollouts_by_age(make, find):
    """Two of four runs are 40 days old; at 20 days they are fresh; a source without times is neither."""

    def at(days):
        return [make(f"r{i}", started_ns=NOW - (days if i < 2 else 1) * DAY) for i in range(4)]

    found = find(at(40))["stale_rollouts"]
    assert found.numbers == {
        "num_trajectories": 4,
        "share_older_than_30_days": 0.5,
        "oldest_days": 40.0,
        "newest_days": 1.0,
    }
    assert "stale_rollouts" not in find(at(20))
    assert "stale_rollouts" not in find([make("r", started_ns=0)])


def test_stale_rollouts_by_policy(make, find):
    """p1 is two before p3; with p2 trained it is one; side by side, or without times, none is
    before another; the recipe's own lag comes first."""
    runs = [make(f"r{i}", policy_id=f"p{i}", started_ns=NOW - (9 - i) * DAY) for i in (1, 2, 3)]
    found = find(runs)["stale_rollouts"]
    assert found.numbers["current_policy"] == "p3"
    assert found.numbers["share_of_replaced_policies"] == pytest.approx(1 / 3, abs=1e-4)
    assert "stale_rollouts" not in find(runs, policy_id="p2")
    assert find(runs, policy_id="next")["stale_rollouts"].numbers["largest_lag"] == 3
    beside = [*runs, *(make(f"s{i}", policy_id=f"p{i}") for i in (1, 2, 3))]
    assert "stale_rollouts" not in find(beside)
    timeless = [make(f"r{i}", policy_id=f"p{i}", started_ns=0) for i in (1, 2, 3)]
    assert "stale_rollouts" not in find(timeless)
    lagging = [make(f"r{i}", policy_lag=0) for i in range(3)]
    assert "stale_rollouts" not in find(lagging)
    assert "stale_rollouts" in find([*lagging, make("old", policy_lag=2)])


def test_stale_rollouts_by_environment(make, find):
    """Half of the runs met version 1, which version 2 has replaced."""

    def met(*versions):
        return [
            make(
                f"r{i}",
                environment_name="shop",
                environment_version=version,
                started_ns=NOW - (9 - i) * DAY,
            )
            for i, version in enumerate(versions)
        ]

    found = find(met("1", "2"))["stale_rollouts"]
    assert found.numbers["share_of_replaced_environments"] == 0.5
    assert "stale_rollouts" not in find(met("2", "2"))


PINNED = {"source": "judge", "judge_id": "gpt-4o-2024-08-06", "judge_prompt_hash": "sha256:1"}


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"judge_id": None}, ("num_without_judge_id", 1)),
        ({"judge_prompt_hash": None}, ("num_without_prompt_hash", 1)),
        ({"judge_id": "gpt-4o"}, ("floating_ids", ["gpt-4o"])),
    ],
)
def test_judge_not_pinned(make, find, change, number):
    """No id, no prompt's hash, or a name without a snapshot; not for rewards that do not count."""
    judged = {**PINNED, "value": 1.0}
    found = find([make("a", rewards=[judged | change])])["judge_not_pinned"]
    assert found.numbers[number[0]] == number[1]
    assert "judge_not_pinned" not in find([make("a", rewards=[judged])])
    untrusted = judged | change | {"trusted": False}
    assert "judge_not_pinned" not in find([make("a", rewards=[untrusted])])


def test_names_that_can_mean_one_model_only():
    """Dates, revisions and digests; not sizes, versions of a family, or `latest`."""
    pinned = [
        "gpt-4-0613",
        "claude-sonnet-4-20250514",
        "gemini-1.5-pro-002",
        "m@sha256:ab",
        "a@0f3d2b1",
    ]
    floating = ["gpt-4o", "llama-3.1-405b-instruct", "claude-3-5-sonnet-latest", "llama3:8b"]
    assert [names_snapshot(name) for name in pinned] == [True] * 5
    assert [names_snapshot(name) for name in floating] == [False] * 4


@pytest.mark.parametrize(
    "other", [{"judge_prompt_hash": "sha256:2"}, {"judge_id": "gpt-4o-2024-11-20"}]
)
def test_judge_drifting_by_version(make, find, other):
    """Two prompts, or two snapshots of one model, for one reward; two rewards may differ."""
    first, second = {**PINNED, "value": 1.0}, {**PINNED, "value": 0.0} | other
    found = find([make("a", rewards=[first]), make("b", rewards=[second])])["judge_drifting"]
    assert found.numbers["num_versions"] == {"reward by gpt-4o": 2}
    apart = [make("a", rewards=[first]), make("b", rewards=[second | {"name": "tone"}])]
    assert "judge_drifting" not in find(apart)


def test_judge_drifting_over_time(make, find):
    """The same tasks are worth .5 less later; where other tasks come later instead, it is no drift."""

    def judge(later):
        noise = np.random.default_rng(0).normal(0, 0.05, 40)
        return [
            make(
                f"r{i}",
                task=f"k{i // 2}",
                rewards=[
                    {
                        **PINNED,
                        "value": later(i) + noise[i],
                        "time_ns": NOW - (9 if i % 2 else 1) * DAY,
                    }
                ],
            )
            for i in range(40)
        ]

    found = find(judge(lambda i: 0.5 if i % 2 else 0.0))["judge_drifting"]
    assert found.numbers["moved"]["reward"] == pytest.approx(-0.5, abs=0.05)
    assert "judge_drifting" not in find(judge(lambda i: i / 40))


def test_trend_is_the_regression_with_clustered_errors():
    """Against least squares on dummies of the cells and the sandwich written out, CR1 by G / (G - 1)."""
    from scipy import stats

    generator = np.random.default_rng(1)
    cells, times = np.repeat(np.arange(12), 4), generator.normal(size=48)
    clusters = cells // 2
    values = 0.3 * times + generator.normal(size=48) + cells
    design = np.column_stack([times, np.eye(12)[cells]])
    bread = np.linalg.inv(design.T @ design)
    residuals = values - design @ (bread @ design.T @ values)
    scores = [design[clusters == g].T @ residuals[clusters == g] for g in range(6)]
    meat = sum(np.outer(score, score) for score in scores)
    slope = (bread @ design.T @ values)[0]
    error = np.sqrt((bread @ meat @ bread)[0, 0] * 6 / 5)
    trend = estimate_trend(values, times, cells.tolist(), clusters.tolist())
    assert trend is not None
    assert trend.change == pytest.approx(slope * np.ptp(times), rel=1e-10)
    assert trend.p_value == pytest.approx(2 * stats.t.sf(abs(slope / error), 5), rel=1e-8)
    assert trend.num_clusters == 6


def test_trend_needs_clusters_that_say_something():
    """One observation in each cell, or all at one time: nothing can be said."""
    assert estimate_trend([0, 1, 2], [0, 1, 2], ["a", "b", "c"], ["a", "b", "c"]) is None
    assert estimate_trend([0, 1, 0, 1], [5, 5, 5, 5], list("aabb"), list("aabb")) is None


def test_id_ood_mixed(make, find):
    """Both in one split; one of them beside runs of unknown origin is no mixture."""
    runs = [make("a", distribution="id"), make("b", distribution="ood", reward=0.0)]
    found = find(runs)["id_ood_mixed"]
    assert found.numbers == {
        "num_id": 1,
        "num_ood": 1,
        "reward_mean_id": 1.0,
        "reward_mean_ood": 0.0,
    }
    assert "id_ood_mixed" not in find([runs[0], make("b", distribution="unknown")])


def test_zero_variance(make, find):
    """All equal: nothing to learn. Equal within tasks only: tasks can still be compared."""

    def earn(*rewards):
        return [make(f"r{i}", task=f"k{i // 2}", reward=r) for i, r in enumerate(rewards)]

    assert find(earn(1.0, 1.0, 1.0, 1.0))["zero_variance"].severity == "refuse"
    assert find(earn(1.0, 1.0, 0.0, 0.0))["zero_variance"].severity == "warn"
    assert "zero_variance" not in find(earn(1.0, 1.0, 0.0, 1.0))
    assert "zero_variance" not in find([make("a", task=None), make("b", task=None)])


def test_reward_leakage_by_value(make, find):
    """Tool results that end in the run's own outcome; other numbers behind the name are none."""

    def show(write):
        values = [1.0, 0.0, 1.0, 0.0]
        return [
            make(
                f"r{i}",
                reward=value,
                rewards=[{"name": "task_success", "value": value}],
                read=[write(value, i)],
            )
            for i, value in enumerate(values)
        ]

    found = find(show(lambda value, i: f'{{"done": true, "task_success": {value}}}'))
    assert found["reward_leakage"].severity == "refuse"
    assert found["reward_leakage"].numbers["num_with_value"] == 4
    assert found["reward_leakage"].numbers["reward_names"] == ["task_success"]
    for write in (
        lambda value, i: "task_success: 0.5",
        lambda value, i: "task_success: 0",  # shown at every step, whatever comes
        lambda value, i: f"your task_successes: {value}" if i else "score",
        lambda value, i: f"the task_success is judged later; {value}",
    ):
        assert "reward_leakage" not in find(show(write))


def test_reward_leakage_by_state_key_and_explanation(make, find):
    """A state before the last call, a key of reward spans, the grader's words."""
    words = "The refund was issued to the wrong card, so the customer lost money."
    reward = {"name": "task_success", "value": 0.0, "explanation": words}

    def run(i, **fields):
        value = float(i % 2)
        return make(f"r{i}", reward=value, rewards=[reward | {"value": value}], **fields)

    def state(i, step):
        return [{"step": step, "value": json.dumps({"task_success": float(i % 2)})}]

    assert "reward_leakage" in find([run(i, states=state(i, 1)) for i in range(4)])
    assert "reward_leakage" not in find([run(i, states=state(i, 3)) for i in range(4)])
    assert find([run(0, read=[f"Grader:\n{words}"])])["reward_leakage"].severity == "refuse"
    assert "reward_leakage" in find([run(0, read=["starpo.reward.id=1"])])
    unread = {"message": say(words), "first_turn": None}  # after the last call
    written = {"message": say(words), "sampled_turn": 0}  # the agent's own words
    assert "reward_leakage" not in find([run(0, read=[unread, written, "The refund was issued."])])


def test_confounding_by_policy_version(make, find):
    """p2 solves what p1 fails, always; with attempts that differ as much, the policy says little."""

    def play(reward):
        return [
            make(f"r{k}-{p}-{i}", task=f"k{k}", policy_id=p, reward=reward(k, p, i))
            for k in range(8)
            for p in ("p1", "p2")
            for i in range(2)
        ]

    found = find(play(lambda k, p, i: 0.5 + (0.4 if p == "p2" else 0.0) + 0.01 * i + 0.01 * k))
    numbers = found["confounding_by_policy_version"].numbers
    assert (numbers["low"], numbers["high"], numbers["num_shared_tasks"]) == ("p1", "p2", 8)
    assert numbers["gap"] == pytest.approx(0.4)
    assert numbers["deviation_within_task_and_policy"] == pytest.approx(0.01 / 2**0.5, abs=1e-4)
    mixed = play(lambda k, p, i: float(i) + (0.1 if p == "p2" else 0.0))
    assert "confounding_by_policy_version" not in find(mixed)


def test_policies_on_tasks_of_their_own_are_compared_over_tasks(make, find):
    """Welch over five tasks each: 0 and 1 always; noise of the same size finds nothing."""
    runs = [
        make(f"r{i}", task=f"k{i}", policy_id=f"p{i % 2}", reward=float(i % 2)) for i in range(10)
    ]
    assert find(runs)["confounding_by_policy_version"].numbers["num_shared_tasks"] == 0
    runs = [
        make(f"r{i}", task=f"k{i}", policy_id=f"p{i % 2}", reward=float(i // 2 % 2))
        for i in range(10)
    ]
    assert "confounding_by_policy_version" not in find(runs)


@pytest.mark.parametrize("is_paired", [True, False])
def test_policies_are_compared_by_the_t_tests_of_scipy(make, find, is_paired):
    """Over tasks both played, paired; else Welch's, of unequal variances and sizes."""
    from scipy import stats

    generator = np.random.default_rng(3)
    low, high = generator.normal(0.2, 0.1, 7), generator.normal(0.9, 0.2, 7 if is_paired else 9)
    runs = [
        make(f"{p}-{k}", task=f"k{k}" if is_paired else f"{p}{k}", policy_id=p, reward=float(r))
        for p, rewards in (("p1", low), ("p2", high))
        for k, r in enumerate(rewards)
    ]
    test = stats.ttest_rel if is_paired else lambda a, b: stats.ttest_ind(a, b, equal_var=False)
    numbers = find(runs)["confounding_by_policy_version"].numbers
    assert numbers["p_value"] == pytest.approx(test(high, low).pvalue, rel=1e-9)


def test_saturated_benchmark(make, find):
    """19 of 20 at the top; at 18 not; all zero is no success; a recorded maximum counts."""

    def solve(count, **fields):
        return [make(f"r{i}", task=f"k{i}", reward=float(i < count), **fields) for i in range(20)]

    found = find(solve(19))["saturated_benchmark"]
    assert found.numbers == {"num_rewarded": 20, "share_at_top": 0.95, "top": 1.0}
    assert "saturated_benchmark" not in find(solve(18))
    assert "saturated_benchmark" not in find(solve(0))
    assert "saturated_benchmark" not in find(solve(20, rewards=[{"value": 1.0, "max": 2.0}]))


def test_single_turn(make, find):
    """One call each; a single run of two calls is enough."""
    runs = [make("a", num_turns=1), make("b", num_turns=1)]
    assert find(runs)["single_turn"].numbers == {"num_trajectories": 2, "max_turns": 1}
    assert "single_turn" not in find([*runs, make("c", num_turns=2)])


def test_open_ended_surface(make, find):
    """Six values of a judge's scale within two tasks; a rule beside it, or agreement, is honest."""

    def judge(values, extra=()):
        return [
            make(f"r{i}", task=f"k{i // 3}", rewards=[{**PINNED, "value": v}, *extra])
            for i, v in enumerate(values)
        ]

    fuzzy = [0.1, 0.9, 0.5, 0.3, 0.7, 0.0]
    found = find(judge(fuzzy))["open_ended_surface"]
    assert found.severity == "hold_back"
    # pooled variance: (.32 + .2467) / 4, over a range of .9
    assert found.numbers["disagreement_within_tasks"] == pytest.approx(0.4182, abs=1e-4)
    rule = {"name": "checked", "source": "rule", "value": 1.0}
    assert "open_ended_surface" not in find(judge(fuzzy, [rule]))
    assert "open_ended_surface" not in find(judge([0.1, 0.12, 0.11, 0.9, 0.92, 0.91]))
    assert "open_ended_surface" not in find(judge([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]))


def test_token_cost_doubled(make, find):
    """The newer policy takes 100 tokens instead of 40 on the same tasks; at 70 it is fine."""

    def spend(tokens):
        return [
            make(
                f"r{k}-{p}",
                task=f"k{k}",
                policy_id=p,
                started_ns=NOW - (2 if p == "p1" else 1) * DAY,
                input_tokens=tokens if p == "p2" else 30,
                output_tokens=10,
            )
            for k in range(10)
            for p in ("p1", "p2")
        ]

    found = find(spend(90))["token_cost_doubled"]
    assert found.severity == "review"
    assert found.numbers == {"policy": "p2", "baseline": "p1", "ratio_to_baseline": 2.5}
    assert "token_cost_doubled" not in find(spend(60))
    assert "token_cost_doubled" not in find(spend(90), baseline_policy_id="p2")


def test_token_cost_of_success(make, find):
    """Within tasks, success takes 5 turns of ids and failure 2: 20 tokens over 8."""

    def play(longer):
        return [
            make(f"r{k}-{i}", task=f"k{k}", reward=float(i), num_turns=longer if i else 2)
            for k in range(10)
            for i in range(2)
        ]

    found = find(play(5))["token_cost_doubled"]
    assert found.numbers == {"ratio_of_successful_to_failing": 2.5}
    assert "token_cost_doubled" not in find(play(3))


def test_every_check_is_documented_and_findings_come_worst_first(make, find):
    """docs/guards.md has a row for each; `refuse` stands before `warn`."""
    page = (Path(__file__).parents[2] / "docs" / "guards.md").read_text()
    assert [name for name in GUARDS if f"| `{name}` |" not in page] == []
    found = find([make("a", num_turns=1), make("b", num_turns=1)])
    assert [f.severity for f in found.values()][:2] == ["refuse", "warn"]
    assert set(found) <= set(GUARDS)
