"""LiteLLM -> spans, over the OpenAI SDK and over its own HTTP client, against real servers."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its price list, without a network

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time

import litellm
import pytest
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.types.utils import ModelResponse
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from servers_anthropic import answer_events as answer_anthropic_events
from servers_anthropic import answer_message, make_events
from servers_scripted import Answer, AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.messages import chain_hashes, dump_json, from_openai_chat
from starpo_trace.testing import Reply, ScriptedServer, ToolCall, record_spans

ARGUMENTS = '{"sku": "A7",  "n":1e0}'
TOOLS = [
    {
        "type": "function",
        "function": {"name": "stock", "parameters": {"type": "object", "properties": {}}},
    }
]
USER = {"role": "user", "content": "how many?"}
REPLY = Reply(
    content="let me see",
    reasoning_content="look it up",
    tool_calls=[
        ToolCall(id="c1", name="stock", arguments=ARGUMENTS),
        ToolCall(id="c2", name="stock", arguments='{"sku": "B8"}'),
    ],
    prompt_token_ids=[1, 2, 3],
    token_ids=[4, 5],
    logprobs=[-0.25, -1.5],
    usage={
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
)
CALLS = [
    {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
    for call in REPLY.tool_calls
]
OUTPUT = {
    "role": "assistant",
    "parts": [
        {"type": "reasoning", "content": "look it up"},
        {"type": "text", "content": "let me see"},
        *CALLS,
    ],
    "finish_reason": "tool_calls",
}
WAYS = ["openai", "hosted_vllm"]
"""Through the OpenAI SDK, and through LiteLLM's own HTTP client."""


def options_of(server, provider="openai", **options):
    return {
        "model": f"{provider}/m",
        "messages": [USER],
        "api_base": server.base_url,
        "api_key": "secret-key",
        "max_retries": 0,
        **options,
    }


def expected_span(server, provider, **more):
    """The whole span of `REPLY`, outside of a trajectory."""
    return {
        semconv.SCHEMA: "1",
        semconv.RECORD: "llm",
        semconv.OPERATION_NAME: "chat",
        semconv.PROVIDER_NAME: provider,
        semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.REQUEST_MAX_TOKENS: 64,
        semconv.HISTORY_MODE: "full",
        semconv.HISTORY_LENGTH: 1,
        semconv.HISTORY_HASH: chain_hashes([from_openai_chat(USER)])[-1].hex(),
        semconv.INPUT_MESSAGES: dump_json([from_openai_chat(USER)]),
        semconv.TOOL_DEFINITIONS: dump_json(TOOLS),
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: server.port,
        semconv.RESPONSE_ID: "chatcmpl-1",
        semconv.RESPONSE_MODEL: "m",
        semconv.RESPONSE_FINISH_REASONS: ("tool_calls",),
        semconv.USAGE_INPUT_TOKENS: 3,
        semconv.USAGE_OUTPUT_TOKENS: 2,
        semconv.USAGE_CACHE_READ_TOKENS: 1,
        semconv.USAGE_REASONING_TOKENS: 1,
        semconv.OUTPUT_MESSAGES: dump_json([OUTPUT]),
        semconv.PROMPT_TOKEN_IDS: "[1,2,3]",
        semconv.RESPONSE_TOKEN_IDS: "[4,5]",
        semconv.RESPONSE_LOGPROBS: "[-0.25,-1.5]",
        **more,
    }


def only_span(store):
    """Attributes of the one span there is; how long the first chunk took is left out."""
    (span,) = store.spans
    attributes = dict(span.attributes)
    attributes.pop(semconv.RESPONSE_TIME_TO_FIRST_CHUNK, None)
    return attributes


@pytest.mark.parametrize("provider", WAYS)
def test_a_call_is_one_whole_span(provider):
    """Request, arguments verbatim, reasoning, usage, token ids: one span, however many layers."""
    with ScriptedServer([REPLY]) as server, record_spans() as store:
        options = options_of(server, provider, tools=TOOLS, temperature=0.5, max_tokens=64)
        answer = litellm.completion(**options)
    assert type(answer) is ModelResponse
    assert only_span(store) == expected_span(server, provider)
    assert len(server.requests) == 1


@pytest.mark.parametrize("provider", WAYS)
def test_an_async_call_is_one_whole_span(provider):
    """`acompletion` calls `completion` in a thread: still one span."""

    async def ask(options):
        return await litellm.acompletion(**options)

    with ScriptedServer([REPLY]) as server, record_spans() as store:
        options = options_of(server, provider, tools=TOOLS, temperature=0.5, max_tokens=64)
        asyncio.run(ask(options))
    assert only_span(store) == expected_span(server, provider)


