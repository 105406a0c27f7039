"""Recipes on whole runs: which rewards count, what they make, and how turns are shaped."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starpo_trace import semconv
from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.recipe import Recipe, RewardRule, ShapingRule
from starpo_trace.convert.recipe.shaping import shape_turns
from starpo_trace.convert.rewards import Trust
from starpo_trace.errors import DatasetError
from starpo_trace.schema import TRAJECTORIES, TURNS

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
MORE = {"role": "user", "content": "Sure?"}


def rewarded(spans, *rewards):
    """A run of one call, and rewards as (name, value, other attributes)."""
    root = spans.root(num_steps=1)
    rows = [root, spans.call(root, 0, [USER], ANSWER)]
    for i, (name, value, attributes) in enumerate(rewards):
        rows.append(
            spans.reward(
                root,
                value,
                **{semconv.EVALUATION_NAME: name, semconv.REWARD_ID: f"r{i}"} | attributes,
            )
        )
    return rows


def combine(rows, rules, **trust):
    tables = convert_rows(rows, recipe=Recipe(rewards=rules), trust=Trust(**trust))
    row = tables["trajectories"].row(0, named=True)
    parts = row["reward_parts"]
    found = None if parts is None else [(p["name"], p["value"], p["weight"]) for p in parts]
    return row["reward"], found, tables


def test_weighted_sum_by_hand(spans):
    """0.8 + 0.5 * (4 stars of 1..5 = 0.75) + 0.1 * -3 seconds = 0.875."""
    rows = rewarded(spans, ("quality", 0.8, {}), ("stars", 4.0, {}), ("seconds", 3.0, {}))
    rules = {
        "quality": RewardRule(),
        "stars": RewardRule(weight=0.5, range=(1.0, 5.0), normalise=True),
        "seconds": RewardRule(weight=0.1, direction="lower"),
    }
    reward, parts, _ = combine(rows, rules)
    assert reward == pytest.approx(0.875)
    assert parts == [("quality", 0.8, 1.0), ("stars", 0.75, 0.5), ("seconds", -3.0, 0.1)]


def test_lower_is_better_in_a_range_is_turned_round(spans):
    """2 errors of 0..8, fewer is better: 1 - 2 / 8."""
    rule = RewardRule(range=(0.0, 8.0), normalise=True, direction="lower")
    assert combine(rewarded(spans, ("errors", 2.0, {})), {"errors": rule})[0] == 0.75


@pytest.mark.parametrize(
    ("missing", "reward", "part"),
    [("missing", None, None), ("skip", 1.0, None), (0.25, 1.25, 0.25)],
)
def test_a_missing_reward_is_never_0_by_itself(spans, missing, reward, part):
    """The total is missing, made of the others, or made with the number that was declared."""
    rules = {"solved": RewardRule(), "stars": RewardRule(missing=missing)}
    found, parts, _ = combine(rewarded(spans, ("solved", 1.0, {})), rules)
    assert found == reward
    assert parts == [("solved", 1.0, 1.0), ("stars", part, 1.0)]


def test_a_total_of_nothing_is_missing(spans):
    """When everything is skipped there is no reward, and the run is not usable for RL."""
    rules = {"solved": RewardRule(missing="skip"), "stars": RewardRule(missing="skip")}
    reward, _, tables = combine(rewarded(spans), rules)
    assert reward is None
    assert "no_reward" in tables["trajectories"]["reasons"][0]


def test_a_sum_beyond_all_numbers_names_its_trajectory(spans):
    """1e308 * 10 is no number to train on."""
    rows = rewarded(spans, ("solved", 10.0, {}))
    with pytest.raises(DatasetError, match="rewards: trajectory t1: they add up to no finite"):
        combine(rows, {"solved": RewardRule(weight=1e308)})


def test_names_that_the_recipe_leaves_out_make_no_reward(spans):
    """They stay rows, trusted as ever."""
    rows = rewarded(spans, ("reward", 1.0, {}), ("solved", 0.5, {}))
    reward, _, tables = combine(rows, {"solved": RewardRule()})
    assert reward == 0.5
    assert tables["rewards"]["trusted"].to_list() == [True, True]


def test_without_rules_the_reward_named_reward_counts(spans):
    """The choice of before, without parts."""
    rows = rewarded(spans, ("reward", 1.0, {}), ("solved", 0.5, {}))
    assert combine(rows, {})[:2] == (1.0, None)


def test_a_value_outside_of_the_declared_range_counts_for_nothing(spans):
    """7 stars of 5 are a mistake, and the row says so."""
    reward, _, tables = combine(
        rewarded(spans, ("stars", 7.0, {})), {"stars": RewardRule(range=(1.0, 5.0))}
    )
    assert reward is None
    assert tables["rewards"]["untrusted_because"].to_list() == ["outside of the recipe's range"]


@pytest.mark.parametrize(
    ("several", "expected"),
    [(None, 4.0), ("latest", 4.0), ("mean", 3.0), ("sum", 6.0), ("min", 2.0), ("max", 4.0)],
)
def test_several_rewards_of_a_name(spans, several, expected):
    """Values 2 and then 4, of two raters."""
    rows = rewarded(spans, ("stars", 2.0, {}), ("stars", 4.0, {}))
    assert combine(rows, {"stars": RewardRule(several=several)})[0] == expected


def test_a_late_reward_replaces_and_both_stay(spans):
    """The same id sent again: the later value counts, the earlier row is superseded."""
    rows = rewarded(spans, ("stars", 2.0, {}), ("stars", 5.0, {semconv.REWARD_ID: "r0"}))
    reward, _, tables = combine(rows, {"stars": RewardRule(several="sum")})
    assert reward == 5.0
    assert sorted(tables["rewards"].select("value", "superseded").rows()) == [
        (2.0, True),
        (5.0, False),
    ]


def two_turns(spans, *rewards):
    root = spans.root(num_steps=2)
    calls = [
        spans.call(root, 0, [USER], ANSWER),
        spans.call(root, 1, [USER, ANSWER, MORE], ANSWER),
    ]
    process = {semconv.REWARD_SCOPE: "turn", semconv.REWARD_KIND: "process"}
    rows = [root, *calls]
    for i, (name, value, step) in enumerate(rewards):
        named = {semconv.EVALUATION_NAME: name, semconv.REWARD_ID: f"r{i}", semconv.STEP: step}
        rows.append(spans.reward(calls[step], value, **process, **named))
    return rows


def test_rewards_of_turns_are_weighted_by_name(spans):
    """Turn 0: 2 * 0.5 + 1 * -3; turn 1 has only a name that the recipe leaves out."""
    rows = two_turns(spans, ("check", 0.5, 0), ("cost", 3.0, 0), ("other", 9.0, 1))
    rules = {
        "check": RewardRule(scope="turn", weight=2.0),
        "cost": RewardRule(scope="turn", direction="lower"),
    }
    tables = combine(rows, rules)[2]
    assert tables["turns"].sort("turn")["reward"].to_list() == [-2.0, None]
    plain = convert_rows(rows)["turns"].sort("turn")["reward"].to_list()
    assert plain == [3.5, 9.0]


def test_rewards_of_turns_may_make_the_trajectorys(spans):
    """Their sum, 0.5 + 0.25, or what `several` says; the turns keep theirs."""
    rows = two_turns(spans, ("check", 0.5, 0), ("check", 0.25, 1))
    rule = RewardRule(scope="turn", into="trajectory")
    reward, _, tables = combine(rows, {"check": rule})
    assert reward == 0.75
    assert tables["turns"].sort("turn")["reward"].to_list() == [0.5, 0.25]
    least = RewardRule(scope="turn", into="trajectory", several="min")
    assert combine(rows, {"check": least})[0] == 0.25


def annotated(spans, scope, *, kind="HUMAN", score=0.9, name="helpful"):
    """A run with an OpenInference annotation on a span of its own, linked to the run."""
    root = spans.root(num_steps=1)
    fields = {"name": name, "annotator_kind": kind, "score": score}
    note = spans.row(
        {f"trace.annotations.0.annotation.{key}": value for key, value in fields.items()},
        scope=scope,
        links=((root.trace_id, root.span_id),),
    )
    return [root, spans.call(root, 0, [USER], ANSWER), note]


LET_IN = RewardRule(
    recorded_by=("openinference.*",), trust=("user",), range=(0.0, 1.0), direction="higher"
)


@pytest.mark.parametrize(
    ("scope", "kind", "rule", "because"),
    [
        ("openinference.phoenix", "HUMAN", LET_IN, None),
        ("openinference.phoenix", "HUMAN", RewardRule(), "not recorded by starpo_trace"),
        ("openinference", "HUMAN", LET_IN, "not recorded by starpo_trace"),
        ("my.openinference.x", "HUMAN", LET_IN, "not recorded by starpo_trace"),
        ("openinferenceXphoenix", "HUMAN", LET_IN, "not recorded by starpo_trace"),
        ("openinference.phoenix", "LLM", LET_IN, "source judge is not trusted"),
        ("openinference.phoenix", None, LET_IN, "source unknown is not trusted"),
    ],
)
def test_others_scores_count_only_where_the_recipe_says_so(spans, scope, kind, rule, because):
    """Scope and source must both be those that the recipe names."""
    rows = annotated(spans, scope, kind=kind)
    reward, _, tables = combine(rows, {"helpful": rule})
    assert tables["rewards"]["untrusted_because"].to_list() == [because]
    assert reward == (0.9 if because is None else None)


def test_other_names_of_others_stay_untrusted(spans):
    """A rule lets in its own name alone."""
    tables = combine(annotated(spans, "openinference.x", name="other"), {"helpful": LET_IN})[2]
    assert tables["rewards"]["untrusted_because"].to_list() == ["not recorded by starpo_trace"]


def test_required_signatures_hold_for_others_too(spans):
    """Where the build counts signed rewards only, the recipe must say that this one need not be."""
    rows = annotated(spans, "openinference.phoenix")
    assert combine(rows, {"helpful": LET_IN}, require_signed=True)[0] is None
    fields = ("recorded_by", "trust", "range", "direction")
    unsigned = RewardRule(signed=False, **{name: getattr(LET_IN, name) for name in fields})
    assert combine(rows, {"helpful": unsigned}, require_signed=True)[0] == 0.9


def test_a_rule_may_demand_a_signature(spans):
    """Unsigned rewards of this name count for nothing, those of others as ever."""
    rows = rewarded(spans, ("solved", 1.0, {}), ("stars", 2.0, {}))
    rules = {"solved": RewardRule(signed=True, missing="skip"), "stars": RewardRule()}
    reward, _, tables = combine(rows, rules)
    assert reward == 2.0
    because = dict(tables["rewards"].select("name", "untrusted_because").rows())
    assert because == {"solved": "not signed", "stars": None}


def test_a_rule_may_trust_a_source_that_the_build_does_not(spans):
    """A judge's reward counts for this name."""
    rows = rewarded(spans, ("style", 0.5, {semconv.REWARD_SOURCE: "judge"}))
    assert combine(rows, {"style": RewardRule()})[0] is None
    assert combine(rows, {"style": RewardRule(trust=("judge",))})[0] == 0.5


