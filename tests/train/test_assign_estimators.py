"""Every value of algorithm.advantage on small datasets, by hand."""

import random
import statistics
from types import SimpleNamespace

import pytest
import torch

from starpo_train.config import read_run_config
from starpo_train.credit.anchors import read_anchors
from starpo_train.credit.assign import (
    TokenizedTrajectories,
    assign_credit,
    assign_turn_advantages,
    compute_trajectory_advantages,
    fit_first_values,
)
from starpo_train.credit.turns import lay_out_turns
from starpo_train.credit.values import compute_targets
from starpo_train.dataset import read_trajectories
from starpo_train.errors import ConfigError, DataError
from starpo_train.tokens import tokenize_trajectory

ESTIMATORS = [
    *("grpo", "dr_grpo", "rloo", "maxrl", "gdpo", "reinforce_pp", "reinforce_pp_baseline"),
    *("gigpo", "gae", "bilevel_gae"),
]


@pytest.fixture
def assign(hand, tmp_path):
    """`assign(rows, values=None, **algorithm)`: advantages by trajectory id, one list per row."""

    def prepare(rows, **algorithm):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        path = hand.dataset(folder / "data", rows)
        found = TokenizedTrajectories(trajectories=read_trajectories(path), rows=[], rows_of_N=[])
        for i, trajectory in enumerate(found.trajectories):
            new = tokenize_trajectory(trajectory, position=i)
            found.rows_of_N.append(list(range(len(found.rows), len(found.rows) + len(new))))
            found.rows += new
        run_file = hand.run_file(folder / "r.toml", base=folder, dataset=path, algorithm=algorithm)
        return found, read_run_config(run_file)

    def assign(rows, values=None, **algorithm):
        found, config = prepare(rows, **algorithm)
        values_K = None if values is None else torch.tensor(values, dtype=torch.float64)
        credit = assign_credit(found, config, None, critic_values_K=values_K)
        kept = credit.tokenized
        return SimpleNamespace(
            facts=credit.facts,
            of={
                t.trajectory_id: [credit.advantages_R[r].tolist() for r in rows]
                for t, rows in zip(kept.trajectories, kept.rows_of_N, strict=True)
            },
        )

    assign.prepare = prepare
    return assign


def whiten(values):
    return [(value - statistics.mean(values)) / statistics.stdev(values) for value in values]


def flatten(result):
    return [value for rows in result.of.values() for row in rows for value in row]


def make_bandit(hand, rewards, *, task_id="task", prefix="t"):
    """One-turn runs of two tokens each."""
    return [
        hand.trajectory(
            f"{prefix}{i}", [hand.turn([9], [2, 3], [-1, -1])], reward=reward, task_id=task_id
        )
        for i, reward in enumerate(rewards)
    ]


def make_branched(hand):
    """A run whose second turn begins a new row, and whose third goes on with the first row.

    Rows: turns 0 and 2 (2 and 1 tokens), turn 1 (1 token); turns in row order are 0, 2, 1.
    """
    turns = [
        hand.turn([9], [2, 3], [-1, -1], reward=0.1),
        hand.turn([7], [4], [-1], reward=0.2),
        hand.turn([9, 2, 3, 8], [5], [-1], reward=0.4),
    ]
    return [
        hand.trajectory("a", turns, reward=1.0),
        hand.trajectory("b", [hand.turn([9], [6], [-1])], reward=0.0),
    ]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("grpo", [1.1547, -0.57735, -0.57735]),
        ("dr_grpo", [0.66667, -0.33333, -0.33333]),
        ("rloo", [1.0, -0.5, -0.5]),
        ("maxrl", [2.0, -1.0, -1.0]),
    ],
)
def test_every_token_has_its_trajectorys_advantage(assign, hand, advantage, expected):
    """Rewards (1, 0, 0): two tokens each; a task of equal rewards and a lone run are left out."""
    rows = [
        *make_bandit(hand, [1.0, 0.0, 0.0]),
        *make_bandit(hand, [0.1, 0.1], task_id="equal", prefix="e"),
        *make_bandit(hand, [1.0], task_id="lone", prefix="l"),
    ]
    result = assign(rows, advantage=advantage)
    assert list(result.of) == ["t0", "t1", "t2"]
    wanted = [value for value in expected for _ in range(2)]
    assert flatten(result) == pytest.approx(wanted, abs=2e-5)
    assert result.facts["groups_zero_variance"] == result.facts["groups_singleton"] == 1


