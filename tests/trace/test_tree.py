"""Span rows -> forest -> trajectories: cycles, orphans, duplicates, foreign traces."""

from itertools import permutations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.copies import DistinctSpans, drop_copies
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.partition import build_partition
from starpo_trace.convert.rewards import DEFAULT_TRUST
from starpo_trace.convert.staging import concat_chunks, stage_rows
from starpo_trace.convert.tree import NO_PARENT, build_span_forest

TRACE = f"{1:032x}"


def forest_of(parents: dict[str, str | None]):
    return build_span_forest([TRACE] * len(parents), list(parents), list(parents.values()))


def test_forest_by_hand():
    """A root, its child, an orphan, a self-parent, a cycle of two and what hangs below it."""
    forest = forest_of(
        {"a": None, "b": "a", "c": "gone", "d": "d", "e": "f", "f": "e", "g": "e", "h": "g"}
    )
    none = NO_PARENT
    assert forest.parents == [none, 0, none, none, none, none, none, 6]
    assert forest.on_cycle == [False, False, False, True, True, True, False, False]
    assert forest.is_orphan == [False, False, True, False, False, False, True, False]
    assert sorted(forest.top_down) == list(range(8))


def test_chain_of_100_000_spans():
    """Depth costs no recursion."""
    names = [f"{i}" for i in range(100_000)]
    forest = forest_of(dict(zip(names, [None, *names], strict=False)))
    assert forest.top_down == list(range(100_000))


@given(st.lists(st.integers(-1, 11), min_size=1, max_size=10))
def test_any_parents_give_a_forest(parents):
    """Whatever the parents: every span once, parents first, cycles exactly where walking finds."""
    names = [str(i) for i in range(len(parents))]
    named = [None if p < 0 else str(p) for p in parents]
    forest = build_span_forest([TRACE] * len(names), names, named)
    position = {i: n for n, i in enumerate(forest.top_down)}
    assert sorted(position) == list(range(len(parents)))
    for i, parent in enumerate(forest.parents):
        assert parent == NO_PARENT or position[parent] < position[i]
        walk, at = set(), parents[i]
        while 0 <= at < len(parents) and at not in walk:
            walk.add(at)
            at = parents[at]
        assert forest.on_cycle[i] == (i in walk)


def distinct_of(rows) -> DistinctSpans:
    return drop_copies(concat_chunks([stage_rows(rows)]))


def ends_of(found) -> list[tuple[str, int]]:
    """Which copy of each span stayed."""
    return found.frames["spans"].select("span_id", "end_ns").rows()


def test_equal_copies_and_unfinished_ones_are_silent(spans):
    """Delivered again, read from two files, passed by a Collector, or seen before its end."""
    row = spans.row({semconv.OPERATION_NAME: "chat"})
    copies = [
        row,
        replace(row, source="collector", attributes={**row.attributes, "cluster": "a"}),
        replace(row, end_ns=None, attributes={}),
    ]
    for order in permutations(copies):
        found = distinct_of(order)
        assert ends_of(found) == [(row.span_id, row.end_ns)]
        assert (found.num_duplicates, found.contradicting.height) == (2, 0)
        assert found.contested == frozenset()
    alien = spans.row({"http.method": "GET"})
    later = replace(alien, end_ns=alien.start_ns + 9)  # ended in a process and in its fork
    found = distinct_of([alien, later])
    assert (found.num_duplicates, found.contested) == (1, frozenset())


def test_copies_that_differ_are_reported_and_make_a_run_unusable(spans):
    """Whatever the order they are read in; the trajectory of either copy has the reason."""
    rows = []
    for name in ("t1", "t2", "t3"):
        root = spans.root(name, num_steps=1)
        prompt, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}
        rows += [root, spans.call(root, 0, [prompt], answer, delta=False)]
    call = rows[1]
    other = {**call.attributes, semconv.TRAJECTORY_ID: "t2", semconv.OUTPUT_MESSAGES: "[]"}
    forged = replace(call, end_ns=call.end_ns + 5, attributes=other)
    for order in permutations([call, forged, forged]):
        found = distinct_of([*rows, *order])
        assert ends_of(found) == [(row.span_id, row.end_ns) for row in rows]
        assert found.contradicting["end_ns"].to_list() == [forged.end_ns]
        assert found.num_duplicates == 2
    tables = convert_rows([*rows, forged])
    found = tables["trajectories"].sort("trajectory_id").select("usable_for", "reasons").rows()
    assert [verdict for verdict, _ in found] == ["none", "none", "sft"]
    assert ["conflicting_copies" in reasons for _, reasons in found] == [True, True, False]
    rejected = tables["rejected"].select("span_id", "reason", "detail").rows()
    assert rejected == [
        (call.span_id, "conflicting_copies", "another copy of this span differs from it")
    ]


