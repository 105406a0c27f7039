"""Small agent runs -> spans of several dialects, sent to a backend and kept as OTLP at once.

What a backend gives back can so be compared with the same spans exported directly.
"""

import json
from pathlib import Path

import openai
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, set_span_in_context

import starpo_trace
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

ARGUMENTS = '{"sku": "A7",  "n":1e0}'
"""Not as a JSON library would write it, so that a copy that was parsed is told from the text."""
CALL = "tool_calls.0.tool_call"
TOOLS = [
    {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}},
]
SCRIPT = (
    Reply(
        content="let me see",
        reasoning_content="look it up",
        tool_calls=[ToolCall(id="c1", name="stock", arguments=ARGUMENTS)],
        prompt_token_ids=[1, 2, 3],
        token_ids=[4, 5],
        logprobs=[-0.25, -1.5],
        usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    ),
    Reply(
        content="3 are left",
        usage={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    ),
)


def send_runs(endpoint: str, path: Path, headers: dict[str, str] | None = None) -> None:
    """Runs of `starpo_trace`, OpenInference and GenAI spans -> `endpoint`, and a file of OTLP."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(
        resource=Resource.create({"service.name": "shop", "openinference.project.name": "shop"})
    )
    exporter = OTLPSpanExporter(endpoint, headers=headers, timeout=30)
    for each in (memory, exporter):
        provider.add_span_processor(SimpleSpanProcessor(each))
    _run_starpo(provider)
    _run_openinference(provider)
    _run_genai(provider)
    provider.shutdown()
    path.write_bytes(encode_spans(memory.get_finished_spans()).SerializeToString())


def run_agent(client: openai.OpenAI) -> None:
    """Two calls of the model and one of a tool."""
    messages = [{"role": "user", "content": "how many A7?"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    messages.append(answer.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": "c1", "content": "3"})
    client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)


def _run_starpo(provider: TracerProvider) -> None:
    starpo_trace.instrument(tracer_provider=provider)
    try:
        with (
            ScriptedServer(SCRIPT) as server,
            openai.OpenAI(base_url=server.base_url, api_key="none") as client,
            starpo_trace.trajectory("shop", task_id="task-1", attempt=2),
        ):
            with starpo_trace.step("tool", "stock", call_id="c1", arguments=ARGUMENTS) as step:
                step.result(3)
            run_agent(client)
            starpo_trace.reward(1.0)
    finally:
        starpo_trace.uninstrument()


def _run_openinference(provider: TracerProvider) -> None:
    """Spans as OpenInference's instrumentors write them, messages flattened by index."""
    tracer = provider.get_tracer("openinference.instrumentation.openai")
    root = tracer.start_span(
        "agent",
        attributes={
            "openinference.span.kind": "AGENT",
            "agent.name": "shop",
            "session.id": "s-1",
            "input.value": "how many A7?",
            "metadata": json.dumps({"tenant": "x", "n": 1}),
            "tag.tags": ["a", "b"],
        },
    )
    within = set_span_in_context(root)
    call = {f"{CALL}.id": "c1", f"{CALL}.function.name": "stock"}
    call[f"{CALL}.function.arguments"] = ARGUMENTS
    prompt = {
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "You count.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.contents.0.message_content.type": "text",
        "llm.input_messages.1.message.contents.0.message_content.text": "how many A7?",
    }
    common = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "tiny",
        "llm.provider": "openai",
        "llm.invocation_parameters": json.dumps({"temperature": 0.5, "max_tokens": 9}),
        "llm.tools.0.tool.json_schema": json.dumps(TOOLS[0]),
    }
    out = "llm.output_messages.0.message"
    first = {
        **common,
        **prompt,
        f"{out}.role": "assistant",
        f"{out}.contents.0.message_content.type": "reasoning",
        f"{out}.contents.0.message_content.text": "look it up",
        f"{out}.contents.1.message_content.type": "text",
        f"{out}.contents.1.message_content.text": "let me see",
        **{f"{out}.{key}": value for key, value in call.items()},
        "llm.token_count.prompt": 7,
        "llm.token_count.completion": 5,
        "llm.token_count.total": 12,
        "llm.token_count.prompt_details.cache_read": 2,
    }
    tracer.start_span("call", within, attributes=first).end()
    tool = {
        "openinference.span.kind": "TOOL",
        "tool.name": "stock",
        "tool.parameters": ARGUMENTS,
        "tool_call.id": "c1",
        "input.value": ARGUMENTS,
        "output.value": "3",
    }
    tracer.start_span("stock", within, attributes=tool).end()
    past = "llm.input_messages"
    second = {
        **common,
        **prompt,
        f"{past}.2.message.role": "assistant",
        f"{past}.2.message.content": "let me see",
        **{f"{past}.2.message.{key}": value for key, value in call.items()},
        f"{past}.3.message.role": "tool",
        f"{past}.3.message.tool_call_id": "c1",
        f"{past}.3.message.content": "3",
        f"{out}.role": "assistant",
        f"{out}.content": "3 are left",
        "llm.token_count.prompt": 20,
        "llm.token_count.completion": 4,
        "llm.token_count.total": 24,
    }
    tracer.start_span("call", within, attributes=second).end()
    failed = tracer.start_span("call", within, attributes={**common, **prompt})
    failed.record_exception(ValueError("no answer"))
    failed.set_status(Status(StatusCode.ERROR, "no answer"))
    failed.end()
    root.end()


def _run_genai(provider: TracerProvider) -> None:
    """Spans of GenAI conventions by somebody else: messages are JSON text."""
    tracer = provider.get_tracer("my.genai")
    root = tracer.start_span(
        "invoke_agent other",
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "other",
            "gen_ai.conversation.id": "c-1",
        },
    )
    asked = [{"role": "user", "parts": [{"type": "text", "content": "how many A7?"}]}]
    parts = [
        {"type": "reasoning", "content": "look it up"},
        {"type": "tool_call", "id": "c1", "name": "stock", "arguments": ARGUMENTS},
    ]
    call = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.input.messages": json.dumps(asked),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": parts}]),
        "gen_ai.response.finish_reasons": ["tool_calls"],
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": 6,
    }
    tracer.start_span("chat tiny", set_span_in_context(root), attributes=call).end()
    root.end()
