"""Background runs of the OpenAI Responses API -> one span each, whichever request brings the answer."""

import asyncio

import openai
import pytest
from servers_openai import (
    answer_error,
    answer_events,
    answer_response,
    client_of,
    make_events,
    make_text,
)
from servers_scripted import AnswerServer

import starpo_trace
from starpo_trace import semconv
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.exchange import LLMRequest, LLMResponse
from starpo_trace.capture.invocation import begin_call
from starpo_trace.testing import record_spans

OPTIONS = {"model": "m", "input": "how many?", "background": True}
TEXT = make_text("3 left")


def queued(id):
    return answer_response(id=id, status="queued", usage=None)


def done(id):
    return answer_response(TEXT, id=id)


def test_a_background_run_is_one_span():
    """The create's span waits for the retrieve that brings the answer; polls are no calls."""
    with (
        AnswerServer(queued("bg_1"), queued("bg_1"), done("bg_1")) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        with starpo_trace.trajectory():
            begun = client.responses.create(**OPTIONS)
            while begun.status == "queued":
                assert store.select("llm") == []
                begun = client.responses.retrieve(begun.id)
            client.responses.retrieve(begun.id)
        assert len(server.requests) == 4
    [call], [root] = store.select("llm"), store.select("trajectory")
    assert call[semconv.OPERATION_NAME] == "chat"
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("completed",)
    assert '"3 left"' in call[semconv.OUTPUT_MESSAGES]
    assert '"how many?"' in call[semconv.INPUT_MESSAGES]
    assert root[semconv.TRAJECTORY_NUM_STEPS] == 1
    assert "stream_incomplete" not in root[semconv.USABLE_FOR_REASONS]


def test_an_async_background_run_is_one_span():
    """The async client's retrieve completes the span too."""

    async def ask(server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            begun = await client.responses.create(**OPTIONS)
            await client.responses.retrieve(begun.id)

    with AnswerServer(queued("bg_2"), done("bg_2")) as server, record_spans() as store:
        asyncio.run(ask(server))
    assert [call[semconv.RESPONSE_FINISH_REASONS] for call in store.select("llm")] == [
        ("completed",)
    ]


def test_a_stream_taken_up_again_is_one_span():
    """A background stream that broke is completed by `retrieve(stream=True, starting_after=)`."""
    events = make_events(TEXT, id="bg_3")
    with (
        AnswerServer(answer_events(*events[:6], is_cut=True), answer_events(*events[6:])) as server,
        client_of(server) as client,
        record_spans() as store,
        starpo_trace.trajectory(),
    ):
        with pytest.raises(openai.APIConnectionError):
            list(client.responses.create(**OPTIONS, stream=True))
        assert store.select("llm") == []
        list(client.responses.retrieve("bg_3", stream=True, starting_after=5))
        assert "starting_after=5" in server.requests[1].path
    [call] = store.select("llm")
    assert '"3 left"' in call[semconv.OUTPUT_MESSAGES]
    assert call[semconv.STREAM_OUTCOME] == "exhausted"
    assert semconv.ERROR_TYPE not in call


def test_a_run_that_is_cancelled_says_so():
    """`responses.cancel` ends the run's span."""
    with (
        AnswerServer(queued("bg_4"), answer_response(id="bg_4", status="cancelled")) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        client.responses.create(**OPTIONS)
        client.responses.cancel("bg_4")
    [call] = store.select("llm")
    assert call[semconv.STREAM_OUTCOME] == "cancelled"
    assert call[semconv.RESPONSE_FINISH_REASONS] == ("cancelled",)


def test_a_run_that_nobody_fetches_ends_with_its_trajectory():
    """Its span holds what is known of it, and says that it was dropped."""
    with (
        AnswerServer(queued("bg_5"), done("bg_5")) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        with starpo_trace.trajectory():
            client.responses.create(**OPTIONS)
        [call] = store.select("llm")
        client.responses.retrieve("bg_5")
    assert call[semconv.STREAM_OUTCOME] == "dropped"
    assert call[semconv.RESPONSE_ID] == "bg_5"
    assert "stream_incomplete" in store.select("trajectory")[0][semconv.USABLE_FOR_REASONS]
    assert [c[semconv.OPERATION_NAME] for c in store.select("llm")] == ["chat", "fetch_response"]


def test_an_answer_that_was_asked_for_elsewhere_is_recorded_once():
    """Without the request, the answer is a span of its own; a look at an unfinished one is none."""
    with (
        AnswerServer(queued("bg_6"), done("bg_6")) as server,
        client_of(server) as client,
        record_spans() as store,
        starpo_trace.trajectory(),
    ):
        for _ in range(3):
            client.responses.retrieve("bg_6")
    [span] = [span for span in store.spans if span.name.startswith("fetch_response")]
    assert span.name == "fetch_response gpt-x"
    assert span.attributes[semconv.RESPONSE_ID] == "bg_6"
    assert span.attributes[semconv.STEP] == 0
    assert '"3 left"' in span.attributes[semconv.OUTPUT_MESSAGES]


def test_a_failed_look_leaves_the_run_open():
    """The program gets its error, and a later look completes the span."""
    with (
        AnswerServer(queued("bg_7"), answer_error(404), done("bg_7")) as server,
        client_of(server) as client,
        record_spans() as store,
    ):
        client.responses.create(**OPTIONS)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("bg_7")
        client.responses.retrieve("bg_7")
    assert [call.get(semconv.ERROR_TYPE) for call in store.select("llm")] == [None]


@pytest.mark.parametrize("answer", [done("fused"), queued("fused")])
def test_a_call_inside_another_is_one_span(answer):
    """What the SDK saw completes the span of the router that called it, and ends with it."""
    with AnswerServer(answer) as server, client_of(server) as client, record_spans() as store:
        outer = begin_call(
            lambda: LLMRequest(provider="router", model="r", messages=(), is_passed_on=True)
        )
        assert outer is not None
        attachment = Attachment(outer.context)
        client.responses.create(**OPTIONS)
        attachment.detach()
        outer.finish(LLMResponse(model="told"))
    calls = store.select("llm")
    assert [call[semconv.OPERATION_NAME] for call in calls] == ["chat"]
    [call] = calls
    assert call[semconv.RESPONSE_ID] == "fused"
    assert call[semconv.RESPONSE_MODEL] == "gpt-x"
    assert '"how many?"' in call[semconv.INPUT_MESSAGES]
