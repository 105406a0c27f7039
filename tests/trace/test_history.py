"""Prompts -> only what is new, provably."""

import json

import openai
import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.history import History, count_common_prefix
from starpo_trace.messages import chain_hashes, from_openai_chat
from starpo_trace.testing import Reply, ScriptedServer, ToolCall, record_spans

SYSTEM = {"role": "system", "content": "You count."}


def client_of(server):
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def play_turns(client, messages, num_turns):
    """An agent that appends each answer and a new question."""
    for turn in range(num_turns):
        messages.append({"role": "user", "content": f"turn {turn}"})
        answer = client.chat.completions.create(model="m", messages=messages)
        messages.append(answer.choices[0].message.model_dump(exclude_none=True))


def new_messages(call):
    return [
        part["content"] for m in json.loads(call[semconv.INPUT_MESSAGES]) for part in m["parts"]
    ]


def restore_prompts(calls):
    """Every call's whole prompt, put together again from the chain hashes."""
    known = {None: []}
    prompts = []
    for call in calls:
        prompt = known[call.get(semconv.HISTORY_BASE)] + json.loads(call[semconv.INPUT_MESSAGES])
        assert len(prompt) == call[semconv.HISTORY_LENGTH]
        prompts.append(prompt)
        answer = json.loads(call[semconv.OUTPUT_MESSAGES])[:1]
        for number, chain in enumerate(chain_hashes(prompt + answer), 1):
            known[chain.hex()] = (prompt + answer)[:number]
        assert chain_hashes(prompt)[-1].hex() == call[semconv.HISTORY_HASH]
    return prompts


def test_each_message_is_written_once():
    """With delta history each call holds its new question; the answer before is not repeated."""
    with (
        ScriptedServer([Reply(content="ok", reasoning_content="easy")]) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        play_turns(client, [SYSTEM], 3)
    calls = store.select("llm")
    assert [new_messages(call) for call in calls] == [
        ["You count.", "turn 0"],
        ["turn 1"],
        ["turn 2"],
    ]
    assert [call.get(semconv.HISTORY_BASE_LENGTH) for call in calls] == [None, 3, 5]
    assert [call[semconv.HISTORY_LENGTH] for call in calls] == [2, 4, 6]


def test_an_edit_in_place_begins_a_branch():
    """A message changed in place is noticed: the base ends before it, and nothing is lost."""
    with (
        ScriptedServer([Reply(content="ok")]) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        messages = [SYSTEM]
        play_turns(client, messages, 2)
        messages[3]["content"] = "edited"
        client.chat.completions.create(model="m", messages=messages)
        sent = server.requests[-1]["messages"]
    last = store.select("llm")[-1]
    assert last[semconv.HISTORY_BASE_LENGTH] == 3
    assert new_messages(last) == ["edited", "ok"]
    prompt = restore_prompts(store.select("llm"))[-1]
    for message in prompt:
        message.pop("finish_reason", None)  # of the answer; no prompt has it
    assert prompt == [from_openai_chat(message) for message in sent]


def test_bytes_per_call_do_not_grow_with_the_history():
    """The hundredth call's span is as large as the tenth's, give or take its digits."""
    with (
        ScriptedServer([Reply(content="ok")]) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        play_turns(client, [SYSTEM], 100)
    sizes = [sum(len(str(value)) for value in call.values()) for call in store.select("llm")]
    assert abs(sizes[99] - sizes[9]) < 16
    assert len(restore_prompts(store.select("llm"))[-1]) == 200


def test_a_history_of_200_messages_loses_nothing():
    """Long chats with many tools stay whole on one span, although OpenTelemetry keeps 128 keys."""
    messages = [{"role": "user", "content": f"message {n}"} for n in range(200)]
    tools = [{"type": "function", "function": {"name": f"tool_{n}"}} for n in range(150)]
    with (
        ScriptedServer([Reply(content="ok")]) as server,
        client_of(server) as client,
        record_spans(history="full") as store,
    ):
        client.chat.completions.create(model="m", messages=messages, tools=tools)
    [span] = store.spans
    assert span.dropped_attributes == 0
    assert new_messages(span.attributes) == [f"message {n}" for n in range(200)]
    assert json.loads(span.attributes[semconv.TOOL_DEFINITIONS]) == tools


def test_an_observation_extends_the_history():
    """observe() writes only what came after the last call, and later calls build on it."""
    call = ToolCall(id="c", name="t", arguments="{}")
    with (
        ScriptedServer([Reply(tool_calls=[call])]) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        messages = [SYSTEM]
        answer = client.chat.completions.create(model="m", messages=messages)
        messages += [
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": "c", "content": "goal reached"},
        ]
        starpo_trace.observe(messages)
    [observation] = store.select("observation")
    assert observation[semconv.HISTORY_BASE_LENGTH] == 2
    assert observation[semconv.STEP] == 1
    [message] = json.loads(observation[semconv.INPUT_MESSAGES])
    assert message["parts"][0]["response"] == "goal reached"


def test_token_ids_continue_those_of_the_call_before():
    """A prompt that begins with the last prompt and answer holds only its own ids."""
    replies = [
        Reply(content="a", prompt_token_ids=[1, 2], token_ids=[3, 4], logprobs=[-1, -1]),
        Reply(content="b", prompt_token_ids=[1, 2, 3, 4, 5], token_ids=[6], logprobs=[-1]),
        Reply(content="c", prompt_token_ids=[1, 2, 3, 9, 9], token_ids=[6], logprobs=[-1]),
        Reply(content="d", prompt_token_ids=[7], token_ids=[6], logprobs=[-1]),
    ]
    with (
        ScriptedServer(replies) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        play_turns(client, [SYSTEM], 4)
    keys = (
        semconv.PROMPT_TOKEN_IDS,
        semconv.PROMPT_TOKEN_IDS_BASE_STEP,
        semconv.PROMPT_TOKEN_IDS_BASE_LENGTH,
    )
    assert [tuple(map(call.get, keys)) for call in store.select("llm")] == [
        ("[1,2]", None, None),
        ("[5]", 0, 4),
        ("[9,9]", 1, 3),
        ("[7]", None, None),
    ]


def test_runs_do_not_share_their_histories():
    """A second trajectory writes its own first messages, whatever the first one wrote."""
    with (
        ScriptedServer([Reply(content="ok")]) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
    ):
        for _ in range(2):
            with starpo_trace.trajectory():
                play_turns(client, [SYSTEM], 1)
    assert [new_messages(call) for call in store.select("llm")] == [["You count.", "turn 0"]] * 2


def test_a_failed_call_teaches_its_prompt_once_it_is_recorded():
    """After an error the retry refers to the prompt on the failed call's span."""
    history = History()
    messages = [from_openai_chat(SYSTEM)]
    first = history.describe_prompt(messages, "delta")
    concurrent = history.describe_prompt(messages, "delta")
    assert semconv.HISTORY_BASE not in concurrent.attributes  # the first has not ended yet
    history.learn_prompt(first)
    retry = history.describe_prompt(messages, "delta")
    assert retry.attributes[semconv.INPUT_MESSAGES] == "[]"
    assert retry.attributes[semconv.HISTORY_BASE] == first.chains[-1].hex()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], 0),
        ([1], [2], 0),
        ([1], [1], 1),
        ([1, 2, 3], [1, 2, 9, 9], 2),
        (list(range(1000)), [*range(777), -1], 777),
        (list(range(10)), list(range(20)), 10),
    ],
)
def test_common_prefix(first, second, expected):
    """Halving finds the same length as counting one by one."""
    assert count_common_prefix(first, second) == expected
