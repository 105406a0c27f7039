"""Messages as every dialect keeps them -> the one form that trainers read, or a named refusal."""

import pytest

from starpo_trace.convert.writers.chatmessages import UnwritableError, write_chat, write_tools

USER = {"role": "user", "parts": [{"type": "text", "content": "hi"}]}
ANSWER = {"role": "assistant", "parts": [{"type": "text", "content": "yo"}]}
SCHEMA = {"type": "object", "properties": {"n": {"type": "string"}}}


def call(call_id, arguments):
    return {"type": "tool_call", "id": call_id, "name": "stock", "arguments": arguments}


def result(call_id, response):
    return {"type": "tool_call_response", "id": call_id, "response": response}


def message(role, *parts):
    return {"role": role, "parts": list(parts)}


def test_one_message_for_each_result():
    """Parallel calls whose results are one message, a user's or a tool's, as Bedrock has them."""
    for role in ("tool", "user"):
        asked = message("assistant", call("c1", '{"a":  1}'), call("c2", {"b": 2}))
        told = message(role, result("c1", {"x": 1}), result("c2", [{"type": "text", "text": "B"}]))
        chat = write_chat([USER, asked, told, ANSWER])
        assert [each["function"]["arguments"] for each in chat[1]["tool_calls"]] == [
            '{"a":  1}',
            '{"b":2}',
        ]
        assert chat[2:4] == [
            {"role": "tool", "tool_call_id": "c1", "content": '{"x":1}'},
            {"role": "tool", "tool_call_id": "c2", "content": "B"},
        ]
        assert [each["role"] for each in chat] == ["user", "assistant", "tool", "tool", "assistant"]


def test_a_result_keeps_the_name_of_its_tool():
    """Some agents send it, and chat templates may show it."""
    told = {**message("tool", result("c1", "A")), "name": "stock"}
    chat = write_chat([USER, message("assistant", call("c1", "{}")), told, ANSWER])
    assert chat[2] == {"role": "tool", "tool_call_id": "c1", "content": "A", "name": "stock"}


def test_calls_without_ids_get_some():
    """Google's calls and results are matched by their order; no two ids are equal."""
    asked = message("assistant", call(None, {}), call(None, None))
    told = message("tool", result(None, "A"), result(None, "B"))
    chat = write_chat([USER, asked, told, asked, told, ANSWER])
    ids = [each["id"] for at in (1, 4) for each in chat[at]["tool_calls"]]
    assert len(set(ids)) == 4
    assert [each["tool_call_id"] for each in chat if each["role"] == "tool"] == ids
    assert chat[1]["tool_calls"][1]["function"]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("part", "url"),
    [
        ({"type": "uri", "modality": "image", "uri": "https://a/b.png"}, "https://a/b.png"),
        (
            {"type": "blob", "modality": "image", "mime_type": "image/gif", "content": "AAAA"},
            "data:image/gif;base64,AAAA",
        ),
        ({"type": "image", "raw": {"type": "image", "image": {"image": {"url": "u"}}}}, "u"),
        ({"type": "image", "raw": {"type": "image", "image": "u"}}, "u"),
        ({"type": "input_image", "raw": {"type": "input_image", "image_url": "u"}}, "u"),
        (
            {
                "type": "image",
                "raw": {"source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
            },
            "data:image/png;base64,AA",
        ),
    ],
)
def test_images_are_urls(part, url):
    """However the conventions, OpenInference, traceAI, OpenAI and Anthropic write an image."""
    chat = write_chat([message("user", USER["parts"][0], part), ANSWER])
    assert chat[0]["content"] == [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


def test_openai_parts_stay_as_they_are():
    """An image's detail, and a refusal, are what was said."""
    image = {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}
    refusal = {"type": "refusal", "raw": {"type": "refusal", "refusal": "No."}}
    chat = write_chat(
        [message("user", {"type": "image_url", "raw": image}), message("assistant", refusal)]
    )
    assert chat[0]["content"] == [image]
    assert chat[1] == {"role": "assistant", "content": None, "refusal": "No."}


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ([USER, message("assistant", call("c", "{}")), USER, ANSWER], "unanswered_call"),
        ([USER, message("tool", result("c", "x")), ANSWER], "unmatched_result"),
        ([USER, message("tool"), ANSWER], "unmatched_result"),
        ([USER, message("assistant")], "no_answer"),
        ([USER, message("assistant", {"type": "text", "content": ""})], "no_answer"),
        ([message("critic"), ANSWER], "unknown_role"),
        ([message("user", {"type": "blob", "modality": "video"}), ANSWER], "unwritable_part"),
        ([message("user", {"type": "image", "raw": {}}), ANSWER], "unwritable_part"),
        ([message("user", call("c", "{}")), ANSWER], "unwritable_part"),
        ([message("user", {"type": "unknown", "raw": 3}), ANSWER], "unwritable_part"),
    ],
)
def test_what_the_form_cannot_hold_is_named(conversation, reason):
    """Never a line with a hole."""
    with pytest.raises(UnwritableError, match=reason):
        write_chat(conversation)


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "function", "function": {"name": "stock", "parameters": SCHEMA}},
        {"type": "function", "name": "stock", "parameters": SCHEMA},
        {"name": "stock", "input_schema": SCHEMA},
        {"toolSpec": {"name": "stock", "inputSchema": {"json": SCHEMA}}},
        {
            "function_declarations": [
                {
                    "name": "stock",
                    "parameters": {"type": "OBJECT", "properties": {"n": {"type": "STRING"}}},
                }
            ]
        },
    ],
)
def test_tools_have_one_form(definition):
    """OpenAI's two, Anthropic's, Bedrock's and Google's definitions of one function."""
    expected = {"type": "function", "function": {"name": "stock", "parameters": SCHEMA}}
    assert write_tools([definition]) == [expected]


@pytest.mark.parametrize("definition", [{"type": "web_search"}, "stock", {"parameters": {}}])
def test_what_is_no_function_is_named(definition):
    """A search that the provider runs cannot be a trainer's tool."""
    with pytest.raises(UnwritableError, match="unwritable_tool"):
        write_tools([definition])
