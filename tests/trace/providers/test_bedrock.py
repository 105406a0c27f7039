"""AWS SDK -> spans of Bedrock's models, against a real HTTP server; its log is the ground truth."""

import gc
import io
import json
from contextlib import closing

import boto3
import botocore.client
import pytest
from botocore.config import Config
from botocore.eventstream import EventStream
from botocore.exceptions import ClientError, EventStreamError
from botocore.response import StreamingBody
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from servers_bedrock import (
    REQUEST_ID,
    answer_events,
    answer_json,
    encode_chunks,
    encode_error,
    encode_events,
)
from servers_scripted import AnswerServer
from urllib3.exceptions import ProtocolError

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json
from starpo_trace.testing import record_spans

MODEL = "anthropic.claude"
SYSTEM = [{"text": "be short"}, {"cachePoint": {"type": "default"}}]
USER = {
    "role": "user",
    "content": [
        {"text": "how many?"},
        {"image": {"format": "png", "source": {"bytes": b"hi"}}},
    ],
}
PROMPT = [
    {
        "role": "system",
        "parts": [
            {"type": "text", "content": "be short", "meta": {"cachePoint": {"type": "default"}}}
        ],
    },
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "how many?"},
            {"type": "image", "raw": {"format": "png", "source": {"bytes": "aGk="}}},
        ],
    },
]
TOOLS = [{"toolSpec": {"name": "stock", "inputSchema": {"json": {"type": "object"}}}}]
ARGUMENTS = {
    "modelId": MODEL,
    "system": SYSTEM,
    "messages": [USER],
    "inferenceConfig": {
        "temperature": 0.5,
        "topP": 1.0,
        "maxTokens": 64,
        "stopSequences": ["END"],
    },
    "toolConfig": {"tools": TOOLS, "toolChoice": {"auto": {}}},
    "additionalModelRequestFields": {"top_k": 20},
}
USAGE = {
    "inputTokens": 3,
    "outputTokens": 2,
    "totalTokens": 16,
    "cacheReadInputTokens": 10,
    "cacheWriteInputTokens": 1,
}
TRACE = {"guardrail": {"modelOutput": ["ok"]}}
ANSWER = {
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "look", "signature": "s=="}}},
                {"reasoningContent": {"redactedContent": "aGk="}},
                {"text": "Checking."},
                {"toolUse": {"toolUseId": "t1", "name": "stock", "input": {"sku": "A7", "n": 1}}},
                {"toolUse": {"toolUseId": "t2", "name": "stock", "input": {}}},
            ],
        }
    },
    "stopReason": "tool_use",
    "usage": USAGE,
    "metrics": {"latencyMs": 7},
    "trace": TRACE,
}
EVENTS = encode_events(
    {"messageStart": {"role": "assistant", "p": "ab"}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "lo"}}}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "ok"}}}},
    {
        "contentBlockDelta": {
            "contentBlockIndex": 0,
            "delta": {"reasoningContent": {"signature": "s=="}},
        }
    },
    {"contentBlockStop": {"contentBlockIndex": 0}},
    {
        "contentBlockDelta": {
            "contentBlockIndex": 1,
            "delta": {"reasoningContent": {"redactedContent": "aGk="}},
        }
    },
    {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"text": "Check"}, "p": "a"}},
    {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"text": "ing."}}},
    {
        "contentBlockStart": {
            "contentBlockIndex": 3,
            "start": {"toolUse": {"toolUseId": "t1", "name": "stock"}},
        }
    },
    {
        "contentBlockStart": {
            "contentBlockIndex": 4,
            "start": {"toolUse": {"toolUseId": "t2", "name": "stock"}},
        }
    },
    {
        "contentBlockDelta": {
            "contentBlockIndex": 3,
            "delta": {"toolUse": {"input": '{"sku": "A7",'}},
        }
    },
    {"contentBlockDelta": {"contentBlockIndex": 4, "delta": {"toolUse": {"input": ""}}}},
    {"contentBlockDelta": {"contentBlockIndex": 3, "delta": {"toolUse": {"input": ' "n":1}'}}}},
    {"contentBlockStop": {"contentBlockIndex": 3}},
    {"messageStop": {"stopReason": "tool_use", "p": "abc"}},
    {"metadata": {"usage": USAGE, "metrics": {"latencyMs": 7}, "trace": TRACE, "p": "a"}},
)
TEXT_EVENTS = encode_events(
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "on"}}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "ce"}}},
    {"messageStop": {"stopReason": "end_turn"}},
)


