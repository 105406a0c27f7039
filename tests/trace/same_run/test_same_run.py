"""One real run under six instrumentations: the same trajectory wherever a dialect has the fact.

Runs in the environments of bench/peers, which `make test` builds (`STARPO_PEERS` names their folder
where it is another).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.otlplogs import decode_log_groups
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

ROOT = Path(__file__).parents[3]
PEERS = Path(os.environ.get("STARPO_PEERS", ROOT / ".venvs" / "peers"))
ENVIRONMENTS = {
    "ours": None,
    "openinference": "openinference",
    "openllmetry": "openllmetry",
    "traceai": "traceai",
    "genai": "genai",
    "contrib-events": "contrib",
}
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
VARIABLES = {
    "openllmetry": {"TRACELOOP_TRACE_CONTENT": "true"},
    "genai": {CONTENT: "span_only"},
    "contrib-events": {CONTENT: "true"},
}
"""What switches content on, as in bench/peers/setups.py."""
ARGUMENTS = ['{"sku": "A7",  "n":1e0}', '{"sku":"B8"}']
REPLIES = [
    Reply(
        content="Looking.",
        reasoning_content="need stock",
        tool_calls=[
            ToolCall(id="c1", name="stock", arguments=ARGUMENTS[0]),
            ToolCall(id="c2", name="stock", arguments=ARGUMENTS[1]),
        ],
        prompt_token_ids=[1, 2, 3],
        token_ids=[4, 5],
        logprobs=[-0.5, -0.25],
        usage={"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
    ),
    Reply(
        content="Three in all.",
        prompt_token_ids=[1, 2, 3, 4, 5, 6],
        token_ids=[7, 8, 9],
        logprobs=[-1.0, -1.5, -2.0],
        usage={"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
    ),
]


MESSAGES = [
    ("system", ["text Be brief."]),
    ("user", ["text how many?"]),
    ("assistant", ["reasoning need stock", "text Looking.", "tool_call c1", "tool_call c2"]),
    ("tool", ["tool_call_response c1 3"]),
    ("tool", ["tool_call_response c2 0"]),
    ("assistant", ["text Three in all."]),
]
FACTS = {
    "turns": 2,
    "branches": 1,
    "messages": MESSAGES,
    "texts": ["Looking.", "Three in all."],
    "reasoning": ["need stock", None],
    "calls": [("c1", "stock", {"sku": "A7", "n": 1.0}), ("c2", "stock", {"sku": "B8"})],
    "arguments word for word": ARGUMENTS,
    "finish reasons": ["tool_calls", "stop"],
    "tools": ["stock", {"type": "object", "properties": {"sku": {"type": "string"}}}],
    "model": ["m", "m"],
    "sampling": [(0.5, 0.75), (0.5, 0.75)],
    "usage": (29, 8),
    "token ids": [([1, 2, 3], [4, 5]), ([6], [7, 8, 9])],  # the second prompt after the first
    "log-probabilities": [[-0.5, -0.25], [-1.0, -1.5, -2.0]],
}
"""What happened, worked out from `REPLIES` and the agent."""


def without(*kinds):
    """Messages where no part of these kinds was recorded."""
    return [
        (role, [part for part in parts if part.split()[0] not in kinds]) for role, parts in MESSAGES
    ]


def reordered(*order):
    """Messages where the parts of the first answer stand in another order."""
    parts = [MESSAGES[2][1][i] for i in order]
    return [*MESSAGES[:2], ("assistant", parts), *MESSAGES[3:]]


NO_IDS = {"token ids": [(None, None), (None, None)], "log-probabilities": [None, None]}
REWRITTEN = {"arguments word for word": ['{"sku":"A7","n":1.0}', '{"sku":"B8"}']}
"""Arguments were parsed and written again."""
NO_REASONING = {"reasoning": [None, None], "messages": without("reasoning")}
DIFFERENCES = {
    "ours": {},
    "openinference": {},  # kept in the raw answer
    "openllmetry": {
        **NO_IDS,
        **REWRITTEN,
        "messages": reordered(1, 0, 2, 3),
        "finish reasons": ["tool_call", "stop"],
    },
    "traceai": {**NO_IDS, **NO_REASONING, "finish reasons": [None, None]},
    "genai": {**NO_IDS, **NO_REASONING, **REWRITTEN, "messages": reordered(2, 3, 1)},
    # Its events leave out the text of earlier answers that also asked for tools.
    "contrib-events": {
        **NO_IDS,
        **NO_REASONING,
        "branches": 2,
        "messages": [
            *without("reasoning")[:3],
            ("assistant", ["tool_call c1", "tool_call c2"]),
            *MESSAGES[3:],
        ],
        "tools": None,
    },
}
"""Facts that a dialect does not carry, or tells otherwise: what its dataset has instead."""


def record(name):
    """The run's spans and log records under one instrumentation."""
    environment = ENVIRONMENTS[name]
    python = Path(sys.executable) if environment is None else PEERS / environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is not there; `make .venvs/peers/.ready` builds it")
    variables = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    paths = [ROOT / "bench", *([ROOT] if environment is None else [])]
    variables |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), **VARIABLES.get(name, {})}
    with ScriptedServer(REPLIES) as server:
        agent = Path(__file__).with_name("agent.py")
        done = subprocess.run(
            [python, agent, name, server.base_url],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def convert(recorded):
    """What was exported -> tables."""
    rows = [
        SpanRow(source="run", **{**span, "events": tuple(map(tuple, span["events"]))})
        for span in recorded["spans"]
    ]
    logs = list(decode_log_groups(recorded["logs"], "run"))
    tables = convert_rows([*rows, *logs])
    assert set(tables["rejected"]["name"]) == {"run"}
    return tables


def describe_part(part):
    kind = part["type"]
    if kind == "tool_call":
        return f"tool_call {part['id']}"
    if kind == "tool_call_response":
        return f"tool_call_response {part['id']} {part['response']}"
    return f"{kind} {part['content']}"


def describe(tables):
    """Tables -> the facts of the run."""
    (run,) = tables["trajectories"].to_dicts()
    turns = tables["turns"].to_dicts()
    messages = map(json.loads, tables["messages"].sort("depth", maintain_order=True)["message"])
    calls = turns[0]["tool_calls"]
    tools = turns[0]["tool_definitions"]
    tool = None if tools is None else json.loads(tools)[0]
    tool = tool if tool is None else tool.get("function", tool)
    return {
        "turns": run["num_turns"],
        "branches": run["num_branches"],
        "messages": [
            (message["role"], [describe_part(part) for part in message["parts"]])
            for message in messages
        ],
        "texts": [turn["text"] for turn in turns],
        "reasoning": [turn["reasoning"] for turn in turns],
        "calls": [(call["id"], call["name"], json.loads(call["arguments"])) for call in calls],
        "arguments word for word": [call["arguments"] for call in calls],
        "finish reasons": [turn["finish_reason"] for turn in turns],
        "tools": tool and [tool["name"], tool["parameters"]],
        "model": [turn["model"] for turn in turns],
        "sampling": [(turn["temperature"], turn["top_p"]) for turn in turns],
        "usage": (run["input_tokens"], run["output_tokens"]),
        "token ids": [(turn["prompt_token_ids"], turn["response_token_ids"]) for turn in turns],
        "log-probabilities": [turn["response_logprobs"] for turn in turns],
    }


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_one_run_is_one_trajectory_whoever_recorded_it(name):
    """Every fact is the run's, or one of the differences listed above."""
    assert describe(convert(record(name))) == {**FACTS, **DIFFERENCES[name]}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_differences_are_differences(name):
    """What is listed is not what happened."""
    assert all(value != FACTS[fact] for fact, value in DIFFERENCES[name].items())