def chat(spans, *, parent=None, **fields) -> SpanRow:
    """A call of another library's GenAI instrumentation."""
    attributes = {
        semconv.OPERATION_NAME: "chat",
        semconv.INPUT_MESSAGES: '[{"role":"user","parts":[{"type":"text","content":"hi"}]}]',
        semconv.OUTPUT_MESSAGES: (
            '[{"role":"assistant","parts":[{"type":"text","content":"ho"}],"finish_reason":"stop"}]'
        ),
        **fields.pop("attributes", {}),
    }
    return spans.row(attributes, parent=parent, scope="other", **fields)


def trajectories_of(rows) -> dict[str, int]:
    tables = convert_rows(rows)
    return dict(tables["trajectories"].select("trajectory_id", "num_turns").iter_rows())


def agent(spans, *, parent=None, **attributes) -> SpanRow:
    fields = {semconv.OPERATION_NAME: "invoke_agent", **attributes}
    return spans.row(fields, parent=parent, scope="other")


def test_foreign_trajectory_is_the_outermost_agent(spans):
    """Nested agents are one trajectory, named by the root so that a reward can link to it."""
    web = spans.row({"http.method": "POST"}, scope="http")
    outer = agent(spans, parent=web)
    inner = agent(spans, parent=outer)
    calls = [chat(spans, parent=outer), chat(spans, parent=inner)]
    assert trajectories_of([web, outer, inner, *calls]) == {f"{TRACE}-{outer.span_id}": 2}


def test_foreign_trajectory_by_conversation_or_trace(spans):
    """A conversation joins traces; without agent span and conversation the trace is one."""
    conversation = {semconv.CONVERSATION_ID: "conv"}
    first = chat(spans, attributes=conversation)
    outer = agent(spans)
    second = chat(spans, parent=outer, trace_id=f"{2:032x}", attributes=conversation)
    outer = replace(outer, trace_id=f"{2:032x}")
    lone = chat(spans, trace_id=f"{3:032x}")
    assert trajectories_of([first, outer, second, lone]) == {"conv": 2, f"{3:032x}": 1}


def test_calls_inside_our_trajectory_inherit_it(spans):
    """Another library's span below our root belongs to our trajectory."""
    root = spans.root()
    assert trajectories_of([root, chat(spans, parent=root)]) == {"t1": 1}


def test_one_call_seen_twice_counts_once(spans):
    """Ours wins over another library's around or inside it; else the inner one."""
    root = spans.root()
    outer = chat(spans, parent=root)
    ours = spans.call(root, 0, [{"role": "user", "content": "hi"}], None)
    ours = replace(ours, parent_id=outer.span_id)
    inner = chat(spans, parent=ours)
    tables = convert_rows([root, outer, ours, inner])
    assert tables["turns"]["span_id"].to_list() == [ours.span_id]
    assert set(tables["rejected"]["reason"]) == {"duplicate_llm_call"}
    lone_outer = chat(spans)
    lone_inner = chat(spans, parent=lone_outer)
    turns = convert_rows([lone_outer, lone_inner])["turns"]
    assert turns["span_id"].to_list() == [lone_inner.span_id]


def test_one_tool_seen_twice_counts_once(spans):
    """Of two libraries' spans for one call ours stays; a tool that another call asked for is one."""

    def run_tool(parent, call_id, ours=None):
        told = {semconv.OPERATION_NAME: "execute_tool", semconv.TOOL_CALL_ID: call_id}
        scope = "another library" if ours is None else semconv.SCOPE_NAME
        times = {"start_ns": 9_000_000_000, "end_ns": 9_500_000_000}
        return spans.row({**told, **(ours or {})}, parent=parent, scope=scope, **times)

    root = spans.root()
    call = spans.call(root, 0, [{"role": "user", "content": "hi"}], None)
    ours = run_tool(root, "c1", {semconv.RECORD: "step", semconv.TRAJECTORY_ID: "t1"})
    again, other = run_tool(ours, "c1"), run_tool(ours, "c2")
    tables = convert_rows([root, call, ours, again, other])
    rejected = [(row["span_id"], row["reason"]) for row in tables["rejected"].to_dicts()]
    assert rejected == [(again.span_id, "duplicate_tool_run")]
    assert tables["trajectories"]["num_steps"].to_list() == [3]


def test_rejected_spans_name_their_reason(spans):
    """Each kind of span that makes no row, with its reason."""
    cases = {
        "not_an_agent_span": {"http.method": "GET"},
        "unknown_dialect": {"traceloop.workflow.name": "w"},
        "unknown_operation": {semconv.OPERATION_NAME: "dance"},
        "unknown_record": {semconv.RECORD: "dance"},
        "malformed_attributes": {semconv.OPERATION_NAME: "chat", semconv.INPUT_MESSAGES: "{"},
        "no_llm_call": {semconv.OPERATION_NAME: "execute_tool"},
    }
    rows = [
        spans.row(attributes, scope="x", trace_id=f"{i:032x}", name=reason)
        for i, (reason, attributes) in enumerate(cases.items(), start=1)
    ]
    rejected = convert_rows(rows)["rejected"]
    assert rejected["reason"].to_list() == rejected["name"].to_list()
    assert set(rejected["reason"]) == set(cases)