def output_message(*, raw: str | None = None) -> dict:
    """The recorded answer; `raw` is the argument text as streamed."""
    first = {"type": "tool_call", "id": "t1", "name": "stock", "arguments": '{"sku":"A7","n":1}'}
    return {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "look", "meta": {"signature": "s=="}},
            {"type": "reasoning", "content": "", "meta": {"encrypted": "aGk="}},
            {"type": "text", "content": "Checking."},
            {**first, "meta": {"raw": raw}} if raw else first,
            {"type": "tool_call", "id": "t2", "name": "stock", "arguments": "{}"},
        ],
        "finish_reason": "tool_use",
        "extra": {"metrics": {"latencyMs": 7}, "trace": TRACE},
    }


def expected_span(server) -> dict:
    """The whole span of the call with `ARGUMENTS`, outside of a trajectory."""
    return {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "aws.bedrock",
        semconv.REQUEST_MODEL: MODEL,
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_TOP_P: 1.0,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_STOP_SEQUENCES: ("END",),
        semconv.REQUEST_PARAMETERS: dump_json(
            {
                "additionalModelRequestFields": {"top_k": 20},
                "toolConfig": {"toolChoice": {"auto": {}}},
            }
        ),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 2,
        semconv.HISTORY_HASH: chain_hashes(PROMPT)[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json(PROMPT),
        semconv.TOOL_DEFINITIONS: dump_json(TOOLS),
        semconv.RESPONSE_ID: REQUEST_ID,
        semconv.RESPONSE_FINISH_REASONS: ("tool_use",),
        semconv.USAGE_INPUT_TOKENS: 14,
        semconv.USAGE_OUTPUT_TOKENS: 2,
        semconv.USAGE_CACHE_READ_TOKENS: 10,
        semconv.USAGE_CACHE_WRITE_TOKENS: 1,
        semconv.OUTPUT_MESSAGES: dump_json([output_message()]),
    }


def attributes_of(store) -> list[dict]:
    """Attributes of each span, without the one that is a time."""
    spans = [dict(span.attributes) for span in store.spans]
    for span in spans:
        span.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK, None)
    return spans


def output_of(call) -> list[dict]:
    return json.loads(call[semconv.OUTPUT_MESSAGES])


