"""OpenInference, traceAI and OpenLLMetry: one agent in each one's words, and what each leaves out."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.dialects import convert_span
from starpo_trace.convert.dialects.canonical import CanonicalSpan
from starpo_trace.convert.dialects.flattened import gather
from starpo_trace.convert.otlp import SpanRow

ARGUMENTS = '{"sku":"A7",  "n":1e0}'
SCHEMA = {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}


def flatten(prefix, value):
    """Nested value -> attributes, one per leaf."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = ((str(i), item) for i, item in enumerate(value))
    else:
        return {prefix: value}
    return {
        key: leaf for name, item in items for key, leaf in flatten(f"{prefix}.{name}", item).items()
    }


def call_form(call_id, name, arguments):
    return {"tool_call": {"id": call_id, "function": {"name": name, "arguments": arguments}}}


CALLS = [call_form("c1", "stock", ARGUMENTS), call_form("c2", "stock", '{"sku":"B8"}')]
SAID = {"role": "assistant", "content": "Looking.", "tool_calls": CALLS}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "how many?"}
RESULTS = [
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "tool", "tool_call_id": "c2", "content": "0"},
]
RAW = {
    "prompt_token_ids": [1, 2, 3],
    "choices": [
        {
            "finish_reason": "tool_calls",
            "token_ids": [4, 5],
            "logprobs": {
                "content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]
            },
            "message": {"role": "assistant", "reasoning_content": "need stock"},
        }
    ],
}


def wrap(messages):
    return [{"message": message} for message in messages]


def openinference(prompt, said, *, raw=None, usage=(9, 2)):
    return {
        "openinference.span.kind": "LLM",
        "llm.model_name": "m-1",
        "llm.invocation_parameters": '{"model":"m","temperature":0.5,"top_p":0.9}',
        "llm.token_count.prompt": usage[0],
        "llm.token_count.completion": usage[1],
        "llm.tools.0.tool.json_schema": json.dumps(SCHEMA),
        **({} if raw is None else {"output.value": json.dumps(raw)}),
        **flatten("llm.input_messages", wrap(prompt)),
        **flatten("llm.output_messages", wrap([said])),
    }


def traceai(prompt, said, *, usage=(9, 2)):
    return {
        "gen_ai.span.kind": "LLM",
        "gen_ai.request.model": "m-1",
        "gen_ai.request.parameters": '{"model":"m","temperature":0.5,"top_p":0.9}',
        "gen_ai.usage.input_tokens": usage[0],
        "gen_ai.usage.output_tokens": usage[1],
        "gen_ai.tool.definitions": json.dumps([SCHEMA]),
        "gen_ai.tool.definitions.0.tool.json_schema": json.dumps(SCHEMA),
        **flatten("gen_ai.input.messages", wrap(prompt)),
        **flatten("gen_ai.output.messages", wrap([said])),
    }


def openllmetry(prompt, said, *, usage=(9, 2)):
    def unwrap(message):
        calls = [
            {"id": each["tool_call"]["id"], **each["tool_call"]["function"]}
            for each in message.get("tool_calls", ())
        ]
        return {**message, "tool_calls": calls} if calls else message

    return {
        "llm.request.type": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m-1",
        "llm.request.temperature": 0.5,
        "llm.top_p": 0.9,
        "gen_ai.usage.prompt_tokens": usage[0],
        "gen_ai.usage.completion_tokens": usage[1],
        "llm.request.functions.0.name": "stock",
        "llm.request.functions.0.parameters": '{"type": "object"}',
        **flatten("gen_ai.prompt", [unwrap(message) for message in prompt]),
        **flatten("gen_ai.completion", [unwrap(said)]),
    }


def make_row(number, attributes, *, parent=None, name="span"):
    return SpanRow(
        source="file",
        trace_id=f"{1:032x}",
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        name=name,
        scope="theirs",
        start_ns=number * 1_000,
        end_ns=number * 1_000 + 500,
        attributes=attributes,
    )


def play(dialect):
    """Two turns with two tools called at once, in one dialect."""
    first = dialect([SYSTEM, USER], SAID)
    answer = {"role": "assistant", "content": "Three."}
    second = dialect([SYSTEM, USER, SAID, *RESULTS], answer, usage=(20, 1))
    return convert_rows([make_row(1, first), make_row(2, second)])


