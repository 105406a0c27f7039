"""Model text -> reasoning, content, tool calls."""

import pytest

from starpo_train.serve.toolparse import Answer, AnswerParser, ToolCall, join_pieces


def parse(text: str, *, size: int | None = None, **options: bool) -> Answer:
    """Feed the text at once, or `size` characters at a time as a stream would."""
    parser = AnswerParser(**options)
    parts = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    pieces = [piece for part in parts for piece in parser.feed(part)]
    return join_pieces(pieces + parser.finish())


UP = ToolCall(name="move", arguments='{"to":  "up"}')
CASES = {
    "content only": ("hello", Answer(content="hello")),
    "reasoning, then content": (
        "<think>\nhm\n</think>\n\nhello",
        Answer(reasoning="hm", content="hello"),
    ),
    "arguments keep their two spaces": (
        '<tool_call>{"name": "move", "arguments": {"to":  "up"}}</tool_call>',
        Answer(tool_calls=[UP]),
    ),
    "arguments before the name": (
        '<tool_call>{"arguments": {"to":  "up"}, "name": "move"}</tool_call>',
        Answer(tool_calls=[UP]),
    ),
    "reasoning, text and two calls": (
        '<think>a</think>b\n<tool_call>\n{"name": "move", "arguments": {"to":  "up"}}\n</tool_call>\n'
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        Answer(reasoning="a", content="b", tool_calls=[UP, ToolCall(name="f", arguments="{}")]),
    ),
    "arguments given as a string": (
        '<tool_call>{"name": "move", "arguments": "{\\"to\\":  \\"up\\"}"}</tool_call>',
        Answer(tool_calls=[UP]),
    ),
    "a call without arguments": (
        '<tool_call>{"name": "f"}</tool_call>',
        Answer(tool_calls=[ToolCall(name="f", arguments="{}")]),
    ),
    "no JSON in the call": (
        "<tool_call>move up</tool_call>",
        Answer(content="<tool_call>move up</tool_call>"),
    ),
    "JSON that is no call": (
        '<tool_call>["move"]</tool_call>',
        Answer(content='<tool_call>["move"]</tool_call>'),
    ),
    "a call that never ends": (
        'so <tool_call>{"name": "move"',
        Answer(content='so <tool_call>{"name": "move"'),
    ),
    "reasoning that never ends": ("<think>hm", Answer(reasoning="hm", content="")),
    "a lone beginning of a marker": ("a < b <thin", Answer(content="a < b <thin")),
    "a name with a quote": (
        '<tool_call>{"name": "a\\"b", "arguments": {"arguments": 1}}</tool_call>',
        Answer(tool_calls=[ToolCall(name='a"b', arguments='{"arguments": 1}')]),
    ),
}


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_text_is_taken_apart(name: str, size: int | None):
    """The same text gives the same answer at once and in pieces of any size."""
    text, expected = CASES[name]
    assert expected == parse(text, size=size)


def test_a_prompt_that_opened_the_reasoning():
    """Some templates end the prompt with `<think>`; the answer then begins inside it."""
    assert Answer(reasoning="hm", content="up") == parse("hm</think>up", thinking=True)


def test_calls_are_content_when_no_tools_were_offered():
    """A client without tools gets the text as it is."""
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert Answer(content=text) == parse(text, tools=False)


def test_text_that_may_begin_a_marker_is_held_back():
    """A stream never shows half a marker."""
    parser = AnswerParser()
    shown = [piece.text for piece in parser.feed("go <too")]
    assert shown == ["go "]
    assert [piece.text for piece in parser.feed("ls>")] == ["<tools>"]


@pytest.mark.parametrize("depth", [10, 100_000])
def test_a_call_that_nests_too_deeply_is_content(depth: int):
    """One that Python's parser has no stack for cannot be read, and must not end the answer."""
    arguments = '{"x": ' + "[" * depth + "]" * depth + "}"
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    read = Answer(tool_calls=[ToolCall(name="f", arguments=arguments)])
    assert (read if depth == 10 else Answer(content=text)) == parse(text)
