"""Name of a scenario -> what a program does, played in one instrumented process.

    python -m peers.scenarios SETUP BASE_URL

Prints, as JSON, the spans and log records that each scenario exported. Every scenario is plain
OpenAI SDK code; only a run's root span is opened by the means that the instrumentation offers:
`starpo_trace.trajectory`, else a span of the OpenTelemetry API.
"""

import asyncio
import contextlib
import gc
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pydantic
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from peers import expected
from peers.setups import SETUPS

USER = [{"role": "user", "content": "What do you see?"}]


class Answer(pydantic.BaseModel):
    """A structured output."""

    answer: int


class Agent:
    """Plays the scenarios."""

    def __init__(self, base_url: str, provider: TracerProvider, setup_name: str) -> None:
        options: Any = {"base_url": base_url, "api_key": "none", "max_retries": 0}
        self._client = openai.OpenAI(**options)
        self._async_client = openai.AsyncOpenAI(**options)
        self._create = self._client.chat.completions.create
        self._tracer = provider.get_tracer("agent")
        self._is_ours = setup_name.startswith("ours")

    def reasoning(self) -> None:
        self._create(model="reasoning", messages=USER)

    def reasoning_streamed(self) -> None:
        list(self._create(model="reasoning", messages=USER, stream=True))

    def tokens(self) -> None:
        body = {"return_token_ids": True}
        self._create(model="tokens", messages=USER, logprobs=True, extra_body=body)

    def tokens_streamed(self) -> None:
        body = {"return_token_ids": True}
        list(
            self._create(model="tokens", messages=USER, logprobs=True, extra_body=body, stream=True)
        )

    def tools(self) -> None:
        self._create(model="tools", messages=USER, tools=expected.TOOLS)

    def tools_streamed(self) -> None:
        list(self._create(model="tools", messages=USER, tools=expected.TOOLS, stream=True))

    def long_history(self) -> None:
        messages = expected.build_long_history()
        self._create(model="plain", messages=messages, tools=expected.TOOLS)

    def usage(self) -> None:
        self._create(model="plain", messages=USER)

    def usage_streamed(self) -> None:
        options = {"include_usage": True}
        list(self._create(model="plain", messages=USER, stream=True, stream_options=options))

    def stream_broken_in_with(self) -> None:
        with self._create(model="plain", messages=USER, stream=True) as stream:
            for _ in stream:
                break

    def stream_broken_and_dropped(self) -> None:
        stream = self._create(model="plain", messages=USER, stream=True)
        for _ in stream:
            break
        del stream

    def stream_cut(self) -> None:
        stream = self._create(model="cut", messages=USER, stream=True)
        with contextlib.suppress(Exception):
            list(stream)

    def stream_cancelled(self) -> None:
        asyncio.run(self._cancel_stream())

    async def _cancel_stream(self) -> None:
        has_chunk = asyncio.Event()

        async def read() -> None:
            create = self._async_client.chat.completions.create
            async for _ in await create(model="held", messages=USER, stream=True):
                has_chunk.set()

        task = asyncio.create_task(read())
        await has_chunk.wait()
        await asyncio.sleep(0.2)  # until it waits for a chunk that does not come
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.get_running_loop().shutdown_asyncgens()

    def raw_response(self) -> None:
        raw = self._client.chat.completions.with_raw_response
        raw.create(model="plain", messages=USER).parse()

    def streaming_response(self) -> None:
        streaming = self._client.chat.completions.with_streaming_response
        with streaming.create(model="plain", messages=USER) as response:
            response.parse()

    def parsed(self) -> None:
        parse = self._client.chat.completions.parse
        parse(model="json", messages=USER, response_format=Answer)

    def stream_helper(self) -> None:
        with self._client.chat.completions.stream(model="plain", messages=USER) as stream:
            list(stream)

    def responses(self) -> None:
        self._client.responses.create(model="responses", input="What do you see?")

    def responses_streamed(self) -> None:
        list(self._client.responses.create(model="responses", input="What?", stream=True))

    def error(self) -> None:
        with contextlib.suppress(openai.RateLimitError):
            self._create(model="limited", messages=USER)

    def run(self) -> None:
        messages: list[Any] = [{"role": "system", "content": expected.SYSTEM_PROMPT}, *USER]
        with self._open_run():
            for turn in range(4):
                self._create(model="plain", messages=messages)
                messages += [
                    {"role": "assistant", "content": expected.ANSWER},
                    {"role": "user", "content": f"And then, {turn}?"},
                ]

    def run_with_threads(self) -> None:
        with self._open_run(), ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: self._create(model="plain", messages=USER), range(4)))

    def _open_run(self) -> Any:
        if self._is_ours:
            import starpo_trace

            return starpo_trace.trajectory(task_id="lamp")
        return self._tracer.start_as_current_span("agent")


SCENARIOS = [name for name in vars(Agent) if not name.startswith("_")]


def describe_span(span: Any) -> dict[str, Any]:
    """What of a span is judged."""
    return {
        "name": span.name,
        "scope": span.instrumentation_scope.name,
        "trace_id": format(span.context.trace_id, "032x"),
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes),
        "events": [
            {"name": event.name, "attributes": dict(event.attributes)} for event in span.events
        ],
        "num_dropped": span.dropped_attributes,
    }


def describe_log(data: Any) -> dict[str, Any]:
    """What of a log record is judged."""
    record = data.log_record
    return {"body": record.body, "attributes": dict(record.attributes or {})}


def main() -> None:
    setup_name, base_url = sys.argv[1:]
    spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    logger_provider = LoggerProvider(shutdown_on_exit=False)
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
    SETUPS[setup_name].start(provider, logger_provider)
    agent = Agent(base_url, provider, setup_name)
    exported = {}
    for name in SCENARIOS:
        getattr(agent, name)()
        gc.collect()
        exported[name] = {
            "spans": [describe_span(span) for span in spans.get_finished_spans()],
            "logs": [describe_log(data) for data in logs.get_finished_logs()],
        }
        spans.clear()
        logs.clear()
    json.dump(exported, sys.stdout, default=repr)


if __name__ == "__main__":
    main()