@pytest.mark.parametrize("dialect", [openinference, traceai, openllmetry])
def test_the_same_agent_is_the_same_trajectory(dialect):
    """Prompts, answers, actions word for word, usage and sampling, whoever recorded it."""
    tables = play(dialect)
    assert tables["rejected"].height == 0
    [trajectory] = tables["trajectories"].to_dicts()
    names = ("num_turns", "num_tool_calls", "num_messages", "num_branches", "input_tokens")
    assert [trajectory[name] for name in names] == [2, 2, 6, 1, 29]
    first, second = tables["turns"].to_dicts()
    assert [(c["id"], c["name"], c["arguments"]) for c in first["tool_calls"]] == [
        ("c1", "stock", ARGUMENTS),
        ("c2", "stock", '{"sku":"B8"}'),
    ]
    assert (first["text"], second["text"]) == ("Looking.", "Three.")
    assert (first["model"], first["temperature"], first["top_p"]) == ("m-1", 0.5, 0.9)
    assert (first["input_tokens"], first["output_tokens"]) == (9, 2)
    assert "stock" in first["tool_definitions"]
    # The second prompt goes on from the first answer: one line of messages.
    messages = {row["node_id"]: row for row in tables["messages"].to_dicts()}
    chain, node = [], second["input_node"]
    while node is not None:
        chain.append(json.loads(messages[node]["message"])["role"])
        node = messages[node]["parent_id"]
    assert chain[::-1] == ["system", "user", "assistant", "tool", "tool"]
    assert messages[first["output_node"]]["sampled_turn"] == 0


def test_openinference_keeps_what_the_server_said_as_text():
    """Reasoning, token ids and log-probabilities of vLLM come out of the raw answer."""
    row = make_row(1, openinference([SYSTEM, USER], SAID, raw=RAW))
    [turn] = convert_rows([row])["turns"].to_dicts()
    assert (turn["reasoning"], turn["finish_reason"]) == ("need stock", "tool_calls")
    assert turn["prompt_token_ids"] == [1, 2, 3]
    assert (turn["response_token_ids"], turn["response_logprobs"]) == ([4, 5], [-0.5, -0.25])
    assert turn["token_provenance"] == "exact"


def test_contents_in_order():
    """Reasoning with its signature, text, a call by its id, an image."""
    contents = [
        {"message_content": {"type": "reasoning", "text": "hm", "signature": "s=="}},
        {"message_content": {"type": "text", "text": "So."}},
        {"message_content": {"type": "tool_use", "id": "c2"}},
        {"message_content": {"type": "image", "image": {"image": {"url": "http://x/i.png"}}}},
    ]
    said = {"role": "assistant", "contents": contents, "tool_calls": CALLS}
    span = convert_span(make_row(1, openinference([USER], said)))
    assert isinstance(span, CanonicalSpan)
    [answer] = [node for node in span.nodes if node.get("sampled")]
    parts = json.loads(answer["message"])["parts"]
    assert [part["type"] for part in parts] == [
        *("reasoning", "text", "tool_call", "image", "tool_call")
    ]
    assert parts[0] == {"type": "reasoning", "content": "hm", "meta": {"signature": "s=="}}
    assert [part["id"] for part in parts if part["type"] == "tool_call"] == ["c2", "c1"]


@pytest.mark.parametrize("prefix", ["openinference", "fi"])
def test_agents_chains_and_tools(prefix):
    """Who encloses what: one trajectory per outermost chain, tools joined to calls by their ids."""
    kind = f"{prefix}.span.kind"
    tool = {
        kind: "TOOL",
        "tool.name": "stock",
        "input.value": '{"sku":"A7"}',
        "output.value": '{"content": "3", "tool_call_id": "c1"}',
    }
    rows = [
        make_row(1, {kind: "CHAIN"}, name="LangGraph"),
        make_row(2, {kind: "AGENT", "agent.name": "shop", "gen_ai.agent.name": "shop"}, parent=1),
        make_row(3, openinference([USER], SAID), parent=2),
        make_row(4, tool, parent=2),
        make_row(5, {kind: "RETRIEVER"}, parent=2),
        make_row(6, {kind: "GUARDRAIL"}, parent=2),
    ]
    tables = convert_rows(rows)
    assert tables["rejected"].height == 0
    [trajectory] = tables["trajectories"].to_dicts()
    assert trajectory["trajectory_id"] == f"{1:032x}-{1:016x}"
    assert trajectory["num_steps"] == 4
    span = convert_span(rows[3])
    assert isinstance(span, CanonicalSpan)
    kinds = [convert_span(row).columns["step_kind"] for row in rows[3:]]  # pyright: ignore
    assert kinds == ["tool", "retriever", "verifier"]


