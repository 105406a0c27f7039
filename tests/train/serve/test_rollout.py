"""Agent file + served checkpoint -> recorded runs, dataset and summary; interrupted and resumed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import starpo_trace
from starpo_train import agentfile, rollout
from starpo_train.dataset import scan_table
from starpo_train.errors import ConfigError, RolloutError
from starpo_train.modelfolder import hash_weights

AGENT = """
from pathlib import Path

import starpo_trace

starpo_trace.instrument()

HERE = Path(__file__).parent
ENVIRONMENT_NAME = "parity"


def tasks(split, count, seed):
    return [
        {"id": f"{split}-{i}", "cohort": "odd" if i % 2 else "even"} for i in range(count)
    ]


def play(client, model, task, seed):
    with (HERE / "plays.txt").open("a") as log:
        log.write(f"{task['id']} {seed}\\n")
    if (HERE / "broken").exists() and task["id"] == "test-1":
        raise RuntimeError("boom")
    client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hi"}],
        temperature=1.0,
        seed=seed,
        logprobs=True,
        extra_body={"return_token_ids": True},
    )
    return {"reward": float(task["cohort"] == "even"), "end": "terminated"}
"""


def write_evaluation(folder: Path, **changes: Any) -> Path:
    values = {
        "agent": "agent.py",
        "model": "model",
        "output": "out",
        "policy_id": "p",
        "tasks": 2,
        "attempts": 2,
        "concurrency": 2,
        **changes,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "eval.toml"
    path.write_text("\n".join(["[evaluate]", *lines]))
    return path


def read_plays(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "plays.txt").read_text().splitlines()]


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(make_chain_folder: Callable[..., Path], tmp_path: Path):
    """Runs that have their reward are not played again; the others are; then nothing is left."""
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "model").symlink_to(make_chain_folder(["hello", " there"]))
    (tmp_path / "broken").touch()
    config = rollout.read_evaluate_config(write_evaluation(tmp_path))

    first = rollout.evaluate(config).summary
    assert sorted(read_plays(tmp_path)) == ["test-0", "test-0", "test-1", "test-1"]
    assert (first["num_rewarded"], first["num_missing"], first["success_mean"]) == (2, 2, 1.0)

    (tmp_path / "broken").unlink()
    (tmp_path / "plays.txt").unlink()
    shown: list[rollout.Progress] = []
    second = rollout.evaluate(config, progress=shown.append)
    assert read_plays(tmp_path) == ["test-1", "test-1"]
    assert (second.summary["num_rewarded"], second.summary["num_missing"]) == (4, 0)
    assert second.summary["success_mean"] == 0.5
    assert second.summary["ends"] == {"terminated": 4}
    assert second.summary["usable_for"] == {"rl": 4}
    assert json.loads(second.summary_path.read_text()) == second.summary
    assert next(progress.stage for progress in shown) == "server"
    assert (shown[-1].stage, shown[-1].num_done) == ("done", 4)

    assert second.summary["weights_sha256"] == hash_weights(str(tmp_path / "model"))
    (tmp_path / "model").unlink()  # no server is needed when nothing is left to play
    third = rollout.evaluate(config).summary
    assert third["runs_played"] == 0
    assert third["weights_sha256"] == second.summary["weights_sha256"]
    check_dataset(second.dataset)


@pytest.mark.slow
def test_runs_of_two_models_are_not_mixed(make_chain_folder: Callable[..., Path], tmp_path: Path):
    """Other weights at the same path are refused while runs are left to play."""
    (tmp_path / "agent.py").write_text(AGENT)
    shutil.copytree(make_chain_folder(["hello", " there"]), tmp_path / "model")
    (tmp_path / "broken").touch()
    config = rollout.read_evaluate_config(write_evaluation(tmp_path))
    rollout.evaluate(config)
    (tmp_path / "broken").unlink()
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(make_chain_folder(["hello", " there", " you"]), tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"out: holds runs of other weights than those that would"
    ):
        rollout.evaluate(config)
    shutil.rmtree(tmp_path / "out" / "traces")  # nothing is finished: the weights are claimed anew
    shutil.rmtree(tmp_path / "out" / "dataset")
    told = rollout.evaluate(config).summary
    assert told["weights_sha256"] == hash_weights(str(tmp_path / "model"))


def check_dataset(dataset: Path) -> None:
    rows = (
        scan_table(dataset, "trajectories")
        .filter(pl.col("reward").is_not_null())
        .sort("task_id", "attempt")
        .collect()
    )
    assert rows.select("task_id", "attempt", "cohort", "reward").rows() == [
        ("test-0", 0, "even", 1.0),
        ("test-0", 1, "even", 1.0),
        ("test-1", 0, "odd", 0.0),
        ("test-1", 1, "odd", 0.0),
    ]
    assert set(rows["policy_id"]) == {"p"}
    assert set(rows["environment_name"]) == {"parity"}
    assert rows["seed"].n_unique() == 4
    turns = scan_table(dataset, "turns").collect()
    assert set(turns["logprob_provenance"]) == {"exact"}
    assert {len(ids) for ids in turns["response_token_ids"]} == {3}


@pytest.mark.slow
def test_an_agent_that_always_fails_stops_the_evaluation(
    make_chain_folder: Callable[..., Path], tmp_path: Path
):
    """With the agent's own error, after a few runs and not after hundreds."""
    (tmp_path / "agent.py").write_text(AGENT.replace('task["id"] == "test-1"', "True"))
    (tmp_path / "model").symlink_to(make_chain_folder(["hello", " there"]))
    (tmp_path / "broken").touch()
    config = rollout.read_evaluate_config(write_evaluation(tmp_path, tasks=200))
    line = AGENT[: AGENT.index('raise RuntimeError("boom")')].count("\n") + 1
    words = rf"agent\.py: \d+ runs failed.*RuntimeError\('boom'\); at {tmp_path}/agent.py:{line}; "
    with pytest.raises(RolloutError, match=words):
        rollout.evaluate(config)
    assert len(read_plays(tmp_path)) < 100