@pytest.fixture
def client_of():
    clients = []

    def make(server, service="bedrock-runtime", **config):
        client = boto3.client(
            service,
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",
            config=Config(retries={"total_max_attempts": 1}, **config),
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_a_converse_call_is_one_whole_span(client_of):
    """Request, reasoning with signatures, tool calls, usage and trace are on one span."""
    with AnswerServer(answer_json(ANSWER)) as server, record_spans() as store:
        answer = client_of(server).converse(**ARGUMENTS)
    content = answer["output"]["message"]["content"]
    assert content[1] == {"reasoningContent": {"redactedContent": b"hi"}}
    assert attributes_of(store) == [expected_span(server)]
    assert [request.path for request in server.requests] == [f"/model/{MODEL}/converse"]


def test_a_converse_stream_is_the_same_span(client_of):
    """Events with parallel tool calls add up to the same answer, and the stream is botocore's."""
    with AnswerServer(answer_events(EVENTS)) as server, record_spans() as store:
        stream = client_of(server).converse_stream(**ARGUMENTS)["stream"]
        assert type(stream) is EventStream
        events = list(stream)
    assert len(events) == len(EVENTS)
    assert events[0] == {"messageStart": {"role": "assistant"}}
    assert attributes_of(store) == [
        {
            **expected_span(server),
            semconv.REQUEST_STREAM: True,
            semconv.STREAM_OUTCOME: "exhausted",
            semconv.OUTPUT_MESSAGES: dump_json(
                [
                    {
                        **output_message(raw='{"sku": "A7", "n":1}'),
                    }
                ]
            ),
        }
    ]


def test_a_stream_gives_its_initial_response(client_of):
    """`get_initial_response` works as it does without Starpo, and is no event of the answer."""
    initial = encode_events({"initial-response": {}})
    with (
        AnswerServer(answer_events([*initial, *TEXT_EVENTS])) as server,
        record_spans() as store,
    ):
        stream = client_of(server).converse_stream(modelId=MODEL, messages=[USER])["stream"]
        first = stream.get_initial_response()
        assert first.headers[":event-type"] == "initial-response"
        assert len(list(stream)) == len(TEXT_EVENTS)
    [call] = attributes_of(store)
    assert output_of(call)[0]["parts"] == [{"type": "text", "content": "once"}]


def test_tool_results_and_other_blocks_keep_their_places(client_of):
    """Each tool result is a message; cache points are notes; unknown kinds are verbatim."""
    messages = [
        {
            "role": "user",
            "content": [
                {
                    "toolResult": {
                        "toolUseId": "t1",
                        "content": [{"json": {"n": 4}}],
                        "status": "error",
                    }
                },
                {"toolResult": {"toolUseId": "t2", "content": [{"text": "5"}]}},
                {"cachePoint": {"type": "default"}},
                {"guardContent": {"text": {"text": "go"}}},
            ],
        }
    ]
    with AnswerServer(answer_json(ANSWER)) as server, record_spans() as store:
        client_of(server).converse(modelId=MODEL, messages=messages)
    [call] = attributes_of(store)
    assert json.loads(call[semconv.INPUT_MESSAGES]) == [
        {
            "role": "tool",
            "parts": [
                {
                    "type": "tool_call_response",
                    "id": "t1",
                    "response": [{"json": {"n": 4}}],
                    "is_error": True,
                    "meta": {"status": "error"},
                }
            ],
        },
        {
            "role": "tool",
            "parts": [
                {
                    "type": "tool_call_response",
                    "id": "t2",
                    "response": [{"text": "5"}],
                    "meta": {"cachePoint": {"type": "default"}},
                }
            ],
        },
        {"role": "user", "parts": [{"type": "guardContent", "raw": {"text": {"text": "go"}}}]},
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_sent_back_is_not_recorded_again(client_of, is_stream):
    """The second call's prompt extends the first one's, though its cache point moved."""
    first = answer_events(EVENTS) if is_stream else answer_json(ANSWER)
    result = {"toolResult": {"toolUseId": "t1", "content": [{"text": "4"}]}}
    with AnswerServer(first, answer_json(ANSWER)) as server, record_spans(history="delta") as store:
        client = client_of(server)
        with starpo_trace.trajectory():
            if is_stream:
                list(client.converse_stream(modelId=MODEL, messages=[USER])["stream"])
                answer = {
                    "role": "assistant",
                    "content": [
                        {"text": "Checking."},
                        {
                            "toolUse": {
                                "toolUseId": "t1",
                                "name": "stock",
                                "input": {"sku": "A7", "n": 1},
                            }
                        },
                        {"toolUse": {"toolUseId": "t2", "name": "stock", "input": {}}},
                    ],
                }
            else:
                answer = client.converse(modelId=MODEL, messages=[USER])["output"]["message"]
            asked = {**USER, "content": [*USER["content"], {"cachePoint": {"type": "default"}}]}
            client.converse(
                modelId=MODEL, messages=[asked, answer, {"role": "user", "content": [result]}]
            )
    second = store.select("llm")[1]
    assert second[semconv.HISTORY_BASE_LENGTH] == 2
    assert second[semconv.HISTORY_LENGTH] == 3


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_error_reaches_the_program_unchanged(client_of, is_stream):
    """A refused request raises botocore's own error; the span says so."""
    refused = answer_json({"message": "slow down"}, status=429, error="ThrottlingException")
    with AnswerServer(refused) as server, record_spans() as store:
        client = client_of(server)
        ask = client.converse_stream if is_stream else client.converse
        with pytest.raises(client.exceptions.ThrottlingException) as caught:
            ask(modelId=MODEL, messages=[USER])
        assert isinstance(caught.value, ClientError)
    [span] = store.spans
    assert span.attributes[semconv.ERROR_TYPE] == "botocore.errorfactory.ThrottlingException"
    assert span.status.status_code is StatusCode.ERROR


def test_an_error_event_in_a_stream_is_an_error(client_of):
    """An exception that the server reports mid-stream is raised, and ends the call."""
    events = [*TEXT_EVENTS[:2], encode_error("modelStreamErrorException", "out of luck")]
    with (
        AnswerServer(answer_events(events)) as server,
        record_spans() as store,
        closing(
            client_of(server).converse_stream(modelId=MODEL, messages=[USER])["stream"]
        ) as stream,
        pytest.raises(EventStreamError, match="out of luck"),
    ):
        list(stream)
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert call[semconv.ERROR_TYPE] == "botocore.exceptions.EventStreamError"
    assert output_of(call)[0]["parts"] == [{"type": "text", "content": "on"}]


def test_a_broken_stream_keeps_what_was_read(client_of):
    """A connection that breaks raises what it raises without Starpo; the span holds the rest."""
    with (
        AnswerServer(answer_events(TEXT_EVENTS[:3], is_cut=True)) as server,
        record_spans() as store,
        closing(
            client_of(server).converse_stream(modelId=MODEL, messages=[USER])["stream"]
        ) as stream,
        pytest.raises(ProtocolError),
    ):
        list(stream)
    [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == "error"
    assert output_of(call)[0]["parts"] == [{"type": "text", "content": "once"}]


@pytest.mark.parametrize("ending", ["closed", "dropped"])
def test_a_stream_left_early_says_how(client_of, ending):
    """A closed stream and a dropped one are told apart; both keep what was read."""
    with AnswerServer(answer_events(TEXT_EVENTS)) as server, record_spans() as store:
        answer = client_of(server).converse_stream(modelId=MODEL, messages=[USER])
        for event in answer["stream"]:
            if "contentBlockDelta" in event:
                break
        if ending == "closed":
            answer["stream"].close()
        else:
            answer["stream"]._raw_stream.close()  # as its collection does
        del answer
        gc.collect()
        [call] = attributes_of(store)
    assert call[semconv.STREAM_OUTCOME] == ending
    assert output_of(call)[0]["parts"] == [{"type": "text", "content": "on"}]


CLAUDE_BODY = {
    "anthropic_version": "bedrock-2023-05-31",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "hi"}],
}
CLAUDE_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "four"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "output_tokens": 3},
}