def test_openllmetrys_tools_and_workflows():
    """Newer spans have both kinds of names; what a tool was given is unwrapped."""
    tool = {
        "traceloop.span.kind": "tool",
        "traceloop.entity.name": "stock",
        "traceloop.entity.input": json.dumps({"input_str": "{'sku': 'A7', 'n': None}"}),
        "traceloop.entity.output": json.dumps({"output": "3"}),
    }
    rows = [
        make_row(1, {"traceloop.span.kind": "workflow", "traceloop.workflow.name": "shop"}),
        make_row(2, openllmetry([USER], SAID), parent=1),
        make_row(3, tool, parent=1),
        make_row(4, {"traceloop.span.kind": "task"}, parent=1),
    ]
    tables = convert_rows(rows)
    assert tables["rejected"].height == 0
    [trajectory] = tables["trajectories"].to_dicts()
    assert (trajectory["agent_name"], trajectory["num_steps"]) == ("shop", 3)


def test_openllmetrys_content_of_several_parts():
    """JSON text of parts is parts; text that only looks like it is text."""
    prompt = [
        {
            "role": "user",
            "content": '[{"type": "text", "text": "a"}, {"type": "image_url", "u": 1}]',
        },
        {"role": "user", "content": '[{"type" is broken'},
    ]
    span = convert_span(make_row(1, openllmetry(prompt, {"role": "assistant", "content": "b"})))
    assert isinstance(span, CanonicalSpan)
    messages = [json.loads(node["message"])["parts"] for node in span.nodes]
    assert messages == [
        [
            {"type": "text", "content": "a"},
            {"type": "image_url", "raw": {"type": "image_url", "u": 1}},
        ],
        [{"type": "text", "content": '[{"type" is broken'}],
        [{"type": "text", "content": "b"}],
    ]


def test_google_adks_calls_are_in_two_spans():
    """The outer one has the content as Gemini's JSON in snake case; a tool has keys of ADK's own."""
    request = {
        "model": "g",
        "config": {"system_instruction": "Be brief.", "temperature": 0.5, "tools": [{"x": 1}]},
        "contents": [
            {"role": "user", "parts": [{"text": "how many?"}]},
            {"role": "model", "parts": [{"function_call": {"id": "c1", "name": "f", "args": {}}}]},
            {
                "role": "user",
                "parts": [{"function_response": {"id": "c1", "name": "f", "response": {"n": 3}}}],
            },
        ],
    }
    response = {
        "content": {
            "role": "model",
            "parts": [{"text": "hm", "thought": True}, {"text": "3", "thought_signature": "s"}],
        },
        "finish_reason": "STOP",
    }
    outer = {
        "gcp.vertex.agent.llm_request": json.dumps(request),
        "gcp.vertex.agent.llm_response": json.dumps(response),
        "gcp.vertex.agent.session_id": "s1",
        "gen_ai.request.model": "g",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
    }
    inner = {"gen_ai.operation.name": "generate_content", "gen_ai.request.model": "g"}
    tool = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "f",
        "gcp.vertex.agent.llm_request": "{}",
        "gcp.vertex.agent.tool_call_args": "{}",
        "gcp.vertex.agent.tool_response": '{"n": 3}',
    }
    merged = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "(merged tools)"}
    rows = [make_row(1, outer), make_row(2, inner, parent=1), make_row(3, tool, parent=1)]
    rows.append(make_row(4, merged, parent=1))
    tables = convert_rows(rows)
    [turn] = tables["turns"].to_dicts()
    assert tables["trajectories"]["num_steps"].to_list() == [2]
    assert (turn["text"], turn["reasoning"], turn["temperature"]) == ("3", "hm", 0.5)
    assert (turn["finish_reason"], turn["input_tokens"]) == ("STOP", 5)
    roles = tables["messages"].sort("depth")["role"].to_list()
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert tables["trajectories"]["trajectory_id"].to_list() == ["s1"]
    assert sorted(tables["rejected"]["reason"]) == ["container", "duplicate_llm_call"]


