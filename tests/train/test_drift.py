"""Recorded ids against the chat template's, and `starpo-train explain --model`."""

import json
import re
from pathlib import Path

import pytest

from starpo_train.cli import main
from starpo_train.dataset import read_message_graphs, read_trajectories
from starpo_train.drift import measure_trajectory, summarize_drift
from starpo_train.metrics import read_metrics
from starpo_train.render import TurnRenderer
from starpo_train.run import train

CHAT = (("q", None, "user", "left or right?"), ("a", "q", "assistant", "goal"))


def write_recorded(hand, folder, *, prompt=None, answer=None, chat=CHAT, **columns):
    """Two chats with recorded ids, by default those of the template."""
    tokenizer = hand.tokenizer()

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    messages = [
        {
            "node_id": node,
            "parent_id": parent,
            "message": json.dumps({"role": role, "parts": [{"type": "text", "content": text}]}),
        }
        for node, parent, role, text in chat
    ]
    prompt = prompt or "<|im_start|>user\nleft or right?<|im_end|>\n<|im_start|>assistant\n"
    ids = encode("goal<|im_end|>") if answer is None else answer
    turn = hand.turn(
        encode(prompt), ids, [-1.0] * len(ids), input_node="q", output_node="a", **columns
    )
    return hand.dataset(
        folder,
        [hand.trajectory(f"t{i}", [turn], reward=float(i), messages=messages) for i in (0, 1)],
    )


def measure(hand, dataset):
    renderer = TurnRenderer(hand.tokenizer(), model_path="m")
    trajectories = read_trajectories(dataset)
    graphs = read_message_graphs(dataset, [t.trajectory_id for t in trajectories])
    return [measure_trajectory(t, graphs[t.trajectory_id], renderer) for t in trajectories]


def count(summary):
    names = ("recorded", "rendered", "prompts_equal", "answers_equal", "retokenized_equal")
    return [summary[f"num_{name}"] for name in names]


def test_ids_of_the_same_template_do_not_differ(hand, tmp_path):
    """Prompts, answers and answers tokenized again: all equal, nothing to show."""
    drifts = measure(hand, write_recorded(hand, tmp_path / "d"))
    assert count(summarize_drift(drifts)) == [2, 2, 2, 2, 2]
    assert drifts[0].first_difference is None


def test_the_first_differing_token_is_shown_with_its_neighbours(hand, tmp_path):
    """A system prompt that only the recording has: the sixth token from the start is the first."""
    prompt = "<|im_start|>user\nleft or up?<|im_end|>\n<|im_start|>assistant\n"
    drifts = measure(hand, write_recorded(hand, tmp_path / "d", prompt=prompt))
    assert count(summarize_drift(drifts)) == [2, 2, 0, 2, 2]
    first = drifts[0].first_difference
    tokenizer = hand.tokenizer()
    same = tokenizer.tokenize("<|im_start|>user\nleft or ")
    assert first["position"] == len(same) - 1  # the space belongs to the word that follows
    assert (first["turn"], "or up?" in first["recorded"], "or right?" in first["rendered"]) == (
        0,
        True,
        True,
    )


def test_answers_that_encode_otherwise_are_counted(hand, tmp_path):
    """Sampled letter by letter, the text is the same and the ids are not."""
    tokenizer = hand.tokenizer()
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "goal"]
    drifts = measure(hand, write_recorded(hand, tmp_path / "d", answer=[*letters, 1]))
    assert count(summarize_drift(drifts)) == [2, 2, 2, 0, 0]


def test_recorded_turns_without_messages_are_counted(hand, tmp_path):
    """Nothing to render, and their ids are still tokenized again."""
    drifts = measure(hand, write_recorded(hand, tmp_path / "d", chat=CHAT[:1]))
    assert count(summarize_drift(drifts)) == [2, 0, 0, 0, 2]


def test_the_start_record_tells_of_recorded_drift(configure, hand, tmp_path):
    """A run that trains on recorded ids says how many prompts the template renders as they were."""
    dataset = write_recorded(hand, tmp_path / "d", prompt="<|im_start|>user\nup<|im_end|>\n")
    start = read_metrics(train(configure(dataset=dataset)).metrics_path)[0]
    assert count(start["recorded_drift"]) == [2, 2, 0, 2, 2]
    assert (start["num_retokenized_rows"], start["rendering"]) == (0, {})


