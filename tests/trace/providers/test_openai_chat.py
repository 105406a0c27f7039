"""OpenAI chat completions: rarer answers, and other servers' token ids -> spans."""

import json

import openai
import pydantic
import pytest
from servers_openai import (
    answer_chunks,
    answer_json,
    ask_chat,
    chat_answer,
    chat_chunks,
    client_of,
)
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.testing import record_spans

USER = {"role": "user", "content": "hi"}


def record_calls(answer, ask):
    """Attributes of the calls that `ask(client)` makes to a server with this answer."""
    with AnswerServer(answer) as server, client_of(server) as client, record_spans() as store:
        ask(client)
    return [dict(span.attributes) for span in store.spans]


def read_chat(client):
    for _ in ask_chat(client, stream=True):
        pass


def output_parts(call):
    return [message["parts"] for message in json.loads(call[semconv.OUTPUT_MESSAGES])]


def test_every_choice_is_a_message():
    """`n=2` gives two output messages and two finish reasons."""
    [call] = record_calls(
        answer_json(chat_answer({"content": "a"}, {"content": "b"})),
        lambda client: ask_chat(client, n=2),
    )
    assert call[semconv.REQUEST_CHOICE_COUNT] == 2
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("stop", "stop")
    assert output_parts(call) == [
        [{"type": "text", "content": "a"}],
        [{"type": "text", "content": "b"}],
    ]


REFUSAL = {
    "type": "refusal",
    "raw": {"type": "refusal", "refusal": "I will not."},
    "meta": {"field": "refusal"},
}
AUDIO = {
    "type": "audio",
    "raw": {"id": "audio_1"},
    "meta": {"data": "AAECAwQF", "transcript": "hi there", "expires_at": 9},
}
CUSTOM = {
    "type": "tool_call",
    "id": "c1",
    "name": "sql",
    "arguments": "SELECT 1",
    "extra": {"type": "custom"},
}
FUNCTION = {
    "type": "tool_call",
    "id": None,
    "name": "stock",
    "arguments": '{"n": 1}',
    "extra": {"type": "function_call"},
}
CHOSEN = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
RARE = [
    ({"content": None, "refusal": "I will not."}, REFUSAL),
    (
        {
            "content": None,
            "audio": {
                "id": "audio_1",
                "data": "AAECAwQF",
                "transcript": "hi there",
                "expires_at": 9,
            },
        },
        AUDIO,
    ),
    ({"content": None, "tool_calls": [CHOSEN]}, CUSTOM),
    ({"content": None, "function_call": {"name": "stock", "arguments": '{"n": 1}'}}, FUNCTION),
]


@pytest.mark.parametrize(("message", "part"), RARE)
def test_rare_answers_are_parts(message, part):
    """Refusals, audio, custom tools and deprecated function calls."""
    [call] = record_calls(answer_json(chat_answer(message)), ask_chat)
    assert output_parts(call) == [[part]]


@pytest.mark.parametrize(
    ("deltas", "part"),
    [
        ([{"refusal": "I will"}, {"refusal": " not."}], REFUSAL),
        (
            [
                {"audio": {"id": "audio_1", "transcript": "hi "}},
                {"audio": {"data": "AAEC", "transcript": "there"}},
                {"audio": {"data": "AwQF"}},
                {"audio": {"expires_at": 9}},
            ],
            AUDIO,
        ),
        (
            [
                {
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "c1",
                            "type": "custom",
                            "custom": {"name": "sql", "input": ""},
                        }
                    ]
                },
                {"tool_calls": [{"index": 0, "custom": {"input": "SELECT"}}]},
                {"tool_calls": [{"index": 0, "custom": {"input": " 1"}}]},
            ],
            CUSTOM,
        ),
        (
            [
                {"function_call": {"name": "stock", "arguments": ""}},
                {"function_call": {"arguments": '{"n":'}},
                {"function_call": {"arguments": " 1}"}},
            ],
            FUNCTION,
        ),
    ],
)
def test_rare_answers_come_together(deltas, part):
    """The same, streamed in pieces."""
    [call] = record_calls(answer_chunks(*chat_chunks(*deltas)), read_chat)
    [parts] = output_parts(call)
    assert [
        {**p, "meta": dict(sorted(p["meta"].items()))} if "meta" in p else p for p in parts
    ] == [{**part, "meta": dict(sorted(part["meta"].items()))} if "meta" in part else part]
    assert semconv.USAGE_INPUT_TOKENS not in call