def test_reinforce_pp_goes_back_through_turns_in_the_order_of_time(assign, hand):
    """Process rewards (.1, .2, .4) at weight 1 and outcome 1: r = (.1, .2, 1.4) at turn ends.

    Tokens in time: 0 .1 .2 1.4; at gamma .5 returns are 1.4, .9, .55, .275 from the end on.
    """
    result = assign(
        make_branched(hand), advantage="reinforce_pp", gamma_token=0.5, process_reward_weight=1.0
    )
    expected = whiten([0.275, 0.55, 1.4, 0.9, 0.0])  # row of turns 0 and 2, row of turn 1, b
    assert flatten(result) == pytest.approx(expected, abs=1e-6)
    assert [len(row) for row in result.of["a"]] == [3, 1]


def test_gae_has_the_turns_value_at_each_of_its_tokens(assign, hand):
    """V of turns 0, 2, 1 and b's: .5, .8, .6, .4; r = (0, 0, 1) at turn ends; lambda .5.

    d at tokens in time: 0 (inside turn 0), .6 - .5 = .1, .8 - .6 = .2, 1 - .8 = .2; so A from the
    end on: .2, .2 + .1 = .3, .1 + .15 = .25, .125. b: 0 - .4.
    """
    result = assign(make_branched(hand), [0.5, 0.8, 0.6, 0.4], advantage="gae", **{"lambda": 0.5})
    expected = whiten([0.125, 0.25, 0.2, 0.3, -0.4])
    assert flatten(result) == pytest.approx(expected, abs=1e-6)


def test_gae_bootstraps_a_run_that_was_cut(assign, hand):
    """Run b, cut at V = .4 with nothing earned, has .4 - .4 = 0 where a failure has -.4."""
    rows = make_branched(hand)
    rows[1]["trajectories"]["end"] = "truncated"
    result = assign(rows, [0.5, 0.8, 0.6, 0.4], advantage="gae", **{"lambda": 0.5})
    assert flatten(result) == pytest.approx(whiten([0.125, 0.25, 0.2, 0.3, 0.0]), abs=1e-6)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("turns", {}, [0.9025, 0.95, 1.0]),
        ("turns", {"process_reward_weight": 1.0}, [0.1 + 0.95 * 1.53, 1.53, 1.4]),
        ("tokens", {"gamma_token": 0.5}, [0.125, 0.5, 1.0]),
        ("outcome", {"process_reward_weight": 1.0}, [1.0, 1.0, 1.0]),
    ],
)
def test_what_the_critic_is_fitted_to(assign, hand, target, options, expected):
    """r = (0, 0, 1), or (.1, .2, 1.4), of turns of 2, 1 and 1 tokens; .2 + .95 * 1.4 = 1.53."""
    tokenized, config = assign.prepare(make_branched(hand), **options)
    actual = compute_targets(tokenized, lay_out_turns(tokenized), 0, config, target)
    assert actual.tolist() == pytest.approx(expected)


def test_reinforce_pp_baseline_whitens_over_what_is_left(assign, hand):
    """Rewards 1 (4 tokens) and 0 (1): +-.5 whitened over tokens; the equal task takes no part."""
    rows = [*make_branched(hand), *make_bandit(hand, [0.1, 0.1], task_id="equal", prefix="e")]
    result = assign(rows, advantage="reinforce_pp_baseline")
    assert flatten(result) == pytest.approx(whiten([0.5] * 4 + [-0.5]), abs=1e-6)
    assert list(result.of) == ["a", "b"]


def make_walk(hand, name, reward, call_id, *, last):
    """Two turns: the task, then a tool's result `last` under a fresh call id."""
    messages = [
        {"node_id": "n0", "message": '{"role": "user", "parts": [{"type": "text"}]}'},
        {"node_id": "n1", "parent_id": "n0", "message": '{"role": "assistant", "parts": []}'},
        {
            "node_id": "n2",
            "parent_id": "n1",
            "message": '{"role": "tool", "parts": [{"type": "tool_call_response", '
            f'"id": "{call_id}", "response": "{last}"}}]}}',
        },
    ]
    turns = [
        hand.turn([9], [2], [-1], input_node="n0", output_node="n1"),
        hand.turn([9, 2, 8], [3], [-1], input_node="n2"),
    ]
    return hand.trajectory(name, turns, reward=reward, messages=messages)


