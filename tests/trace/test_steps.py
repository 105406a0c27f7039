"""States, steps and observations -> spans."""

import json
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.states import record_data, record_fields
from starpo_trace.mergepatch import apply_merge_patch, make_merge_patch
from starpo_trace.testing import record_spans


def record_states(*states):
    with record_spans() as store, starpo_trace.trajectory():
        for state in states:
            starpo_trace.state(state, name="lake")
    return store.select("state")


def test_a_state_is_whole_first_and_a_patch_later():
    """The second state holds what changed, and the hash of what it changes."""
    board = "S F F H " * 20
    first, second = record_states({"board": board, "row": 0}, {"board": board, "row": 1})
    assert json.loads(first[semconv.STATE_VALUE]) == {"board": board, "row": 0}
    assert semconv.STATE_VALUE not in second
    assert second[semconv.STATE_BASE] == first[semconv.STATE_HASH]
    assert second[semconv.STATE_DIFF] == '{"row":1}'
    assert second[semconv.STATE_NAME] == "lake"


def read_states(record):
    """Values of the states that are recorded in a run."""
    with record_spans() as store, starpo_trace.trajectory():
        record()
    return [json.loads(told[semconv.STATE_VALUE]) for told in store.select("state")]


def test_a_frameworks_state_is_recorded_where_it_changed():
    """Not again as it was, not where it is empty at first, and not outside of a run."""
    cart = {"skus": {"B8", "A7"}}

    def record():
        record_fields({}, "cart")
        for skus in (cart, cart, {"skus": []}):
            record_fields({**skus, "_own": 1, "lock": threading.Lock()}, "cart")

    assert read_states(record) == [{"skus": ["A7", "B8"]}, {"skus": []}]
    with record_spans() as store:
        record()
    assert store.select("state") == []


def test_an_object_of_the_programs_is_a_state_where_all_of_it_is_data():
    """A dataclass is; one that holds a lock is not, nor is a number's class."""

    @dataclass
    class Cart:
        skus: list

    def record():
        for value in (Cart(["A7"]), Cart([threading.Lock()]), Cart, None):
            record_data(value, "cart")

    assert read_states(record) == [{"skus": ["A7"]}]


def test_a_state_that_a_patch_cannot_say_is_whole():
    """A null in the new state would be lost in a merge patch, so the state is written whole."""
    long = "x" * 100
    _, second = record_states({"long": long, "seen": 1}, {"long": long, "seen": None})
    assert json.loads(second[semconv.STATE_VALUE]) == {"long": long, "seen": None}


def test_a_state_mutated_in_place_is_compared_with_what_was_recorded():
    """The agent may go on changing the same object."""
    state = {"long": "x" * 100, "row": 0}
    with record_spans() as store, starpo_trace.trajectory():
        starpo_trace.state(state)
        state["row"] = 1
        starpo_trace.state(state)
    assert store.select("state")[1][semconv.STATE_DIFF] == '{"row":1}'


def test_any_object_is_a_state():
    """What JSON cannot hold is kept as its repr; numbers as keys become text."""
    [state] = record_states(
        {
            1: {
                2,
            },
            "big": 2**70,
            "bad": "\ud800",
        }
    )
    assert json.loads(state[semconv.STATE_VALUE]) == {"1": "{2}", "big": 2**70, "bad": "\ud800"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=4)
    ),
    max_leaves=8,
)


def has_null(value):
    if isinstance(value, dict):
        return any(item is None or has_null(item) for item in value.values())
    return False


@given(JSON, JSON)
def test_patches_lead_to_the_new_state(old, new):
    """For every pair of states without nulls in objects, the patch restores the new one."""
    if not has_null(new):
        assert json.dumps(apply_merge_patch(old, make_merge_patch(old, new)), sort_keys=True) == (
            json.dumps(new, sort_keys=True)
        )


@pytest.mark.parametrize(
    ("value", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": "foo"}, None, None),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_apply_as_in_the_standard(value, patch, expected):
    """Examples of RFC 7396, appendix A."""
    assert apply_merge_patch(value, patch) == expected


def test_an_error_in_a_step_passes_unchanged_and_is_recorded():
    """A failing tool's exception is the agent's to handle."""
    error = TimeoutError("slow")

    def run():
        with starpo_trace.step("tool", "search"):
            raise error

    with record_spans() as store, pytest.raises(TimeoutError) as caught:
        run()
    assert caught.value is error
    [step] = store.select("step")
    assert step[semconv.ERROR_TYPE] == "TimeoutError"


def test_an_unknown_kind_of_step_is_other(monkeypatch):
    """A misspelt kind costs the kind, not the step, and never the agent."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    with record_spans() as store, starpo_trace.step("tol", "search"):  # pyright: ignore
        pass
    assert [step[semconv.STEP_KIND] for step in store.select("step")] == ["other"]


def test_a_state_that_holds_itself_is_recorded():
    """With a note where it closes; the span is never lost."""
    cycle = {"row": 1, "n": float("inf"), "big": 2**70}
    cycle["self"] = cycle
    [state] = record_states(cycle)
    assert json.loads(state[semconv.STATE_VALUE]) == {
        "row": 1,
        "n": None,
        "big": 2**70,
        "self": "<cycle>",
    }
