"""Datasets -> conversations for other trainers: what was said, to whom, with which tools."""

import json

import openai
import pytest

import starpo_trace
from starpo_trace.cli import main
from starpo_trace.convert.dataset import build_dataset
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

ARGUMENTS = '{"sku":"A7",  "n":1e0}'
TOOLS = [{"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "how many?"}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "stock", "arguments": ARGUMENTS},
}


def play(client, reward, *, asks_again=False):
    """Two turns with a tool; then, if asked to, another question to the first history."""
    with starpo_trace.trajectory("shop", task_id=f"t{reward}"):
        messages = [SYSTEM, USER]
        answer = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
        messages.append(answer.choices[0].message)
        messages.append({"role": "tool", "tool_call_id": "c1", "content": "3"})
        client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
        if asks_again:
            other = [SYSTEM, {"role": "user", "content": "again"}]
            client.chat.completions.create(model="m", messages=other)
        if reward is not None:
            starpo_trace.reward(reward)


@pytest.fixture
def dataset(tmp_path):
    call = Reply(
        reasoning_content="look it up",
        tool_calls=[ToolCall(id="c1", name="stock", arguments=ARGUMENTS)],
    )
    replies = [call, Reply(content="Three.")]
    starpo_trace.instrument(store=tmp_path / "store")
    try:
        with (
            ScriptedServer([*replies, *replies, Reply(content="Yes."), *replies]) as server,
            openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        ):
            play(client, 0)
            play(client, 1, asks_again=True)
            play(client, None)
    finally:
        starpo_trace.uninstrument()
    build_dataset([tmp_path / "store"], tmp_path / "data")
    return tmp_path / "data"


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_recipe_excludes_is_not_written(dataset, tmp_path, capsys):
    """A trajectory that is not to be trained on goes to no trainer; one without a reward, here."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[exclude.unrewarded]\nwhere = "reward IS NULL"\n')
    build_dataset([tmp_path / "store"], dataset, recipe=recipe)
    assert main(["write", str(dataset), "-o", str(tmp_path / "chat.jsonl")]) == 0
    assert "  left out: 1 trajectories, excluded" in capsys.readouterr().out.splitlines()


def test_what_is_held_out_goes_to_no_trainer(dataset, tmp_path, capsys):
    """Only `train` is written unless another split is asked for; what holds everything has all."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[distribution]\nood_task_prefixes = ["t1"]\n')
    build_dataset([tmp_path / "store"], dataset, recipe=recipe)
    command = ["write", str(dataset), "-o", str(tmp_path / "out")]
    for options, said in (
        ([], "2 conversations of 2 trajectories"),
        (["--split", "test"], "2 conversations of 1 trajectories"),
        (["--split", "all"], "4 conversations of 3 trajectories"),
        (["--as", "otlp"], "3 traces of 3 trajectories"),
    ):
        assert main([*command, *options]) == 0
        assert said in capsys.readouterr().out, options


def test_openai_lines_are_what_was_said(dataset, tmp_path, capsys):
    """Arguments word for word, results by call id, tools; reasoning has no place there."""
    file = tmp_path / "chat.jsonl"
    assert main(["write", str(dataset), "-o", str(file), "--min-reward", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: 2 conversations of 1 trajectories",
        "  left out: 1 trajectories, below_min_reward",
        "  left out: 1 trajectories, no_reward",
    ]
    long, short = sorted(read_lines(file), key=lambda line: -len(line["messages"]))
    assert long == {
        "messages": [
            SYSTEM,
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": "Three."},
        ],
        "tools": TOOLS,
    }
    assert [message["content"] for message in short["messages"]] == ["Be brief.", "again", "Yes."]
    assert "tools" not in short


def test_trl_lines_keep_reasoning(dataset, tmp_path):
    """Every usable run, with what the model thought before it acted."""
    file = tmp_path / "chat.jsonl"
    assert main(["write", str(dataset), "-o", str(file), "--as", "trl"]) == 0
    lines = read_lines(file)
    assert len(lines) == 4
    assert sum("look it up" in json.dumps(line) for line in lines) == 3


def test_what_cannot_be_written_is_said(dataset, tmp_path, capsys):
    """No dataset, no folder; nothing is left behind."""
    (tmp_path / "none").mkdir()
    assert main(["write", str(tmp_path / "none"), "-o", str(tmp_path / "a")]) == 1
    assert main(["write", str(dataset), "-o", str(tmp_path / "no" / "a")]) == 1
    err = capsys.readouterr().err
    assert f"cannot be written (no folder {tmp_path / 'no'}; make it first)" in err
    assert not list(tmp_path.glob(".*.tmp"))