@pytest.mark.parametrize("provider", WAYS)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_is_one_whole_span(provider, is_async):
    """Streamed parallel tool calls, reasoning, ids; the stream stays LiteLLM's own object."""
    with ScriptedServer([REPLY]) as server, record_spans() as store:
        options = options_of(
            server,
            provider,
            tools=TOOLS,
            temperature=0.5,
            max_tokens=64,
            stream=True,
            stream_options={"include_usage": True},
        )

        async def ask():
            stream = await litellm.acompletion(**options)
            return type(stream), [chunk async for chunk in stream]

        if is_async:
            kind, chunks = asyncio.run(ask())
        else:
            stream = litellm.completion(**options)
            kind, chunks = type(stream), list(stream)
    assert kind is CustomStreamWrapper
    assert len(chunks) > 8
    assert only_span(store) == expected_span(
        server,
        provider,
        **{
            semconv.REQUEST_STREAM: True,
            semconv.STREAM_OUTCOME: "exhausted",
            semconv.REQUEST_PARAMETERS: '{"stream_options":{"include_usage":true}}',
        },
    )


@pytest.mark.parametrize("provider", WAYS)
def test_usage_that_the_server_did_not_send_is_absent(provider):
    """LiteLLM counts tokens itself where the server does not; those are no facts."""
    with ScriptedServer([Reply(content="4")]) as server, record_spans() as store:
        litellm.completion(**options_of(server, provider))
        list(litellm.completion(**options_of(server, provider, stream=True)))
    used = [
        [key for key in span.attributes if key.startswith("gen_ai.usage")] for span in store.spans
    ]
    assert used == [[], []]


@pytest.mark.parametrize("provider", WAYS)
def test_the_second_turn_extends_the_first(provider):
    """An answer that is sent back is known: only what is new is written."""
    with (
        ScriptedServer([REPLY, Reply(content="4")]) as server,
        record_spans(history="delta") as store,
        starpo_trace.trajectory("agent"),
    ):
        options = options_of(server, provider, tools=TOOLS)
        message = litellm.completion(**options).choices[0].message
        options["messages"] = [
            USER,
            message,
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
            {"role": "tool", "tool_call_id": "c2", "content": "3"},
        ]
        litellm.completion(**options)
    first, second = store.select("llm")
    assert semconv.HISTORY_BASE_LENGTH not in first
    assert second[semconv.HISTORY_BASE_LENGTH] == 2
    assert [message["role"] for message in json.loads(second[semconv.INPUT_MESSAGES])] == [
        "tool",
        "tool",
    ]


def make_router(server, *replies_to, **options):
    names = replies_to or ("m",)
    return litellm.Router(
        model_list=[
            {
                "model_name": f"group-{name}",
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": server.base_url,
                    "api_key": "secret-key",
                    "max_retries": 0,
                },
            }
            for name in names
        ],
        **options,
    )


