"""What every recorded run's spans have in common, whatever its format."""

import json

import pytest

from starpo_trace import semconv
from starpo_trace.convert.dialects.content import read_history
from starpo_trace.convert.sources.histories import RunHistory
from starpo_trace.convert.sources.jsonarrays import Broken, iterate_elements
from starpo_trace.convert.sources.runs import Answer, RunFacts, RunWriter
from starpo_trace.convert.sources.verdicts import Verdict


def say(text, role="user"):
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def make_writer(**facts):
    return RunWriter(RunFacts(form="test", key="k", **facts), "source")


def write_run(num_turns):
    """A run whose history only grows."""
    writer = make_writer()
    for turn in range(num_turns):
        writer.see([say(f"question {turn}")])
        writer.answer(Answer(message=say(f"answer {turn}", "assistant")))
    return writer.build()


def count_messages(rows):
    """How often a message stands in a span of these."""
    keys = (semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES)
    return sum(len(json.loads(row.attributes.get(key, "[]"))) for row in rows for key in keys)


@pytest.mark.parametrize("num_turns", [1, 10, 1000])
def test_each_message_is_written_once(num_turns):
    """So a run of N turns costs N, and the hashes that stand for the rest can be checked."""
    rows = write_run(num_turns)
    assert count_messages(rows) == 2 * num_turns
    lengths = [read_history(row.attributes).length for row in rows[1:]]
    assert lengths == list(range(1, 2 * num_turns, 2))


def test_a_history_that_is_given_whole_is_written_once_too():
    """Two branches that take turns: each goes on from what its own earlier spans hold."""
    writer = make_writer()
    histories = [[say("a"), say("b")], [say("a"), say("c")]]
    for turn in range(6):
        history = histories[turn % 2]
        writer.set_history(history)
        answer = say(f"answer {turn}", "assistant")
        writer.answer(Answer(message=answer))
        history += [answer, say(f"next {turn}")]
    rows = writer.build()
    # a, b, c, six answers, and of the six that came next all but the two that no call saw.
    assert count_messages(rows) == 3 + 6 + 4
    assert all(read_history(row.attributes).is_recorded for row in rows[1:])


def test_an_answer_that_comes_back_without_its_reasoning_is_the_same():
    """Reasoning is no part of a message's identity."""
    thought = {"type": "reasoning", "content": "hm"}
    answer = say("x", "assistant")
    history = RunHistory()
    history.extend([say("q")])
    history.describe()
    history.extend([{**answer, "parts": [thought, *answer["parts"]]}])
    history.hold()
    history.replace([say("q"), answer, say("r")])
    assert json.loads(history.describe()[semconv.INPUT_MESSAGES]) == [say("r")]


def test_times_that_are_not_known_number_the_spans():
    """From the run's start where that is known; ends stay missing."""
    for started_ns, first in ((None, 0), (5_000, 5_000)):
        writer = make_writer(started_ns=started_ns)
        writer.see([say("q")])
        writer.answer(Answer(message=say("a", "assistant")))
        writer.tool_step("t", result="r")
        writer.reward(Verdict(value=1.0))
        root, *others = writer.build()
        assert [row.start_ns for row in others] == [first, first + 1, first + 2]
        assert (root.start_ns, {row.end_ns for row in (root, *others)}) == (first, {None})


def test_ids_are_made_of_what_tells_the_run_apart():
    """Equal runs have equal spans; another key gives another trajectory."""
    assert write_run(3) == write_run(3)
    other = RunWriter(RunFacts(form="test", key="other"), "source")
    assert other.trajectory_id != make_writer().trajectory_id
    root = make_writer().build()[0]
    assert make_writer().trajectory_id == f"{root.trace_id}-{root.span_id}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        (" [1, 23 ]\n", [1, 23]),
        ('[{"a": [1]}, "x"]', [{"a": [1]}, "x"]),
        ('{"a": 1}', []),
        ("", []),
        ("[1] [2]", [1, "broken"]),
        ("[1, ", [1, "broken"]),
        ('[{"a": 1}, {"a": tru}, {"a": 2}]', [{"a": 1}, "broken", {"a": 2}]),
        ('[{"a": 1}, {"b": {"c": tru}}, {"b": 2}, {"a": 2}]', [{"a": 1}, "broken", {"a": 2}]),
        ('["\\ud800"]', ["\ud800"]),
    ],
)
def test_elements_of_an_array(tmp_path, text, expected):
    """What is broken is named; after it the next element of the form looked for is read."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with path.open("rb") as stream:
        elements = list(iterate_elements(stream, lambda value: "a" in value))
    found = ["broken" if isinstance(each, Broken) else each for each in elements]
    assert found == expected


def test_elements_longer_than_what_is_read_at_a_time(tmp_path):
    """Three of 3 MB each, read in pieces of one."""
    values = [{"a": "ü" * 1_500_000, "n": n} for n in range(3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values, ensure_ascii=False))
    with path.open("rb") as stream:
        assert list(iterate_elements(stream, lambda value: True)) == values