def make_turns(runs):
    """Trajectory id -> its turns as mappings; both tables."""
    trajectories = [
        {"trajectory_id": key, "num_turns": len(turns), "started_ns": 0, "reward": 1.0}
        for key, turns in runs.items()
    ]
    rows = [
        {"trajectory_id": key, "turn": i, "outcome": "ok", "started_ns": i * 10**9, **turn}
        for key, turns in runs.items()
        for i, turn in enumerate(turns)
    ]
    return tuple(
        pl.DataFrame(
            [{name: row.get(name) for name in columns} for row in rows],
            schema=polars_schema(columns),
        )
        for rows, columns in ((rows, TURNS), (trajectories, TRAJECTORIES))
    )


def shape(runs, **rules):
    turns, trajectories = make_turns(runs)
    return shape_turns(turns, trajectories, rules).sort("trajectory_id", "turn")


def call(name, arguments="{}"):
    return {"tool_calls": [{"id": "c", "name": name, "arguments": arguments}]}


def test_shaping_by_hand(spans):
    """Errors cost 0.1 * weight 2, a repeated call 0.5; recorded rewards are untouched."""
    runs = {
        "a": [{**call("add"), "reward": 1.0}, {**call("add"), "outcome": "error"}, call("sub")],
        "b": [call("sub")],
    }
    shaped = shape(
        runs,
        errors=ShapingRule(expr="CASE WHEN has_error THEN -0.1 ELSE 0 END", weight=2.0),
        repeats=ShapingRule(expr="CASE WHEN repeats_previous THEN -0.5 ELSE 0 END"),
    )
    assert shaped["shaping"].to_list() == pytest.approx([0.0, -0.7, 0.0, 0.0])
    assert shaped["reward"].to_list() == [1.0, None, None, None]
    parts = [(p["name"], p["value"], p["weight"]) for p in shaped["shaping_parts"][1]]
    assert parts == [("errors", -0.1, 2.0), ("repeats", -0.5, 1.0)]


