"""`starpo-train replay` with a tiny model that has learnt three answers by heart."""

import json
import shutil

import polars as pl
import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from starpo_train.cli import main
from starpo_train.errors import DataError
from starpo_train.modelfolder import COMMIT_FILE, hash_file, hash_weights, render_commit
from starpo_train.replay.run import run_replay
from starpo_train.replay.settings import ReplaySettings

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.description }}"
    "{{ t.function.parameters | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments }}}'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"to": {"enum": ["up"]}}}
TOOLS = json.dumps([{"name": "go", "input_schema": SCHEMA}])
BEGIN = f"go{json.dumps(SCHEMA)}<|im_start|>user\n"
ASK = "<|im_end|>\n<|im_start|>assistant\n"
UP = '<tool_call>{"name": "go", "arguments": {"to": "up"}}</tool_call>'
UP_PROMPT = f"{BEGIN}up{ASK}"
LATER_PROMPT = f"{UP_PROMPT}{UP}<|im_end|>\n<|im_start|>tool\nwall{ASK}"
DOWN_PROMPT = f"{BEGIN}down{ASK}"
LEARNT = {UP_PROMPT: UP, LATER_PROMPT: UP, DOWN_PROMPT: "goal"}


@pytest.fixture(scope="module")
def model(hand, tmp_path_factory):
    """It says what LEARNT has, greedily."""
    folder = hand.model(tmp_path_factory.mktemp("replay") / "model")
    tokenizer = hand.tokenizer(chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    net = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    rows = [
        (encode(tokenizer, prompt), encode(tokenizer, answer + "<|im_end|>"))
        for prompt, answer in LEARNT.items()
    ]
    for _ in range(60):
        for prompt, answer in rows:
            labels = torch.tensor([[-100] * len(prompt) + answer])
            net(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    net.save_pretrained(folder)
    return folder


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def say(text):
    return [{"type": "text", "content": text}]


def go(to):
    return [{"type": "tool_call", "id": "c", "name": "go", "arguments": f'{{"to": "{to}"}}'}]


def make_chat(hand, name, *messages, reward=1.0, **columns):
    """A conversation without ids; a turn for each of the assistant's messages."""
    graph, turns = [], []
    for i, (role, parts) in enumerate(messages):
        parent = str(i - 1) if i else None
        message = json.dumps({"role": role, "parts": parts})
        graph.append({"node_id": str(i), "parent_id": parent, "message": message})
        if role == "assistant":
            calls = [
                {key: part[key] for key in ("id", "name", "arguments")}
                for part in parts
                if part["type"] == "tool_call"
            ]
            text = None if calls else parts[0]["content"]
            about = {"input_node": parent, "output_node": str(i), "tool_definitions": TOOLS}
            turns.append(hand.turn(None, None, tool_calls=calls, text=text, **about))
    columns = {"split": "test", "usable_for": "sft", **columns}
    return hand.trajectory(name, turns, reward=reward, messages=graph, **columns)


@pytest.fixture(scope="module")
def chats(hand, tmp_path_factory):
    ask_up, ask_down = ("user", say("up")), ("user", say("down"))
    wall = [{"type": "tool_call_response", "id": "c", "response": "wall"}]
    rows = [
        make_chat(
            hand,
            *("t0", ask_up, ("assistant", go("up")), ("tool", wall), ("assistant", say("goal"))),
            task_id="a",
            cohort="x",
        ),
        make_chat(hand, "t1", ask_down, ("assistant", go("up")), task_id="b", cohort="y"),
        make_chat(hand, "t2", ask_up, ("assistant", go("up")), reward=0.0),
        make_chat(hand, "t3", ask_up, ("assistant", go("up")), reward=None),
        make_chat(hand, "t4", ask_up, ("assistant", go("up")), split="train"),
        make_chat(hand, "t5", ask_up, ("assistant", go("up")), usable_for="none", reasons=[]),
    ]
    return hand.dataset(tmp_path_factory.mktemp("chats") / "data", rows)


def test_figures_of_known_answers(model, chats, tmp_path, capsys):
    """A call that agrees, one too many where text was recorded, an answer in place of a call."""
    output = tmp_path / "out"
    assert main(["replay", str(model), str(chats), "-o", str(output)]) == 0
    found = json.loads((output / "replay.json").read_text())
    figures = {(f["cohort"], f["metric"]): f for f in found["figures"]}
    values = {key: (f["value"], f["num_tasks"], f["num_turns"]) for key, f in figures.items()}
    assert values == {
        ("all", "same_tool"): (0.5, 2, 2),
        ("all", "same_call"): (0.5, 2, 2),
        ("all", "valid"): (1.0, 1, 2),
        ("all", "same_decision"): (0.25, 2, 3),
        ("x", "same_tool"): (1.0, 1, 1),
        ("x", "same_call"): (1.0, 1, 1),
        ("x", "valid"): (1.0, 1, 2),
        ("x", "same_decision"): (0.5, 1, 2),
        ("y", "same_tool"): (0.0, 1, 1),
        ("y", "same_call"): (0.0, 1, 1),
        ("y", "valid"): (None, 0, 0),
        ("y", "same_decision"): (0.0, 1, 1),
    }
    assert found["decisions"] == [
        {"recorded": "answer", "checkpoint": "call", "num_turns": 1},
        {"recorded": "call", "checkpoint": "answer", "num_turns": 1},
        {"recorded": "call", "checkpoint": "call", "num_turns": 1},
    ]
    text_turn = {"text_turn": 1}
    assert found["nulls"] == {
        "same_tool": text_turn,
        "same_call": text_turn,
        "valid": {"no_call": 1},
        "same_decision": {},
    }
    assert found["recorded_valid"] == {"num_valid": 2, "num_turns": 2}
    assert found["left_out"] == {"below_threshold": 1, "no_reward": 1, "not_usable": 1}
    assert found["checkpoint"]["weights_sha256"] == hash_weights(str(model))
    assert found["dataset"]["digest"] == "made-by-hand"
    rows = pl.read_parquet(output / "trajectories.parquet")
    assert rows["first_departure"].to_list() == [1, 0]
    turns = pl.read_parquet(output / "turns.parquet")
    assert turns["text"].to_list() == [None, None, "goal"]
    assert turns["calls"][1] == '[{"name": "go", "arguments": {"to": "up"}}]'
    shown = capsys.readouterr().out
    assert "asked at 3 of 3 turns of 2 runs; runs left out: 1 below_threshold" in shown
    assert "valid call, null: 1 no_call" in shown


def test_sampling_is_repeatable(model, chats):
    """One seed, one result; a tight limit of tokens leaves nothing decided."""

    def replay(**options):
        settings = ReplaySettings(checkpoint=str(model), dataset=chats, **options)
        return run_replay(settings)

    first, again = (replay(temperature=2.0, seed=3).compared for _ in range(2))
    assert first == again
    assert replay(temperature=2.0, seed=4).compared != first
    cut = replay(max_tokens=2)
    assert {turn.asked.problem for each in cut.compared for _, turn in each.turns} == {"cut"}
    assert {f.value for f in cut.figures if f.metric != "valid"} == {0.0}


def test_turns_that_cannot_be_asked(hand, model, tmp_path):
    """Each has its reason; a run whose recorded call is not read back is not compared at all."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt, answer = encode(tokenizer, UP_PROMPT), encode(tokenizer, UP + "<|im_end|>")
    other = encode(tokenizer, "[go(to=up)]<|im_end|>")
    call = {"tool_calls": [{"id": "c", "name": "go", "arguments": '{"to": "up"}'}]}

    def run(name, *turns):
        return hand.trajectory(name, turns, reward=1.0, split="test")

    rows = [
        run(
            "t0",
            hand.turn(prompt, answer, **call),
            hand.turn(prompt, answer, **call, outcome="error"),
            hand.turn(prompt, answer, **call, finish_reason="length"),
            hand.turn(prompt, answer, **call, model="judge"),
            hand.turn(prompt, answer),
            hand.turn(prompt * 60, answer, **call),
            hand.turn([*prompt, 300], answer, **call),
            hand.turn(None, None, **call),
        ),
        run("t1", hand.turn(prompt, other, **call), hand.turn(prompt, answer, **call)),
    ]
    data = hand.dataset(tmp_path / "data", rows)
    settings = ReplaySettings(checkpoint=str(model), dataset=data, models=("tiny",))
    first, second = run_replay(settings).compared
    assert [turn.nulls.get("same_decision") for _, turn in first.turns] == [
        *(None, "recorded_error", "recorded_cut", "other_model", "no_action_recorded"),
        *("prompt_too_long", "ids_outside_vocabulary", "no_tokens"),
    ]
    assert first.turns[0][1].values == {
        "same_tool": True,
        "same_call": True,
        "valid": None,
        "same_decision": True,
    }
    assert {turn.nulls["same_tool"] for _, turn in second.turns} == {"answer_not_read_back"}


def test_what_is_refused(hand, model, chats, tmp_path, capsys):
    """No success, no form of calls that the engine reads, trained on this split, a bad option."""
    assert main(["replay", str(model), str(chats), "--threshold", "2"]) == 2
    assert "no logged success" in capsys.readouterr().err
    assert main(["replay", str(model), str(chats), "--arguments", "fuzzy"]) == 2
    assert "--arguments fuzzy" in capsys.readouterr().err
    assert main(["replay", str(model), str(chats), "-o", str(tmp_path / "no" / "out")]) == 2
    foreign = hand.model(tmp_path / "foreign")
    hand.tokenizer(chat_template=TEMPLATE.replace("tool_call>", "call>")).save_pretrained(foreign)
    with pytest.raises(DataError, match="'answer_not_read_back': 3"):
        run_replay(ReplaySettings(checkpoint=str(foreign), dataset=chats))


def test_a_split_that_was_trained_on_is_refused(model, chats, tmp_path):
    """Agreement with what was learnt by heart says nothing; another split was held out."""
    folder = shutil.copytree(model, tmp_path / "model")
    files = {file.name: {"sha256": hash_file(file)} for file in folder.iterdir()}
    lineage = {"dataset": {"digest": "made-by-hand"}, "config": {"data": {"split": "test"}}}
    commit = {"format": 2, "step": 1, "files": files, "lineage": lineage}
    (folder / COMMIT_FILE).write_text(render_commit(commit))
    with pytest.raises(DataError, match="was trained on split 'test'"):
        run_replay(ReplaySettings(checkpoint=str(folder), dataset=chats))
    held_out = ReplaySettings(checkpoint=str(folder), dataset=chats, split="train")
    assert len(run_replay(held_out).compared) == 1