def piece(call_id, name, arguments):
    return {
        "tool_calls": [
            {
                "index": 0,
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        ]
    }


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        (  # each call whole, every one numbered 0
            [piece("a", "f", '{"x":1}'), piece("b", "g", '{"y":2}'), piece("c", "f", "{}")],
            [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}'), ("c", "f", "{}")],
        ),
        (  # in pieces that belong to the last one
            [
                piece("a", "f", '{"x"'),
                piece(None, None, ":1}"),
                piece("b", "g", "{"),
                piece(None, None, "}"),
            ],
            [("a", "f", '{"x":1}'), ("b", "g", "{}")],
        ),
        (  # a new id with every piece of one call
            [piece("a", "f", '{"x"'), piece("b", None, ":1"), piece("c", None, "}")],
            [("a", "f", '{"x":1}')],
        ),
        (  # all of it said again with every piece
            [piece("a", "f", '{"x"'), piece("a", "f", ":1}")],
            [("a", "f", '{"x":1}')],
        ),
    ],
    ids=["whole", "pieces", "new ids", "repeated"],
)
def test_parallel_calls_that_share_an_index_stay_apart(deltas, expected):
    """Some servers number every call 0: another id with a name begins another call."""
    [call] = record_calls(answer_chunks(*chat_chunks(*deltas)), read_chat)
    [parts] = output_parts(call)
    assert [(p["id"], p["name"], p["arguments"]) for p in parts] == expected


def test_a_delta_without_text_loses_nothing():
    """Some servers send `content: null` between pieces."""
    deltas = [{"role": "assistant", "content": "Hel"}, {"content": None}, {"content": "lo"}]
    [call] = record_calls(answer_chunks(*chat_chunks(*deltas)), read_chat)
    assert output_parts(call) == [[{"type": "text", "content": "Hello"}]]
    assert call[semconv.STREAM_OUTCOME] == "exhausted"


def test_an_empty_first_chunk_names_nothing():
    """Azure's has an empty id and model, and says only how the prompt was filtered."""
    first = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}
    chunks = list(chat_chunks({"role": "assistant", "content": "Hi"}))
    [call] = record_calls(answer_chunks(first, *chunks), read_chat)
    assert call[semconv.RESPONSE_ID] == chunks[0]["id"]
    assert call[semconv.RESPONSE_MODEL] == chunks[0]["model"]


class Count(pydantic.BaseModel):
    n: int


@pytest.mark.parametrize(
    ("content", "finish", "error"),
    [
        ("no json", "stop", pydantic.ValidationError),
        ('{"n": 1', "length", openai.LengthFinishReasonError),
    ],
)
def test_an_answer_that_cannot_be_parsed_is_recorded(content, finish, error):
    """What the model said is its action; the program's exception is the SDK's own."""
    answer = chat_answer({"content": content})
    answer["choices"][0]["finish_reason"] = finish

    def ask(client):
        with pytest.raises(error):
            client.chat.completions.parse(model="m", messages=[USER], response_format=Count)

    [call] = record_calls(answer_json(answer), ask)
    assert output_parts(call) == [[{"type": "text", "content": content}]]
    assert call[semconv.RESPONSE_FINISH_REASONS] == (finish,)
    assert call[semconv.ERROR_TYPE].endswith(error.__name__)


def test_a_field_said_with_every_delta_is_said_once():
    """Some servers repeat a field in each delta, where others send pieces of a text."""
    deltas = [
        {"reasoning": "hm", "channel": "analysis"},
        {"reasoning": "hm", "channel": "analysis"},
    ]
    [call] = record_calls(answer_chunks(*chat_chunks(*deltas)), read_chat)
    [message] = json.loads(call[semconv.OUTPUT_MESSAGES])
    assert message["parts"] == [{"type": "reasoning", "content": "hmhm"}]
    assert message["extra"] == {"channel": "analysis"}


