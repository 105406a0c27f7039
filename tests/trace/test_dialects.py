"""Span -> canonical span: GenAI keys of others, old names, hostile values."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.dialects import convert_span
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.otlp import SpanRow

USER = {"role": "user", "parts": [{"type": "text", "content": "hi"}]}


def make_row(attributes, **fields) -> SpanRow:
    return SpanRow(
        source="file",
        trace_id=f"{1:032x}",
        span_id=f"{1:016x}",
        scope="other",
        attributes=attributes,
        **fields,
    )


def call_of(attributes, **fields) -> dict:
    span = convert_span(make_row({semconv.OPERATION_NAME: "chat", **attributes}, **fields))
    assert isinstance(span, CanonicalSpan), span
    assert span.call is not None
    return span.call


def test_genai_output_parts():
    """Reasoning, text and tool calls come apart; parsed arguments become JSON text."""
    call = call_of(
        {
            semconv.INPUT_MESSAGES: [USER],
            semconv.OUTPUT_MESSAGES: (
                '[{"role":"assistant","finish_reason":"tool_call","parts":['
                '{"type":"reasoning","content":"need stock"},'
                '{"type":"text","content":"Checking."},'
                '{"type":"tool_call","id":"c1","name":"stock","arguments":{"sku":"A7"}},'
                '{"type":"tool_call","id":"c2","name":"raw","arguments":"{\\"a\\": 1}"}]}]'
            ),
        }
    )
    assert (call["reasoning"], call["text"]) == ("need stock", "Checking.")
    assert call["finish_reason"] == "tool_call"
    assert call["tool_calls"] == [
        {"id": "c1", "name": "stock", "arguments": '{"sku":"A7"}'},
        {"id": "c2", "name": "raw", "arguments": '{"a": 1}'},
    ]


def test_system_instructions_begin_the_history():
    """They are a message of their own, before the input messages."""
    attributes = {
        semconv.OPERATION_NAME: "chat",
        "gen_ai.system_instructions": '[{"type":"text","content":"Be brief."}]',
        semconv.INPUT_MESSAGES: [USER],
    }
    span = convert_span(make_row(attributes))
    assert isinstance(span, CanonicalSpan)
    assert [(node["role"], node["depth"]) for node in span.nodes] == [("system", 0), ("user", 1)]


def test_content_may_sit_in_an_event():
    """The details event gives what the span's own attributes lack."""
    event = {semconv.INPUT_MESSAGES: [USER], semconv.REQUEST_MODEL: "event"}
    call = call_of(
        {semconv.REQUEST_MODEL: "span"},
        events=(("gen_ai.client.inference.operation.details", 5, event),),
    )
    assert (call["has_input"], call["model"]) == (True, "span")


OPENAI_EVENTS = (
    ("gen_ai.system.message", {"content": "Be brief."}),
    ("gen_ai.user.message", {"content": "how many?", "role": "user"}),
    (
        "gen_ai.assistant.message",
        {
            "content": "Looking.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": "{}"}}
            ],
        },
    ),
    ("gen_ai.tool.message", {"id": "c1", "content": "3"}),
    ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"content": "Three."}}),
)
BEDROCK_EVENTS = (
    ("gen_ai.system.message", {"content": '[{"text": "Be brief."}]'}),
    ("gen_ai.user.message", {"content": '[{"text": "how many?"}]'}),
    (
        "gen_ai.assistant.message",
        {
            "content": '[{"text": "Looking."}, '
            '{"toolUse": {"toolUseId": "c1", "name": "stock", "input": {}}}]'
        },
    ),
    (
        "gen_ai.tool.message",
        {"content": '[{"toolResult": {"toolUseId": "c1", "content": [{"text": "3"}]}}]'},
    ),
    ("gen_ai.choice", {"finish_reason": "stop", "message": '[{"text": "Three."}]'}),
)
WHOLE_EVENTS = tuple(
    (name, {"gen_ai.system": "x", "gen_ai.event.content": json.dumps(fields)})
    for name, fields in OPENAI_EVENTS
)


@pytest.mark.parametrize("events", [OPENAI_EVENTS, BEDROCK_EVENTS, WHOLE_EVENTS])
def test_an_event_for_each_message(events):
    """OpenAI's fields and Bedrock's blocks as JSON text are the same messages."""
    row = make_row(
        {semconv.OPERATION_NAME: "chat", "gen_ai.system": "x"},
        events=tuple((name, 0, fields) for name, fields in events),
    )
    span = convert_span(row)
    assert isinstance(span, CanonicalSpan)
    messages = [json.loads(node["message"]) for node in span.nodes]
    call = {"type": "tool_call", "id": "c1", "name": "stock", "arguments": "{}"}
    result = {"type": "tool_call_response", "id": "c1", "response": "3"}
    assert [(message["role"], message["parts"]) for message in messages] == [
        ("system", [{"type": "text", "content": "Be brief."}]),
        ("user", [{"type": "text", "content": "how many?"}]),
        ("assistant", [{"type": "text", "content": "Looking."}, call]),
        ("tool", [result]),
        ("assistant", [{"type": "text", "content": "Three."}]),
    ]
    assert span.call is not None
    assert (span.call["finish_reason"], span.call["text"]) == ("stop", "Three.")


