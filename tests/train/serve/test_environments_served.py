"""An environment played by the built-in server: token ids, tool calls and a full context."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from starpo_train import rollout
from starpo_train.dataset import scan_table

CALL = '{"name": "act", "arguments": {"action": "right"}}'


def configure(folder: Path, *, lake: list[str], **changes: object) -> rollout.EvaluateConfig:
    values = {"environment": "gymnasium:FrozenLake-v1", "model": "model", "output": "out"}
    values |= {"policy_id": "p", "tasks": 2, "attempts": 2, "concurrency": 4, **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "eval.toml"
    path.write_text(
        "\n".join(
            [
                "[evaluate]",
                *lines,
                "[evaluate.environment_args]",
                f"desc = {json.dumps(lake)}",
                "is_slippery = false",
                "goal = 'Go.'",
            ]
        )
    )
    return rollout.read_evaluate_config(path)


@pytest.mark.slow
def test_a_served_model_plays_a_game(make_chain_folder: Callable[..., Path], tmp_path: Path):
    """To the goal, with exact ids and log-probabilities: the runs can be trained on."""
    words = ["<tool_call>", CALL, "</tool_call>"]
    (tmp_path / "model").symlink_to(make_chain_folder(words))
    result = rollout.evaluate(configure(tmp_path, lake=["SFG"]))
    summary = result.summary
    assert (summary["num_rewarded"], summary["success_mean"]) == (4, 1.0)
    assert (summary["ends"], summary["usable_for"]) == ({"terminated": 4}, {"rl": 4})
    assert (summary["environment"], summary["environment_version"]) == ("FrozenLake-v1", "1")
    turns = scan_table(result.dataset, "turns").collect()
    assert turns.height == 8
    assert set(turns["logprob_provenance"]) == {"exact"}
    assert set(turns["token_provenance"]) == {"exact"}
    calls = [(call["name"], json.loads(call["arguments"])) for (call,) in turns["tool_calls"]]
    assert calls == [("act", {"action": "right"})] * 8
    rewards = scan_table(result.dataset, "rewards").collect()
    assert sorted(rewards["value"]) == [0.0] * 4 + [1.0] * 8


@pytest.mark.slow
def test_a_full_context_truncates(make_chain_folder: Callable[..., Path], tmp_path: Path):
    """The run is worth what the environment says, and ends with the reason."""
    (tmp_path / "model").symlink_to(make_chain_folder(["hm"]))  # never an action
    config = configure(tmp_path, lake=["SFG"], tasks=1, attempts=1, max_turns=99)
    result = rollout.evaluate(config)
    (run,) = scan_table(result.dataset, "trajectories").collect().to_dicts()
    assert (run["end"], run["reward"]) == ("truncated", 0.0)
    assert 2 < run["num_turns"] < 20
