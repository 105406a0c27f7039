"""Frameworks' own spans: forms as their real emitters wrote them, with invented content.

Checked against agentlightning 0.3.0 (with agentops 0.4.21), langsmith 0.15.1, haystack-ai 3.4.1 (with
opentelemetry-haystack 2.0.0), litellm 1.110.2, pydantic-ai 2.68.0, strands-agents 1.62.0,
semantic-kernel 1.45.0, agent-framework-core 1.23.0, autogen-core 0.7.5.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.dialects import convert_span
from starpo_trace.convert.dialects.canonical import CanonicalSpan, Rejection
from starpo_trace.convert.otlp import SpanRow

TRACE_ID = f"{7:032x}"
CALLS = [("c1", "stock", '{"sku":"A7"}'), ("c2", "stock", '{"sku":"B8"}')]
OPENAI_CALLS = [
    {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    for call_id, name, arguments in CALLS
]
SCHEMA = {"type": "object", "properties": {"sku": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "stock", "parameters": SCHEMA}}]
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "how many?"}]
ASKED = {"role": "assistant", "content": "Looking.", "tool_calls": OPENAI_CALLS}
RESULTS = [
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "tool", "tool_call_id": "c2", "content": "0"},
]
ANSWER = {"role": "assistant", "content": "Three in all."}
TURNS = [
    (PROMPT, ASKED, "tool_calls", (9, 5), ([1, 2, 3], [4, 5])),
    ([*PROMPT, ASKED, *RESULTS], ANSWER, "stop", (20, 3), ([1, 2, 3, 4, 5, 6], [7, 8, 9])),
]


def row(number, name, attributes, *, parent=None, scope="theirs", events=(), **fields):
    """A span that starts at its number in microseconds, and lasts half of one."""
    times = {"start_ns": number * 1_000, "end_ns": number * 1_000 + 500, **fields}
    return SpanRow(
        source="file",
        trace_id=TRACE_ID,
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        name=name,
        scope=scope,
        attributes=attributes,
        events=tuple((event, number * 1_000, values) for event, values in events),
        **times,
    )


def completion(said, reason, ids):
    """A server's answer."""
    prompt_ids, response_ids = ids
    logprobs = {"content": [{"token": "x", "logprob": -0.5} for _ in response_ids]}
    message = {**said, "refusal": None, "annotations": None}
    choice = {"index": 0, "finish_reason": reason, "message": message, "logprobs": logprobs}
    return {
        "object": "chat.completion",
        "choices": [{**choice, "token_ids": response_ids}],
        "prompt_token_ids": prompt_ids,
    }


def langsmith():
    rows = [
        row(
            1,
            "agent",
            {
                "langsmith.span.kind": "chain",
                "langsmith.trace.name": "agent",
                "langsmith.metadata.thread_id": "s-1",
                "gen_ai.operation.name": "chain",
                "gen_ai.prompt": '{"q":"how many?"}',
            },
        )
    ]
    for number, (prompt, said, reason, usage, ids) in enumerate(TURNS):
        request = {"messages": prompt, "model": "m", "temperature": 0.5, "tools": TOOLS}
        attributes = {
            "langsmith.span.kind": "llm",
            "langsmith.trace.name": "ChatOpenAI",
            "langsmith.trace.session_name": "default",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "m-1",
            "gen_ai.usage.input_tokens": usage[0],
            "gen_ai.usage.output_tokens": usage[1],
            "gen_ai.prompt": json.dumps(request),
            "gen_ai.completion": json.dumps(completion(said, reason, ids)),
        }
        rows.append(row(10 + 10 * number, "ChatOpenAI", attributes, parent=1))
        if number == 0:
            rows += [
                row(
                    11 + each,
                    "stock",
                    {
                        "langsmith.span.kind": "tool",
                        "gen_ai.operation.name": "execute_tool",
                        "gen_ai.tool.name": "stock",
                        "gen_ai.prompt": CALLS[each][2],
                        "gen_ai.completion": '{"output":3}',
                    },
                    parent=1,
                )
                for each in range(2)
            ]
    return rows


