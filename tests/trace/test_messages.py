"""OpenAI chat messages -> GenAI messages and back, and the history hash chain."""

import pytest

from starpo_trace.messages import (
    chain_hashes,
    dump_json,
    from_openai_chat,
    message_hash,
)

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "stock", "arguments": '{"sku": "A7",  "n":1e0}'},
}


_STRUCTURAL_PARTS = frozenset({"reasoning", "tool_call", "tool_call_response"})


def _is_field(part):
    """Whether an OpenAI message has it in a field of its own, beside its content."""
    return part["type"] in _STRUCTURAL_PARTS or (
        part["type"] in {"audio", "refusal"} and "meta" in part
    )


def write_openai_chat(message):
    """GenAI message -> OpenAI chat message: what `from_openai_chat` read."""
    result = {"role": message["role"]}
    texts = [part for part in message["parts"] if not _is_field(part)]
    if len(texts) == 1 and texts[0]["type"] == "text" and "part" not in texts[0].get("meta", ()):
        result["content"] = texts[0]["content"]
    elif texts:
        result["content"] = [_openai_content_part(part) for part in texts]
    for part in message["parts"]:
        if _is_field(part):
            _add_openai_field(result, part)
    if "name" in message:
        result["name"] = message["name"]
    result.update(message.get("extra", {}))
    return result


def _add_openai_field(result, part):
    kind = part["type"]
    if kind == "reasoning":
        result["reasoning_content"] = part["content"]
    elif kind == "refusal":
        result["refusal"] = part["raw"]["refusal"]
    elif kind == "audio":
        result["audio"] = {**part["raw"], **part["meta"]}
    elif kind == "tool_call_response":
        is_part = "part" in part.get("meta", ())
        response = {"type": "text", "content": part["response"], "meta": part.get("meta")}
        result["content"] = [_openai_content_part(response)] if is_part else part["response"]
        if result["role"] == "tool":
            result["tool_call_id"] = part["id"]
    elif part.get("extra") == {"type": "function_call"}:
        result["function_call"] = {"name": part["name"], "arguments": part["arguments"]}
    else:
        result.setdefault("content", None)
        result.setdefault("tool_calls", []).append(_openai_tool_call(part))


def _openai_content_part(part):
    if part["type"] == "text":
        rest = (part.get("meta") or {}).get("part", {})
        return {"type": "text", "text": part["content"], **rest}
    return part["raw"]


def _openai_tool_call(part):
    if part.get("extra") == {"type": "custom"}:
        custom = {"name": part["name"], "input": part["arguments"]}
        return {"id": part["id"], "type": "custom", "custom": custom}
    call = {
        "id": part["id"],
        "type": "function",
        "function": {"name": part["name"], "arguments": part["arguments"]},
    }
    call.update(part.get("extra", {}))
    return call


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "You sell shoes."},
        {"role": "user", "content": ""},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "Checking.", "tool_calls": [CALL, CALL]},
        {"role": "assistant", "content": "ok", "reasoning_content": "easy"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3 left"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "audio": {"id": "a1", "transcript": "hi"}},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "3 left"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "x"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3 left"},
        {"role": "developer", "content": "terse"},
    ],
)
def test_openai_messages_survive_the_round_trip(message):
    """Nothing that was said is lost, argument strings least of all."""
    back = write_openai_chat(from_openai_chat(message))
    expected = dict(message)
    if back.get("content") is None:
        expected.pop("content", None)
        back.pop("content", None)
    assert back == expected


def test_argument_strings_stay_verbatim():
    """Spacing and number forms of the argument string are the policy's action."""
    part = from_openai_chat({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert part["parts"] == [
        {
            "type": "tool_call",
            "id": "c1",
            "name": "stock",
            "arguments": '{"sku": "A7",  "n":1e0}',
        }
    ]


def test_reasoning_is_kept_but_is_no_part_of_identity():
    """A history that repeats an answer without its reasoning still extends it."""
    said = from_openai_chat({"role": "assistant", "content": "ok", "reasoning_content": "hm"})
    echoed = from_openai_chat({"role": "assistant", "content": "ok"})
    assert said != echoed
    assert message_hash(said) == message_hash(echoed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"role": "user", "content": "hi"},
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}]},
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3"}]},
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "assistant", "tool_calls": [CALL]},
        ),
    ],
)
def test_the_same_said_otherwise_is_the_same(one, other):
    """Wrapped texts, marks for caching and empty texts beside calls do not change a history."""
    assert message_hash(from_openai_chat(one)) == message_hash(from_openai_chat(other))


def test_chain_tells_extension_from_edit():
    """The chain of a longer history begins with the shorter one's; an edit changes all after it."""
    one = from_openai_chat({"role": "user", "content": "a"})
    two = from_openai_chat({"role": "assistant", "content": "b"})
    edited = from_openai_chat({"role": "user", "content": "A"})
    short = chain_hashes([one])
    long = chain_hashes([one, two])
    assert long[:1] == short
    assert chain_hashes([two], base=short[-1]) == long[1:]
    assert chain_hashes([edited, two])[1] != long[1]


def test_json_of_what_json_cannot_hold():
    """Odd values never raise in the agent's thread."""
    assert dump_json({1: {2}}) == '{"1":"{2}"}'
    assert dump_json(2**70) == str(2**70)
    assert dump_json("\ud800") == '"\\ud800"'


def test_json_of_what_json_encoders_refuse():
    """Cycles, depth and endless integers leave a note in their place, and JSON stays valid."""
    cycle = {"a": 1}
    cycle["self"] = [cycle]
    assert dump_json(cycle) == '{"a":1,"self":["<cycle>"]}'
    assert dump_json({"n": float("nan"), "i": 2**70, (1, 2): None}) == (
        f'{{"n":null,"i":{2**70},"(1, 2)":null}}'
    )
    assert dump_json({None: 10**5000, 1: "\ud800"}) == (
        '{"null":"<integer of 16610 bits>","1":"\\ud800"}'
    )
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert dump_json(deep) == "[" * 100 + '"<nested too deeply>"' + "]" * 100