def test_gigpo_compares_turns_by_what_the_tool_said(assign, hand):
    """Rewards 1, 0, 0; all saw the task, a and b the same result under different call ids.

    Episode 2/3, -1/3, -1/3. At the task returns .95, 0, 0: .6333, -.3167, -.3167. At `ice` 1, 0:
    .5, -.5; run c is at `hole` alone: 0.
    """
    rows = [
        make_walk(hand, "a", 1.0, "call-1", last="ice"),
        make_walk(hand, "b", 0.0, "call-2", last="ice"),
        make_walk(hand, "c", 0.0, "call-3", last="hole"),
    ]
    result = assign(rows, advantage="gigpo")
    expected = [1.3, 2 / 3 + 0.5, -0.65, -1 / 3 - 0.5, -0.65, -1 / 3]
    assert flatten(result) == pytest.approx(expected, abs=1e-6)
    weighed = assign(rows, advantage="gigpo", gigpo_omega=0.0)
    assert flatten(weighed) == pytest.approx([2 / 3] * 2 + [-1 / 3] * 4, abs=1e-6)


def test_gigpo_refuses_turns_without_messages(assign, hand):
    """Nothing recorded is no observation that could be equal to another."""
    with pytest.raises(DataError, match="t0, turn 0: no message before it was recorded"):
        assign(make_bandit(hand, [1.0, 0.0]), advantage="gigpo")


def test_an_anchor_goes_back_to_the_answer_before(assign, hand):
    """What one state is: not the history before it, not the ids of its calls; but its content."""
    walks = [
        make_walk(hand, "a", 1.0, "call-1", last="ice"),
        make_walk(hand, "b", 0.0, "call-2", last="ice"),
        make_walk(hand, "c", 0.0, "call-3", last="hole"),
    ]
    walks[1]["messages"][0]["message"] = '{"role": "user", "parts": []}'  # another history
    tokenized, config = assign.prepare(walks)
    layout = lay_out_turns(tokenized)
    a0, a1, b0, b1, c0, c1 = read_anchors(tokenized, layout, config.data.dataset)
    assert (a0 == c0, a1 == b1) == (True, True)
    assert len({a0, b0, a1, c1}) == 4
    for walk in walks:
        walk["turns"][1]["input_node"] = "n1"  # asked again after its own answer
    tokenized, config = assign.prepare(walks)
    again = read_anchors(tokenized, layout, config.data.dataset)
    assert again[1] == again[5] != again[3]


def make_parts(**values):
    weights = {"quality": 1.0, "format": 0.5}
    return [
        {"name": name, "value": value, "weight": weights[name]} for name, value in values.items()
    ]


def test_gdpo_takes_the_recipes_parts_with_their_weights(assign, hand):
    """Quality (1, 0, 0, 1), format (0, 1, 0, 1), weight .5: std .5774, .5774.

    Scores .8660 -.4330, -.8660 + .4330, -.8660 - .4330, .8660 + .4330, whitened.
    """
    rows = make_bandit(hand, [1.0, 0.5, 0.0, 1.5])
    for row, parts in zip(rows, [(1, 0), (0, 1), (0, 0), (1, 1)], strict=True):
        quality, layout = map(float, parts)
        row["trajectories"]["reward_parts"] = make_parts(quality=quality, format=layout)
    result = assign(rows, advantage="gdpo")
    expected = whiten([0.4330, -0.4330, -1.2990, 1.2990])
    actual = [row[0] for rows in result.of.values() for row in rows]
    assert actual == pytest.approx(expected, abs=1e-4)
    rows[1]["trajectories"]["reward_parts"] = make_parts(quality=0.0)
    with pytest.raises(DataError, match="t1: reward 'format' has no value"):
        assign(rows, advantage="gdpo")


def test_gdpo_refuses_rewards_without_names(assign, hand):
    """A total alone cannot be taken apart."""
    with pytest.raises(DataError, match="t0 has no reward with a name"):
        assign(make_bandit(hand, [1.0, 0.0]), advantage="gdpo")


def test_learned_value_compares_a_lone_run_with_its_first_turn(assign, hand):
    """Lone run of reward 1 at V = .75: .25; the task with two runs has no use for its values."""
    rows = [
        *make_bandit(hand, [1.0, 0.0]),
        *make_bandit(hand, [1.0], task_id="lone", prefix="l"),
    ]
    result = assign(rows, [0.75, 9, 9], advantage="dr_grpo", singleton="learned_value")
    assert result.of["l0"] == [[0.25, 0.25]]
    assert [result.of["t0"], result.of["t1"]] == [[[0.5, 0.5]], [[-0.5, -0.5]]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"a0": 1.0, "b0": 0.5, "c0": 0.25}),
        ({"group_filter": "starpo_s", "keep_groups": 0.34}, {"a0": 1.0}),
        ({"group_filter": "snr", "snr_top_p": 0.8}, {"a0": 1.0, "b0": 0.5}),
        ({"soft_filter": True}, {"a0": 1.0, "b0": 0.25, "c0": 0.0625}),
        ({"group_filter": "snr", "snr_top_p": 0.8, "soft_filter": True}, {"a0": 1.0, "b0": 0.25}),
    ],
)
def test_filters_leave_groups_out_or_weigh_them(assign, hand, options, expected):
    """Rewards +-1, +-.5, +-.25 of three tasks: deviations stand as 4 : 2 : 1."""
    rows = []
    for name, size in (("a", 1.0), ("b", 0.5), ("c", 0.25)):
        rows += make_bandit(hand, [size, -size], task_id=name, prefix=name)
    result = assign(rows, advantage="dr_grpo", **options)
    first = {name: value[0][0] for name, value in result.of.items() if name.endswith("0")}
    assert first == pytest.approx(expected)
    assert result.facts["num_groups_kept"] == len(expected)