@pytest.mark.parametrize("message", [message for message, _ in RARE])
def test_rare_answers_sent_back_are_known(message):
    """A refusal, audio (by its id alone), a custom or a deprecated call in the next prompt."""
    echoed = {"role": "assistant", **message}
    if "audio" in echoed:
        echoed["audio"] = {"id": "audio_1"}
    with (
        AnswerServer(answer_json(chat_answer(message))) as server,
        client_of(server) as client,
        record_spans(history="delta") as store,
        starpo_trace.trajectory(),
    ):
        ask_chat(client)
        client.chat.completions.create(model="m", messages=[USER, echoed, USER])
    assert [call.get(semconv.HISTORY_BASE_LENGTH) for call in store.select("llm")] == [None, 2]


def test_stored_completions_are_no_calls():
    """Reading, listing and changing what the server stores asks no model."""

    def ask(client):
        client.chat.completions.retrieve("chatcmpl-1")
        client.chat.completions.list()
        client.chat.completions.update("chatcmpl-1", metadata={"a": "b"})
        client.responses.input_items.list("resp_1")
        client.responses.input_tokens.count(model="m", input="x")

    assert record_calls(answer_json({**chat_answer({"content": "x"}), "data": []}), ask) == []


def vllm_choice(**fields):
    entries = [{"token": t, "logprob": p, "bytes": None, "top_logprobs": []} for t, p in TOKENS]
    return {"logprobs": {"content": entries, "refusal": None}, **fields}


TOKENS = (("token_id:7", -0.5), ("token_id:8", -1.5))


def test_token_ids_in_place_of_texts_are_ids():
    """vLLM's `return_tokens_as_token_ids` writes the ids where the texts would be."""
    [call] = record_calls(
        answer_json({**chat_answer({"content": "x"}, **vllm_choice()), "prompt_token_ids": [1]}),
        lambda client: ask_chat(client, extra_body={"return_tokens_as_token_ids": True}),
    )
    assert call[semconv.PROMPT_TOKEN_IDS] == "[1]"
    assert call[semconv.RESPONSE_TOKEN_IDS] == "[7,8]"
    assert call[semconv.RESPONSE_LOGPROBS] == "[-0.5,-1.5]"
    assert semconv.RESPONSE_TOKENS not in call


def test_token_ids_of_sglang_are_read():
    """SGLang's `return_meta_info` and `return_prompt_token_ids`: both are in the choice."""
    triples = [[-0.5, 7, "3"], [-1.5, 8, " left"]]
    choice = {"prompt_token_ids": [1, 2], "meta_info": {"output_token_logprobs": triples}}
    [call] = record_calls(answer_json(chat_answer({"content": "3 left"}, **choice)), ask_chat)
    assert call[semconv.PROMPT_TOKEN_IDS] == "[1,2]"
    assert call[semconv.RESPONSE_TOKEN_IDS] == "[7,8]"
    assert call[semconv.RESPONSE_LOGPROBS] == "[-0.5,-1.5]"


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("x.openai.azure.com", "azure.ai.openai"),
        ("api.deepseek.com", "deepseek"),
        ("api.groq.com", "groq"),
        ("notapi.groq.com.example", "openai"),
    ],
)
def test_the_provider_is_told_by_its_host(host, provider):
    """One SDK speaks to many providers; the span names the one that was asked."""
    with (
        AnswerServer(answer_json(chat_answer({"content": "x"}))) as server,
        openai.DefaultHttpxClient(proxy=server.url) as proxied,
        openai.OpenAI(base_url=f"http://{host}/v1", api_key="none", http_client=proxied) as client,
        record_spans() as store,
    ):
        ask_chat(client)
    assert [call[semconv.PROVIDER_NAME] for call in store.select("llm")] == [provider]