def test_state_columns_look_back_only():
    """Sums and copies of the turns before, by hand."""
    runs = {
        "a": [
            {**call("x"), "output_tokens": 5, "reward": 0.5, "outcome": "error"},
            {**call("y"), "output_tokens": None, "text": "hm"},
            {"output_tokens": 7},
        ]
    }
    for expr, expected in {
        "tool_calls_so_far": [0.0, 1.0, 2.0],
        "errors_so_far": [0.0, 1.0, 1.0],
        "output_tokens_so_far": [0.0, 5.0, None],
        "reward_so_far": [0.0, 0.5, 0.5],
        "previous_reward": [None, 0.5, None],
        "previous_has_error": [None, 1.0, 0.0],
        "seconds_so_far": [0.0, 1.0, 2.0],
        "LENGTH(previous_text)": [None, None, 2.0],
        "ARRAY_LENGTH(previous_tool_names)": [None, 1.0, 1.0],
        "is_first": [1.0, 0.0, 0.0],
        "is_last": [0.0, 0.0, 1.0],
        "trajectory_reward": [1.0, 1.0, 1.0],
    }.items():
        shaped = shape(runs, x=ShapingRule(expr=expr))
        assert shaped["shaping"].to_list() == expected, expr


def test_a_null_is_missing_unless_the_rule_says_what_it_counts():
    """CASE without ELSE: null, and with it the turn's sum; `missing = 0` makes it 0."""
    expr = "CASE WHEN is_last THEN 1 END"
    runs = {"a": [{}, {}]}
    other = ShapingRule(expr="0.5")
    assert shape(runs, x=ShapingRule(expr=expr), y=other)["shaping"].to_list() == [None, 1.5]
    filled = ShapingRule(expr=expr, missing=0.0)
    assert shape(runs, x=filled, y=other)["shaping"].to_list() == [0.5, 1.5]


