"""What verl reads: its columns, one type each, and nothing added to a tool."""

import json

import polars as pl
import pytest

from starpo_trace import semconv as keys
from starpo_trace.cli import main
from starpo_trace.messages import dump_json

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "how many?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":  1}'}}
    ],
}
TOLD = {"role": "tool", "tool_call_id": "c1", "content": "3"}
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": {"properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "sell", "parameters": {"properties": {"b": {}}}}},
]
KWARGS = {"create_kwargs": {"ground_truth": "t"}}


def run(spans, name, task, reward, *, question=USER, tools=TOOLS):
    """A run with a tool; one without a reward has none."""
    spans.known = set()
    root = spans.root(name, num_steps=2, **{keys.TASK_ID: task})
    given = {keys.TOOL_DEFINITIONS: dump_json(tools) if tools else None}
    first = spans.call(root, 0, [SYSTEM, question], CALL, attributes=given)
    history = [SYSTEM, question, CALL, TOLD]
    answer = {"role": "assistant", "content": "Three."}
    second = spans.call(root, 1, history, answer, attributes=given)
    rewards = [] if reward is None else [spans.reward(root, reward, **{keys.REWARD_ID: name})]
    return [root, first, second, *rewards]


@pytest.fixture
def write(datasets):
    """Rows and options -> the Parquet file of their dataset."""

    def write(rows, *options):
        file = datasets.folder / "out.parquet"
        assert main(["write", str(datasets.build(rows)), "-o", str(file), *options]) == 0
        return pl.read_parquet(file)

    return write


def test_a_prompt_is_there_once(spans, write, capsys):
    """Attempts at one prompt are one row, which says how they fared; no task, no row."""
    rows = [
        *run(spans, "a", "t", 1.0),
        *run(spans, "b", "t", 0.0),
        *run(spans, "c", "t", None),
        *run(spans, "d", "t", 1.0, question={"role": "user", "content": "other?"}),
        *run(spans, "e", None, 1.0),
    ]
    table = write(rows, "--as", "verl", "--data-source", "shop")
    first, second = sorted(table.to_dicts(), key=lambda row: -row["extra_info"]["num_attempts"])
    assert first == {
        "data_source": "shop",
        "prompt": [SYSTEM, USER],
        "ability": "agent",
        "reward_model": {"style": "rule", "ground_truth": "t"},
        "agent_name": "tool_agent",
        "extra_info": {
            "index": first["extra_info"]["index"],
            "split": "train",
            "task_id": "t",
            "num_attempts": 3,
            "mean_reward": 0.5,
            "need_tools_kwargs": True,
            "tools_kwargs": {"look": KWARGS, "sell": KWARGS},
        },
    }
    assert {row["extra_info"]["index"] for row in (first, second)} == {0, 1}
    assert second["prompt"][1]["content"] == "other?"
    assert "out.parquet: 2 prompts of 4 trajectories" in capsys.readouterr().out


def test_different_tools_have_no_options(spans, write):
    """verl would find null where a row lacks a tool, so no row names any."""
    rows = [*run(spans, "a", "t", 1.0), *run(spans, "b", "u", 1.0, tools=None)]
    table = write(rows, "--as", "verl").sort("agent_name")
    assert table["agent_name"].to_list() == ["single_turn_agent", "tool_agent"]
    for extra in table["extra_info"]:
        assert (extra["need_tools_kwargs"], "tools_kwargs" in extra) == (False, False)


def test_conversations_keep_tools_as_they_are(spans, write):
    """Messages have each other's fields as null; tools are text, so that they have not."""
    rows = [*run(spans, "a", "t", 1.0), *run(spans, "b", "t", 1.0, tools=None)]
    with_tools, without = write(rows, "--as", "verl-sft").to_dicts()
    assert json.loads(with_tools["tools"]) == TOOLS
    assert without["tools"] is None
    messages = [
        {name: value for name, value in message.items() if value is not None}
        for message in with_tools["messages"]
    ]
    answer = {"role": "assistant", "content": "Three."}
    assert messages == [SYSTEM, USER, {**CALL, "content": ""}, TOLD, answer]


@pytest.mark.parametrize("form", ["verl", "verl-sft"])
def test_images_are_left_out_and_a_file_may_be_empty(spans, write, form, capsys):
    """Neither lists of contents nor half a character have a place in a column of texts."""
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    question = {"role": "user", "content": [{"type": "text", "text": "what?"}, image]}
    torn = {"role": "user", "content": "\ud83d"}
    rows = run(spans, "a", "t", 1.0, question=question)
    table = write([*rows, *run(spans, "b", "t", 1.0, question=torn)], "--as", form)
    assert table.height == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  left out: 1 trajectories, half_character",
        "  left out: 1 trajectories, unwritable_part",
    ]
