"""An environment of verifiers', really run by it against a scripted server.

verifiers before 0.3 goes with few of the other packages' versions; this file is skipped without it.
"""

import json
import sys

import pytest

from starpo_trace.testing import Reply, ScriptedServer, ToolCall
from starpo_train import rollout
from starpo_train.dataset import scan_table
from starpo_train.environments.verifiers_tasks import VerifiersEnvironment
from starpo_train.errors import RolloutError

vf = pytest.importorskip("verifiers")
if not hasattr(vf, "load_environment"):
    pytest.skip("verifiers 0.3 and later have no such environments", allow_module_level=True)

SUMS = '''
import verifiers as vf
from datasets import Dataset


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: first
        b: second
    """
    return a + b


def right(completion, answer, **kwargs):
    return float(completion[-1]["content"] == answer)


def length(completion, **kwargs):
    return float(len(completion))


def load_environment(offset=0):
    rows = [
        {"question": f"{n} + {n}?", "answer": str(2 * n + offset)} for n in (1, 2, 3)
    ]
    rubric = vf.Rubric(funcs=[right, length], weights=[1.0, 0.0])
    return vf.ToolEnv(dataset=Dataset.from_list(rows), tools=[add], rubric=rubric, max_turns=4)
'''


def answer(body):
    """Asks `add`, tells its result; about 3 it is out of order."""
    messages = body["messages"]
    number = messages[0]["content"][0]
    if number == "3":
        return Reply(status=500)
    ids = {"prompt_token_ids": [1, 2], "token_ids": [3], "logprobs": [-0.5]}
    if messages[-1]["role"] == "tool":
        return Reply(content=str(messages[-1]["content"]), **ids)
    arguments = f'{{"a": {number},  "b": {number}}}'
    return Reply(tool_calls=[ToolCall(id="c", name="add", arguments=arguments)], **ids)


@pytest.fixture
def configure(tmp_path, monkeypatch):
    (tmp_path / "starpo_sums.py").write_text(SUMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("starpo_sums", None)

    def build(server, *, args="", **changes):
        values = {"environment": "verifiers:starpo-sums", "output": str(tmp_path / "out")}
        values |= {"policy_id": "p", "attempts": 2, "concurrency": 2, "split": "train", **changes}
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        endpoint = [f'base_url = "{server.base_url}"', 'model = "tiny"', "max_retries = 0"]
        tables = ["[evaluate]", *lines, "[evaluate.endpoint]", *endpoint]
        path = tmp_path / "eval.toml"
        path.write_text("\n".join([*tables, "[evaluate.environment_args]", args]))
        return rollout.read_evaluate_config(path)

    return build


def test_rows_and_attempts_are_trajectories_with_the_rubrics_reward(configure):
    """Calls with ids and seeds, rewards and metrics; an endpoint that fails is no reward of 0."""
    with ScriptedServer(answer) as server:
        result = rollout.evaluate(configure(server))
    summary = result.summary
    assert (summary["num_rewarded"], summary["num_missing"]) == (4, 2)
    assert all("verifiers:starpo-sums failed" in each for each in summary["failures"])
    runs = scan_table(result.dataset, "trajectories").sort("task_id", "attempt").collect()
    assert runs.select("task_id", "attempt", "reward", "end").rows() == [
        *(("starpo-sums/train/0", n, 1.0, "terminated") for n in (0, 1)),
        *(("starpo-sums/train/1", n, 1.0, "terminated") for n in (0, 1)),
        *(("starpo-sums/train/2", n, None, "error") for n in (0, 1)),
    ]
    good = runs.filter(runs["reward"].is_not_null())
    assert set(good["usable_for"]) == {"rl"}
    assert set(good["num_turns"]) == {2}
    sent = {body["seed"] for body in server.requests if body["messages"][0]["content"][0] != "3"}
    assert sent == {seed + turn for seed in good["seed"] for turn in (0, 1)}
    turns = scan_table(result.dataset, "turns").collect()
    calls = [call["arguments"] for each in turns["tool_calls"].to_list() for call in each or ()]
    assert sorted(calls) == ['{"a": 1,  "b": 1}'] * 2 + ['{"a": 2,  "b": 2}'] * 2
    rewards = scan_table(result.dataset, "rewards").collect()
    assert {row["name"]: row["value"] for row in rewards.to_dicts()}["length"] == 3.0


def test_a_limit_of_turns_truncates(configure):
    """That of the evaluation file goes before the environment's."""
    with ScriptedServer(answer) as server:
        result = rollout.evaluate(configure(server, tasks=1, attempts=1, max_turns=1, seed=1))
    (run,) = scan_table(result.dataset, "trajectories").collect().to_dicts()
    assert (run["end"], run["reward"], run["num_turns"]) == ("truncated", 0.0, 1)


def test_an_environment_that_is_not_there_is_refused():
    """With its name."""
    with pytest.raises(RolloutError, match="verifiers:nowhere-to-be-found with"):
        VerifiersEnvironment("nowhere-to-be-found")
