"""Why trajectories are left out, in words and with numbers."""

import re
from pathlib import Path

import pytest

from starpo_trace.convert.verdict import NOT_EVEN_SFT, NOT_RL
from starpo_train.cli import main
from starpo_train.errors import DataError
from starpo_train.leftout import REASONS, LeftOut, name_reason
from starpo_train.metrics import read_metrics
from starpo_train.run import train

PROMPT = [0, 20, 21]


def write_long(hand, folder, *, lengths, rewards):
    """One-turn attempts at one task whose prompts have these lengths; answers have two tokens."""
    rows = [
        hand.trajectory(f"t{i}", [hand.turn([20] * length, [40, 1], [-5.0, -5.0])], reward=reward)
        for i, (length, reward) in enumerate(zip(lengths, rewards, strict=True))
    ]
    return hand.dataset(folder, rows)


@pytest.mark.parametrize("advantage", ["grpo", "bilevel_gae"])
def test_rows_that_the_model_cannot_read_are_told_with_both_numbers(
    configure, hand, tmp_path, advantage
):
    """The longest row and the limit, before anything is written."""
    dataset = write_long(hand, tmp_path / "d", lengths=(600, 900), rewards=(0.0, 1.0))
    config = configure(dataset=dataset, algorithm={"advantage": advantage})
    with pytest.raises(DataError) as refused:
        train(config)
    assert str(refused.value) == (
        f"{dataset}: nothing is left to train on with starpo. Left out of 2 trajectories in split "
        "'train':\n  2 too_long_for_model: a row is longer than the model reads: 902 tokens, "
        "max_position_embeddings = 512; train a model with a longer context"
    )
    assert not config.run.output.exists()


def test_a_row_as_long_as_the_model_reads_is_trained(configure, hand, tmp_path):
    """512 tokens fit, 513 do not; the start record has the longest one and the limit."""
    dataset = write_long(
        hand, tmp_path / "d", lengths=(510, 510, 511, 700), rewards=(0.0, 1.0, 0.0, 1.0)
    )
    start = read_metrics(train(configure(dataset=dataset)).metrics_path)[0]
    assert start["left_out"] == {"too_long_for_model": 2}
    assert start["too_long"] == {"longest_row": 702, "limit": 512}


def test_what_is_left_out_is_told_in_the_terminal(hand, model_folder, tmp_path, capsys):
    """Names, counts, both numbers, and where the names are explained."""
    dataset = write_long(hand, tmp_path / "d", lengths=(4, 5, 511), rewards=(0.0, 1.0, 0.0))
    file = hand.run_file(tmp_path / "run.toml", base=model_folder, dataset=dataset)
    assert main(["run", str(file)]) == 0
    assert (
        "left out (docs/training.md): 1 too_long_for_model; the longest row has 513 tokens, the "
        "model's max_position_embeddings is 512"
    ) in capsys.readouterr().out


def test_trajectories_without_an_advantage_are_counted(configure, hand, tmp_path):
    """Equal rewards in one task, one attempt at another: three of five teach nothing."""
    turn = hand.turn(PROMPT, [40, 1], [-5.0, -5.0])
    rewards = {"same": [1, 1], "lone": [0], "both": [0, 1]}
    rows = [
        hand.trajectory(f"{task}{i}", [turn], reward=float(reward), task_id=task)
        for task, values in rewards.items()
        for i, reward in enumerate(values)
    ]
    start = read_metrics(train(configure(dataset=hand.dataset(tmp_path / "d", rows))).metrics_path)[
        0
    ]
    assert (start["num_trajectories"], start["left_out"]) == (2, {"no_advantage": 3})


def test_each_reason_is_a_line_with_what_to_do(configure, hand, tmp_path):
    """Filtered BC above every reward: the threshold is named; one run has no reward."""
    turn = hand.turn(PROMPT, [40, 1], [-5.0, -5.0])
    rows = [
        hand.trajectory(f"t{i}", [turn], reward=reward) for i, reward in enumerate((0, 1, None))
    ]
    dataset = hand.dataset(tmp_path / "d", rows)
    algorithm = {"name": "filtered_bc", "reward_threshold": 2.5}
    with pytest.raises(DataError) as refused:
        train(configure(dataset=dataset, algorithm=algorithm))
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("with filtered_bc. Left out of 3 trajectories in split 'train':")
    assert lines[1] == (
        "  2 below_threshold: reward below algorithm.reward_threshold = 2.5; lower it"
    )
    assert lines[2].startswith("  1 no_reward: no reward that counts; record one with `starpo_")


def test_a_reason_that_takes_nothing_away_is_not_the_one_named():
    """`call_error` sorts first and is only information."""
    assert name_reason(("call_error", "token_ids_missing"), "sft") == "token_ids_missing"
    assert name_reason(("call_error", "logprob_missing", "no_content"), "none") == "no_content"
    assert name_reason((), "none") == "not_usable"
    assert name_reason((), "sft") == "usable_for_sft"


def test_every_reason_can_be_said():
    """No reason asks for a number that there is not, and none is said when its count is 0."""
    everything = LeftOut(dict.fromkeys((*REASONS, "unended"), 1))
    assert everything.explain().count("\n") == len(REASONS) + 1
    assert LeftOut({"truncated": 0}).explain() == ""


def test_every_reason_is_documented():
    """In the one table of docs/training.md, each once, and nothing else."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    part = text.partition("## What is left out")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    ours = {"not_usable", "usable_for_sft"}
    assert sorted(named) == sorted({*REASONS, *NOT_EVEN_SFT, *NOT_RL} | ours)