def fail_for(name):
    def choose(body):
        return Reply(status=500) if body["model"] == name else Reply(content="4")

    return choose


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_router_falling_back_is_one_call(is_stream):
    """The failed deployment and its retries are not spans; the one that answered is."""
    with ScriptedServer(fail_for("bad")) as server, record_spans() as store:
        router = make_router(
            server,
            "bad",
            "good",
            fallbacks=[{"group-bad": ["group-good"]}],
            num_retries=1,
            retry_after=0,
        )
        answer = router.completion(model="group-bad", messages=[USER], stream=is_stream)
        if is_stream:
            assert isinstance(answer, CustomStreamWrapper)
            list(answer)
    span = only_span(store)
    assert [body["model"] for body in server.requests] == ["bad", "bad", "good"]
    assert (span[semconv.PROVIDER_NAME], span[semconv.REQUEST_MODEL]) == ("openai", "good")
    assert json.loads(span[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
        {"type": "text", "content": "4"}
    ]
    assert store.spans[0].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_async_router_is_one_call(is_stream):
    """Also inside a running loop, where LiteLLM wraps its streams once more."""

    async def ask(router):
        answer = await router.acompletion(model="group-m", messages=[USER], stream=is_stream)
        if is_stream:
            assert isinstance(answer, CustomStreamWrapper)
            async for _chunk in answer:
                pass
        router.completion(model="group-m", messages=[USER])

    with ScriptedServer([REPLY]) as server, record_spans() as store:
        asyncio.run(ask(make_router(server)))
    assert [json.loads(each[semconv.OUTPUT_MESSAGES]) for each in store.select("llm")] == [
        [OUTPUT],
        [OUTPUT],
    ]
    assert len(server.requests) == 2


def test_retries_are_one_call():
    """`num_retries` calls LiteLLM again from within."""
    with (
        ScriptedServer([Reply(status=500), Reply(content="4")]) as server,
        record_spans() as store,
    ):
        litellm.completion(**options_of(server, num_retries=2))
    assert len(server.requests) == 2
    assert only_span(store)[semconv.RESPONSE_FINISH_REASONS] == ("stop",)
    assert store.spans[0].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("provider", WAYS)
def test_an_error_is_litellms_own_and_recorded(provider):
    """The program gets what it gets without us; the span has the type and no answer."""
    with (
        ScriptedServer([Reply(status=400)]) as server,
        record_spans() as store,
        pytest.raises(litellm.BadRequestError, match="scripted 400"),
    ):
        litellm.completion(**options_of(server, provider))
    span = only_span(store)
    assert span[semconv.ERROR_TYPE] == "litellm.exceptions.BadRequestError"
    assert semconv.OUTPUT_MESSAGES not in span


@pytest.mark.parametrize("provider", WAYS)
def test_a_stream_that_breaks_keeps_what_came(provider):
    """Error mid-way: what was received, and the outcome."""
    reply = Reply(content="one two three four", cut_after_chunks=3)
    with ScriptedServer([reply]) as server, record_spans() as store:
        stream = litellm.completion(**options_of(server, provider, stream=True))
        with pytest.raises(litellm.exceptions.MidStreamFallbackError):
            list(stream)
    span = only_span(store)
    assert span[semconv.STREAM_OUTCOME] == "error"
    assert json.loads(span[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
        {"type": "text", "content": "one two th"}
    ]


@pytest.mark.parametrize("provider", WAYS)
def test_a_dropped_stream_is_finished(provider):
    """Nobody reads on: recorded with what was read, ids included."""
    with ScriptedServer([REPLY]) as server, record_spans() as store:
        stream = litellm.completion(**options_of(server, provider, stream=True))
        next(stream)
        next(stream)
        del stream
        wait_for_a_span(store)
        span = only_span(store)
    assert (span[semconv.STREAM_OUTCOME], span[semconv.PROMPT_TOKEN_IDS]) == ("dropped", "[1,2,3]")


def wait_for_a_span(store):
    """LiteLLM's logging threads hold the stream for a moment."""
    deadline = time.monotonic() + 10
    while not store.spans and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)


@pytest.mark.parametrize("provider", WAYS)
def test_a_stream_closed_early(provider):
    """`aclose` before the end."""

    async def ask(options):
        stream = await litellm.acompletion(**options)
        await anext(stream)
        await stream.aclose()

    with ScriptedServer([REPLY]) as server, record_spans() as store:
        asyncio.run(ask(options_of(server, provider, stream=True)))
    assert only_span(store)[semconv.STREAM_OUTCOME] == "closed"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_cancelled_call(is_stream):
    """The task's cancellation passes, and the span says so."""
    reply = Reply(content="one two", delay_s=0 if is_stream else 5, chunk_pause_s=5)

    async def ask(options):
        answer = await litellm.acompletion(**options)
        async for _chunk in answer:
            pass

    async def main(options):
        task = asyncio.create_task(ask(options))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ScriptedServer([reply]) as server, record_spans() as store:
        asyncio.run(main(options_of(server, stream=is_stream)))
    span = only_span(store)
    assert span[semconv.ERROR_TYPE].endswith("CancelledError")
    assert span.get(semconv.STREAM_OUTCOME) == ("cancelled" if is_stream else None)


ANTHROPIC = [
    {"type": "thinking", "thinking": "add them", "signature": "c2ln"},
    {"type": "text", "text": "Looking."},
    {"type": "tool_use", "id": "t1", "name": "stock", "input": {"sku": "A7"}},
]


@pytest.mark.parametrize("is_stream", [False, True])
def test_anthropic_through_litellm_keeps_thinking_and_signature(is_stream):
    """A provider that LiteLLM speaks to itself: reasoning with its signature, tool calls."""
    answer = answer_message(*ANTHROPIC, stop_reason="tool_use")
    if is_stream:
        call = {**ANTHROPIC[2], "input": '{"sku": "A7"}'}
        events = make_events(*ANTHROPIC[:2], call, stop_reason="tool_use")
        answer = answer_anthropic_events(*events)
    with AnswerServer(answer) as server, record_spans() as store:
        result = litellm.completion(
            model="anthropic/claude-opus-4-20250514",
            messages=[{"role": "system", "content": "be brief"}, USER],
            api_base=server.url,
            api_key="secret-key",
            tools=TOOLS,
            stream=is_stream,
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
        if is_stream:
            list(result)
    span = only_span(store)
    (message,) = json.loads(span[semconv.OUTPUT_MESSAGES])
    reasoning, text, call = message["parts"]
    assert (reasoning["type"], reasoning["content"]) == ("reasoning", "add them")
    assert reasoning["meta"] == {"signature": "c2ln"}
    assert text == {"type": "text", "content": "Looking."}
    assert (call["id"], call["name"], json.loads(call["arguments"])) == (
        "t1",
        "stock",
        {"sku": "A7"},
    )
    assert span[semconv.PROVIDER_NAME] == "anthropic"
    assert span[semconv.REQUEST_MODEL] == "claude-opus-4-20250514"
    assert [message["role"] for message in json.loads(span[semconv.INPUT_MESSAGES])] == [
        "system",
        "user",
    ]


def answer_json(value):
    return Answer(chunks=[json.dumps(value).encode()])


def test_embeddings_are_a_retrieval_step():
    """What was embedded and how long the vectors are, not the vectors."""
    data = [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0, 2.0]}]
    body = {"object": "list", "model": "e", "data": data}
    body["usage"] = {"prompt_tokens": 2, "total_tokens": 2}
    with AnswerServer(answer_json(body)) as server, record_spans() as store:
        options = {"model": "openai/e", "api_base": f"{server.url}/v1", "api_key": "k"}
        litellm.embedding(input=["one"], **options)

        async def embed():
            await litellm.aembedding(input=["one"], **options)

        asyncio.run(embed())
    assert len(store.spans) == len(server.requests) == 2
    for span in store.select("step"):
        assert span[semconv.OPERATION_NAME] == "embeddings"
        assert span[semconv.TOOL_CALL_ARGUMENTS] == '["one"]'
        assert span[semconv.EMBEDDINGS_DIMENSION_COUNT] == 3
        assert span[semconv.USAGE_INPUT_TOKENS] == 2
        assert span[semconv.REQUEST_MODEL] == "e"