def haystack_message(message):
    content = [{"text": message["content"]}] if message["role"] != "tool" else []
    content += [
        {"tool_call": {"tool_name": name, "arguments": json.loads(arguments), "id": call_id}}
        for call_id, name, arguments in (CALLS if "tool_calls" in message else ())
    ]
    if message["role"] == "tool":
        origin = {"tool_name": "stock", "arguments": {}, "id": message["tool_call_id"]}
        result = {"result": message["content"], "origin": origin, "error": False}
        content = [{"tool_call_result": result}]
    return {"role": message["role"], "meta": {}, "name": None, "content": content}


def haystack():
    rows = [row(1, "haystack.agent.run", {"haystack.agent.max_steps": 100})]
    tool = {"type": "haystack.tools.tool.Tool", "data": {"name": "stock", "parameters": SCHEMA}}
    for number, (prompt, said, reason, usage, _) in enumerate(TURNS):
        step = 10 + 10 * number
        names = ("prompt_tokens", "completion_tokens")
        meta = {
            "model": "m-1",
            "finish_reason": reason,
            "usage": dict(zip(names, usage, strict=True)),
        }
        given = {"messages": [haystack_message(each) for each in prompt], "tools": [tool]}
        given["generation_kwargs"] = {"temperature": 0.5}
        gave = {"replies": [{**haystack_message(said), "meta": meta}]}
        rows += [
            row(step, "haystack.agent.step", {"haystack.agent.step": number}, parent=1),
            row(
                step + 1,
                "haystack.agent.step.llm",
                {
                    "haystack.agent.step.llm.input": json.dumps(given),
                    "haystack.agent.step.llm.output": json.dumps(gave),
                },
                parent=step,
            ),
        ]
        rows += [
            row(
                step + 2 + each,
                "haystack.agent.step.tool",
                {
                    "haystack.tool.name": "stock",
                    "haystack.agent.step.tool.input": CALLS[each][2],
                    "haystack.agent.step.tool.output": "3",
                },
                parent=step,
            )
            for each in range(2 if number == 0 else 0)
        ]
    return rows


def litellm():
    """Two spans for each call, in a trace of the program's own."""
    rows = [row(1, "POST /ask", {"http.method": "POST"})]
    for number, (prompt, said, reason, usage, ids) in enumerate(TURNS):
        outer = 10 + 10 * number
        wire = []
        for message in prompt:
            beside = {k: message[k] for k in ("tool_calls", "tool_call_id") if k in message}
            parts = [{"type": "text", "content": message["content"]}]
            wire.append({"role": message["role"], "parts": parts, **beside})
        output = {"role": "assistant", "parts": [{"type": "text", "content": said["content"]}]}
        attributes = {
            "gen_ai.operation.name": "chat",
            "llm.request.type": "completion",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "m-1",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.usage.input_tokens": usage[0],
            "gen_ai.usage.output_tokens": usage[1],
            "gen_ai.response.id": f"r-{number}",
            "gen_ai.input.messages": json.dumps(wire),
            "gen_ai.output.messages": json.dumps([{**output, "finish_reason": reason}]),
            **{
                f"gen_ai.completion.{each}.function_call.{key}": value
                for each, (_, name, arguments) in enumerate(CALLS if "tool_calls" in said else ())
                for key, value in (("name", name), ("arguments", arguments))
            },
        }
        answer = completion(said, reason, ids)
        names = ("prompt_tokens", "completion_tokens")
        raw = {
            "messages": str(prompt),
            "temperature": 0.5,
            "tools": str(TOOLS),
            "extra_body": "{'return_token_ids': True}",
            "id": f"r-{number}",
            "choices": str(answer["choices"]),
            "model": "m-1",
            "usage": str(dict(zip(names, usage, strict=True))),
            "prompt_token_ids": str(answer["prompt_token_ids"]),
        }
        raw = {f"llm.hosted_vllm.{name}": value for name, value in raw.items()}
        wide = {"end_ns": outer * 1_000 + 5_000}
        rows += [
            row(outer, "litellm_request", attributes, parent=1, scope="litellm", **wide),
            row(outer + 1, "raw_gen_ai_request", raw, parent=outer, scope="litellm"),
        ]
    return rows


