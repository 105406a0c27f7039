"""Trajectories as ATIF documents, and ATIF documents as trajectories."""

import json

import pytest

from starpo_trace import semconv as keys
from starpo_trace.convert.dataset import build_dataset
from starpo_trace.convert.manifest import read_manifest
from starpo_trace.convert.writers.forms import write_dataset
from starpo_trace.messages import dump_json

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "how many?"}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def call(number, arguments):
    function = {"name": "look", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}],
    }


def told(number, text):
    return {"role": "tool", "tool_call_id": f"c{number}", "content": text}


def play(spans):
    """A call of a tool, a sub-agent's answer, and the end; the second prompt begins with the first."""
    root = spans.root(num_steps=3, **{keys.TASK_ID: "t", keys.POLICY_ID: "p1"})
    tools = {keys.TOOL_DEFINITIONS: dump_json(TOOLS)}
    first = {
        **tools,
        keys.PROMPT_TOKEN_IDS: "[1,2]",
        keys.RESPONSE_TOKEN_IDS: "[3]",
        keys.RESPONSE_LOGPROBS: "[-0.5]",
    }
    last = {
        **tools,
        keys.PROMPT_TOKEN_IDS: "[4]",
        keys.PROMPT_TOKEN_IDS_BASE_STEP: 0,
        keys.PROMPT_TOKEN_IDS_BASE_LENGTH: 3,
        keys.RESPONSE_TOKEN_IDS: "[5]",
        keys.RESPONSE_LOGPROBS: "[-1.5]",
    }
    asked = call(1, '{"a":  1}')
    sub = [{"role": "user", "content": "count"}]
    history = [SYSTEM, USER, asked, told(1, "3")]
    rows = [
        root,
        spans.call(root, 0, [SYSTEM, USER], asked, attributes=first),
        spans.call(root, 1, sub, {"role": "assistant", "content": "3"}),
        spans.call(root, 2, history, {"role": "assistant", "content": "Three."}, attributes=last),
    ]
    seen = [*history, {"role": "assistant", "content": "Three."}, {"role": "user", "content": "ok"}]
    attributes = {keys.RECORD: "observation", keys.TRAJECTORY_ID: "t1", **spans.history(seen)}
    return [*rows, spans.row(attributes), spans.reward(root, 0.5)]


def write(dataset, folder):
    file = folder / "runs.jsonl"
    write_dataset(dataset, file, form="atif")
    return file, [json.loads(line) for line in file.read_text().splitlines()]


def test_a_document_by_hand(spans, datasets, tmp_path):
    """Steps, observations with their calls, whole prompts' tokens, the sub-agent embedded."""
    _, [document] = write(datasets.build(play(spans)), tmp_path)
    [sub] = document.pop("subagent_trajectories")
    extra = document.pop("extra")
    assert {key: extra[key] for key in ("task_id", "policy_id", "end", "usable_for")} == {
        "task_id": "t",
        "policy_id": "p1",
        "end": "terminated",
        "usable_for": "sft",  # the sub-agent's call has no token ids
    }
    assert [(each["value"], each["trusted"]) for each in extra["rewards"]] == [(0.5, True)]
    metrics = {"prompt_tokens": 10, "completion_tokens": 2}
    common = {"source": "agent", "model_name": "tiny", "llm_call_count": 1}
    assert document == {
        "schema_version": "ATIF-v1.7",
        "session_id": "t1",
        "trajectory_id": "t1",
        "agent": {
            "name": "agent",
            "version": "p1",
            "model_name": "tiny",
            "tool_definitions": TOOLS,
        },
        "steps": [
            {"step_id": 1, "source": "system", "message": "Be brief."},
            {"step_id": 2, "source": "user", "message": "how many?"},
            {
                "step_id": 3,
                "message": "",
                "reasoning_content": "hm",
                "tool_calls": [
                    {
                        "tool_call_id": "c1",
                        "function_name": "look",
                        "arguments": {"a": 1},
                        "extra": {"arguments_text": '{"a":  1}'},
                    }
                ],
                "timestamp": "1970-01-01T00:00:02Z",
                "metrics": {
                    **metrics,
                    "prompt_token_ids": [1, 2],
                    "completion_token_ids": [3],
                    "logprobs": [-0.5],
                },
                "extra": {"turn": 0, "step": 0, "step_kind": "planner"},
                "observation": {"results": [{"source_call_id": "c1", "content": "3"}]},
                **common,
            },
            {
                "step_id": 4,
                "message": "Three.",
                "timestamp": "1970-01-01T00:00:04Z",
                "metrics": {
                    **metrics,
                    "prompt_token_ids": [1, 2, 3, 4],
                    "completion_token_ids": [5],
                    "logprobs": [-1.5],
                },
                "extra": {"turn": 2, "step": 2, "step_kind": "finalizer"},
                **common,
            },
            {"step_id": 5, "source": "user", "message": "ok"},
        ],
        "final_metrics": {
            "total_prompt_tokens": 30,
            "total_completion_tokens": 6,
            "total_steps": 5,
            "extra": {"reward": 0.5},
        },
    }
    assert (sub["trajectory_id"], [each["message"] for each in sub["steps"]]) == (
        "t1#1",
        ["count", "3"],
    )


