"""LiteLLM's router: one call of it is one turn, and each attempt that a server saw is accounted for."""

import asyncio
import json
import os
import random
import sys
from dataclasses import replace
from importlib import metadata

import pytest
from matrix import Framework

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it asks the network otherwise
pytest.importorskip("litellm", reason="litellm is not installed")

import litellm
from scenario import (
    ANSWER,
    LATE,
    QUESTION,
    RAN,
    USAGE,
    cancel_soon,
    check_end,
    check_trainable,
    check_wire,
    draw,
    list_tools,
    record,
    stock,
)

import starpo_trace
from starpo_trace import semconv
from starpo_trace.testing import Reply

FRAMEWORK = Framework(
    name="LiteLLM Router",
    packages=("litellm",),
    page="litellm_router",
    exempt={
        "sub-agents": "a router has no agents",
        "state": "a router has no state of a run",
    },
)
VERSION = tuple(int(part) for part in metadata.version("litellm").split(".")[:2])
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "parameters": {"type": "object", "properties": {"sku": {"type": "string"}}},
        },
    }
]


def make_router(base_url, *deployments, **options):
    """A router to deployments `group/model`; a deployment's id is the name of its model."""
    return litellm.Router(
        model_list=[
            {
                "model_name": each.partition("/")[0],
                "litellm_params": {
                    "model": f"openai/{each.partition('/')[2]}",
                    "api_base": base_url,
                    "api_key": "none",
                    "max_retries": 0,
                },
                "model_info": {"id": each.partition("/")[2]},
            }
            for each in deployments
        ],
        **{"num_retries": 0, "retry_after": 0, "disable_cooldowns": True, **options},
    )


def ask_sync(router, messages=MESSAGES, **options):
    return router.completion(model="shop", messages=messages, **options)


def ask_async(router, messages=MESSAGES, **options):
    return asyncio.run(router.acompletion(model="shop", messages=messages, **options))


def join(chunks, messages):
    return litellm.stream_chunk_builder(chunks, messages=messages)


def ask_streamed(router, messages=MESSAGES, **options):
    return join(list(ask_sync(router, messages, stream=True, **options)), messages)


async def read_streamed(router, messages=MESSAGES, **options):
    stream = await router.acompletion(model="shop", messages=messages, stream=True, **options)
    return [chunk async for chunk in stream]


def ask_streamed_async(router, messages=MESSAGES, **options):
    return join(asyncio.run(read_streamed(router, messages, **options)), messages)


WAYS = [
    ask_sync,
    pytest.param(ask_async, marks=pytest.mark.shows("async")),
    pytest.param(ask_streamed, marks=pytest.mark.shows("streaming")),
    pytest.param(ask_streamed_async, marks=pytest.mark.shows("streaming", "async")),
]


def run_by_hand(router, ask):
    """An agent of the program's own."""
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    with starpo_trace.trajectory("shop"):
        while True:
            message = ask(router, messages, tools=TOOLS).choices[0].message
            if not message.tool_calls:
                return message.content
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls:
                name, arguments = call.function.name, call.function.arguments
                with starpo_trace.step("tool", name, call_id=call.id, arguments=arguments) as step:
                    result = stock(**json.loads(arguments))
                    step.result(result)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def list_attempts(recorded):
    """Model and status of the attempts that failed, as recorded with the calls."""
    return [
        (attempt["model"], attempt.get("status"))
        for span in recorded.spans
        for attempt in json.loads(span.attributes.get(semconv.FAILED_ATTEMPTS, "[]"))
    ]


