"""Items of the Responses API -> messages, one kind at a time."""

import pytest

from starpo_trace.capture.patches.openai_items import join_parts, read_items
from starpo_trace.messages import chain_hashes

SEARCH = {"type": "web_search_call", "action": {"type": "search", "query": "q"}}
SHELL = {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}}
HOSTED = {**SHELL, "environment": {"type": "container_reference", "container_id": "k"}}
LISTED = {"type": "shell_call_output", "call_id": "c1", "output": [{"stdout": "x"}]}


def call(name, arguments, **meta):
    part = {"type": "tool_call", "id": "c1", "name": name, "arguments": arguments}
    return {**part, "meta": meta} if meta else part


def server_call(name, item, **meta):
    part = {"type": "server_tool_call", "name": name, "server_tool_call": item}
    return {**part, "meta": meta} if meta else part


@pytest.mark.parametrize(
    ("item", "role", "part"),
    [
        (
            {"role": "user", "content": "hi"},
            "user",
            {"type": "text", "content": "hi"},
        ),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            "user",
            {"type": "text", "content": "hi"},
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "f", "detail": "low"}]},
            "user",
            {
                "type": "input_image",
                "raw": {"type": "input_image", "file_id": "f", "detail": "low"},
            },
        ),
        (
            {
                "type": "message",
                "role": "assistant",
                "phase": "commentary",
                "content": [
                    {"type": "output_text", "text": "hi", "annotations": [{"type": "x"}]},
                ],
            },
            "assistant",
            {
                "type": "text",
                "content": "hi",
                "meta": {"annotations": [{"type": "x"}], "item": {"phase": "commentary"}},
            },
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            "assistant",
            {"type": "refusal", "raw": {"type": "refusal", "refusal": "no"}},
        ),
        (
            {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e"},
            "assistant",
            {"type": "reasoning", "content": "", "meta": {"id": "rs", "encrypted_content": "e"}},
        ),
        (
            {
                "type": "reasoning",
                "id": "rs",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            "assistant",
            {"type": "reasoning", "content": "hm", "meta": {"type": "reasoning_text", "id": "rs"}},
        ),
        (
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{ }"},
            "assistant",
            call("f", "{ }"),
        ),
        (
            {"type": "custom_tool_call", "call_id": "c1", "name": "sql", "input": "SELECT 1"},
            "assistant",
            call("sql", "SELECT 1", type="custom_tool_call"),
        ),
        (
            {"type": "local_shell_call", "call_id": "c1", "action": {"command": ["ls"]}},
            "assistant",
            call("local_shell", '{"command":["ls"]}', type="local_shell_call"),
        ),
        (
            {"type": "computer_call", "call_id": "c1", "action": {"type": "wait"}},
            "assistant",
            call("computer", '{"type":"wait"}', type="computer_call"),
        ),
        (SHELL, "assistant", call("shell", '{"commands":["ls"]}', type="shell_call")),
        (HOSTED, "assistant", server_call("shell", HOSTED)),
        (
            {"id": "ws", "status": "completed", **SEARCH},
            "assistant",
            server_call("web_search", SEARCH, id="ws", status="completed"),
        ),
        (
            {"type": "mcp_call", "id": "m", "name": "f", "arguments": "{}", "output": "1"},
            "assistant",
            server_call(
                "mcp", {"type": "mcp_call", "name": "f", "arguments": "{}", "output": "1"}, id="m"
            ),
        ),
        (
            {"type": "compaction", "id": "ci", "encrypted_content": "e"},
            "assistant",
            {"type": "compaction", "content": "e", "meta": {"id": "ci"}},
        ),
        (
            {"type": "item_reference", "id": "msg_1"},
            "assistant",
            {"type": "item_reference", "raw": {"type": "item_reference", "id": "msg_1"}},
        ),
        (
            {"type": "function_call_output", "call_id": "c1", "output": "3", "status": "completed"},
            "tool",
            {
                "type": "tool_call_response",
                "id": "c1",
                "response": "3",
                "meta": {"status": "completed"},
            },
        ),
        (
            LISTED,
            "tool",
            {
                "type": "tool_call_response",
                "id": "c1",
                "response": [{"stdout": "x"}],
                "meta": {"type": "shell_call_output"},
            },
        ),
        (
            {"type": "mcp_approval_response", "approval_request_id": "a", "approve": True},
            "user",
            {
                "type": "mcp_approval_response",
                "raw": {
                    "type": "mcp_approval_response",
                    "approval_request_id": "a",
                    "approve": True,
                },
            },
        ),
        (
            {"type": "from_the_future", "x": 1},
            "assistant",
            {"type": "from_the_future", "raw": {"type": "from_the_future", "x": 1}},
        ),
    ],
)
def test_an_item_is_one_part(item, role, part):
    """Each kind has its part and its role, and nothing of it is lost."""
    assert read_items([item]) == [{"role": role, "parts": [part]}]


def test_one_turn_is_one_message():
    """What the assistant did without an answer in between is one message; outputs are each one."""
    function_call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs", "summary": []},
        {"role": "assistant", "content": "Checking."},
        function_call,
        {**function_call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": "2"},
        {"role": "assistant", "content": "3"},
    ]
    assert [(m["role"], [p["type"] for p in m["parts"]]) for m in read_items(items)] == [
        ("user", ["text"]),
        ("assistant", ["reasoning", "text", "tool_call", "tool_call"]),
        ("tool", ["tool_call_response"]),
        ("tool", ["tool_call_response"]),
        ("assistant", ["text"]),
    ]


def test_what_the_server_ran_belongs_to_the_turn():
    """Output of a tool that the server ran stands in the assistant's message, sent or received."""
    text = {"role": "assistant", "content": "done"}
    [message] = read_items([HOSTED, LISTED, text])
    assert [part["type"] for part in message["parts"]] == [
        "server_tool_call",
        "server_tool_call_response",
        "text",
    ]
    assert join_parts(read_items([HOSTED, LISTED, text])) == message["parts"]


def test_ids_and_statuses_are_no_part_of_identity():
    """A history without ids, statuses, annotations and reasoning hashes as the one with them."""
    received = [
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"id": "ws", "status": "completed", **SEARCH},
        {
            "type": "message",
            "id": "msg",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hi", "annotations": [{"type": "x"}]}],
        },
        {
            "type": "function_call",
            "id": "fc",
            "status": "completed",
            "call_id": "c1",
            "name": "f",
            "arguments": "{}",
        },
    ]
    sent = [
        SEARCH,
        {"role": "assistant", "content": "hi"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    ]
    assert chain_hashes(read_items(received)) == chain_hashes(read_items(sent))