def test_filtered_groups_take_their_values_with_them(assign, hand):
    """What StarPO-S leaves out, its critic's values too, is not in the whitening."""
    rows = [*make_bandit(hand, [1.0, 0.0], task_id="a", prefix="a")]
    rows += make_bandit(hand, [0.5, 0.4], task_id="b", prefix="b")
    rows += make_bandit(hand, [2.0, 0.0], task_id="c", prefix="c")
    values = [0.3, 0.2, 9, 9, 0.1, 0.4]
    result = assign(rows, values, advantage="bilevel_gae", group_filter="starpo_s", keep_groups=0.7)
    expected = whiten([0.7, 0.7, -0.2, -0.2, 1.9, 1.9, -0.4, -0.4])
    assert flatten(result) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_nothing_left_is_no_error_of_the_estimator(assign, hand, advantage):
    """A filter that keeps no group leaves no row; who asked for it says so (`prepare`)."""
    result = assign(
        make_bandit(hand, [0.5, 0.5]), [0.0, 0.0], advantage=advantage, group_filter="snr"
    )
    assert result.of == {}


@pytest.mark.parametrize("advantage", ESTIMATORS)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_runs_does_not_matter(assign, hand, advantage, seed):
    """Renaming the runs, and so reordering them, moves advantages with them."""
    source = random.Random(seed)
    numbers = list(range(6))
    source.shuffle(numbers)
    results = []
    for names in (range(6), numbers):
        rows = []
        for i, name in enumerate(names):
            row = make_walk(hand, f"t{name}", (i * 5 % 7) / 7, f"call-{i}", last=str(i % 2))
            row["trajectories"] |= {
                "task_id": f"task{i % 2}",
                "reward_parts": make_parts(quality=float(i % 3), format=float(i % 2 + i % 4)),
            }
            rows.append(row)
        values = [0.0] * 12
        for i, name in enumerate(names):
            values[2 * name : 2 * name + 2] = [0.1 * i, 0.05 * i]
        of = assign(rows, values, advantage=advantage).of
        results.append([of.get(f"t{name}") for name in names])
    first, second = ([row for rows in result if rows for row in rows] for result in results)
    assert [bool(rows) for rows in results[0]] == [bool(rows) for rows in results[1]]
    assert len(first) >= 4
    assert [v for row in first for v in row] == pytest.approx(
        [v for row in second for v in row], abs=1e-6
    )


def test_advantages_of_trajectories_can_be_had_alone(assign, hand):
    """For losses on trajectories: RLOO of (1, 0, 0); token GAE has none per trajectory."""
    tokenized, config = assign.prepare(make_bandit(hand, [1.0, 0.0, 0.0]), advantage="rloo")
    assert compute_trajectory_advantages(tokenized, config).tolist() == [1.0, -0.5, -0.5]
    tokenized, config = assign.prepare(make_bandit(hand, [1.0, 0.0]), advantage="gae")
    with pytest.raises(ConfigError, match="no advantage per trajectory"):
        compute_trajectory_advantages(tokenized, config)


def test_turn_advantages_can_be_had_before_whitening(assign, hand):
    """V of turns 0, 2, 1 and b's: .5, .8, .6, .4; r = (0, 0, 1), gamma .95.

    A2 = .2; A1 = .95 * .8 - .6 + .95 * .2 = .35; A0 = .95 * .6 - .5 + .95 * .35 = .4025.
    """
    tokenized, config = assign.prepare(make_branched(hand))
    values = torch.tensor([0.5, 0.8, 0.6, 0.4], dtype=torch.float64)
    advantages, kept, facts = assign_turn_advantages(
        tokenized, config, None, critic_values_K=values
    )
    assert [part.tolist() for part in advantages] == [
        pytest.approx([0.4025, 0.4025, 0.2]),
        pytest.approx([0.35]),
        pytest.approx([-0.4]),
    ]
    assert (kept is values, facts) == (True, {})
    first, _, _ = fit_first_values(tokenized, config, None, critic_values_K=values)
    assert first.tolist() == [0.5, 0.4]