@pytest.mark.parametrize(
    "result",
    [1.0, {"rewrd": 1.0}, {"reward": None}, {"reward": "1.0"}, {"reward": float("nan")},
     {"reward": 1.0, "end": "done"}, {"reward": 10**400}, {"reward": 1.0, "end": ["terminated"]}],
)  # fmt: skip
def test_what_play_may_return_is_told(result: Any):
    """What it did return, and what it must."""
    with pytest.raises(RolloutError) as raised:
        agentfile.read_outcome(result, Path("agent.py"))
    assert f"agent.py: play returned {result!r}; it must return" in str(raised.value)


@pytest.mark.parametrize("reward", [True, np.float32(0.5) > 0.1, np.int64(1), torch.tensor(1.0)])
def test_rewards_of_any_number_type_are_taken(reward: Any):
    """numpy's bool is none of its numbers; torch has tensors of one."""
    assert agentfile.read_outcome({"reward": reward}, Path("agent.py")) == (1.0, "terminated")


def test_relative_paths_resolve_against_the_file(tmp_path: Path):
    """The model too, whether or not there is such a folder."""
    path = write_evaluation(tmp_path)
    assert rollout.read_evaluate_config(path).evaluate.model == str(tmp_path / "model")
    (tmp_path / "model").mkdir()
    options = rollout.read_evaluate_config(path).evaluate
    assert options.model == str(tmp_path / "model")
    assert (options.agent, options.output) == (tmp_path / "agent.py", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atempts": 3}, "did you mean `attempts`"),
        ({"attempts": 0}, r"evaluate\.attempts = 0: must be at least 1"),
        ({"tasks": "many"}, "must be a whole number"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    """With the key, its value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        rollout.read_evaluate_config(write_evaluation(tmp_path, **changes))


def test_a_process_that_records_already_is_told_before_anything_is_played(
    make_chain_folder: Callable[..., Path], tmp_path: Path
):
    """Its runs would go to the other store."""
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "model").symlink_to(make_chain_folder(["hello", " there"]))
    config = rollout.read_evaluate_config(write_evaluation(tmp_path))
    starpo_trace.instrument(store=tmp_path / "elsewhere")
    try:
        with pytest.raises(RolloutError, match=r"instrumented already.*uninstrument\(\)"):
            rollout.evaluate(config)
    finally:
        starpo_trace.uninstrument()
    assert not (tmp_path / "plays.txt").exists()


def test_another_evaluations_folder_is_refused(tmp_path: Path):
    """More tasks are welcome, another policy's runs are not mixed in."""
    (tmp_path / "out").mkdir()
    for count in (2, 3):
        path = write_evaluation(tmp_path, tasks=count)
        rollout.claim_output(rollout.read_evaluate_config(path).evaluate)
    other = rollout.read_evaluate_config(write_evaluation(tmp_path, policy_id="q")).evaluate
    with pytest.raises(ConfigError, match="holds runs with policy_id = 'p', not 'q'"):
        rollout.claim_output(other)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "no such agent file"),
        ("import nowhere_to_be_found", "fails to import.*nowhere_to_be_found"),
        ("def tasks(split, count, seed): return []", "has no usable `play`"),
        ("def tasks(count): ...\ndef play(client, model, task, seed): ...", "no usable `tasks`"),
    ],
)
def test_an_unusable_agent_is_refused(tmp_path: Path, source: str | None, message: str):
    """Before a server is started."""
    path = tmp_path / "agent.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(RolloutError, match=message):
        agentfile.load_agent(path)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("[]", "a list of dicts"),
        ("[{'id': 1}]", 'a string "id"'),
        ("[{'id': 'a'}, {'id': 'a'}]", "the id 'a' more than once"),
    ],
)
def test_unusable_tasks_are_refused(tmp_path: Path, tasks: str, message: str):
    """StarPO compares within a task, so its id must be one."""
    path = tmp_path / "agent.py"
    path.write_text(
        f"def tasks(split, count, seed): return {tasks}\ndef play(client, model, task, seed): ..."
    )
    agent = agentfile.load_agent(path)
    with pytest.raises(RolloutError, match=message):
        agentfile.list_attempts(agent, path, split="test", tasks=2, attempts=1, seed=0)
