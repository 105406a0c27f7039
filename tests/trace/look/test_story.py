"""Rows of one trajectory -> its story: order, branches, nothing twice and nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from starpo_trace.convert.columns import build_frame
from starpo_trace.look.opened import open_path, read_trajectories
from starpo_trace.look.parts import Part, read_parts
from starpo_trace.look.story import group_by_turn, tell_story
from starpo_trace.schema import TABLES


def read_story(shop, name):
    return tell_story(read_trajectories(open_path(shop).scan, [name]))


def test_one_branch_in_order(shop):
    """What was read, the state, the answer, its reward; the outcome at the end."""
    story = read_story(shop, "stock-a7/0")
    kinds = [entry.kind for entry in story.entries]
    assert kinds == [
        *("message", "message", "state", "turn", "reward"),  # turn 0
        *("message", "turn", "reward"),  # turn 1, and after it
    ]
    assert len(story.branches) == 1
    assert [places for _, places in group_by_turn(story)] == [[0, 1, 2, 3, 4], [5, 6], [7]]


def test_branches_leave_where_histories_part(shop):
    """A sub-agent begins anew; the edited history leaves after the user's first message."""
    story = read_story(shop, "branches")
    branches = [(branch.leaves, branch.first, branch.last) for branch in story.branches]
    assert branches == [(None, 0, 8), (None, 3, 6), (1, 9, 11)]
    assert [entry.branch for entry in story.entries[:12]] == [0, 0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2]
    failed = story.entries[5]
    assert (failed.kind, failed.row["outcome"], failed.branch) == ("turn", "error", 1)


def test_missing_history_is_said(shop):
    """What went on from a lost message is torn off; what was before it comes last."""
    tables = dict(read_trajectories(open_path(shop).scan, ["branches"]))
    tables["messages"] = tables["messages"].filter(tables["messages"]["node_id"] != "m1")
    story = tell_story(tables)
    assert [branch.is_torn for branch in story.branches] == [True, False, True, False]


NODES = st.lists(st.tuples(st.integers(0, 6), st.none() | st.integers(0, 8)), max_size=8)
TURNS = st.lists(
    st.tuples(st.none() | st.integers(0, 8), st.none() | st.integers(0, 8)), max_size=5
)


@given(NODES, TURNS, st.lists(st.none() | st.integers(0, 6), max_size=4))
def test_any_graph_is_told_once(nodes, turns, rewards):
    """Cycles, missing parents, answers read before they were given: every row is one entry."""
    rows = {
        "trajectories": [{"trajectory_id": "t"}],
        "messages": [
            {"node_id": str(node), "parent_id": None if parent is None else str(parent), "depth": i}
            for i, (node, parent) in enumerate(dict(nodes).items())
        ],
        "turns": [
            {
                "turn": i,
                "input_node": None if before is None else str(before),
                "output_node": None if after is None else str(after),
            }
            for i, (before, after) in enumerate(turns)
        ],
        "states": [{"step": 1}],
        "rewards": [{"turn": turn, "value": 1.0} for turn in rewards],
    }
    tables = {name: build_frame(rows[name], TABLES[name]) for name in rows}
    story = tell_story(tables)
    kinds = [entry.kind for entry in story.entries]
    assert kinds.count("turn") == len(turns)
    assert kinds.count("reward") == len(rewards)
    assert kinds.count("state") == 1
    shown = [e.row["node_id"] for e in story.entries if e.kind == "message"]
    sampled = [e.node["node_id"] for e in story.entries if e.kind == "turn" and e.node is not None]
    known = {row["node_id"] for row in rows["messages"]}
    assert len(shown) == len(set(shown))
    assert {*shown, *sampled} == known
    assert sorted(p for _, places in group_by_turn(story) for p in places) == list(
        range(len(story.entries))
    )
    for entry in story.entries:
        assert entry.branch < max(len(story.branches), 1)
    for branch in story.branches:
        assert branch.first <= branch.last
        assert branch.leaves is None or branch.leaves < branch.first


def test_parts_of_any_message():
    """Texts, calls, results, what is of another type, and what is no message at all."""
    assert read_parts('{"role":"tool","name":"add","parts":[{"type":"tool_call_response",'
                      '"id":"c","response":{"sum":4}}]}') == [
        Part(kind="result", text='{"sum":4}', name="add", call_id="c")
    ]  # fmt: skip
    assert read_parts(
        '{"role":"user","parts":[{"type":"text","content":"a"},{"type":"image"},7]}'
    ) == [
        Part(kind="text", text="a"),
        Part(kind="image", text='{"type":"image"}'),
        Part(kind="unknown", text="7"),
    ]
    for odd in ("", "[1]", '{"parts":3}', "{", '"\\ud800"'):
        assert read_parts(odd) == [Part(kind="unreadable", text=odd)]
    assert read_parts(None) == []
