"""Recorded actions beside a checkpoint's, by hand: agreement, schemas, decisions, figures."""

import json

import pytest

from starpo_train.replay.actions import Action, is_same_action, read_action, read_recorded
from starpo_train.replay.comparing import compare_turn, skip_turn
from starpo_train.replay.schema import check_schema
from starpo_train.replay.summary import (
    ComparedTrajectory,
    count_decisions,
    count_nulls,
    list_trajectories,
    list_turns,
    summarize,
)

GO = {
    "type": "object",
    "properties": {"to": {"enum": ["up", "down"]}, "steps": {"type": "integer", "minimum": 1}},
    "required": ["to"],
    "additionalProperties": False,
}
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": "go", "parameters": GO}},
        {"type": "function", "function": {"name": "look"}},
    ]
)


def write_call(name="go", arguments='{"to": "up"}'):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def record(*calls, text=None):
    made = [{"id": "c", "name": name, "arguments": arguments} for name, arguments in calls]
    return read_recorded(made, text)


UP = record(("go", '{"to": "up"}'))


def compare(recorded, text, tools=TOOLS, **options):
    found = compare_turn(recorded, read_action(text), tools, **options)
    return tuple(found.values.values()), dict(found.nulls), found.invalid_because


@pytest.mark.parametrize(
    ("text", "values", "because"),
    [
        (write_call(), (True, True, True, True), None),
        ("<think>down?</think>" + write_call(), (True, True, True, True), None),
        (write_call(arguments='{"to": "down"}'), (True, False, True, True), None),
        (write_call(arguments='{"to": "left"}'), (True, False, False, True), "go: to: enum"),
        (
            write_call(arguments='"up"'),
            (True, False, False, True),
            "go: arguments are no JSON object",
        ),
        (write_call("fly", "{}"), (False, False, False, True), "fly: not offered"),
        (write_call() * 2, (False, False, True, True), None),
        ('<tool_call>{"name": "go"', (False, False, False, False), "unreadable_call"),
    ],
)
def test_beside_a_recorded_call(text, values, because):
    """Tool, then arguments, then whether the call meets its schema, then call or answer."""
    assert compare(UP, text) == (values, {}, because)


def test_an_answer_where_a_call_was_recorded():
    """It is another action; there is no call to check, and a call in a thought is none."""
    for text in ("done", f"<think>{write_call()}</think>done"):
        values, nulls, _ = compare(UP, text)
        assert (values, nulls) == ((False, False, None, False), {"valid": "no_call"})


def test_beside_recorded_text():
    """Texts are not compared; only the decision and a call's own validity are known."""
    recorded = record(text="done")
    text_turn = {"same_tool": "text_turn", "same_call": "text_turn"}
    assert compare(recorded, "no")[:2] == (
        (None, None, None, True),
        text_turn | {"valid": "no_call"},
    )
    assert compare(recorded, write_call())[:2] == ((None, None, True, False), text_turn)


def test_cut_and_empty_answers_decide_nothing():
    """Neither a call nor an answer: it never agrees with what was recorded."""
    cut = read_action(write_call(), is_cut=True)
    assert (cut.decision, cut.problem) == ("neither", "cut")
    found = compare_turn(UP, cut, TOOLS)
    assert tuple(found.values.values()) == (False, False, None, False)
    assert found.nulls == {"valid": "cut"}
    assert read_action("<think>hm</think>").problem == "empty"


@pytest.mark.parametrize(
    ("mode", "same"), [("exact", False), ("superset", True), ("subset", False), ("ignore", True)]
)
def test_argument_modes(mode, same):
    """One argument more than recorded."""
    text = write_call(arguments='{"to": "up", "steps": 2}')
    assert compare(UP, text, arguments=mode)[0][:2] == (True, same)


def test_several_calls_in_any_order():
    """Calls of one turn run beside each other, so their order is none."""
    recorded = record(("go", '{"to": "up"}'), ("go", '{"to": "down"}'))
    text = write_call(arguments='{"to": "down"}') + write_call(arguments='{"to": "up"}')
    assert compare(recorded, text)[0] == (True, True, True, True)
    assert compare(recorded, write_call() * 2)[0] == (True, False, True, True)


def test_what_a_recording_lacks_is_null():
    """No definitions, a tool without schema, one that is no schema, arguments that nobody can read."""
    assert compare(UP, write_call(), None)[1] == {"valid": "no_tool_definitions"}
    assert compare(UP, write_call(), "[")[1] == {"valid": "tool_definitions_unreadable"}
    assert compare(UP, write_call("look", "{}"))[1] == {"valid": "no_schema"}
    odd = json.dumps([{"name": "go", "input_schema": {"type": "thing"}}])
    assert compare(UP, write_call(), odd)[1] == {"valid": "schema_undecided"}
    broken = record(("go", '{"to": '))
    values, nulls, _ = compare(broken, write_call())
    assert values == (True, None, True, True)
    assert nulls == {"same_call": "recorded_arguments_unreadable"}
    assert compare(broken, write_call("fly"))[0][:2] == (False, False)