@pytest.mark.parametrize("way", ["read", "pieces", "with", "lines", "chunks", "readinto"])
def test_the_body_of_invoke_model_is_the_programs(client_of, way):
    """However the program reads the body, it gets all of it and the span holds it."""
    with AnswerServer(answer_json(CLAUDE_ANSWER)) as server, record_spans() as store:
        answer = client_of(server).invoke_model(modelId=MODEL, body=json.dumps(CLAUDE_BODY))
        body = answer["body"]
        assert type(body) is StreamingBody
        if way == "read":
            read = body.read()
        elif way == "pieces":
            read = b"".join(iter(lambda: body.read(7), b""))
        elif way == "with":
            with body as raw:
                read = raw.read()
        elif way == "lines":
            read = b"".join(body.readlines())
        elif way == "chunks":
            read = b"".join(body.iter_chunks(7))
        else:
            read = io.BufferedReader(body).read()
    assert json.loads(read) == CLAUDE_ANSWER
    [call] = attributes_of(store)
    assert call == {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: "aws.bedrock",
        semconv.REQUEST_MODEL: MODEL,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.REQUEST_PARAMETERS: '{"anthropic_version":"bedrock-2023-05-31"}',
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 1,
        semconv.HISTORY_HASH: call[semconv.HISTORY_HASH],
        semconv.INPUT_MESSAGES: dump_json(
            [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
        ),
        semconv.RESPONSE_ID: "msg_1",
        semconv.RESPONSE_MODEL: "claude",
        semconv.RESPONSE_FINISH_REASONS: ("end_turn",),
        semconv.USAGE_INPUT_TOKENS: 5,
        semconv.USAGE_OUTPUT_TOKENS: 3,
        semconv.OUTPUT_MESSAGES: dump_json(
            [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": "four"}],
                    "finish_reason": "end_turn",
                }
            ]
        ),
        semconv.STREAM_OUTCOME: "exhausted",
    }