def agentlightning():
    resource = {"agentlightning.rollout_id": "ro-1", "agentlightning.attempt_id": "at-1"}
    rows = [row(1, "x.session", {"agentops.span.kind": "session", "operation.name": "agent"})]
    for number, (prompt, said, reason, usage, ids) in enumerate(TURNS):
        call = 10 + 10 * number
        attributes = {
            "gen_ai.request.type": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "m-1",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.usage.prompt_tokens": usage[0],
            "gen_ai.usage.completion_tokens": usage[1],
            "gen_ai.response.id": f"r-{number}",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": said["content"],
            "gen_ai.completion.0.finish_reason": reason,
            "gen_ai.request.functions.0.name": "stock",
            "gen_ai.request.functions.0.parameters": json.dumps(SCHEMA),
            "prompt_token_ids": ids[0],
            "response_token_ids": ids[1],
            "logprobs.content": json.dumps([{"token": "x", "logprob": -0.5} for _ in ids[1]]),
        }
        for i, message in enumerate(prompt):
            attributes |= {
                f"gen_ai.prompt.{i}.{key}": message[key]
                for key in ("role", "content", "tool_call_id")
                if key in message
            }
            for j, (call_id, name, arguments) in enumerate(
                CALLS if "tool_calls" in message else ()
            ):
                start = f"gen_ai.prompt.{i}.tool_calls.{j}"
                attributes |= {
                    f"{start}.id": call_id,
                    f"{start}.name": name,
                    f"{start}.arguments": arguments,
                }
        rows.append(row(call, "openai.chat.completion", attributes, parent=1))
        rows += [
            row(
                call + 1 + each,
                "tool_call.stock",
                {
                    "agentops.span.kind": "AgentOpsSpanKindValues.TOOL",
                    "tool.name": name,
                    "tool.parameters": arguments,
                    "tool.call.id": call_id,
                },
                parent=call,
            )
            for each, (call_id, name, arguments) in enumerate(CALLS if "tool_calls" in said else ())
        ]
    return [replace(each, resource=resource) for each in rows]


def genai_message(message, result="response"):
    parts = [{"type": "text", "content": message["content"]}]
    parts += [
        {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}
        for call_id, name, arguments in (CALLS if "tool_calls" in message else ())
    ]
    if message["role"] == "tool":
        call_id = message["tool_call_id"]
        parts = [{"type": "tool_call_response", "id": call_id, result: message["content"]}]
    return {"role": message["role"], "parts": parts}


def pydantic_ai():
    """Format version 2."""
    whole = json.dumps([genai_message(each, "result") for each in [*TURNS[1][0], ANSWER]])
    root = {
        "gen_ai.operation.name": "invoke_agent",
        "agent_name": "agent",
        "gen_ai.aggregated_usage.input_tokens": 29,
        "pydantic_ai.all_messages": whole,
        "final_result": "Three in all.",
    }
    rows = [row(1, "agent run", root, scope="pydantic-ai")]
    for number, (prompt, said, reason, usage, _) in enumerate(TURNS):
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.response.model": "m-1",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.tool.definitions": json.dumps(TOOLS),
            "gen_ai.input.messages": json.dumps([genai_message(m, "result") for m in prompt[1:]]),
            "gen_ai.system_instructions": '[{"type":"text","content":"Be brief."}]',
            "gen_ai.output.messages": json.dumps([genai_message(said)]),
            "gen_ai.usage.input_tokens": usage[0],
            "gen_ai.usage.output_tokens": usage[1],
            "gen_ai.response.finish_reasons": [reason],
        }
        rows.append(row(10 + 10 * number, "chat m", attributes, parent=1, scope="pydantic-ai"))
    tool = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "stock",
        "gen_ai.tool.call.id": "c1",
        "tool_arguments": CALLS[0][2],
        "tool_response": "3",
    }
    rows.append(row(11, "running tool", tool, parent=1, scope="pydantic-ai"))
    rows.append(row(12, "running 2 tools", {}, parent=1, scope="pydantic-ai"))
    return rows