def annotation(name, score, prefix="annotations", item="annotation", **more):
    return flatten(f"{prefix}.0.{item}", {"name": name, "score": score, **more})


def test_feedback_on_spans_and_later():
    """On a call, on an agent, on a carrier with a link, for a session; the same twice is once."""
    kind = "openinference.span.kind"
    agent = {kind: "AGENT", "session.id": "s1", **annotation("helpful", 1, annotator_kind="HUMAN")}
    call = {
        **openinference([USER], SAID),
        **annotation("fluent", 0.5, "evaluations", "evaluation", annotator_kind="LLM"),
    }
    rows = [make_row(1, agent), make_row(2, call, parent=1)]
    link = ((f"{1:032x}", f"{2:016x}"),)
    for number in (3, 4):  # delivered twice
        late = make_row(number, annotation("right", 0.25, annotator_kind="CODE", identifier="t"))
        rows.append(replace(late, trace_id=f"{number:032x}", links=link))
    session = make_row(5, {"session.id": "s1", **annotation("solved", 0, "session.annotations")})
    lost = make_row(6, annotation("lost", 1))
    rows += [replace(session, trace_id=f"{5:032x}"), replace(lost, trace_id=f"{6:032x}")]
    tables = convert_rows(rows)
    rewards = tables["rewards"].sort("name", "time_ns").to_dicts()
    columns = ("name", "value", "scope", "source", "turn", "superseded", "trajectory_id")
    assert [tuple(reward[column] for column in columns) for reward in rewards] == [
        ("fluent", 0.5, "turn", "judge", 0, False, "s1"),
        ("helpful", 1.0, "trajectory", "user", None, False, "s1"),
        ("right", 0.25, "turn", "rule", 0, True, "s1"),
        ("right", 0.25, "turn", "rule", 0, False, "s1"),
        ("solved", 0.0, "trajectory", None, None, False, "s1"),
    ]
    assert {reward["untrusted_because"] for reward in rewards} == {"not recorded by starpo_trace"}
    assert tables["rejected"]["reason"].to_list() == ["reward_target_missing"]


def test_indices_are_numbers():
    """Ten comes after nine, holes close, and a value may stand where others go deeper."""
    attributes = {f"m.{i}.x": i for i in (10, 9, 2, 0)}
    assert gather(attributes, "m") == [{"x": 0}, {"x": 2}, {"x": 9}, {"x": 10}]
    assert gather({"m": 1, "n.0": 2}, "m") is None
    deeper = {"m.a": 1, "m.a.b": 2, "m.c.d": 3, "m.c": 4}
    assert gather(deeper, "m") == {"a": {"": 1, "b": 2}, "c": {"d": 3, "": 4}}


NAMES = st.sampled_from(
    [
        *("llm.input_messages", "llm.output_messages", "gen_ai.prompt", "gen_ai.completion"),
        *("gen_ai.input.messages", "llm.tools", "llm.request.functions", "gen_ai.tool.definitions"),
    ]
)
PATHS = st.lists(
    st.sampled_from(
        [
            *("0", "1", "12", "message", "role", "content", "contents", "tool_calls", "tool_call"),
            *("message_content", "type", "function", "arguments", "id", "", "json_schema"),
        ]
    ),
    max_size=6,
).map(tuple)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=2))
)


@given(
    kind=st.sampled_from(["openinference.span.kind", "gen_ai.span.kind", "llm.request.type"]),
    what=st.sampled_from(["LLM", "TOOL", "CHAIN", "chat", "tool", "", "odd"]),
    more=st.dictionaries(st.tuples(NAMES, PATHS), VALUES, max_size=12),
)
@settings(deadline=None, max_examples=200)
def test_hostile_attributes_are_data_or_have_a_reason(kind, what, more):
    """Whatever stands where: one span in, one span used or rejected by name."""
    attributes = {".".join((name, *path)): value for (name, path), value in more.items()}
    tables = convert_rows([make_row(1, {kind: what, **attributes})])
    assert tables["turns"].height + tables["rejected"].height == 1
    assert tables["rejected"].height == 0 or tables["rejected"]["reason"][0]


