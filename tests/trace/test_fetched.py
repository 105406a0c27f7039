"""Background runs that one process asks for and another fetches -> one turn of the dataset."""

import pytest

from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.fetched import join_fetched_answers
from starpo_trace.messages import dump_json, from_openai_chat

USER = {"role": "user", "content": "how many?"}
ANSWER = {"role": "assistant", "content": "3 left"}


def make_rows(spans, *, is_answered=False):
    """A trajectory whose only call was answered later, and the fetch of the answer."""
    root = spans.root(num_steps=2)
    known = {semconv.RESPONSE_ID: "resp_1"}
    late = {semconv.STREAM_OUTCOME: "dropped"}
    done = {semconv.RESPONSE_FINISH_REASONS: ("completed",)}
    call = spans.call(
        root,
        0,
        [USER],
        ANSWER if is_answered else None,
        attributes={**known, **(done if is_answered else late)},
    )
    fetch = spans.call(
        root,
        1,
        [USER],
        None,
        attributes={
            **known,
            **done,
            semconv.OPERATION_NAME: "fetch_response",
            semconv.OUTPUT_MESSAGES: dump_json([from_openai_chat(ANSWER)]),
        },
    )
    return [root, call, fetch]


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_fetched_answer_is_one_turn(spans, is_answered):
    """The call has the answer, once; the fetch stays as a step."""
    turns = convert_rows(make_rows(spans, is_answered=is_answered))["turns"]
    assert turns["text"].to_list() == ["3 left"]
    assert turns["outcome"].to_list() == ["ok"]


def test_a_fetch_without_its_call_is_left(spans):
    """What was asked for where nobody recorded it is a turn of its own."""
    root, _, fetch = make_rows(spans)
    assert join_fetched_answers([root, fetch]) == [root, fetch]