def strands():
    """`gen_ai_latest_experimental`: one details event for each attribute, tools on the agent."""
    details = "gen_ai.client.inference.operation.details"
    tools = [{"name": "stock", "inputSchema": {"json": SCHEMA}}]
    root = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "agent",
        "gen_ai.tool.definitions": json.dumps(tools),
        "gen_ai.usage.input_tokens": 29,
        "gen_ai.usage.output_tokens": 8,
    }
    scope = "strands.telemetry.tracer"
    rows = [row(1, "invoke_agent agent", root, scope=scope)]
    for number, (prompt, said, reason, usage, _) in enumerate(TURNS):
        cycle = 10 + 10 * number
        loop = {
            "gen_ai.operation.name": "execute_event_loop_cycle",
            "event_loop.cycle_id": f"cycle-{number}",
        }
        events = [
            (details, {key: json.dumps(value)})
            for key, value in (
                ("gen_ai.system_instructions", [{"type": "text", "content": "Be brief."}]),
                ("gen_ai.input.messages", [genai_message(each) for each in prompt[1:]]),
                ("gen_ai.output.messages", [{**genai_message(said), "finish_reason": reason}]),
            )
        ]
        call = {
            "gen_ai.operation.name": "chat",
            "gen_ai.response.model": "m-1",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.usage.input_tokens": usage[0],
            "gen_ai.usage.output_tokens": usage[1],
        }
        rows += [
            row(cycle, "execute_event_loop_cycle", loop, parent=1, scope=scope),
            row(cycle + 1, "chat", call, parent=cycle, scope=scope, events=events),
        ]
    return rows


EMITTERS = {
    # emitter: rejected, has token ids, steps
    langsmith: ({}, True, 4),
    haystack: ({"container": 2}, False, 4),
    litellm: ({"duplicate_llm_call": 2, "not_an_agent_span": 1}, True, 2),
    agentlightning: ({"part_of_call": 2}, True, 2),
    pydantic_ai: ({"container": 1}, False, 3),
    strands: ({"container": 2}, False, 2),
}


def count(values):
    return {value: values.count(value) for value in values}


@pytest.mark.parametrize("emitter", EMITTERS)
def test_the_same_agent_is_the_same_trajectory(emitter):
    """Two turns, two tools at once: prompts, answers, actions, usage, ids, whoever wrote it."""
    rejected, has_ids, num_steps = EMITTERS[emitter]
    tables = convert_rows(emitter())
    assert count(tables["rejected"]["reason"].to_list()) == rejected
    (run,) = tables["trajectories"].to_dicts()
    assert (run["num_turns"], run["num_steps"]) == (2, num_steps)
    assert (run["input_tokens"], run["output_tokens"]) == (29, 8)  # of the calls alone
    assert (run["num_messages"], run["num_branches"]) == (6, 1)
    assert run["usable_for"] == "sft"
    first, second = tables["turns"].to_dicts()
    calls = [(call["id"], call["name"], call["arguments"]) for call in first["tool_calls"]]
    assert calls == CALLS
    assert (first["text"], second["text"]) == ("Looking.", "Three in all.")
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
    assert (first["model"], first["temperature"]) == ("m-1", 0.5)
    assert "stock" in first["tool_definitions"]
    if has_ids:
        assert [turn["response_token_ids"] for turn in (first, second)] == [[4, 5], [7, 8, 9]]
        assert first["prompt_token_ids"] == [1, 2, 3]
        assert first["response_logprobs"] == [-0.5, -0.5]
    results = [
        part["response"]
        for message in tables["messages"].sort("depth")["message"]
        for part in json.loads(message)["parts"]
        if part["type"] == "tool_call_response"
    ]
    assert results == ["3", "0"]


def annotation(number, attributes, **fields):
    return row(number, "agentlightning.annotation", attributes, parent=1, **fields)


def link(key, value):
    return {"agentlightning.link.0.key_match": key, "agentlightning.link.0.value_match": value}


def test_agent_lightnings_rewards():
    """Of the rollout, with several dimensions; of a call, by attribute or span id, before it too."""
    resource = agentlightning()[0].resource
    whole = {
        "agentlightning.reward.0.name": "task",
        "agentlightning.reward.0.value": 1.0,
        "agentlightning.reward.1.name": "speed",
        "agentlightning.reward.1.value": 0.25,
    }
    one = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 0.5}
    rewards = [
        annotation(40, whole),
        annotation(2, one | link("gen_ai.response.id", "r-1")),  # its target comes later
        annotation(41, one | link("span_id", f"{10:016x}")),
        annotation(42, one | link("gen_ai.response.id", "r-9")),
        annotation(43, {"agentlightning.tag.0": "odd"}),
        annotation(44, {"agentlightning.reward.0.name": "x", "agentlightning.reward.0.value": "y"}),
        row(45, "agentlightning.message", {"agentlightning.message.body": "hello"}, parent=1),
    ]
    rows = agentlightning() + [replace(each, resource=resource) for each in rewards]
    tables = convert_rows(rows)
    found = [
        (each["name"], each["value"], each["scope"], each["turn"])
        for each in tables["rewards"].sort("span_id", "name").to_dicts()
    ]
    assert found == [
        ("primary", 0.5, "turn", 1),
        ("speed", 0.25, "trajectory", None),
        ("task", 1.0, "trajectory", None),
        ("primary", 0.5, "turn", 0),
    ]
    assert not any(tables["rewards"]["trusted"])
    (run,) = tables["trajectories"].to_dicts()
    assert run["trajectory_id"] == "ro-1/at-1"
    assert count(tables["rejected"]["reason"].to_list()) == {
        "part_of_call": 2,
        "reward_target_missing": 1,
        "unknown_operation": 2,
        "reward_value": 1,
    }