ITEMS = [
    {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "why"}]},
    {"type": "function_call", "id": "fc", "call_id": "c1", "name": "stock", "arguments": ARGUMENTS},
    {
        "type": "message",
        "id": "ms",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Looking.", "annotations": []}],
    },
]


@pytest.mark.parametrize("dialect", [openinference, traceai])
def test_an_answer_of_the_responses_api_is_one_message(dialect):
    """A message for each item is no choice of three, and the next prompt goes on from the answer.

    traceAI keeps the raw answer as Python prints it, and says that reasoning is text.
    """
    raw = {"object": "response", "output": ITEMS, "error": None}
    text = json.dumps(raw) if dialect is openinference else repr(raw)
    reasoning = {"contents": [{"message_content": {"type": "text", "text": "why"}}]}
    said = {"contents": [{"message_content": {"type": "text", "text": "Looking."}}]}
    items = [
        {"role": "assistant", **reasoning},
        {"role": "assistant", "tool_calls": CALLS[:1]},
        {"role": "assistant", **said},
    ]
    prefix = "llm.output_messages" if dialect is openinference else "gen_ai.output.messages"
    first = dialect([USER], SAID)
    first = {key: value for key, value in first.items() if not key.startswith(prefix)}
    first |= {**flatten(prefix, wrap(items)), "output.value": text}
    answer = {"role": "assistant", "content": "Three."}
    second = dialect([USER, *items[1:], RESULTS[0]], answer)
    second["output.value"] = json.dumps({"object": "response", "output": []})
    tables = convert_rows([make_row(1, first), make_row(2, second)])
    [trajectory] = tables["trajectories"].to_dicts()
    assert (trajectory["num_turns"], trajectory["num_branches"]) == (2, 1)
    turn = tables["turns"].to_dicts()[0]
    assert (turn["text"], turn["reasoning"]) == ("Looking.", "why")
    assert [call["arguments"] for call in turn["tool_calls"]] == [ARGUMENTS]


@pytest.mark.parametrize("dialect", [openinference, traceai, openllmetry])
def test_copies_in_any_dialect_that_differ_are_found(dialect):
    """A copy with another answer is nobody's retry, whatever it is called."""
    row = make_row(1, dialect([USER], {"role": "assistant", "content": "yes"}))
    forged = replace(row, attributes=dialect([USER], {"role": "assistant", "content": "no"}))
    tables = convert_rows([row, forged])
    [trajectory] = tables["trajectories"].to_dicts()
    assert trajectory["usable_for"] == "none"
    assert "conflicting_copies" in trajectory["reasons"]


@pytest.mark.parametrize("dialect", [openinference, traceai, openllmetry])
def test_our_names_on_spans_of_others_are_read(dialect):
    """A run's id set by hand joins traces, whoever recorded them; sessions have their names."""
    answer = {"role": "assistant", "content": "yes"}
    ours = {"starpo.trajectory.id": "T", "gen_ai.conversation.id": "C"}
    rows = [make_row(number, {**dialect([USER], answer), **ours}) for number in (1, 2)]
    rows[1] = replace(rows[1], trace_id=f"{2:032x}")
    [trajectory] = convert_rows(rows)["trajectories"].to_dicts()
    assert (trajectory["trajectory_id"], trajectory["num_turns"]) == ("T", 2)
    assert trajectory["conversation_id"] == "C"


@pytest.mark.parametrize("kind", ["gen_ai.span.kind", "openinference.span.kind"])
def test_genai_messages_beside_a_kind_of_others(kind):
    """Both forms at once: messages as JSON text where none are flattened."""
    text = '[{"role":"%s","parts":[{"type":"text","content":"%s"}]}]'
    attributes = {
        kind: "LLM",
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": text % ("user", "hi"),
        "gen_ai.output.messages": text % ("assistant", "yo"),
    }
    [turn] = convert_rows([make_row(1, attributes)])["turns"].to_dicts()
    assert (turn["text"], turn["input_node"] is None) == ("yo", False)