def messages_json(count: int) -> str:
    roles = ["user", "assistant"]
    parts = [
        f'{{"role":"{roles[i % 2]}","parts":[{{"type":"text","content":"{i}"}}]}}'
        for i in range(count)
    ]
    return f"[{','.join(parts)}]"


def test_history_orders_calls_of_skewed_clocks(spans):
    """A prompt that holds another call's answer comes after it, whatever the clocks say."""
    outer = agent(spans)
    answer = '[{"role":"assistant","parts":[{"type":"text","content":"1"}]}]'
    first = chat(
        spans,
        parent=outer,
        start_ns=9_000_000_000,
        attributes={
            semconv.INPUT_MESSAGES: messages_json(1),
            semconv.OUTPUT_MESSAGES: answer,
        },
    )
    second = chat(
        spans,
        parent=outer,
        start_ns=5_000_000_000,
        attributes={semconv.INPUT_MESSAGES: messages_json(3)},
    )
    tables = convert_rows([outer, first, second])
    assert tables["turns"]["span_id"].to_list() == [first.span_id, second.span_id]
    assert tables["turns"]["step"].to_list() == [0, 1]
    assert "skewed_clock" in tables["trajectories"]["reasons"].to_list()[0]


RECORDS = st.sampled_from(["trajectory", "llm", "step", "state", "reward", "observation", None])
SPAN = st.tuples(
    st.integers(1, 2),  # trace
    st.integers(1, 6),  # span
    st.integers(0, 7),  # parent, 0: none
    RECORDS,
    st.sampled_from([None, "t1", "t2"]),
    st.sampled_from([None, 0, 1, 2]),  # step
)


def make_row(trace, span, parent, record, trajectory, step) -> SpanRow:
    attributes = {
        semconv.RECORD: record,
        semconv.TRAJECTORY_ID: trajectory,
        semconv.STEP: step,
        semconv.EVALUATION_VALUE: 1.0 if record == "reward" else None,
        semconv.STATE_VALUE: "{}" if record == "state" else None,
        semconv.INPUT_MESSAGES: messages_json(1) if record == "llm" else None,
        semconv.OUTPUT_MESSAGES: messages_json(1) if record == "llm" else None,
    }
    return SpanRow(
        source="store",
        trace_id=f"{trace:032x}",
        span_id=f"{span:016x}",
        parent_id=f"{parent:016x}" if parent else None,
        name="reward" if record == "reward" else "",
        scope=semconv.SCOPE_NAME,
        attributes={key: value for key, value in attributes.items() if value is not None},
        links=((f"{trace:032x}", f"{parent:016x}"),) if record == "reward" and parent else (),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(SPAN, max_size=12), st.randoms(use_true_random=False))
def test_accounting_closes_in_any_order(drawn, random):
    """Every span is used, rejected once or a duplicate, and order changes nothing."""
    rows = [make_row(*fields) for fields in drawn]
    partition = build_partition([stage_rows(rows)], trust=DEFAULT_TRUST)
    tables = partition.tables
    rejected = tables["rejected"]
    assert partition.num_read == len(rows)
    assert partition.num_used + rejected.height + partition.num_duplicates == len(rows)
    distinct = distinct_of(rows)
    is_conflict = pl.col("reason") == "conflicting_copies"
    assert rejected.filter(is_conflict).height == distinct.contradicting.height
    rejected = rejected.filter(~is_conflict)
    kept = distinct.frames["spans"]
    is_reward = pl.col("name") == "reward"
    rewards, others = kept.filter(is_reward), kept.filter(~is_reward)
    assert others.select("trace_id", "span_id").is_unique().all()
    names = rejected.filter(~is_reward).select("trace_id", "span_id")
    assert names.is_unique().all()
    used = others.join(names, on=["trace_id", "span_id"], how="anti")
    num_rejected_rewards = rejected.height - names.height
    assert tables["rewards"].height == rewards.height - num_rejected_rewards
    turns = set(used.filter(pl.col("record") == "llm")["span_id"])
    assert set(tables["turns"]["span_id"]) == turns
    assert tables["trajectories"]["trajectory_id"].is_unique().all()
    random.shuffle(rows)
    again = convert_rows(rows)
    for name, table in tables.items():
        order = [c for c in table.columns if not table.schema[c].is_nested()]
        assert again[name].sort(order).equals(table.sort(order)), name