def test_a_body_that_nobody_reads_is_marked(client_of):
    """The span of a body closed unread says so."""
    with AnswerServer(answer_json(CLAUDE_ANSWER)) as server, record_spans() as store:
        body = json.dumps(CLAUDE_BODY)
        with starpo_trace.trajectory():
            client_of(server).invoke_model(modelId=MODEL, body=body)["body"].close()
    [call], [root] = store.select("llm"), store.select("trajectory")
    assert call[semconv.STREAM_OUTCOME] == "closed"
    assert semconv.OUTPUT_MESSAGES not in call
    assert "unread_response" in root[semconv.USABLE_FOR_REASONS]


FOUR = [{"type": "text", "content": "four"}]


@pytest.mark.parametrize(
    ("model", "body", "answer"),
    [
        (
            "amazon.nova",
            {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {}},
            {
                "output": {"message": {"role": "assistant", "content": [{"text": "four"}]}},
                "stopReason": "stop",
                "usage": {"inputTokens": 5, "outputTokens": 3},
            },
        ),
        (
            "openai.gpt-oss",
            {"messages": [{"role": "user", "content": "hi"}]},
            {
                "choices": [
                    {
                        "message": {"role": "assistant", "content": "four"},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 5, "completion_tokens": 3},
            },
        ),
        ("meta.llama", {"prompt": "hi"}, {"generation": "four", "stop_reason": "stop"}),
        (
            "amazon.titan-text",
            {"inputText": "hi"},
            {"results": [{"outputText": "four", "completionReason": "stop"}]},
        ),
        ("mistral.old", {"prompt": "hi"}, {"outputs": [{"text": "four", "stop_reason": "stop"}]}),
    ],
)
def test_each_family_of_models_is_read(client_of, model, body, answer):
    """Nova's, chat completions' and plain prompts' bodies give prompt, answer and usage."""
    headers = {
        "x-amzn-bedrock-input-token-count": "5",
        "x-amzn-bedrock-output-token-count": "3",
    }
    with (
        AnswerServer(answer_json(answer, headers=headers)) as server,
        record_spans() as store,
    ):
        client_of(server).invoke_model(modelId=model, body=json.dumps(body).encode())["body"].read()
    [call] = attributes_of(store)
    assert json.loads(call[semconv.INPUT_MESSAGES]) == [
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]}
    ]
    assert output_of(call) == [{"role": "assistant", "parts": FOUR, "finish_reason": "stop"}]
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("stop",)
    assert (call[semconv.USAGE_INPUT_TOKENS], call[semconv.USAGE_OUTPUT_TOKENS]) == (5, 3)