def test_reading_back_a_recorded_answer():
    """Layout may differ, the calls and the words may not."""
    assert is_same_action(read_action(write_call(arguments='{"to":"up"}')), UP)
    assert not is_same_action(read_action("[go(to=up)]"), UP)
    assert is_same_action(read_action("<think>a</think>\n\ndone"), record(text="done"))
    assert not is_same_action(read_action("don"), record(text="done"))


@pytest.mark.parametrize("depth", [600, 100_000])
def test_an_answer_that_nests_without_end(depth):
    """Whether it is read or not, it is no valid call, and comparing it ends."""
    found = compare(UP, write_call(arguments='{"to": ' + "[" * depth + "]" * depth + "}"))
    assert (depth == 600, False, False, depth == 600) == found[0]


@pytest.mark.parametrize(
    ("value", "schema", "is_valid", "reason"),
    [
        ({"to": "up"}, GO, True, ""),
        ({"to": 3}, {"properties": {"to": {"type": "string"}}}, False, "to: type"),
        ([1, "a"], {"items": {"type": "integer"}}, False, "1: type"),
        (3, {"multipleOf": 2}, False, "multipleOf"),
        (3, {"anyOf": [{"multipleOf": 2}, {"type": "integer"}]}, True, ""),
        (True, {"type": "integer"}, False, "type"),
        (2.0, {"type": "integer"}, True, ""),
        (float("inf"), {"type": "integer"}, False, "type"),
        (10**400, {"type": "integer", "minimum": 1}, True, ""),
        (None, {"type": "string", "nullable": True}, True, ""),
        (None, {"type": "string"}, False, "type"),
        ("yesterday", {"type": "string", "format": "date"}, True, ""),
        ({}, False, False, "false"),
        (3, {"$ref": "#/nowhere"}, None, None),
        (3, {"$ref": "https://example.com/schema"}, None, None),
        (3, {"$ref": "#"}, None, None),
        (3, {"type": "text"}, None, None),
        ("a", {"pattern": "("}, None, None),
        (3, 7, None, None),
    ],
)
def test_what_a_schema_says(value, schema, is_valid, reason):
    """Refused at a place, by a keyword; open where the schema is none or refers to elsewhere."""
    found = check_schema(value, schema)
    assert found.is_valid is is_valid
    assert bool(found.reason) if reason is None else found.reason == reason


def make_compared(name, task, *texts, cohort=None, recorded=UP):
    turns = [compare_turn(recorded, read_action(text), TOOLS) for text in texts]
    return ComparedTrajectory(
        trajectory_id=name, task_id=task, cohort=cohort, turns=tuple(enumerate(turns))
    )


LEFT = write_call(arguments='{"to": "left"}')


def test_figures_by_hand():
    """Turns within runs, runs within tasks, tasks; `same_call` of 1/2 and 1, of 0, of 1."""
    compared = [
        make_compared("t0", "a", write_call(), LEFT, cohort="x"),
        make_compared("t1", "a", write_call(), cohort="x"),
        make_compared("t2", "b", LEFT, "done", LEFT, LEFT, cohort="y"),
        make_compared("t3", None, write_call(), cohort="y"),
    ]
    figures = {(each.cohort, each.metric): each for each in summarize(compared)}
    assert len(figures) == 12
    call = figures["all", "same_call"]
    assert (call.num_tasks, call.num_trajectories, call.num_turns) == (3, 4, 8)
    assert call.value == pytest.approx((0.75 + 0 + 1) / 3)
    # deviations from 7/12 are 1/6, -7/12, 5/12; t with two degrees of freedom is 4.3 at .975,
    # so t reaches beyond both ends
    assert (call.low, call.high) == (0.0, 1.0)
    assert figures["x", "same_call"].value == 0.75
    assert (figures["x", "same_call"].low, figures["x", "same_call"].high) == (0.0, 1.0)
    assert figures["y", "same_tool"].value == pytest.approx((0.75 + 1) / 2)
    assert figures["y", "valid"].value == pytest.approx((0 + 1) / 2)
    assert count_decisions(compared) == {("call", "call"): 7, ("call", "answer"): 1}
    assert count_nulls(compared)["valid"] == {"no_call": 1}
    rows = list_trajectories(compared)
    assert rows["same_call"].to_list() == [0.5, 1.0, 0.0, 1.0]
    assert rows["first_departure"].to_list() == [1, None, 0, None]


def test_turns_that_were_not_asked():
    """They have a row with a reason, and no part in any figure."""
    skipped = ComparedTrajectory(
        trajectory_id="t", task_id="a", cohort=None, turns=((0, skip_turn(UP, "messages_missing")),)
    )
    (row,) = list_turns([skipped]).to_dicts()
    assert row["recorded_calls"] == '[{"name": "go", "arguments": {"to": "up"}}]'
    assert (row["decision"], row["same_call"]) == (None, None)
    assert row["same_decision_null"] == "messages_missing"
    assert {figure.value for figure in summarize([skipped])} == {None}
    assert count_decisions([skipped]) == {}
    assert list_trajectories([skipped])["num_asked"].to_list() == [0]
    assert list_turns([]).is_empty()
    assert isinstance(skipped.turns[0][1].recorded, Action)
