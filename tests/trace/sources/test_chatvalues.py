"""What backends keep of a model's input and output -> the same messages, whatever form it has."""

import pytest

from starpo_trace import semconv as keys
from starpo_trace.convert.dialects.chatvalues import read_answer, read_prompt, translate_exchange
from starpo_trace.convert.dialects.content import read_json

TEXT = '{"sku": "A7",  "n":1e0}'
CALL = {"type": "tool_call", "id": "c1", "name": "stock", "arguments": TEXT}
PARSED = {**CALL, "arguments": '{"sku":"A7"}'}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": TEXT}}
LANGCHAIN_CALL = {"name": "stock", "args": {"sku": "A7"}, "id": "c1", "type": "tool_call"}
ANTHROPIC = [
    {"type": "thinking", "thinking": "look it up", "signature": "s"},
    {"type": "text", "text": "let me see"},
    {"type": "tool_use", "id": "c1", "name": "stock", "input": {"sku": "A7"}},
]
VERCEL = [
    {"type": "reasoning", "text": "look it up"},
    {"type": "text", "text": "let me see"},
    {"type": "tool-call", "toolCallId": "c1", "toolName": "stock", "input": {"sku": "A7"}},
]
ITEMS = [
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "look it up"}]},
    {"type": "function_call", "call_id": "c1", "name": "stock", "arguments": TEXT},
]
AI_MESSAGE = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "AIMessage"],
    "kwargs": {"content": "let me see", "tool_calls": [LANGCHAIN_CALL]},
}


def parts_of(message):
    """Type and text of each part, or the call itself."""
    return [
        {key: part[key] for key in CALL} if part["type"] == "tool_call" else part["content"]
        for part in message["parts"]
    ]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("let me see", ["let me see"]),
        (
            {"role": "assistant", "content": "let me see", "tool_calls": [OPENAI_CALL]},
            ["let me see", CALL],
        ),
        ({"choices": [{"message": {"content": None, "tool_calls": [OPENAI_CALL]}}]}, [CALL]),
        ({"role": "assistant", "content": ANTHROPIC}, ["look it up", "let me see", PARSED]),
        (
            {"type": "message", "role": "assistant", "content": ANTHROPIC, "stop_reason": "x"},
            ["look it up", "let me see", PARSED],
        ),
        ([{"role": "assistant", "content": VERCEL}], ["look it up", "let me see", PARSED]),
        ([{"toolCallId": "c1", "toolName": "stock", "input": TEXT}], [CALL]),
        ({"object": "response", "output": ITEMS}, ["look it up", CALL]),
        (AI_MESSAGE, ["let me see", PARSED]),
        ({"generations": [[{"text": "no", "message": AI_MESSAGE}]]}, ["let me see", PARSED]),
        (
            {
                "role": "assistant",
                "content": "",
                "additional_kwargs": {"tool_calls": [OPENAI_CALL]},
                "tool_calls": [LANGCHAIN_CALL],
            },
            [CALL],
        ),
        (
            {"candidates": [{"content": {"role": "model", "parts": [{"text": "let me see"}]}}]},
            ["let me see"],
        ),
        ({"messages": [{"type": "human", "content": "?"}, AI_MESSAGE]}, ["let me see", PARSED]),
        ([{"role": "assistant", "parts": [{"type": "text", "content": "a"}, CALL]}], ["a", CALL]),
    ],
)
def test_an_answer_of_every_form_is_read(value, parts):
    """Reasoning, text and calls in their order; arguments word for word where they are text."""
    answer = read_answer(value)
    assert answer is not None
    assert [parts_of(message) for message in answer.messages] == [parts]
    assert answer.messages[0]["role"] == "assistant"


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        {"system": "s", "messages": [{"role": "user", "content": "u"}]},
        {"system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content": "u"}]},
        {"instructions": "s", "input": "u"},
        {"instructions": "s", "input": [{"role": "user", "content": "u"}]},
        {
            "config": {"system_instruction": "s"},
            "contents": [{"role": "user", "parts": [{"text": "u"}]}],
        },
        [[{"type": "system", "content": "s"}, {"type": "human", "content": "u"}]],
        [
            {"role": "system", "parts": [{"type": "text", "content": "s"}]},
            {"role": "user", "parts": [{"type": "text", "content": "u"}]},
        ],
        {"prompt": "u", "system": "s"},
    ],
)
def test_a_prompt_of_every_form_is_read(value):
    """System instructions stand first, whichever place they had."""
    messages = read_prompt(value)
    assert messages is not None
    assert [message["role"] for message in messages] == ["system", "user"]
    assert [part["content"] for message in messages for part in message["parts"]] == ["s", "u"]


def test_results_of_tools_are_messages_of_their_own():
    """Anthropic's within a user's message, Vercel's several in one."""
    anthropic = [{"type": "tool_result", "tool_use_id": f"c{i}", "content": "3"} for i in (1, 2)]
    vercel = [
        {"type": "tool-result", "toolCallId": f"c{i}", "output": {"type": "text", "value": "3"}}
        for i in (1, 2)
    ]
    for message in ({"role": "user", "content": anthropic}, {"role": "tool", "content": vercel}):
        messages = read_prompt([message])
        assert messages is not None
        assert [message["role"] for message in messages] == ["tool", "tool"]
        assert [message["parts"][0]["id"] for message in messages] == ["c1", "c2"]
        assert [message["parts"][0]["response"] for message in messages] == ["3", "3"]


@pytest.mark.parametrize(
    "value", [None, "", 5, {}, [], {"question": "?"}, [{"no": 1}], {"content": "role"}, ["a"]]
)
def test_what_is_no_prompt_and_no_answer_gives_none(value):
    """Nothing is made up of it."""
    assert read_prompt(value) is None
    assert read_answer(value) is None


def test_definitions_of_tools_among_messages_are_no_messages():
    """Langfuse puts LangChain's there."""
    tool = {"type": "function", "function": {"name": "stock"}}
    found = translate_exchange(
        [{"role": "user", "content": "u"}, {"role": "tool", "content": tool}], None
    )
    assert read_json(found[keys.TOOL_DEFINITIONS]) == [tool]
    assert len(read_json(found[keys.INPUT_MESSAGES])) == 1