def test_a_potential_by_hand():
    """phi = -errors so far (0, -1, -1), gamma 0.5: 0.5 * -1 - 0, 0.5 * -1 + 1, and 0 + 1 at the end."""
    runs = {"a": [{"outcome": "error"}, {}, {}], "b": [{}]}
    shaped = shape(runs, x=ShapingRule(potential="-errors_so_far", gamma=0.5))
    assert shaped["shaping"].to_list() == [-0.5, 0.5, 1.0, 0.0]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_a_potential_sums_to_its_beginning(tokens, gamma):
    """Discounted, its shaping is -phi of the first turn, whatever happens after."""
    runs = {"a": [{"input_tokens": n} for n in tokens]}
    shaped = shape(runs, x=ShapingRule(potential="input_tokens * 2 + 1", gamma=gamma))
    total = sum(gamma**i * value for i, value in enumerate(shaped["shaping"]))
    assert total == pytest.approx(-(tokens[0] * 2 + 1))


@pytest.mark.parametrize("expr", ["1 / turn", "LN(turn)", "0 * (1 / turn)"])
def test_what_is_no_finite_number_names_its_trajectory(expr):
    """Infinite or NaN in turn 0 of `b`."""
    with pytest.raises(
        DatasetError, match=r"shaping\.x: trajectory b, turn 0: is (inf|-inf|NaN|nan)"
    ):
        shape({"b": [{}, {}]}, x=ShapingRule(expr=expr))


def test_an_expression_that_fails_on_data_says_which():
    """A text that is no number cannot be cast."""
    rule = ShapingRule(expr="CAST(text AS DOUBLE)")
    with pytest.raises(DatasetError, match=r"shaping\.x: fails on these turns"):
        shape({"a": [{"text": "four"}]}, x=rule)


def test_a_polars_expression_sees_one_trajectory():
    """A bare shift or sum does not look at the neighbours."""
    runs = {"a": [{"reward": 1.0}, {"reward": 2.0}], "b": [{"reward": 4.0}]}
    total = shape(runs, x=ShapingRule(expr=pl.col("reward").sum()))
    assert total["shaping"].to_list() == [3.0, 3.0, 4.0]
    before = shape(runs, x=ShapingRule(expr=pl.col("reward").shift(1)))
    assert before["shaping"].to_list() == [None, 1.0, None]


@given(st.permutations(range(6)), st.integers(0, 3))
def test_neither_order_nor_partitions_change_shaping(order, cut):
    """Turns in any order, and trajectories apart or together, give the same."""
    runs = {
        "a": [{"output_tokens": 3}, {"outcome": "error"}, {"output_tokens": 1}],
        "b": [{"outcome": "error"}, {}],
        "c": [{}],
    }
    rules = {
        "x": ShapingRule(expr="turn - AVG(turn) OVER (PARTITION BY trajectory_id)"),
        "y": ShapingRule(potential="errors_so_far"),
    }
    turns, trajectories = make_turns(runs)
    columns = ["trajectory_id", "turn", "shaping"]
    whole = shape_turns(turns, trajectories, rules).select(columns).sort(columns)
    shuffled = shape_turns(turns[list(order)], trajectories[::-1], rules)
    assert shuffled.select(columns).sort(columns).equals(whole)
    ids = sorted(runs)
    parts = [
        shape_turns(
            turns.filter(pl.col("trajectory_id").is_in(some)),
            trajectories.filter(pl.col("trajectory_id").is_in(some)),
            rules,
        )
        for some in (ids[:cut], ids[cut:])
    ]
    assert pl.concat(parts).select(columns).sort(columns).equals(whole)