def check_attempts(recorded, answer, *scripts):
    """Each request is a failed attempt, in its order, or the one of a turn."""
    replies = [answer(body) for body in recorded.requests]
    log = list(zip(recorded.requests, replies, strict=True))
    failed = [(body["model"], reply.status) for body, reply in log if reply.status != 200]
    answered = [body for body, reply in log if reply.status == 200]
    assert list_attempts(recorded) == failed
    check_wire(
        replace(recorded, requests=answered),
        scripts or [reply for reply in replies if reply.status == 200],
        num_trajectories=len(recorded.trajectories),
    )
    turns = [span for span in recorded.spans if span.attributes.get(semconv.RECORD) == "llm"]
    for span, body in zip(turns, answered, strict=True):
        assert span.attributes[semconv.REQUEST_MODEL] == body["model"]
        assert span.attributes[semconv.ROUTER_DEPLOYMENT] == body["model"]
        assert span.attributes[semconv.ROUTER_GROUP] == "shop"


def fail_for(*models, status=500):
    """A server where these models fail."""

    def answer(body):
        if body["model"] in models:
            return Reply(status=status)
        return Reply(content=ANSWER, usage=USAGE)

    return answer


@pytest.mark.pictured
@pytest.mark.shows("llm", "tools", "parallel", "reasoning")
@pytest.mark.parametrize("ask", WAYS)
def test_two_turns(tmp_path, ask):
    """Through a router, an agent of the program's own is recorded as through the SDK."""
    answers = []

    def program(url):
        router = make_router(url, "shop/m")
        answers.append(run_by_hand(router, ask))

    recorded = record(tmp_path, program)
    assert answers == [ANSWER]
    check_wire(recorded)
    check_trainable(recorded)
    assert list_tools(recorded) == RAN
    assert draw(recorded) == [
        "invoke_agent shop",
        "  chat shop",
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
        "  chat shop",
    ]
    assert list_attempts(recorded) == []
    assert [row["end"] for row in recorded.trajectories] == ["terminated"]


@pytest.mark.shows("llm")
@pytest.mark.parametrize("ask", WAYS)
def test_a_fallback(tmp_path, ask):
    """Retries and the fallback are one turn, of the deployment that answered."""
    answer = fail_for("bad")
    options = {"fallbacks": [{"shop": ["spare"]}], "num_retries": 1}
    recorded = record(
        tmp_path, lambda url: ask(make_router(url, "shop/bad", "spare/good", **options)), answer
    )
    assert [body["model"] for body in recorded.requests] == ["bad", "bad", "good"]
    check_attempts(recorded, answer)
    assert list_attempts(recorded) == [("bad", 500), ("bad", 500)]
    assert draw(recorded) == ["chat shop"]
    assert [turn["outcome"] for turn in recorded.turns] == ["ok"]


@pytest.mark.shows("llm")
@pytest.mark.parametrize("ask", WAYS)
def test_retries_over_deployments(tmp_path, ask):
    """Whichever deployments a group's calls go to, every request is accounted for."""
    random.seed(3)
    answer = fail_for("b1", "b2", status=429)

    def program(url):
        router = make_router(url, "shop/b1", "shop/b2", "shop/g1", "shop/g2", num_retries=9)
        for _ in range(4):
            with starpo_trace.trajectory("shop"):
                ask(router)

    recorded = record(tmp_path, program, answer)
    assert len(recorded.trajectories) == 4
    check_attempts(recorded, answer)


def test_load_balancing(tmp_path):
    """Each turn says which deployment answered; calls at the same time are apart."""
    random.seed(3)

    async def ask_many(url):
        router = make_router(url, "shop/g1", "shop/g2")

        async def ask(number):
            with starpo_trace.trajectory(f"shop{number}"):
                await router.acompletion(model="shop", messages=MESSAGES)

        await asyncio.gather(*(ask(number) for number in range(8)))

    recorded = record(tmp_path, lambda url: asyncio.run(ask_many(url)), fail_for())
    assert recorded.rejected == []
    assert [row["num_turns"] for row in recorded.trajectories] == [1] * 8
    told = [span.attributes.get(semconv.ROUTER_DEPLOYMENT) for span in recorded.spans]
    asked = sorted(body["model"] for body in recorded.requests)
    assert sorted(each for each in told if each) == asked
    assert set(asked) == {"g1", "g2"}