@pytest.mark.parametrize(
    "text", ['{"answer":  42}', "[]", '[{"id": 1}, {"id":  2}]', '[{"name": "a"}]', "{}"]
)
def test_texts_of_events_that_are_json_stay_texts(text):
    """What a user pasted, a tool returned or a model answered is word for word what it was."""
    events = (
        ("gen_ai.user.message", 0, {"content": text}),
        ("gen_ai.tool.message", 0, {"id": "c", "content": text}),
        ("gen_ai.choice", 0, {"message": text}),
        ("gen_ai.choice", 0, {"message": json.dumps({"content": text})}),
    )
    span = convert_span(make_row({semconv.OPERATION_NAME: "chat"}, events=events))
    assert isinstance(span, CanonicalSpan)
    parts = [json.loads(node["message"])["parts"] for node in span.nodes]
    said = [{"type": "text", "content": text}]
    result = [{"type": "tool_call_response", "id": "c", "response": text}]
    assert parts == [said, result, said, said]


def test_reasoning_and_odd_blocks_of_events():
    """Signatures stay beside the reasoning, unknown blocks as they are, broken JSON is text."""
    blocks = (
        '[{"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}}, '
        '{"image": {"format": "png"}}, {"type": "video", "u": 1}]'
    )
    events = (
        ("gen_ai.user.message", 0, {"content": '[{"text": broken'}),
        ("gen_ai.choice", 0, {"message": blocks}),
    )
    span = convert_span(make_row({semconv.OPERATION_NAME: "chat"}, events=events))
    assert isinstance(span, CanonicalSpan)
    prompt, answer = (json.loads(node["message"])["parts"] for node in span.nodes)
    assert prompt == [{"type": "text", "content": '[{"text": broken'}]
    assert answer == [
        {"type": "reasoning", "content": "hm", "meta": {"signature": "s"}},
        {"type": "unknown", "raw": {"image": {"format": "png"}}},
        {"type": "video", "raw": {"type": "video", "u": 1}},
    ]


@pytest.mark.parametrize(
    ("attributes", "column", "value"),
    [
        ({"gen_ai.usage.prompt_tokens": 7}, "input_tokens", 7),
        ({"gen_ai.usage.completion_tokens": 8}, "output_tokens", 8),
        ({"gen_ai.response.finish_reason": "stop"}, "finish_reason", "stop"),
        ({semconv.RESPONSE_FINISH_REASONS: '["length"]'}, "finish_reason", "length"),
        ({semconv.RESPONSE_FINISH_REASONS: ["length"]}, "finish_reason", "length"),
        ({semconv.ERROR_TYPE: "asyncio.exceptions.CancelledError"}, "outcome", "cancelled"),
        ({semconv.ERROR_TYPE: "ValueError"}, "outcome", "error"),
        ({semconv.STREAM_OUTCOME: "dropped"}, "outcome", "dropped"),
        ({semconv.STREAM_OUTCOME: "exhausted"}, "outcome", "ok"),
        ({semconv.REQUEST_TEMPERATURE: 1}, "temperature", 1.0),
        ({semconv.REQUEST_TEMPERATURE: True}, "temperature", None),
        ({semconv.USAGE_INPUT_TOKENS: 2**70}, "input_tokens", None),
    ],
)
def test_call_columns(attributes, column, value):
    """Old names, both forms of a list, outcomes, values of the wrong type."""
    assert call_of(attributes)[column] == value


def test_evaluation_event_is_a_reward_that_nobody_trusts(spans):
    """An agent may write such an event about itself."""
    root = spans.root()
    event = {semconv.EVALUATION_NAME: "good", semconv.EVALUATION_VALUE: 1.0}
    call = spans.call(
        root,
        0,
        [{"role": "user", "content": "hi"}],
        {"role": "assistant", "content": "ho"},
        events=(("gen_ai.evaluation.result", 5, event),),
    )
    rewards = convert_rows([root, call])["rewards"]
    assert rewards.select("name", "value", "scope", "turn", "trusted").rows() == [
        ("good", 1.0, "turn", 0, False)
    ]


KEYS = [
    *sorted(
        {v for k, v in vars(semconv).items() if k.isupper() and isinstance(v, str)}
        - {semconv.RECORD, semconv.OPERATION_NAME, semconv.SCOPE_NAME, semconv.SCHEMA_VERSION}
    ),
    "gen_ai.system_instructions",
]
JSON_TEXT = st.sampled_from(
    [
        "",
        "{",
        "[]",
        "null",
        "[1]",
        "[null]",
        '[{"parts":[]}]',
        '[{"parts":[{}]}]',
        "[1e400]",
        '[{"role":5,"parts":[{"type":"tool_call","arguments":[1],"name":{}}]}]',
        '[{"parts":[{"type":"text","content":"\\ud800"}]}]',
        "[" * 2000 + "]" * 2000,
        "[99999999999]",
    ]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    JSON_TEXT,
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.binary(max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["trajectory", "llm", "step", "state", "observation", "reward", None, "?"]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12),
)
def test_hostile_attributes_never_stop_a_build(record, attributes):
    """Whatever an attribute holds, the span is used or rejected, and tables are built."""
    if record is not None:
        attributes = {**attributes, semconv.RECORD: record}
    row = make_row({semconv.OPERATION_NAME: "chat", **attributes})
    converted = convert_span(row)
    assert isinstance(converted, CanonicalSpan | Rejection)
    tables = convert_rows([row])
    assert tables["rejected"].height + (tables["trajectories"].height > 0) == 1