def test_explain_with_a_model_shows_and_writes_what_its_template_does(
    hand, model_folder, tmp_path, capsys
):
    """A table for people, a line of JSON for each trajectory."""
    prompt = "<|im_start|>user\nleft or up?<|im_end|>\n<|im_start|>assistant\n"
    dataset = write_recorded(hand, tmp_path / "d", prompt=prompt)
    output = tmp_path / "rows.jsonl"
    arguments = ["explain", str(dataset), "--model", str(model_folder)]
    arguments += ["--trajectories", str(output), "--json", str(tmp_path / "all.json")]
    assert main(arguments) == 0
    everything = json.loads((tmp_path / "all.json").read_text())
    assert (
        everything["rendering"]["num_rendered"],
        everything["rendering"]["num_prompts_equal"],
    ) == (
        2,
        0,
    )
    printed = capsys.readouterr().out
    assert "0 of 2 (0.0%)" in printed
    assert "2 of 2 (100.0%)" in printed
    assert "first differing prompt: t0, turn 0, token" in printed
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["trajectory_id"], row["num_prompts_equal"]) for row in rows] == [
        ("t0", 0),
        ("t1", 0),
    ]


def test_explain_needs_no_template_where_all_ids_are_recorded(hand, model_folder, tmp_path, capsys):
    """It says so, and that there is nothing to compare."""
    dataset = write_recorded(hand, tmp_path / "d", prompt="left")
    hand.tokenizer(chat_template=None).save_pretrained(tmp_path / "plain")
    assert main(["explain", str(dataset), "--model", str(tmp_path / "plain")]) == 0
    assert "no turn needs one" in " ".join(capsys.readouterr().out.split())


def test_explain_names_what_is_left_out(hand, model_folder, tmp_path, capsys):
    """Chats without ids whose tools the template ignores."""
    tools = json.dumps([{"name": "go", "parameters": {"type": "object"}}])
    dataset = write_recorded(
        hand,
        tmp_path / "d",
        tool_definitions=tools,
        token_provenance="missing",
        logprob_provenance="missing",
    )
    assert main(["explain", str(dataset), "--model", str(model_folder)]) == 0
    printed = capsys.readouterr().out
    assert "trajectories without recorded ids" in printed
    assert "left out: template_ignores_tools" in printed


def test_explain_says_what_its_examples_are(hand, model_folder, tmp_path, capsys):
    """The finding, the first trajectory that has it, and what the text beside it is."""
    reasoning = {"type": "reasoning", "content": "I count to three."}
    text = {"type": "text", "content": "left"}
    nodes = [("q", None, "user", [text]), ("a", "q", "assistant", [reasoning, text])]
    messages = [
        {"node_id": n, "parent_id": p, "message": json.dumps({"role": r, "parts": parts})}
        for n, p, r, parts in nodes
    ]
    turn = hand.turn(None, None, input_node="q", output_node="a")
    rows = [hand.trajectory(f"t{i}", [turn], reward=1.0, messages=messages) for i in (0, 1)]
    dataset = hand.dataset(tmp_path / "d", rows)
    assert main(["explain", str(dataset), "--model", str(model_folder)]) == 0
    assert (
        "example of template_drops_reasoning: t0\n"
        "  reasoning that is not rendered: 'I count to three.'\n"
    ) in capsys.readouterr().out


def test_every_example_has_a_label():
    """Each finding that is noted with a text in render.py."""
    from starpo_train.explain import _EXAMPLES as LABELS
    from starpo_train.findings import FAULTS, LOSSES, NOTES

    source = (Path(__file__).parents[2] / "starpo_train" / "render.py").read_text()
    noted = set(re.findall(r'note\(\s*"(\w+)",', source))
    assert noted | {"template_opens_answer"} == set(LABELS)
    assert set(LABELS) <= {*FAULTS, *LOSSES, *NOTES}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--trajectories", "x"], "give --model"),
        (["--model", "nope"], "no such model folder"),
        (["--model", "nope", "--trajectories", "no/x"], "there is no folder no"),
        (["--json", "no/x"], "--json no/x: there is no folder no"),
    ],
)
def test_explain_refuses_what_it_cannot_do(hand, tmp_path, capsys, arguments, expected):
    """One line, exit code 2."""
    dataset = write_recorded(hand, tmp_path / "d")
    assert main(["explain", str(dataset), *arguments]) == 2
    assert expected in capsys.readouterr().err
