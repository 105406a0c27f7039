"""Credit of turns and steps, against numbers worked out by hand."""

import numpy as np
import polars as pl
import pytest

from starpo_train.credit_table import build_credit_rows
from starpo_train.dataset import read_manifest, read_trajectories
from starpo_train.turncredit import CreditRule, assign_turn_credit, compute_other_means


@pytest.fixture
def play(hand, tmp_path):
    """Runs as (task, outcome, rewards of turns) -> trajectories, in the order given."""
    count = iter(range(100))

    def write(*runs, **columns):
        made = [
            hand.trajectory(
                f"t{i}",
                [hand.turn([20], [40, 1], reward=reward) for reward in rewards],
                reward=outcome,
                task_id=task,
                **columns,
            )
            for i, (task, outcome, rewards) in enumerate(runs)
        ]
        return read_trajectories(hand.dataset(tmp_path / f"data{next(count)}", made))

    return write


def advantages(trajectories, **rule):
    credits_of = assign_turn_credit(trajectories, CreditRule(**rule))
    return {key: [each.advantage for each in found] for key, found in credits_of.items()}


def test_returns_less_the_mean_of_the_other_attempts(play):
    """(0, 0, 1) against (0): baselines 0 and 1. Three attempts 1, 0, 0: baselines 0, .5, .5."""
    two = play(("a", 1.0, [None, None, None]), ("a", 0.0, [None]))
    assert advantages(two) == {"t0": [1.0, 1.0, 1.0], "t1": [-1.0]}
    three = play(("a", 1.0, [None]), ("a", 0.0, [None]), ("a", 0.0, [None]))
    assert advantages(three) == {"t0": [1.0], "t1": [-0.5], "t2": [-0.5]}


def test_process_rewards_and_discount(play):
    """Rewards (.2, -.1, 0 + 1), gamma .5: returns .4, .4, 1; the other attempt is worth 0.5 at once."""
    runs = play(("a", 1.0, [0.2, -0.1, None]), ("a", 0.5, [None]))
    credits_of = assign_turn_credit(runs, CreditRule(gamma=0.5))
    first = credits_of["t0"]
    assert [c.reward for c in first] == pytest.approx([0.2, -0.1, 1.0])
    assert [c.return_to_go for c in first] == pytest.approx([0.4, 0.4, 1.0])
    assert [c.advantage for c in first] == pytest.approx([-0.1, -0.1, 0.5])
    assert credits_of["t1"][0].baseline == pytest.approx(0.4)
    unweighted = assign_turn_credit(runs, CreditRule(process_weight=0.0))
    assert [c.return_to_go for c in unweighted["t0"]] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("rloo", [1.0, -0.5, -0.5]),
        ("dr_grpo", [2 / 3, -1 / 3, -1 / 3]),
        ("grpo", [1.154699, -0.57735, -0.57735]),
    ],
)
def test_group_estimators_have_no_use_for_process_rewards(play, estimator, expected):
    """Outcomes (1, 0, 0) as published, the same at every turn."""
    runs = play(("a", 1.0, [5.0, 5.0]), ("a", 0.0, [None]), ("a", 0.0, [None]))
    found = advantages(runs, estimator=estimator)
    assert found["t0"] == pytest.approx([expected[0]] * 2, abs=1e-5)
    assert [found["t1"][0], found["t2"][0]] == pytest.approx(expected[1:], abs=1e-5)


@pytest.mark.parametrize("estimator", ["returns", "rloo", "dr_grpo"])
def test_a_lone_attempt_has_no_credit_unless_asked_for(play, estimator):
    """Never its raw reward: nothing, or against all others (leave-one-out: 1 - 0; Dr.GRPO: 1 - .5)."""
    runs = play(("a", 1.0, [None]), ("b", 0.0, [None]))
    assert advantages(runs, estimator=estimator) == {"t0": [None], "t1": [None]}
    found = advantages(runs, estimator=estimator, singleton="global_baseline")
    size = 0.5 if estimator == "dr_grpo" else 1.0
    assert found == {"t0": [size], "t1": [-size]}
    alone = play(("a", 1.0, [None]))
    assert advantages(alone, estimator=estimator, singleton="global_baseline") == {"t0": [None]}


@pytest.mark.parametrize("estimator", ["returns", "rloo", "grpo", "dr_grpo"])
def test_equal_attempts_earn_exactly_nothing(play, estimator):
    """Three times 0.1, whose sum less one of them is not 0.2."""
    runs = play(*[("a", 0.1, [None])] * 3)
    assert list(advantages(runs, estimator=estimator).values()) == [[0.0]] * 3


def test_a_missing_reward_is_no_reward_of_zero(play):
    """The run without an outcome has no credit, and is nobody's baseline."""
    runs = play(("a", 1.0, [None]), ("a", None, [None]), ("a", 0.0, [None]))
    assert advantages(runs) == {"t0": [1.0], "t2": [-1.0]}


