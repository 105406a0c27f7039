"""Inspect tasks, really run by Inspect against a scripted server, through `starpo-train evaluate`.

Inspect does not go with the other packages' versions: `make test` runs this file in an environment
of its own.
"""

import json
from collections import Counter

import polars as pl
import pytest

from starpo_trace.testing import Reply, ScriptedServer, ToolCall
from starpo_train import rollout
from starpo_train.dataset import scan_table
from starpo_train.environments.inspect_scores import choose_reward, read_scores
from starpo_train.environments.loading import load_environment
from starpo_train.errors import RolloutError

TASK = '''
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, includes, mean, model_graded_qa, scorer
from inspect_ai.solver import generate, solver, use_tools
from inspect_ai.tool import tool

HERE = Path(__file__).parent


@tool
def add():
    async def execute(a: int, b: int):
        """Add two numbers.

        Args:
            a: first
            b: second
        """
        return str(a + b)

    return execute


@solver
def fragile():
    async def solve(state, generate):
        if state.sample_id == "two" and (HERE / "broken").exists():
            raise RuntimeError("out of order")
        return state

    return solve


@scorer(metrics=[mean()])
def parts():
    async def score(state, target):
        return Score(value={"style": 0.25, "tone": "P"}, explanation="as it sounds")

    return score


@task
def sums(offset: int = 0):
    return Task(
        dataset=[
            Sample(id="one", input="1 + 1?", target=str(2 + offset), metadata={"kind": "easy"}),
            Sample(id="two", input="2 + 2?", target="5"),
        ],
        solver=[fragile(), use_tools(add()), generate()],
        scorer=[includes(), parts(), model_graded_qa()],
        version="7",
    )


@task
def limited():
    return Task(
        dataset=[Sample(input="loop", target="2")],
        solver=[use_tools(add()), generate()],
        scorer=includes(),
        message_limit=3,
    )
'''


def answer(body):
    """A model that asks `add` and tells its result; as a grader it is content."""
    messages = body["messages"]
    if any("GRADE" in str(message.get("content")) for message in messages):
        return Reply(content="GRADE: C")
    ids = {"prompt_token_ids": [1, 2], "token_ids": [3], "logprobs": [-0.5]}
    if messages[-1]["role"] == "tool" and "loop" not in messages[0]["content"]:
        return Reply(content=f"it is {messages[-1]['content']}", **ids)
    number = messages[0]["content"][0]
    number = number if number.isdigit() else "1"
    arguments = f'{{"a": {number},  "b": {number}}}'
    return Reply(tool_calls=[ToolCall(id="c", name="add", arguments=arguments)], **ids)


@pytest.fixture
def configure(tmp_path):
    """Evaluation of the task file beside it, at a server."""

    def build(server, task="sums", *, args="", **changes):
        (tmp_path / "sums.py").write_text(TASK)
        values = {
            "environment": f"inspect:sums.py:{task}",
            "output": "out",
            "policy_id": "p",
            "attempts": 2,
            "concurrency": 2,
            **changes,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path = tmp_path / "eval.toml"
        path.write_text(
            "\n".join(
                [
                    "[evaluate]",
                    *lines,
                    "[evaluate.endpoint]",
                    f'base_url = "{server.base_url}"',
                    'model = "org/tiny"',
                    "max_retries = 0",
                    "[evaluate.sampling]",
                    "temperature = 1.0",
                    "max_tokens = 64",
                    "[evaluate.environment_args]",
                    args,
                ]
            )
        )
        return rollout.read_evaluate_config(path)

    return build


def test_samples_and_epochs_are_trajectories_with_the_scorers_value(configure):
    """Two samples, two epochs: prompts, calls, ids, rewards, seeds; graders are left out."""
    with ScriptedServer(answer) as server:
        result = rollout.evaluate(configure(server, args='cohort = "kind"'))
        asked = [body for body in server.requests if "GRADE" not in json.dumps(body["messages"])]
    assert len(asked) == 8
    assert len(server.requests) == 12  # model_graded_qa asks the same model
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in asked} == {
        ("org/tiny", 1.0, 64)
    }
    assert all(body["return_token_ids"] and body["logprobs"] for body in asked)
    runs = scan_table(result.dataset, "trajectories").sort("task_id", "attempt").collect()
    assert runs.select("task_id", "attempt", "cohort", "reward", "end").rows() == [
        ("sums/one", 0, "easy", 1.0, "terminated"),
        ("sums/one", 1, "easy", 1.0, "terminated"),
        ("sums/two", 0, None, 0.0, "terminated"),
        ("sums/two", 1, None, 0.0, "terminated"),
    ]
    assert set(runs["environment_name"]) == {"sums"}
    assert set(runs["environment_version"]) == {"7"}
    assert set(runs["policy_id"]) == {"p"}
    assert set(runs["usable_for"]) == {"rl"}
    assert runs["seed"].n_unique() == 4
    assert {body["seed"] for body in asked} == {
        seed + turn for seed in runs["seed"] for turn in (0, 1)
    }
    turns = scan_table(result.dataset, "turns").sort("trajectory_id", "turn").collect()
    assert turns.height == 8
    assert set(turns["logprob_provenance"]) == {"exact"}
    arguments = Counter(
        call["arguments"] for each in turns["tool_calls"].to_list() for call in each or ()
    )
    assert arguments == {'{"a": 1,  "b": 1}': 2, '{"a": 2,  "b": 2}': 2}
    assert sorted(turns["text"].drop_nulls()) == ["it is 2", "it is 2", "it is 4", "it is 4"]
    rewards = scan_table(result.dataset, "rewards").collect()
    assert Counter(rewards.select("name", "value").rows()) == {
        ("reward", 1.0): 2,
        ("reward", 0.0): 2,
        ("parts.style", 0.25): 4,
        ("parts.tone", 0.5): 4,
        ("model_graded_qa", 1.0): 4,
    }
    assert list((result.dataset.parent / "environment").glob("*.eval"))