def test_what_was_written_is_read(spans, datasets, tmp_path):
    """Messages, calls word for word, reasoning, tokens; the reward is there and counts for nothing."""
    dataset = datasets.build(play(spans))
    file, _ = write(dataset, tmp_path)
    before, after = datasets.read(dataset), datasets.read(datasets.build_file(file))
    kept = ("text", "reasoning", "tool_calls", "finish_reason", "model", "step_kind")
    tokens = ("prompt_token_ids", "prompt_base_length", "response_token_ids", "response_logprobs")
    texts = [
        sorted(str([turn[name] for name in (*kept, *tokens)]) for turn in tables["turns"])
        for tables in (before, after)
    ]
    assert texts[0] == texts[1]
    nodes = [{row["node_id"] for row in tables["messages"]} for tables in (before, after)]
    observed = next(row["node_id"] for row in before["messages"] if '"ok"' in row["message"])
    assert nodes[0] - nodes[1] == {observed}  # nobody read it
    [row] = after["trajectories"]
    assert (row["trajectory_id"], row["task_id"], row["policy_id"]) == ("t1", "t", "p1")
    assert (row["usable_for"], row["reward"]) == ("sft", None)
    assert [(each["value"], each["trusted"]) for each in after["rewards"]] == [(0.5, False)]


def test_documents_of_others_are_read(tmp_path, datasets):
    """One file over several lines; copied steps are history, observations without a call a user's."""
    document = {
        "schema_version": "ATIF-v1.2",
        "session_id": "s",
        "agent": {"name": "mini", "version": "1"},
        "steps": [
            {"step_id": 1, "source": "user", "message": "fix it"},
            {"step_id": 2, "source": "agent", "message": "old", "is_copied_context": True},
            {
                "step_id": 3,
                "source": "agent",
                "timestamp": "2025-10-16T14:30:00Z",
                "message": [{"type": "text", "text": "ls"}],
                "observation": {"results": [{"content": "a.py"}]},
            },
            {"step_id": 4, "source": "agent", "message": "done"},
        ],
    }
    file = tmp_path / "trajectory.json"
    file.write_text(json.dumps(document, indent=2))
    tables = datasets.read(datasets.build_file(file))
    assert [turn["text"] for turn in tables["turns"]] == ["ls", "done"]
    assert tables["turns"][0]["started_ns"] == 1_760_625_000_000_000_000
    roles = [(row["role"], row["sampled_turn"]) for row in tables["messages"]]
    assert roles == [
        ("user", None),
        ("assistant", None),
        ("assistant", 0),
        ("user", None),
        ("assistant", 1),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": None},
        {"agent": []},
        {"steps": [{"source": "agent"}]},
        {"steps": [{"source": "robot", "message": "x"}]},
        {"steps": [{"source": "user", "message": "x", "timestamp": "yesterday"}]},
        {"steps": [{"source": "user", "message": 7}]},
    ],
)
def test_damaged_documents_are_counted(damage, tmp_path):
    """Their neighbours are read."""
    step = {"step_id": 1, "source": "agent", "message": "hi"}
    whole = {"schema_version": "ATIF-v1.7", "agent": {"name": "a"}, "steps": [step]}
    file = tmp_path / "runs.jsonl"
    file.write_text(
        "".join(json.dumps({**whole, **each}) + "\n" for each in ({}, damage, {"x": 1}))
    )
    build_dataset([file], tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    assert (manifest.accounting.damaged_records, manifest.counts["trajectories"]) == (1, 2)