def test_rollouts_are_told_by_the_process_whoever_wrote_the_spans():
    """Two attempts in one trace are two runs, also of calls in another dialect."""
    call = {"openinference.span.kind": "LLM"}
    call |= {f"llm.output_messages.0.message.{k}": v for k, v in ANSWER.items()}
    rows = [
        replace(
            row(number, "call", call),
            resource={
                "agentlightning.rollout_id": "ro-1",
                "agentlightning.attempt_id": f"at-{number}",
            },
        )
        for number in (1, 2)
    ]
    ids = convert_rows(rows)["trajectories"]["trajectory_id"].to_list()
    assert ids == ["ro-1/at-1", "ro-1/at-2"]


def test_rewards_of_before_agent_lightning_0_3():
    """As an attribute of the annotation, or as what a function of AgentOps returned."""
    old = [
        annotation(40, {"reward": 0.75}),
        row(
            41,
            "reward",
            {
                "agentops.span.kind": "task",
                "agentops.entity.output": '{"type":"reward","value":0.5}',
            },
            parent=1,
        ),
    ]
    values = convert_rows(agentlightning() + old)["rewards"].sort("span_id")["value"]
    assert values.to_list() == [0.75, 0.5]


def test_a_litellm_answer_without_its_raw_span_has_calls_without_ids():
    """The calls stand in attributes of their own; ids are nowhere in the span."""
    rows = [each for each in litellm() if each.name != "raw_gen_ai_request"]
    first = convert_rows(rows)["turns"].to_dicts()[0]
    found = [(call["id"], call["name"], call["arguments"]) for call in first["tool_calls"]]
    assert found == [(None, name, arguments) for _, name, arguments in CALLS]


def test_an_empty_raw_span_gives_way_to_the_outer_one():
    """LiteLLM leaves it empty for some providers."""
    rows = [
        replace(each, attributes={}) if each.name == "raw_gen_ai_request" else each
        for each in litellm()
    ]
    tables = convert_rows(rows)
    assert tables["turns"]["text"].to_list() == ["Looking.", "Three in all."]
    assert set(tables["rejected"]["name"]) == {"raw_gen_ai_request", "POST /ask"}


def test_langchains_serialised_messages():
    """`lc` constructors, lists of lists, parsed arguments."""

    def make(kind, **kwargs):
        return {"lc": 1, "type": "constructor", "id": ["langchain", kind], "kwargs": kwargs}

    call = {"name": "stock", "args": {"sku": "A7"}, "id": "c1", "type": "tool_call"}
    said = make("AIMessage", content="", tool_calls=[call], type="ai")
    prompt = [
        make("SystemMessage", content="Be brief."),
        make("HumanMessage", content="how many?"),
        said,
        make("ToolMessage", content="3", tool_call_id="c1"),
    ]
    told = make("AIMessage", content="Three.", response_metadata={"finish_reason": "stop"})
    attributes = {
        "langsmith.span.kind": "llm",
        "gen_ai.prompt": json.dumps({"messages": [prompt]}),
        "gen_ai.completion": json.dumps({"generations": [[{"text": "Three.", "message": told}]]}),
    }
    tables = convert_rows([row(1, "ChatOpenAI", attributes)])
    messages = [json.loads(message) for message in tables["messages"].sort("depth")["message"]]
    assert [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    (part,) = messages[2]["parts"]
    assert (part["id"], part["name"], part["arguments"]) == ("c1", "stock", '{"sku":"A7"}')
    assert messages[3]["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "3"}]
    turn = tables["turns"].to_dicts()[0]
    assert (turn["text"], turn["finish_reason"]) == ("Three.", "stop")


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"role": "assistant", "content": "Three."}, "Three."),
        ({"message": {"role": "assistant", "content": "Three."}}, "Three."),
        ({"content": [{"type": "text", "text": "Three."}], "role": "assistant"}, "Three."),
        ({"output": "Three."}, "Three."),
        ({"generations": [[{"text": "Three."}]]}, "Three."),
        ({"choices": []}, None),
        ({}, None),
    ],
)
def test_langsmiths_outputs_of_any_form(outputs, text):
    """What a traced function returned."""
    attributes = {
        "langsmith.span.kind": "llm",
        "gen_ai.prompt": json.dumps({"messages": PROMPT}),
        "gen_ai.completion": json.dumps(outputs),
    }
    assert convert_rows([row(1, "call", attributes)])["turns"]["text"].to_list() == [text]