def test_text_completion_is_one_call():
    """Sync and async, through the OpenAI SDK."""
    choice = {"index": 0, "text": " world", "finish_reason": "stop", "logprobs": None}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "m"}
    body["choices"] = [choice]
    with AnswerServer(answer_json(body)) as server, record_spans() as store:
        options = {
            "model": "text-completion-openai/m",
            "prompt": "hello",
            "api_base": f"{server.url}/v1",
            "api_key": "k",
        }
        litellm.text_completion(**options)

        async def complete():
            await litellm.atext_completion(**options)

        asyncio.run(complete())
    assert len(store.spans) == len(server.requests) == 2
    for span in store.select("llm"):
        assert span[semconv.OPERATION_NAME] == "text_completion"
        assert json.loads(span[semconv.OUTPUT_MESSAGES])[0]["parts"] == [
            {"type": "text", "content": " world"}
        ]


def test_responses_are_one_call():
    """The Responses API, which LiteLLM speaks itself."""
    body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "model": "m",
        "status": "completed",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "output": [
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "4", "annotations": []}],
            }
        ],
        "usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4},
    }
    with AnswerServer(answer_json(body)) as server, record_spans() as store:
        options = {
            "model": "openai/m",
            "input": "how many?",
            "api_base": f"{server.url}/v1",
            "api_key": "k",
        }
        litellm.responses(**options)

        async def respond():
            await litellm.aresponses(**options)

        asyncio.run(respond())
    assert len(store.spans) == len(server.requests) == 2
    for span in store.select("llm"):
        assert json.loads(span[semconv.OUTPUT_MESSAGES])[0]["parts"][0]["content"] == "4"
        assert span[semconv.USAGE_INPUT_TOKENS] == 3
        assert span[semconv.PROVIDER_NAME] == "openai"


def test_credentials_are_no_parameters():
    """Of the arguments only those that say what is asked are recorded."""
    with record_spans() as store:
        litellm.completion(
            model="bedrock/m",
            messages=[USER],
            mock_response="4",
            api_key="secret-key",
            aws_secret_access_key="secret-aws",
            extra_headers={"authorization": "secret-header"},
        )
    assert "secret" not in dump_json(only_span(store))
    assert only_span(store)[semconv.PROVIDER_NAME] == "aws.bedrock"