@pytest.mark.shows("streaming", "async")
@pytest.mark.parametrize("num_chunks", [0, 2])
def test_a_fallback_in_the_middle_of_a_stream(tmp_path, num_chunks):
    """One turn: with the prompt and the answer of the attempt that came to its end."""
    if num_chunks and VERSION >= (1, 100):
        pytest.skip("this version does not ask another deployment once there was text")

    def answer(body):
        is_bad = body["model"] == "bad"
        return Reply(content=ANSWER, error_after_chunks=num_chunks if is_bad else None, usage=USAGE)

    options = {"fallbacks": [{"shop": ["spare"]}]}
    recorded = record(
        tmp_path,
        lambda url: ask_streamed_async(make_router(url, "shop/bad", "spare/good", **options)),
        answer,
    )
    assert [body["model"] for body in recorded.requests] == ["bad", "good"]
    assert [model for model, _ in list_attempts(recorded)] == ["bad"]
    last = replace(recorded, requests=recorded.requests[1:])
    check_wire(last, [Reply(content=ANSWER, usage=USAGE)])
    assert [turn["outcome"] for turn in recorded.turns] == ["ok"]
    [span] = recorded.spans
    assert span.attributes[semconv.ROUTER_DEPLOYMENT] == "good"


@pytest.mark.shows("error")
@pytest.mark.parametrize("ask", WAYS)
def test_all_deployments_fail(tmp_path, ask):
    """The turn failed, once; the run ends with the exception that left it."""
    answer = fail_for("bad", "worse")
    options = {"fallbacks": [{"shop": ["spare"]}], "num_retries": 1}

    def program(url):
        with starpo_trace.trajectory("shop"):
            ask(make_router(url, "shop/bad", "spare/worse", **options))

    recorded = record(tmp_path, program, answer, raises=Exception)
    failed = [(body["model"], 500) for body in recorded.requests]
    assert len(failed) >= 3
    assert list_attempts(recorded) == failed
    check_end(recorded, "error", "error")


@pytest.mark.shows("cancel")
def test_cancelled(tmp_path):
    """A run that is cancelled while its model answers is abandoned; that is no failed attempt."""

    async def ask(url):
        with starpo_trace.trajectory("shop"):
            await make_router(url, "shop/m").acompletion(model="shop", messages=MESSAGES)

    recorded = record(
        tmp_path,
        lambda url: asyncio.run(cancel_soon(ask(url))),
        LATE,
        raises=asyncio.CancelledError,
    )
    check_end(recorded, "abandoned", "cancelled")
    assert list_attempts(recorded) == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_is_left(tmp_path, is_async):
    """What was read of it is the turn."""

    async def leave(router):
        stream = await router.acompletion(model="shop", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.aclose()

    def program(url):
        router = make_router(url, "shop/m")
        with starpo_trace.trajectory("shop"):
            if is_async:
                asyncio.run(leave(router))
            else:
                next(iter(ask_sync(router, stream=True)))

    recorded = record(tmp_path, program, [Reply(content=ANSWER, chunk_pause_s=0.2)])
    assert recorded.rejected == []
    assert [row["num_turns"] for row in recorded.trajectories] == [1]
    [turn] = recorded.turns
    assert ANSWER.startswith(turn["text"])
    assert turn["text"] != ANSWER


def test_put_back():
    """Afterwards the router's methods are the ones that were there."""
    make_router("http://127.0.0.1:9", "shop/m")  # loads its core
    router = litellm.Router
    if "completion" not in vars(router):
        router = sys.modules["litellm.router_rust.core"].RustCore
    names = ["completion", "acompletion", "embedding", "aembedding"]
    before = [vars(router)[name] for name in names]
    starpo_trace.instrument()
    during = [vars(router)[name] for name in names]
    starpo_trace.uninstrument()
    assert all(old is not new for old, new in zip(before, during, strict=True))
    assert [vars(router)[name] for name in names] == before