def test_anthropics_blocks_in_langsmith():
    """System beside the messages; thinking, calls and results as blocks."""
    said = [
        {"type": "thinking", "thinking": "hm", "signature": "s=="},
        {"type": "tool_use", "id": "c1", "name": "stock", "input": {"sku": "A7"}},
    ]
    result = [{"type": "tool_result", "tool_use_id": "c1", "content": "3"}]
    messages = [
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": result},
    ]
    attributes = {
        "langsmith.span.kind": "llm",
        "gen_ai.prompt": json.dumps({"system": "Be brief.", "messages": messages}),
        "gen_ai.completion": json.dumps({"content": [{"type": "text", "text": "Three."}]}),
    }
    found = convert_rows([row(1, "call", attributes)])["messages"].sort("depth")["message"]
    found = [json.loads(message) for message in found]
    assert [message["role"] for message in found] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [part["type"] for part in found[2]["parts"]] == ["reasoning", "tool_call"]


def test_haystack_pipelines_and_generators_of_texts():
    """A component that replies is a call; any other is a step; older messages have underscores."""
    old = {"_role": "user", "_content": [{"text": "how many?"}], "_name": None, "_meta": {}}
    chat = {
        "haystack.component.name": "llm",
        "haystack.component.type": "OpenAIChatGenerator",
        "haystack.component.input": json.dumps({"messages": [old]}),
        "haystack.component.output": json.dumps({"replies": [{**old, "_role": "assistant"}]}),
    }
    text = {
        "haystack.component.type": "OpenAIGenerator",
        "haystack.component.input": json.dumps({"prompt": "1 + 2 ="}),
        "haystack.component.output": json.dumps({"replies": ["3"], "meta": [{"model": "m-1"}]}),
    }
    builder = {"haystack.component.type": "PromptBuilder"}
    rows = [
        row(1, "haystack.pipeline.run", {}),
        row(2, "haystack.component.run", builder, parent=1),
        row(3, "haystack.component.run", chat, parent=1),
        row(4, "haystack.component.run", text, parent=1),
        row(5, "haystack.other", {}, parent=1),
    ]
    tables = convert_rows(rows)
    assert tables["turns"]["text"].to_list() == ["how many?", "3"]
    assert tables["turns"]["model"].to_list() == [None, "m-1"]
    assert tables["trajectories"]["num_steps"].to_list() == [3]
    assert tables["rejected"]["reason"].to_list() == ["unknown_operation"]


def test_haystack_without_content_is_fit_for_nothing():
    """Content is off by default: spans have names and nothing else."""
    rows = [row(1, "haystack.agent.run", {}), row(2, "haystack.agent.step.llm", {}, parent=1)]
    (run,) = convert_rows(rows)["trajectories"].to_dicts()
    assert run["usable_for"] == "none"
    assert "no_content" in run["reasons"]


def test_pydantic_ais_first_version_kept_events_in_an_attribute():
    """One JSON list of message events."""
    events = [
        {"event.name": "gen_ai.system.message", "content": "Be brief.", "role": "system"},
        {"event.name": "gen_ai.user.message", "content": "how many?", "role": "user"},
        {
            "event.name": "gen_ai.choice",
            "index": 0,
            "message": {"role": "assistant", "content": "Three."},
        },
    ]
    attributes = {"gen_ai.operation.name": "chat", "events": json.dumps(events)}
    tables = convert_rows([row(1, "chat m", attributes, scope="pydantic-ai")])
    assert tables["turns"]["text"].to_list() == ["Three."]
    assert tables["messages"].sort("depth")["role"].to_list() == ["system", "user", "assistant"]


CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"hi"}]}]',
    "gen_ai.output.messages": '[{"role":"assistant","parts":[{"type":"text","content":"yo"}]}]',
}


def test_containers_hold_calls_and_are_no_steps():
    """agent-framework's executors and edges, Alibaba's rounds: each has its reason."""
    rows = [
        row(1, "workflow.run", {"workflow.id": "w-1"}),
        row(2, "executor.process writer", {"executor.id": "writer"}, parent=1),
        row(3, "chat m", CHAT, parent=2),
        row(4, "edge_group.process Single", {"edge_group.type": "Single"}, parent=1),
        row(5, "message.send", {"message.type": "standard"}, parent=1),
        row(
            6,
            "react step",
            {
                "gen_ai.operation.name": "react",
                "gen_ai.span.kind": "STEP",
                "gen_ai.react.round": 1,
            },
            parent=1,
        ),
    ]
    tables = convert_rows(rows)
    assert tables["trajectories"]["agent_name"].to_list() == ["w-1"]
    assert tables["trajectories"]["num_steps"].to_list() == [1]
    details = tables["rejected"].sort("span_id")["detail"].to_list()
    assert set(tables["rejected"]["reason"]) == {"container"}
    assert details == [
        "executor.process writer",
        "edge_group.process Single",
        "message.send standard",
        "react 1",
    ]


def test_autogen_records_no_calls_and_says_so():
    """Agents and tools without what was said: nothing to learn from, by name."""
    rows = [
        row(1, "create_agent a", {"gen_ai.operation.name": "create_agent"}),
        row(2, "invoke_agent a", {"gen_ai.operation.name": "invoke_agent"}),
        row(3, "execute_tool t", {"gen_ai.operation.name": "execute_tool"}, parent=2),
    ]
    rows = [replace(each, scope="autogen-core") for each in rows]
    assert set(convert_rows(rows)["rejected"]["reason"]) == {"no_llm_call"}


def test_mcp_is_a_tools_call_on_its_way():
    """Client and server span inside of a tool's span are no further steps; alone, one is."""
    mcp = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "stock"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "stock"}
    rows = [
        row(1, "invoke_agent a", {"gen_ai.operation.name": "invoke_agent"}),
        row(2, "chat m", CHAT, parent=1),
        row(3, "execute_tool stock", tool, parent=1),
        row(4, "tools/call stock", mcp, parent=3),
        row(5, "tools/call stock", mcp, parent=4),
        row(6, "tools/list", {"mcp.method.name": "tools/list"}, parent=1),
        row(7, "tools/call stock", mcp, parent=1),
        row(8, "tools/call stock", mcp, parent=7),
    ]
    tables = convert_rows(rows)
    assert tables["rejected"]["reason"].to_list() == ["mcp_transport"] * 4
    assert tables["trajectories"]["num_steps"].to_list() == [3]  # the call, 3 and 7


def test_feedback_on_either_span_of_a_call_is_kept():
    """A call seen twice: events, annotations and late links on the one that is left out."""
    outer = {
        **CHAT,
        "openinference.span.kind": "LLM",
        "annotations.0.annotation.name": "helpful",
        "annotations.0.annotation.score": 1.0,
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "hi",
    }
    late = {"annotations.0.annotation.name": "late", "annotations.0.annotation.score": 0.5}
    rows = [
        row(1, "framework", outer),
        row(2, "provider", CHAT, parent=1),
        replace(row(3, "feedback", late), links=((TRACE_ID, f"{1:016x}"),)),
    ]
    tables = convert_rows(rows)
    assert tables["rejected"]["reason"].to_list() == ["duplicate_llm_call"]
    found = tables["rewards"].sort("name").select("name", "value", "turn").rows()
    assert found == [("helpful", 1.0, 0), ("late", 0.5, 0)]


def test_calls_with_one_answer_id_are_one_when_they_overlap():
    """Siblings of two libraries at one time; not a server that gives every answer one id."""
    call = {**CHAT, "gen_ai.response.id": "r-1"}
    twins = [row(1, "a", call, scope="a"), row(2, "b", call, scope="b", start_ns=1_100)]
    apart = [row(1, "a", call, scope="a"), row(2, "b", call, scope="b")]
    same = [row(1, "a", call, scope="a"), row(2, "b", call, scope="a", start_ns=1_100)]
    assert [convert_rows(each)["turns"].height for each in (twins, apart, same)] == [1, 2, 2]


