"""What another library recorded beside ours, in the same trace: each call and tool counts once."""

import json

import pytest
from msgspec.structs import replace

from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.otlp import SpanRow

TRACE = "a" * 32
OURS, THEIRS, OTHERS = "starpo_trace", "openinference.instrumentation.x", "opentelemetry.x"
RUN = "run"


def span(number, scope, start, end, attributes, *, parent=None, trace=TRACE):
    return SpanRow(
        source="s",
        trace_id=trace,
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        name=f"span {number}",
        scope=scope,
        start_ns=start,
        end_ns=end,
        attributes=attributes,
    )


def root(number=1, start=0, end=100, **where):
    given = {semconv.RECORD: "trajectory", semconv.TRAJECTORY_ID: RUN}
    given |= {semconv.TRAJECTORY_END: "terminated", semconv.OPERATION_NAME: "invoke_agent"}
    return span(number, OURS, start, end, given, **where)


def call(number, scope, start, end, answer="yes", *, usage=None, **where):
    attributes = {semconv.OPERATION_NAME: "chat", semconv.REQUEST_MODEL: "m"}
    if answer is not None:
        question = {"role": "user", "parts": [{"type": "text", "content": "?"}]}
        said = {"role": "assistant", "parts": [{"type": "text", "content": answer}]}
        attributes[semconv.INPUT_MESSAGES] = json.dumps([question])
        attributes[semconv.OUTPUT_MESSAGES] = json.dumps([said])
    if usage is not None:
        attributes[semconv.USAGE_INPUT_TOKENS], attributes[semconv.USAGE_OUTPUT_TOKENS] = usage
    return span(number, scope, start, end, attributes | of_run(scope, "llm", number), **where)


def tool(number, scope, start, end, name="stock", call_id=None, **where):
    attributes = {semconv.OPERATION_NAME: "execute_tool", semconv.TOOL_NAME: name}
    if call_id is not None:
        attributes[semconv.TOOL_CALL_ID] = call_id
    return span(number, scope, start, end, attributes | of_run(scope, "step", number), **where)


def of_run(scope, record, step):
    if scope != OURS:
        return {}
    return {semconv.RECORD: record, semconv.TRAJECTORY_ID: RUN, semconv.STEP: step}


def convert(*spans):
    """Spans -> per run its turns and steps; numbers of the spans that are left out, by reason."""
    tables = convert_rows(list(spans))
    runs = {
        row["trajectory_id"]: (row["num_turns"], row["num_steps"])
        for row in tables["trajectories"].to_dicts()
    }
    rejected: dict[str, list[int]] = {}
    for row in tables["rejected"].to_dicts():
        rejected.setdefault(row["reason"], []).append(int(row["span_id"], 16))
    return runs, {reason: sorted(found) for reason, found in rejected.items()}


def test_a_call_beside_ours_is_no_second_turn():
    """LangChain's callbacks, whose spans are nobody's parents."""
    spans = root(), call(2, OURS, 10, 20, parent=1), call(3, THEIRS, 9, 21, parent=1)
    assert convert(*spans) == ({RUN: (1, 1)}, {"duplicate_llm_call": [3]})


def test_each_library_counts_for_itself():
    """Ours stands for one span of each."""
    spans = [call(3, THEIRS, 9, 21, parent=1), call(4, OTHERS, 8, 22, parent=1)]
    runs, rejected = convert(root(), call(2, OURS, 10, 20, parent=1), *spans)
    assert (runs, rejected) == ({RUN: (1, 1)}, {"duplicate_llm_call": [3, 4]})


@pytest.mark.parametrize(
    ("theirs", "num_turns"),
    [
        (call(3, THEIRS, 9, 21, "no", parent=1), 2),
        (call(3, THEIRS, 9, 21, "no", usage=(1, 2), parent=1), 2),
        (call(3, THEIRS, 9, 21, "yes!", usage=(5, 6), parent=1), 1),
        (call(3, THEIRS, 9, 21, None, parent=1), 1),
        (call(3, THEIRS, 30, 40, parent=1), 2),
    ],
    ids=["answer", "usage", "told otherwise", "no content", "time"],
)
def test_what_ours_are_not_stays(theirs, num_turns):
    """A model that we do not record may be called at the same time."""
    runs, _ = convert(root(), call(2, OURS, 10, 20, usage=(5, 6), parent=1), theirs)
    assert runs[RUN][0] == num_turns


def test_equal_answers_at_one_time_are_as_many_as_ours():
    """Of three of theirs that two of ours could be, one is a call of its own."""
    ours = [call(i, OURS, 10, 20 + i, parent=1) for i in (2, 3)]
    theirs = [call(i, THEIRS, 10, 18 + i, parent=1) for i in (4, 5, 6)]
    runs, rejected = convert(root(), *ours, *theirs)
    assert runs == {RUN: (3, 3)}
    assert rejected == {"duplicate_llm_call": [4, 5]}


def test_an_agent_around_ours_is_no_second_run():
    """Its calls are outside of our tree, but in the trace."""
    around = span(9, THEIRS, 0, 101, {semconv.OPERATION_NAME: "invoke_agent"})
    theirs = [call(3, THEIRS, 9, 21, parent=9), tool(5, THEIRS, 30, 41, parent=9)]
    ours = [call(2, OURS, 10, 20, parent=1), tool(4, OURS, 31, 40, parent=1)]
    assert convert(around, root(parent=9), *theirs, *ours) == (
        {RUN: (1, 2)},
        {"duplicate_llm_call": [3], "duplicate_tool_run": [5], "no_llm_call": [9]},
    )


def test_tools_at_one_time_are_told_apart_by_their_calls():
    """Else by their times; another tool inside of ours is a step."""
    ours = [
        call(2, OURS, 1, 5, parent=1),
        tool(3, OURS, 10, 30, call_id="a", parent=1),
        tool(4, OURS, 10, 31, call_id="b", parent=1),
    ]
    theirs = [
        tool(5, THEIRS, 10, 30, call_id="b", parent=3),
        tool(6, THEIRS, 10, 31, call_id="c", parent=3),
        tool(7, THEIRS, 12, 13, "look", parent=3),
        tool(8, OTHERS, 10, 30, parent=1),
        tool(9, OTHERS, 10, 30, parent=1),
        tool(10, OTHERS, 10, 30, parent=1),
    ]
    runs, rejected = convert(root(), *ours, *theirs)
    assert rejected == {"duplicate_tool_run": [5, 8, 9]}
    assert runs == {RUN: (1, 6)}


def test_another_trace_is_another_run():
    """Nothing says that it is the same."""
    theirs = call(3, THEIRS, 9, 21, trace="b" * 32)
    runs, rejected = convert(root(), call(2, OURS, 10, 20, parent=1), theirs)
    assert runs == {RUN: (1, 1), "b" * 32: (1, 1)}
    assert rejected == {}


def test_feedback_on_theirs_is_on_ours():
    """A score on a call that is left out belongs to the turn that stands for it."""
    told = {semconv.EVALUATION_NAME: "good", semconv.EVALUATION_VALUE: 0.5}
    theirs = replace(
        call(3, THEIRS, 9, 21, parent=1), events=(("gen_ai.evaluation.result", 22, told),)
    )
    tables = convert_rows([root(), call(2, OURS, 10, 20, parent=1), theirs])
    assert [(row["value"], row["turn"]) for row in tables["rewards"].to_dicts()] == [(0.5, 0)]