def test_parallel_calls_keep_apart():
    """Threads and `batch_completion`: as many spans as requests."""
    with ScriptedServer([Reply(content="4")]) as server, record_spans() as store:
        options = options_of(server)
        threads = [
            threading.Thread(target=litellm.completion, kwargs=dict(options)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        options.pop("messages")
        litellm.batch_completion(messages=[[USER], [USER]], **options)
    assert len(store.spans) == len(server.requests) == 6


def test_uninstrument_puts_everything_back():
    """Also the functions that were imported by name, and the classes of streams."""
    from litellm.router import Router

    router = Router
    if "completion" not in vars(Router):  # of newer versions: those of its core, once there is one
        litellm.Router(model_list=[])
        router = sys.modules["litellm.router_rust.core"].RustCore

    def read_attributes():
        return [
            *(vars(litellm)[name] for name in ("completion", "acompletion", "embedding")),
            *(vars(router)[name] for name in ("completion", "acompletion")),
            *(vars(CustomStreamWrapper)[name] for name in ("__next__", "__anext__", "aclose")),
            vars(sys.modules["litellm.chat_completions.dispatch"])["completion"],
        ]

    before = read_attributes()
    with ScriptedServer([Reply(content="4")]) as server:
        with record_spans():
            list(litellm.completion(**options_of(server, stream=True)))
            assert [a is b for a, b in zip(read_attributes(), before, strict=True)].count(True) == 0
        after = read_attributes()
        litellm.completion(**options_of(server))
    assert [a is b for a, b in zip(after, before, strict=True)].count(False) == 0


def test_suppressed_calls_are_not_recorded():
    """OpenTelemetry's switch is honoured."""
    with (
        ScriptedServer([Reply(content="4")]) as server,
        record_spans() as store,
        suppress_instrumentation(),
    ):
        litellm.completion(**options_of(server))
    assert (len(server.requests), store.spans) == (1, [])


BY_NAME = """
from litellm import completion
import starpo_trace
from starpo_trace.testing import Reply, ScriptedServer, record_spans

with ScriptedServer([Reply(content="4")]) as server:
    with record_spans() as store:
        completion(model="deepseek/m", messages=[{"role": "user", "content": "hi"}],
                   api_base=server.base_url, api_key="k")
        names = [span.attributes["gen_ai.provider.name"] for span in store.spans]
    print(names, type(completion).__name__)
"""


def test_functions_imported_before_instrument_are_recorded():
    """`from litellm import completion` first, `instrument()` later; and put back."""
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['deepseek'] function\n"


COPIES = """
import copy, pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import litellm
import starpo_trace
from starpo_trace.testing import record_spans

ARGUMENTS = {"model": "gpt-4o-mini", "messages": [], "mock_response": "ok"}
router = litellm.Router(model_list=[])
with record_spans():
    assert type(litellm.completion).__name__ != "function"
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        print(pool.submit(litellm.completion, **ARGUMENTS).result().choices[0].message.content)
    print(copy.deepcopy([litellm.completion])[0] is litellm.completion)
    print(copy.copy(litellm.completion) is litellm.completion)
    print(pickle.loads(pickle.dumps(litellm.completion)) is litellm.completion)
    bound = copy.copy(router.completion)
    print(bound.__self__ in (router, vars(router).get("_core")), bound.__name__)
"""


def test_patched_functions_are_copied_and_pickled_as_functions_are():
    """Agents that hold one are deep-copied, and pools of processes are given one."""
    done = subprocess.run(
        [sys.executable, "-c", COPIES], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["ok", "True", "True", "True", "True completion"]


OWN_TELEMETRY = """
import litellm, time
from opentelemetry import trace
from starpo_trace.testing import MemoryStore, Reply, ScriptedServer
import starpo_trace

store = MemoryStore()
trace.set_tracer_provider(store.provider)
starpo_trace.instrument()
litellm.callbacks = ["otel"]
with ScriptedServer([Reply(content="4")]) as server:
    litellm.completion(model="openai/m", messages=[{"role": "user", "content": "hi"}],
                       api_base=server.base_url, api_key="k")
    for _ in range(100):
        if len(store.spans) > 1:
            break
        time.sleep(0.05)
print(sorted((span.instrumentation_scope.name, span.name) for span in store.spans))
"""


def test_litellms_own_telemetry_is_left_alone():
    """A user who switched LiteLLM's callback on keeps its spans beside the one of ours."""
    done = subprocess.run(
        [sys.executable, "-c", OWN_TELEMETRY], capture_output=True, text=True, check=True
    )
    assert "('starpo_trace', 'chat m')" in done.stdout
    assert done.stdout.count("starpo_trace") == 1
    assert "'litellm'" in done.stdout
