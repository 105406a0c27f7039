"""Expressions in recipes: what they may say, and that nothing else reaches Polars."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.recipe.expressions import (
    check_condition,
    check_number,
    check_potential,
    check_shaping,
)
from starpo_trace.convert.recipe.features import STATE_COLUMNS, TRAJECTORY_COLUMNS, TURN_COLUMNS
from starpo_trace.errors import ConfigError
from starpo_trace.schema import TRAJECTORIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipe.md"


def evaluate(text, rows, *, check=check_shaping):
    columns = TURN_COLUMNS if check is check_shaping else TRAJECTORY_COLUMNS
    frame = pl.DataFrame(
        [{name: row.get(name) for name in columns} for row in rows], schema=polars_schema(columns)
    )
    return frame.with_columns(value=check(text, "here"))["value"].to_list()


WORDS = sorted(
    {"turn", "reward", "text", "0.5", "'a'", "trajectory_id", "tool_names", "~", ","}
    | set("+-*/()[]")
    | {"CASE", "WHEN", "THEN", "END", "IS", "NULL", "NOT", "IN", "AND", "LIKE", "ABS", "SUM"}
    | {"LAG", "ARRAY_GET", "OVER", "PARTITION", "BY", "ORDER"}
)
TURNS = [
    {"trajectory_id": "a", "turn": 0, "reward": 1.0, "tool_names": ["x", "y"], "text": "no"},
    {"trajectory_id": "a", "turn": 1, "tool_names": [], "text": "<answer>4", "has_error": True},
    {"trajectory_id": "b", "turn": 0, "reward": 2.5, "tool_names": ["z"], "has_error": False},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", [0.1, 0.1, 0.1]),
        ("1.0 / 3", [1 / 3, 1 / 3, 1 / 3]),  # not a decimal of one digit
        ("turn / 2", [0.0, 0.5, 0.0]),
        ("CASE WHEN has_error THEN -0.5 ELSE 0 END", [0.0, -0.5, 0.0]),
        ("CASE WHEN has_error THEN -0.5 END", [None, -0.5, None]),
        ("reward", [1.0, None, 2.5]),
        ("COALESCE(reward, 0) * 2", [2.0, 0.0, 5.0]),
        ("has_error", [None, 1.0, 0.0]),
        ("ARRAY_LENGTH(tool_names)", [2.0, 0.0, 1.0]),
        ("ARRAY_CONTAINS(tool_names, 'x') OR turn = 1", [1.0, 1.0, 0.0]),
        ("text LIKE '<answer>%'", [0.0, 1.0, None]),
        (r"text ~ '^<answer>\d+$'", [0.0, 1.0, None]),
        ("text = 'it''s'", [0.0, 0.0, None]),
        ("LAG(reward) OVER (PARTITION BY trajectory_id ORDER BY turn)", [None, 1.0, None]),
        ("LEAD(turn, 1, 9) OVER (PARTITION BY trajectory_id ORDER BY turn)", [1.0, 9.0, 9.0]),
        ("SUM(turn) OVER (PARTITION BY trajectory_id)", [1.0, 1.0, 0.0]),
        ("COUNT(*) OVER (PARTITION BY trajectory_id)", [2.0, 2.0, 1.0]),
        ("turn - MAX(turn) OVER (PARTITION BY trajectory_id)", [-1.0, 0.0, 0.0]),
        ("NULL", [None, None, None]),
    ],
)
def test_values_by_hand(text, expected):
    """Each form of expression over three turns of two trajectories."""
    assert evaluate(text, TURNS) == expected


@pytest.mark.parametrize(
    "text",
    [
        "turn IN (SELECT column_1 FROM read_csv('/etc/passwd'))",
        "(FROM read_csv('/etc/passwd'))",
        "EXISTS (SELECT 1)",
        "(TABLE x)",
        "(VALUES (1))",
        "read_csv('/etc/passwd')",
        "read_parquet('x')",
        "NOW()",
        "CURRENT_TIMESTAMP",
        "CURRENT_DATE",
        "COLUMNS('.*')",
        "UNNEST(tool_names)",
        "SUM(turn)",
        "SUM(turn) OVER ()",
        "SUM(turn) OVER (ORDER BY turn)",
        "SUM(turn) OVER (PARTITION BY task_id)",
        "SUM(turn) OVER (PARTITION BY trajectory_id = 'a')",
        "SUM(turn) OVER (PARTITION BY trajectory_id || 'x')",
        "LAG(turn) OVER (PARTITION BY trajectory_id)",
        "LAG(turn) OVER (PARTITION BY trajectory_id ORDER BY turn * 0)",
        "LAG(SUM(turn)) OVER (PARTITION BY trajectory_id ORDER BY turn)",
        "turn -- a comment",
        "turn /* a comment */",
        "turn; DROP TABLE x",
        r"text = '\' OR turn IN (SELECT 1) OR text = '",
        '"turn"',
        "`turn`",
        "turn::INT",
        "E'a'",
        "X'41'",
        "$1",
        "1e",
        "0x10",
        "__import__('os').system('true')",
        "text",
        "tool_names",
        "(",
        "",
        " ",
        "'",
        "turn turn turn",
        "CAST(turn AS VARCHAR)",
        "1" + "+1" * 300,
        "a" * 5000,
        "(" * 200 + "1" + ")" * 200,
        "tu\u0280n",
    ],
)
def test_anything_else_is_refused(text):
    """Files, clocks, other trajectories, comments, foreign quoting, and what is no expression."""
    with pytest.raises(ConfigError, match="here"):
        check_shaping(text, "here")


def test_what_could_open_files_never_reaches_polars(monkeypatch):
    """A subquery is refused before Polars parses it, which is when Polars would read the file."""
    parsed = []
    monkeypatch.setattr(pl, "sql_expr", parsed.append)
    for text in ("turn IN (SELECT a FROM read_csv('x'))", "(FROM read_csv('x'))", "read_csv('x')"):
        with pytest.raises(ConfigError, match=r"unknown (column|function)"):
            check_shaping(text, "here")
    assert parsed == []


@given(st.text(max_size=60))
@example("turn IN (SELECT 1)")
def test_any_text_is_an_expression_or_is_refused(text):
    """Nothing but a Polars expression or a ConfigError comes of any text."""
    try:
        built = check_shaping(text, "here")
    except ConfigError:
        return
    assert isinstance(built, pl.Expr)


@given(
    st.lists(
        st.sampled_from(WORDS),
        max_size=14,
    )
)
def test_what_is_accepted_can_be_evaluated_or_says_why(words):
    """Any row of allowed words is refused, gives one number per turn, or fails as Polars says."""
    try:
        built = check_shaping(" ".join(words), "here")
    except ConfigError:
        return
    frame = pl.DataFrame(
        [{name: row.get(name) for name in TURN_COLUMNS} for row in TURNS],
        schema=polars_schema(TURN_COLUMNS),
    )
    try:
        values = frame.with_columns(value=built)["value"]
    except pl.exceptions.PolarsError:
        return
    assert values.dtype == pl.Float64
    assert len(values) == 3


def test_a_potential_sees_nothing_of_what_the_turn_does():
    """What the turn answers, earns or leads to is unknown in the state before it."""
    assert isinstance(check_potential("-errors_so_far", "here"), pl.Expr)
    for column in sorted(set(TURN_COLUMNS) - set(STATE_COLUMNS)):
        with pytest.raises(ConfigError, match=f"unknown column {column}"):
            check_potential(f"{column} IS NULL", "here")
    with pytest.raises(ConfigError, match="only the row itself"):
        check_potential("LEAD(turn) OVER (PARTITION BY trajectory_id ORDER BY turn)", "here")


def test_conditions_and_numbers_of_trajectories():
    """Over the columns of a trajectory, a row at a time."""
    rows = [{"num_turns": 1, "reward": None}, {"num_turns": 4, "reward": 0.5}]
    condition = "num_turns < 2 AND reward IS NULL"
    assert evaluate(condition, rows, check=check_condition) == [True, False]
    assert evaluate("num_turns * 0.25", rows, check=check_number) == [0.25, 1.0]
    with pytest.raises(ConfigError, match="only the row itself"):
        check_number("AVG(reward) OVER (PARTITION BY trajectory_id)", "here")


def test_columns_of_trajectories_are_those_of_the_schema():
    """No column with another type, and no label that curation itself decides."""
    names = {name: name.removeprefix("trajectory_") for name in ("trajectory_end",)}
    own = {name: TRAJECTORIES[names.get(name, name)] for name in TRAJECTORY_COLUMNS}
    assert own == TRAJECTORY_COLUMNS
    assert not {"split", "group_id", "excluded_because"} & set(TRAJECTORY_COLUMNS)


def test_every_column_is_documented():
    """docs/recipe.md names each column that an expression may use."""
    text = DOCUMENT.read_text()
    names = {*TURN_COLUMNS, *TRAJECTORY_COLUMNS}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