@pytest.mark.parametrize(
    ("model", "body", "chunks"),
    [
        (
            MODEL,
            CLAUDE_BODY,
            [
                {"type": "message_start", "message": {**CLAUDE_ANSWER, "content": []}},
                {
                    "type": "content_block_start",
                    "index": 0,
                    "content_block": {"type": "text", "text": ""},
                },
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": "four"},
                },
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "stop"},
                    "usage": {"output_tokens": 3},
                },
                {"type": "message_stop"},
            ],
        ),
        (
            "amazon.nova",
            {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {}},
            [
                {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "four"}}},
                {"messageStop": {"stopReason": "stop"}},
                {"metadata": {"usage": {"inputTokens": 5, "outputTokens": 3}}},
            ],
        ),
        (
            "meta.llama",
            {"prompt": "hi"},
            [
                {"generation": "fo", "stop_reason": None},
                {
                    "generation": "ur",
                    "stop_reason": "stop",
                    "amazon-bedrock-invocationMetrics": {
                        "inputTokenCount": 5,
                        "outputTokenCount": 3,
                    },
                },
            ],
        ),
    ],
)
def test_a_stream_of_each_family_adds_up(client_of, model, body, chunks):
    """The chunks of an InvokeModel stream are the model's own events."""
    with AnswerServer(answer_events(encode_chunks(*chunks))) as server, record_spans() as store:
        answer = client_of(server).invoke_model_with_response_stream(
            modelId=model, body=json.dumps(body)
        )
        assert type(answer["body"]) is EventStream
        assert [json.loads(event["chunk"]["bytes"]) for event in answer["body"]] == chunks
    [call] = attributes_of(store)
    assert output_of(call)[0]["parts"] == FOUR
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("stop",)
    assert (call[semconv.USAGE_INPUT_TOKENS], call[semconv.USAGE_OUTPUT_TOKENS]) == (5, 3)
    assert call[semconv.STREAM_OUTCOME] == "exhausted"


@pytest.mark.parametrize(
    ("model", "body", "answer", "query"),
    [
        (
            "amazon.titan-embed-text-v2:0",
            {"inputText": "a", "dimensions": 3},
            {"embedding": [1, 2, 3], "inputTextTokenCount": 1},
            "a",
        ),
        (
            "cohere.embed-v4",
            {"texts": ["a", "b"], "dimensions": 3},
            {"embeddings": {"float": [[1, 2, 3], [4, 5, 6]]}},
            ["a", "b"],
        ),
    ],
)
def test_an_embedding_is_a_retrieval_step(client_of, model, body, answer, query):
    """What was embedded and how long the vectors are is recorded; the vectors are not."""
    headers = {"x-amzn-bedrock-input-token-count": "1"}
    with (
        AnswerServer(answer_json(answer, headers=headers)) as server,
        record_spans() as store,
    ):
        client_of(server).invoke_model(modelId=model, body=json.dumps(body))["body"].read()
    assert attributes_of(store) == [
        {
            semconv.SCHEMA: "1",
            semconv.RECORD: "step",
            semconv.STEP_KIND: "retriever",
            semconv.OPERATION_NAME: "embeddings",
            semconv.PROVIDER_NAME: "aws.bedrock",
            semconv.REQUEST_MODEL: model,
            semconv.REQUEST_PARAMETERS: '{"dimensions":3}',
            semconv.SERVER_ADDRESS: "127.0.0.1",
            semconv.SERVER_PORT: server.port,
            semconv.TOOL_CALL_ARGUMENTS: dump_json(query),
            semconv.USAGE_INPUT_TOKENS: 1,
            semconv.EMBEDDINGS_DIMENSION_COUNT: 3,
            semconv.STREAM_OUTCOME: "exhausted",
        }
    ]


def test_other_services_and_suppressed_calls_are_not_recorded(client_of):
    """Other AWS calls pass; OpenTelemetry's own switch is honoured."""
    with AnswerServer(answer_json(ANSWER)) as server:
        other, client = client_of(server, "dynamodb"), client_of(server)
        with record_spans() as store:
            other.list_tables()
            with suppress_instrumentation():
                client.converse(modelId=MODEL, messages=[USER])
        client.converse(modelId=MODEL, messages=[USER])
    assert len(server.requests) == 3
    assert store.spans == []


def test_uninstrument_restores_the_raw_attributes():
    """After uninstrument() botocore's classes hold the very objects they held before."""
    seams = [
        (botocore.client.BaseClient, "_make_api_call"),
        (EventStream, "_parse_event"),
        (EventStream, "close"),
    ]
    before = [vars(owner)[name] for owner, name in seams]
    with record_spans():
        during = [vars(owner)[name] for owner, name in seams]
    assert all(now is not then for now, then in zip(during, before, strict=True))
    assert [vars(owner)[name] for owner, name in seams] == before
