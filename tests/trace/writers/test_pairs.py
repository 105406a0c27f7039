"""Which trajectories become TRL's pairs, in what order, and why the others do not."""

import json

import pytest

from starpo_trace import semconv as keys
from starpo_trace.cli import main
from starpo_trace.convert.writers.pairs import Candidate, list_pairs
from starpo_trace.messages import dump_json

SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def candidates(*rewards):
    return [
        Candidate(trajectory_id=f"{place}", reward=reward, number=place)
        for place, reward in enumerate(rewards)
    ]


def ids(pairs):
    return [(better.trajectory_id, worse.trajectory_id) for better, worse in pairs]


def test_the_best_is_paired_with_the_worst_first():
    """Four rewards: the two disjoint pairs, then those that use an attempt again; each once."""
    pairs = ids(list_pairs(candidates(1.0, 0.0, 0.5, 0.75), 0.0))
    assert pairs == [("0", "1"), ("3", "2"), ("0", "2"), ("0", "3"), ("2", "1"), ("3", "1")]
    assert ids(list_pairs(candidates(1.0, 0.0, 0.5, 0.75), 0.5)) == [
        ("0", "1"),
        ("0", "2"),
        ("2", "1"),
        ("3", "1"),
    ]
    assert ids(list_pairs(candidates(1.0, 1.0), 0.0)) == []


class Shop:
    """Runs of a tool-using agent."""

    def __init__(self, spans):
        self.spans = spans
        self.rows = []

    def run(self, name, task, reward, *, ask="how many?", say="Three.", step_in=None):
        """A run: the question, a call of the tool, an answer."""
        self.spans.known = set()
        root = self.spans.root(name, num_steps=2, **{keys.TASK_ID: task})
        history = [SYSTEM, {"role": "user", "content": ask}]
        tools = {keys.TOOL_DEFINITIONS: dump_json(TOOLS)}
        function = {"name": "look", "arguments": "{}"}
        call = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        }
        self.rows += [root, self.spans.call(root, 0, history, call, attributes=tools)]
        told = {"role": "tool", "tool_call_id": "c1", "content": step_in or "3"}
        history = [*history, call, told]
        answer = {"role": "assistant", "content": say}
        self.rows.append(self.spans.call(root, 1, history, answer, attributes=tools))
        if reward is not None:
            one = {keys.REWARD_ID: name}
            self.rows.append(self.spans.reward(root, reward, **one))


@pytest.fixture
def shop(spans, datasets):
    made = Shop(spans)
    made.write = lambda *options: write(datasets, made.rows, *options)
    return made


def write(datasets, rows, *options):
    """Rows -> exit code, and lines of what `starpo-trace write` makes of their dataset."""
    file = datasets.folder / "out.jsonl"
    code = main(["write", str(datasets.build(rows)), "-o", str(file), *options])
    text = file.read_text() if file.exists() else ""
    return code, [json.loads(line) for line in text.splitlines()]


def test_a_pair_shares_all_before_an_answer(shop, capsys):
    """The same call and result belong to the prompt; what follows is chosen and rejected."""
    shop.run("a", "t", 0.0, say="Two.")
    shop.run("b", "t", 1.0)
    code, [pair] = shop.write("--as", "trl-pairs")
    assert code == 0
    assert [each["role"] for each in pair["prompt"]] == ["system", "user", "assistant", "tool"]
    assert pair["prompt"][2]["content"] == ""
    assert pair["chosen"] == [{"role": "assistant", "content": "Three."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "Two."}]
    assert json.loads(pair["tools"]) == TOOLS
    assert {key: pair[key] for key in ("task_id", "chosen_id", "rejected_id")} == {
        "task_id": "t",
        "chosen_id": "b",
        "rejected_id": "a",
    }
    assert (pair["chosen_reward"], pair["rejected_reward"]) == (1.0, 0.0)
    assert capsys.readouterr().out.endswith("out.jsonl: 1 pairs of 2 trajectories\n")


def test_answers_begin_both_sides_where_the_environment_differs(shop):
    """One tool said 3 and one 4: the difference is no answer's, so the sides begin with the call."""
    shop.run("a", "t", 0.0, step_in="4")
    shop.run("b", "t", 1.0)
    _, [pair] = shop.write("--as", "trl-pairs")
    assert [each["role"] for each in pair["prompt"]] == ["system", "user"]
    for side in ("chosen", "rejected"):
        assert [each["role"] for each in pair[side]] == ["assistant", "tool", "assistant"]


def test_every_trajectory_without_a_pair_has_a_reason(shop, capsys):
    """Alone, equal in reward, equal in words, without reward or task, or one too many."""
    shop.run("alone", "t1", 1.0)
    for name in ("e1", "e2"):
        shop.run(name, "t2", 1.0)
    shop.run("w1", "t3", 0.0)
    shop.run("w2", "t3", 1.0)
    shop.run("unjudged", "t4", None)
    shop.run("homeless", None, 1.0)
    for number in range(4):
        shop.run(f"m{number}", "t5", number / 4, say=f"{number}")
    code, lines = shop.write("--as", "trl-pairs", "--pairs-per-task", "1")
    assert code == 0
    assert [(line["chosen_id"], line["rejected_id"]) for line in lines] == [("m3", "m0")]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  left out: 2 trajectories, no_difference",
        "  left out: 2 trajectories, no_other_reward",
        "  left out: 2 trajectories, over_limit",
        "  left out: 1 trajectories, alone_with_its_prompt",
        "  left out: 1 trajectories, no_reward",
        "  left out: 1 trajectories, no_task",
    ]


def test_kto_lines_have_a_label(shop, capsys):
    """Prompt up to the first answer, the rest, and whether it was worth as much."""
    shop.run("a", None, 0.5)
    shop.run("b", "t", 0.25)
    _, lines = shop.write("--as", "trl-kto", "--desirable-from", "0.5")
    assert [line["label"] for line in lines] == [True, False]
    assert [each["role"] for each in lines[0]["prompt"]] == ["system", "user"]
    assert [each["role"] for each in lines[0]["completion"]] == ["assistant", "tool", "assistant"]
    assert json.loads(lines[0]["tools"]) == TOOLS
    assert shop.write("--as", "trl-kto")[0] == 1
    assert "as --desirable-from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--as", "trl-pairs", "--min-gap", "-1"], "min_gap is -1.0; give a difference"),
        (["--as", "trl-pairs", "--min-gap", "nan"], "min_gap is nan; give a difference"),
        (["--as", "trl-pairs", "--pairs-per-task", "0"], "give at least 1"),
        (["--as", "trl", "--min-gap", "1"], "--min-gap: only --as trl-pairs has it"),
        (["--min-reward", "nan"], "min_reward is nan; give a finite number"),
    ],
)
def test_wrong_options_say_what_to_do(shop, capsys, options, words):
    """Nothing is written."""
    shop.run("a", "t", 0.0)
    assert shop.write(*options) == (1, [])
    assert words in capsys.readouterr().err