def test_a_sample_that_failed_has_no_reward_and_is_played_again(configure, tmp_path):
    """Inspect's error is the environment's: another start plays these samples and no others."""
    with ScriptedServer(answer) as server:
        config = configure(server, args='scorer = "parts.tone"')
        (tmp_path / "broken").touch()
        first = rollout.evaluate(config).summary
        assert (first["num_rewarded"], first["num_missing"]) == (2, 2)
        (tmp_path / "broken").unlink()
        num_asked = len(server.requests)
        second = rollout.evaluate(config)
        again = server.requests[num_asked:]
    assert {body["messages"][0]["content"] for body in again if "tools" in body} == {"2 + 2?"}
    assert (second.summary["num_rewarded"], second.summary["num_missing"]) == (4, 0)
    rows = scan_table(second.dataset, "trajectories").filter(pl.col("reward").is_not_null())
    assert rows.collect()["reward"].to_list() == [0.5] * 4


def test_a_limit_truncates(configure):
    """Of Inspect's own; the sample is scored all the same."""
    with ScriptedServer(answer) as server:
        result = rollout.evaluate(configure(server, "limited", attempts=1))
    (run,) = scan_table(result.dataset, "trajectories").collect().to_dicts()
    assert (run["end"], run["reward"]) == ("truncated", 0.0)


def test_arguments_of_the_task_are_the_files(configure):
    """What is no option of ours goes to the task's function."""
    with ScriptedServer(answer) as server:
        result = rollout.evaluate(configure(server, args="offset = 7", attempts=1, tasks=1, seed=1))
        assert result.summary["num_tasks"] == 1
    wrong = dict.fromkeys(["sums/one", "sums/two"], 0.0)
    rows = scan_table(result.dataset, "trajectories").collect()
    assert all(wrong[row["task_id"]] == row["reward"] for row in rows.to_dicts())


class Scored:
    def __init__(self, value):
        self.value = value


def test_scores_become_numbers_as_inspect_counts_them():
    """Letters and words; what is no number is none, and no reward."""
    given = {"a": "C", "b": {"x": "P", "y": True}, "c": "N", "d": float("nan"), "e": "good"}
    numbers = read_scores({name: Scored(value) for name, value in given.items()})
    assert numbers == {"a": 1.0, "b.x": 0.5, "b.y": 1.0, "c": 0.0, "d": None, "e": None}
    assert choose_reward(numbers, None) == ("a", 1.0)
    assert choose_reward(numbers, "b.x") == ("b.x", 0.5)
    with pytest.raises(ValueError, match="the score 'e' is no number"):
        choose_reward(numbers, "e")
    with pytest.raises(ValueError, match=r"no score 'z'; there are: a, b\.x"):
        choose_reward(numbers, "z")


def test_a_task_that_is_not_there_is_refused(tmp_path):
    """With the name and the forms there are."""
    (tmp_path / "sums.py").write_text(TASK)
    with pytest.raises(RolloutError, match="has no 'products'"):
        load_environment(f"inspect:{tmp_path / 'sums.py'}:products", {})


def test_a_registered_task_is_found_by_its_name(tmp_path):
    """As those of inspect_evals are."""
    (tmp_path / "sums.py").write_text(TASK)
    load_environment(f"inspect:{tmp_path / 'sums.py'}:sums", {})
    found = load_environment("inspect:sums", {"offset": 1})
    assert [task.id for task in found.tasks("test", 9, 0)] == ["sums/one", "sums/two"]