def test_three_records_of_one_call_are_one_turn():
    """The best stays, wherever it stands in the chain."""
    bare = {"gen_ai.operation.name": "chat"}
    for chain in ((CHAT, bare, bare), (bare, CHAT, bare), (bare, bare, CHAT)):
        rows = [row(i + 1, "call", each, parent=i or None) for i, each in enumerate(chain)]
        tables = convert_rows(rows)
        assert tables["turns"]["text"].to_list() == ["yo"]
        assert tables["rejected"].height == 2


@pytest.mark.parametrize("emitter", EMITTERS)
def test_copies_that_differ_are_found(emitter):
    """What is read of a span decides, in every dialect."""
    rows = emitter()
    for original in rows:
        name = next((key for key in original.attributes if key != "http.method"), None)
        if name is None or name.startswith(("operation.", "tool.", "agent_name")):
            continue
        other = replace(original, attributes={**original.attributes, name: "other"})
        before, after = (convert_span(each) for each in (original, other))
        if before == after:
            continue  # nothing of it is read
        rejected = convert_rows([*rows, other])["rejected"]
        assert "conflicting_copies" in rejected["reason"].to_list()


@pytest.mark.parametrize("emitter", EMITTERS)
def test_copies_that_passed_a_collector_are_silent(emitter):
    """Read from two places, with more attributes: the same run, each copy counted."""
    rows = emitter()
    passed = [
        replace(
            each,
            source="collector",
            attributes={**each.attributes, "k8s.pod": "a"},
            resource={**each.resource, "cluster": "a"},
        )
        for each in rows
    ]
    once, twice = convert_rows(rows), convert_rows([*rows, *passed])
    for name in ("trajectories", "turns", "messages"):
        assert (
            once[name].drop("source", strict=False).equals(twice[name].drop("source", strict=False))
        )
    assert once["rejected"].drop("source").equals(twice["rejected"].drop("source"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("emitter", EMITTERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_values_are_data_or_have_a_reason(emitter, data):
    """Any value in any attribute of a real form: used or rejected by name, never an exception."""
    rows = emitter()
    i = data.draw(st.integers(0, len(rows) - 1))
    attributes = rows[i].attributes or {"gen_ai.prompt": None}
    name = data.draw(st.sampled_from(sorted(attributes)))
    value = data.draw(VALUES | VALUES.map(json.dumps) | VALUES.map(str))
    rows[i] = replace(rows[i], attributes={**attributes, name: value})
    for each in rows:
        assert isinstance(convert_span(each), (CanonicalSpan, Rejection))
    convert_rows(rows)


def test_logfires_streamed_answer_belongs_to_its_call():
    """A span without an answer and a log beside it are one turn; two of them are two."""
    asked = {**CHAT, "logfire.span_type": "span"}
    del asked["gen_ai.output.messages"]
    told = {**CHAT, "logfire.span_type": "log", "gen_ai.response.model": "m-1"}
    wide = {"end_ns": 20_000}
    rows = [
        row(1, "run", {"logfire.span_type": "span"}),
        row(2, "Chat Completion with 'm'", asked, parent=1, scope="logfire.openai", **wide),
        row(3, "Chat Completion with 'm'", asked, parent=1, scope="logfire.openai", **wide),
        row(4, "streaming response from 'm'", told, parent=1, scope="logfire.openai"),
        row(5, "streaming response from 'm'", told, parent=1, scope="logfire.openai"),
        row(6, "chat m", {**asked, "logfire.span_type": "pending_span"}, parent=3),
    ]
    tables = convert_rows(rows)
    turns = tables["turns"]
    assert turns["text"].to_list() == ["yo", "yo"]
    assert turns["span_id"].to_list() == [f"{2:016x}", f"{3:016x}"]
    assert turns["model"].to_list() == ["m-1", "m-1"]
    reasons = tables["rejected"]["reason"].to_list()
    assert count(reasons) == {"part_of_call": 3, "not_an_agent_span": 1}
    alone = convert_rows([rows[0], rows[3]])["turns"]
    assert alone["text"].to_list() == ["yo"]