def test_openllmetrys_forms_of_a_prompt():
    """A text under its role; and a session beside an operation."""
    attributes = {
        "llm.request.type": "completion",
        "gen_ai.prompt.0.user": "how many?",
        "gen_ai.completion.0.content": "Three.",
        "traceloop.association.properties.session_id": "S",
    }
    older = convert_rows([make_row(1, attributes)])
    roles = [json.loads(row["message"])["role"] for row in older["messages"].to_dicts()]
    assert sorted(roles) == ["assistant", "user"]
    del attributes["llm.request.type"]
    newer = convert_rows([make_row(1, {**attributes, "gen_ai.operation.name": "chat"})])
    for tables in (older, newer):
        assert tables["trajectories"]["conversation_id"].to_list() == ["S"]
        assert tables["turns"]["text"].to_list() == ["Three."]


def test_traceais_other_names():
    """Outside of Python its kind is `fi.span.kind` and the names are OpenInference's."""
    attributes = openinference([SYSTEM, USER], SAID)
    attributes["fi.span.kind"] = attributes.pop("openinference.span.kind")
    (turn,) = convert_rows([make_row(1, attributes)])["turns"].to_dicts()
    assert (turn["text"], turn["model"], turn["temperature"]) == ("Looking.", "m-1", 0.5)
    assert [call["arguments"] for call in turn["tool_calls"]] == [ARGUMENTS, '{"sku":"B8"}']
    assert turn["input_tokens"] == 9


@pytest.mark.parametrize(
    "texts",
    [
        {
            "llm.prompts.0.prompt.text": "1 + 2 =",
            "llm.choices.0.completion.text": " 3",
            "llm.choices.1.completion.text": " 4",
        },
        {"llm.prompts": ["1 + 2 ="], "llm.choices": [" 3", " 4"]},
    ],
)
def test_text_completions_of_openinference(texts):
    """Prompt and choices are no messages; each choice is an answer."""
    tables = convert_rows([make_row(1, {"openinference.span.kind": "LLM", **texts})])
    assert tables["turns"]["text"].to_list() == [" 3"]
    assert tables["messages"].sort("depth")["role"].to_list() == ["user", "assistant", "assistant"]


def test_images_in_results_of_tools_are_kept():
    """What the model saw is no text alone."""
    image = {"type": "image", "image": {"image": {"url": "data:image/png;base64,AA=="}}}
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "contents": [
            {"message_content": {"type": "text", "text": "a chart"}},
            {"message_content": image},
        ],
    }
    attributes = openinference([SYSTEM, USER, SAID, result], {"role": "assistant", "content": "ok"})
    message = (
        convert_rows([make_row(1, attributes)])["messages"].sort("depth")["message"].to_list()[3]
    )
    (part,) = json.loads(message)["parts"]
    assert [each["type"] for each in part["response"]] == ["text", "image"]
    assert "AA==" in message


def test_google_adks_error_codes_are_errors():
    """The span's status does not say that the answer was none."""
    response = {"error_code": "SAFETY", "error_message": "no"}
    attributes = {
        "gcp.vertex.agent.llm_request": '{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}',
        "gcp.vertex.agent.llm_response": json.dumps(response),
    }
    (turn,) = convert_rows([make_row(1, attributes, name="call_llm")])["turns"].to_dicts()
    assert (turn["outcome"], turn["error"]) == ("error", "SAFETY: no")


def test_annotations_without_name_and_score_are_rows():
    """Odd ones say what they are; a carrier that has none is rejected by name."""
    call = openinference([SYSTEM, USER], {"role": "assistant", "content": "Three."})
    odd = {
        "annotations.0.annotation.label": "good",
        "annotations.1.note": "odd",
        "annotations.2": "text",
    }
    late = replace(make_row(2, {"annotations.x": 1}), links=((f"{1:032x}", f"{1:016x}"),))
    tables = convert_rows([make_row(1, {**call, **odd}), late])
    found = tables["rewards"].select("name", "value", "explanation").sort("explanation").rows()
    assert found == [
        ("annotation", None, "good"),
        ("annotation", None, "text"),
        ("annotation", None, "{'note': 'odd'}"),
    ]
    assert tables["rejected"]["reason"].to_list() == ["reward_value"]