def test_other_means_are_those_of_numpy():
    """Twenty values in four groups, one of them lone, against np.delete."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=20)
    groups = ["lone", *generator.choice(list("abc"), 19)]
    means = compute_other_means(values.tolist(), groups, "drop")
    assert means[0] is None
    for i in range(1, 20):
        others = [values[j] for j in range(20) if j != i and groups[j] == groups[i]]
        assert means[i] == pytest.approx(np.mean(others))
    overall = compute_other_means(values.tolist(), groups, "global_baseline")
    assert overall[0] == pytest.approx(np.delete(values, 0).mean())


def test_gae_over_turns(play):
    """r = (.2, -.1, 1), V = (.5, .6, .7), gamma .95, lambda .9: the reference's .45938, .2215, .3."""
    runs = play(("a", 1.0, [0.2, -0.1, None]))
    values = {("t0", 0): 0.5, ("t0", 1): 0.6, ("t0", 2): 0.7}
    rule = CreditRule(estimator="bilevel_gae", gamma=0.95, lam=0.9)
    found = assign_turn_credit(runs, rule, values=values)["t0"]
    assert [c.advantage for c in found] == pytest.approx([0.4593825, 0.2215, 0.3], abs=1e-7)
    assert [c.baseline for c in found] == pytest.approx([0.5, 0.6, 0.7])


def test_a_cut_run_goes_on_from_its_last_value(play):
    """Truncated: delta of the last turn is 0 + .5 * .8 - .8 = -.4, not -.8."""
    rule = CreditRule(estimator="bilevel_gae", gamma=0.5)
    runs = play(("a", 0.0, [None]), end="truncated")
    found = assign_turn_credit(runs, rule, values={("t0", 0): 0.8})["t0"]
    assert found[0].advantage == pytest.approx(-0.4)
    with pytest.raises(ValueError, match="give `values`"):
        assign_turn_credit(runs, rule)


def write_steps(hand, path, *, turn_reward):
    """Two calls, two tools after the first; .25 is recorded of the second tool, .5 of the call."""
    turns = [
        hand.turn([20], [40, 1], step=0, step_kind="planner", span_id="c0", reward=turn_reward),
        hand.turn([20], [41, 1], step=3, step_kind="finalizer", span_id="c1"),
    ]
    run = hand.trajectory("t0", turns, reward=1.0, task_id="a")
    spans = [
        ("llm", 0, 0, "c0"),
        ("step", 1, None, "s1"),
        ("step", 2, None, "s2"),
        ("llm", 3, 1, "c1"),
    ]
    run["spans"] = [
        {
            "trajectory_id": "t0",
            "trace_id": "f" * 32,
            "span_id": i,
            "record": r,
            "step": s,
            "turn": t,
        }
        for r, s, t, i in spans
    ]
    reward = {"trajectory_id": "t0", "scope": "step", "kind": "process", "turn": 0, "name": "r"}
    reward |= {"trusted": True, "superseded": False}
    run["rewards"] = [
        {**reward, "step": 0, "value": 0.5},
        {**reward, "step": 2, "value": 0.25},
        {**reward, "step": 1, "value": 9.0, "trusted": False},
        {**reward, "step": 1, "value": 9.0, "superseded": True},
    ]
    other = hand.trajectory("t1", [hand.turn([20], [40, 1])], reward=0.0, task_id="a")
    return hand.dataset(path, [run, other])


def credit_rows(path):
    trajectories = read_trajectories(path)
    rule = CreditRule()
    credits_of = assign_turn_credit(trajectories, rule)
    return build_credit_rows(read_manifest(path), trajectories, credits_of, rule)


def test_a_step_that_was_judged_has_what_came_from_it_on(hand, tmp_path):
    """Turn 0 returns .75 + 1; from the second tool on it is .25 + 1; the first was not judged."""
    rows = credit_rows(write_steps(hand, tmp_path / "d", turn_reward=0.75))
    table = [(r.kind, r.turn, r.span_id, r.reward, r.return_to_go, r.advantage) for r in rows]
    assert table == [
        ("planner", 0, "c0", 0.75, 1.75, 1.75),
        ("step", 0, "s1", None, None, None),
        ("step", 0, "s2", 0.25, 1.25, 1.25),
        ("finalizer", 1, "c1", 1.0, 1.0, 1.0),
        ("other", 0, None, 0.0, 0.0, -1.75),
    ]


def test_steps_have_no_credit_where_a_recipe_weighed_their_rewards(hand, tmp_path):
    """The turn counts 1.5, not .75: how much of it is the tool's is not known."""
    rows = credit_rows(write_steps(hand, tmp_path / "d", turn_reward=1.5))
    assert [row.advantage for row in rows if row.kind == "step"] == [None, None]
    assert rows[0].advantage == 2.5


def test_table_holds_every_column(hand, tmp_path):
    """Types stay where a column has no number at all."""
    from starpo_train.credit_table import write_credit_table

    write_credit_table(tmp_path / "empty.parquet", [])
    rows = credit_rows(write_steps(hand, tmp_path / "d", turn_reward=0.75))
    write_credit_table(tmp_path / "credit.parquet", rows)
    empty, table = (pl.read_parquet(tmp_path / f"{n}.parquet") for n in ("empty", "credit"))
    assert empty.schema == table.schema
    assert table["advantage"].to_list() == [1.75, None, 1.25, 1.0, -1.75]
