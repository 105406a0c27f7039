"""Answers that a run only read are its prompt's: no trainer is told that the policy gave them."""

import json

import polars as pl
import pytest

from starpo_trace import semconv as keys
from starpo_trace.cli import main


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SHOWN = [system("S"), user("2+2?"), assistant("4"), user("3+3?")]
"""A prompt with a demonstration."""
FIRST = [*SHOWN, assistant("6"), user("sure?")]
EDITED = [*SHOWN, assistant("6"), user("really?")]


@pytest.fixture
def write(spans, datasets):
    """A run of three answers, the third to an edited question -> `write` of its dataset."""
    root = spans.root("a", num_steps=3, **{keys.TASK_ID: "t"})
    rows = [
        root,
        spans.call(root, 0, SHOWN, assistant("6")),
        spans.call(root, 1, FIRST, assistant("yes")),
        spans.call(root, 2, EDITED, assistant("yes, really")),
        spans.reward(root, 1.0),
    ]
    dataset = datasets.build(rows)
    file = datasets.folder / "out"

    def write(*options):
        assert main(["write", str(dataset), "-o", str(file), *options]) == 0
        return file

    return write


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_openai_lines_teach_each_own_answer_once(write, capsys):
    """Demonstrations, and what an earlier line teaches, have weight 0; nothing else has a weight."""
    first, edited = read_lines(write("--as", "openai"))
    shown = [system("S"), user("2+2?"), {**assistant("4"), "weight": 0}, user("3+3?")]
    assert first["messages"] == [*shown, assistant("6"), user("sure?"), assistant("yes")]
    again = {**assistant("6"), "weight": 0}
    assert edited["messages"] == [*shown, again, user("really?"), assistant("yes, really")]
    assert "not kept" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["trl", "verl-sft"])
def test_forms_without_weights_say_what_is_learnt_too(write, form, capsys):
    """Their trainers learn every assistant message, which nothing in the file can change."""
    write("--as", form)
    assert "some answers were only read" in capsys.readouterr().out


def test_a_prompt_goes_up_to_the_first_own_answer(write):
    """Else a demonstration would be judged, and the question would be missing for a new run."""
    (line,) = read_lines(write("--as", "trl-kto", "--desirable-from", "1"))
    assert line["prompt"] == SHOWN
    assert line["completion"] == [*EDITED[len(SHOWN) :], assistant("yes, really")]
    (row,) = pl.read_parquet(write("--as", "verl")).to_dicts()
    assert row["prompt"] == SHOWN


def test_the_same_answer_twice_is_one_line(spans, datasets):
    """A call that was repeated and answered in the same words is one conversation."""
    root = spans.root("a", num_steps=2)
    rows = [root]
    for step in range(2):
        spans.known = set()
        rows.append(spans.call(root, step, [user("?")], assistant("!")))
    dataset, file = datasets.build(rows), datasets.folder / "out"
    assert main(["write", str(dataset), "-o", str(file)]) == 0
    assert read_lines(file) == [{"messages": [user("?"), assistant("!")]}]
