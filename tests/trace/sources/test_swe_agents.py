"""SWE-agent's and mini-swe-agent's runs, and SWE-bench's reports as their rewards."""

import hashlib
import json
import tarfile
from pathlib import Path

import polars as pl
import pytest

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.errors import SourceError

INSTANCE = "django__django-1"
ARGUMENTS = '{"path":  "a.py"}'


def make_call(call_id="c1"):
    function = {"name": "open", "arguments": ARGUMENTS}
    return {"id": call_id, "type": "function", "function": function}


def item(role, content, **fields):
    return {"role": role, "content": content, "agent": "main", **fields}


def make_traj(**fields):
    """A run of SWE-agent: a demonstration, a call of a tool, and a last answer in the steps alone."""
    steps = [
        {"response": "open it", "thought": "", "action": "open a.py", "observation": "1: x"},
        {"response": "submit", "thought": "", "action": "submit", "observation": "diff"},
    ]
    history = [
        item("system", "You are an engineer."),
        item("user", "A demonstration", is_demo=True),
        item("user", "Mend it."),
        item("assistant", "open it", tool_calls=[make_call()], action="open a.py"),
        item("tool", "1: x", tool_call_ids=["c1"]),
    ]
    return {
        "environment": "swe_main",
        "trajectory": steps,
        "history": history,
        "info": {"exit_status": "submitted", "model_stats": {}},
        **fields,
    }


def make_mini(**fields):
    """A run of mini-swe-agent: one answer with the provider's reply beside it."""
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    choice = {"finish_reason": "stop", "message": {"content": "ls", "reasoning": "look"}}
    response = {"id": "r1", "model": "p/m-1", "created": 100, "choices": [choice], "usage": usage}
    return {
        "info": {
            "exit_status": "Submitted",
            "mini_version": "1.15.0",
            "config": {"model": {"model_name": "p/m", "model_kwargs": {"temperature": 0.5}}},
        },
        "messages": [
            {"role": "system", "content": "You are an engineer."},
            {"role": "user", "content": "Mend it."},
            {"role": "assistant", "content": "```bash\nls\n```", "extra": {"response": response}},
            {"role": "user", "content": "a.py"},
        ],
        "trajectory_format": "mini-swe-agent-1",
        "instance_id": INSTANCE,
        **fields,
    }


def make_report(resolved=True):
    return {"patch_exists": True, "patch_successfully_applied": True, "resolved": resolved}


def read_messages(tables):
    rows = tables["messages"].sort("depth", "node_id").to_dicts()
    return [(row["role"], row["sampled_turn"]) for row in rows]


def test_a_run_of_swe_agent_with_its_last_answer(convert):
    """The demonstration is prompt, the tool's call verbatim, the last step's answer text alone."""
    name = "gpt4__swe-bench__default__t-0.20__p-0.95__c-2.00__install-1"
    tables = convert({f"{name}/{INSTANCE}.traj": make_traj()}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert run["trajectory_id"] == f"{name}/{INSTANCE}"
    assert (run["task_id"], run["policy_id"], run["end"]) == (INSTANCE, "gpt4", "terminated")
    assert (run["environment_name"], run["num_turns"], run["num_steps"]) == ("swe_main", 2, 3)
    assert read_messages(tables) == [
        *(("system", None), ("user", None), ("user", None), ("assistant", 0)),
        *(("tool", None), ("assistant", 1), ("tool", None)),
    ]
    first, second = tables["turns"].sort("turn").to_dicts()
    assert first["tool_calls"] == [{"id": "c1", "name": "open", "arguments": ARGUMENTS}]
    assert (second["text"], second["tool_calls"], run["num_branches"]) == ("submit", [], 1)


def test_a_query_is_what_the_model_saw(convert):
    """An old observation that was cut from the prompt is in the tool's step alone."""
    traj = make_traj()
    history = traj["history"]
    cut = [*history[:4], item("tool", "(cut)", tool_call_ids=["c1"])]
    traj["trajectory"][0]["query"] = history[:3]
    traj["trajectory"][1]["query"] = cut
    tables = convert({"run/a.traj": traj}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["num_turns"], run["num_branches"]) == (2, 1)
    last = tables["turns"].filter(pl.col("turn") == 1)["input_node"][0]
    seen = tables["messages"].filter(pl.col("node_id") == last)["message"][0]
    assert json.loads(seen)["parts"][0]["response"] == "(cut)"
    assert "missing_history" not in run["reasons"]


def test_an_answer_that_the_history_lacks_is_a_branch(convert):
    """It was asked again: both answers are turns, the history goes on from the second."""
    steps = [
        {"response": "bad form", "observation": "try again"},
        {"response": "ls", "observation": "a.py"},
    ]
    history = [
        item("system", "s"),
        item("user", "u"),
        item("assistant", "ls"),
        item("user", "a.py"),
    ]
    tables = convert({"run/a.traj": make_traj(trajectory=steps, history=history)}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["num_turns"], run["num_branches"]) == (2, 2)
    texts = tables["turns"].sort("turn")["text"].to_list()
    assert texts == ["bad form", "ls"]
    assert tables["turns"]["input_node"].n_unique() == 1


def test_an_answer_that_was_edited_in_the_history_is_one_turn(convert):
    """Step and history have another text at the same place; the history's is what was sent on."""
    traj = make_traj()
    traj["trajectory"][0]["response"] = "opne it"
    tables = convert({"run/a.traj": traj}).tables
    assert tables["turns"].sort("turn")["text"].to_list() == ["open it", "submit"]


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ("submitted", "terminated"),
        ("submitted (exit_cost)", "truncated"),
        ("exit_context", "truncated"),
        ("exit_error", "error"),
        ("strange", "unknown"),
        (None, "unknown"),
    ],
)
def test_swe_agent_says_why_a_run_ended(convert, status, end):
    """A run that was submitted because its budget was spent was cut short."""
    tables = convert({"run/a.traj": make_traj(info={"exit_status": status})}).tables
    assert tables["trajectories"]["end"].to_list() == [end]


def test_the_configuration_tells_model_instance_and_sampling(convert):
    """`replay_config` is JSON in a text."""
    model = {"name": "m-2", "temperature": 0.5, "top_p": 0.25}
    config = {"agent": {"model": model}, "problem_statement": {"id": INSTANCE}}
    tables = convert({"run/3f.traj": make_traj(replay_config=json.dumps(config))}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["policy_id"], run["task_id"]) == ("m-2", INSTANCE)
    assert tables["turns"]["top_p"].to_list() == [0.25, 0.25]


def test_thinking_blocks_are_reasoning(convert):
    """They stand beside the text in the history."""
    traj = make_traj()
    traj["history"][3]["thinking_blocks"] = [{"type": "thinking", "thinking": "where?"}]
    tables = convert({"run/a.traj": traj}).tables
    assert tables["turns"].sort("turn")["reasoning"].to_list() == ["where?", None]


def test_a_run_of_mini_swe_agent_with_the_providers_reply(convert):
    """Usage, reasoning and model as the provider said; the action stays text."""
    tables = convert({f"run/{INSTANCE}/{INSTANCE}.traj.json": make_mini()}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["trajectory_id"], run["task_id"]) == (f"run/{INSTANCE}", INSTANCE)
    assert (run["policy_id"], run["environment_version"]) == ("p/m", "1.15.0")
    (turn,) = tables["turns"].to_dicts()
    assert (turn["model"], turn["temperature"], turn["finish_reason"]) == ("p/m-1", 0.5, "stop")
    assert (turn["input_tokens"], turn["output_tokens"]) == (12, 5)
    assert (turn["reasoning"], turn["text"]) == ("look", "```bash\nls\n```")
    assert turn["tool_calls"] == []


@pytest.mark.parametrize(
    ("status", "end"),
    [("LimitsExceeded", "truncated"), ("RateLimitError", "error"), ("", "unknown")],
)
def test_mini_swe_agent_says_why_a_run_ended(convert, status, end):
    """Any status but these is the name of an exception."""
    tables = convert({"run/a.traj.json": make_mini(info={"exit_status": status})}).tables
    assert tables["trajectories"]["end"].to_list() == [end]


REPORTS = {
    # Where the report lies, for the run in exp/trajs/INSTANCE/.
    "beside the runs": f"exp/logs/{INSTANCE}/report.json",
    "in the harness's logs": f"logs/run_evaluation/r1/exp/{INSTANCE}/report.json",
    "in the harness's logs within the run": f"exp/logs/run_evaluation/r1/m/{INSTANCE}/report.json",
}


@pytest.mark.parametrize("place", REPORTS)
@pytest.mark.parametrize("is_named", [True, False])
def test_an_instances_report_is_the_reward_of_its_run(convert, place, is_named):
    """With the instance's id in it, as the harness writes it, or without."""
    report = {INSTANCE: make_report()} if is_named else make_report()
    name = f"exp/trajs/{INSTANCE}/{INSTANCE}.traj.json"
    tables = convert({name: make_mini(), REPORTS[place]: report}).tables
    assert tables["trajectories"]["reward"].to_list() == [1.0]
    (reward,) = tables["rewards"].to_dicts()
    assert (reward["name"], reward["source"], reward["trusted"]) == (
        "resolved",
        "environment",
        True,
    )


def test_a_runs_report_has_a_verdict_for_each_instance(convert, reasons):
    """Resolved 1, unresolved and empty patches 0, harness errors none; others' runs are not there."""
    ids = [f"django__django-{n}" for n in range(4)]
    files = {
        f"exp/{each}/{each}.traj": make_traj(history=[*make_traj()["history"], item("user", each)])
        for each in ids
    }
    files["exp.r1.json"] = {
        "total_instances": 5,
        "resolved_ids": [ids[0], "flask__flask-9"],
        "unresolved_ids": [ids[1]],
        "empty_patch_ids": [ids[2]],
        "error_ids": [ids[3]],
        "schema_version": 2,
    }
    conversion = convert(files)
    rewards = conversion.tables["trajectories"].sort("task_id")["reward"].to_list()
    assert rewards == [1.0, 0.0, 0.0, None]
    ((_, reason, detail),) = reasons(conversion)
    assert (reason, detail) == ("reward_target_missing", "trajectory exp/flask__flask-9")


def test_both_reports_of_one_run_count_once(convert):
    """They give one reward with one id, of which the copy is superseded."""
    name = f"exp/trajs/{INSTANCE}/{INSTANCE}.traj.json"
    files = {
        name: make_mini(),
        f"exp/logs/{INSTANCE}/report.json": make_report(resolved=False),
        "exp/exp.r1.json": {"resolved_ids": [], "unresolved_ids": [INSTANCE]},
    }
    conversion = convert(files, "exp")
    assert conversion.tables["rewards"].height == 1
    assert conversion.accounting.duplicates == 1
    assert conversion.tables["trajectories"]["reward"].to_list() == [0.0]


def test_names_are_those_of_the_folders_however_they_are_reached(convert, tmp_path, monkeypatch):
    """From within the instance's folder, by way of `..`, and through a link to a file."""
    files = {
        f"exp/trajs/{INSTANCE}/{INSTANCE}.traj.json": make_mini(),
        f"exp/logs/{INSTANCE}/report.json": make_report(),
    }
    convert(files)
    monkeypatch.chdir(tmp_path / "exp" / "trajs" / INSTANCE)
    sources = [Path(), Path("..", "..", "logs", INSTANCE, "report.json")]
    assert convert_sources(sources).tables["trajectories"]["reward"].to_list() == [1.0]
    kept = tmp_path / "kept"
    Path(f"{INSTANCE}.traj.json").rename(kept)
    Path(f"{INSTANCE}.traj.json").symlink_to(kept)
    assert convert_sources(sources).tables["trajectories"]["reward"].to_list() == [1.0]


def test_a_report_of_another_run_is_no_reward(convert, reasons):
    """The instance is the same, the run is not: no verdict is guessed."""
    files = {
        f"one/trajs/{INSTANCE}/{INSTANCE}.traj.json": make_mini(),
        f"two/logs/{INSTANCE}/report.json": make_report(),
    }
    conversion = convert(files)
    assert conversion.tables["trajectories"]["reward"].to_list() == [None]
    ((_, reason, detail),) = reasons(conversion)
    assert (reason, detail) == ("reward_target_missing", f"trajectory two/{INSTANCE}")


def test_attempts_of_one_model_are_runs_of_their_own(convert):
    """Two folders of one model's runs, each with its reports."""
    files = {}
    for attempt, resolved in (("try-1", True), ("try-2", False)):
        files[f"{attempt}/trajs/{INSTANCE}/{INSTANCE}.traj.json"] = make_mini()
        files[f"{attempt}/logs/{INSTANCE}/report.json"] = make_report(resolved)
    runs = convert(files).tables["trajectories"].sort("trajectory_id")
    assert runs["trajectory_id"].to_list() == [f"try-1/{INSTANCE}", f"try-2/{INSTANCE}"]
    assert runs["reward"].to_list() == [1.0, 0.0]
    assert runs["task_id"].n_unique() == 1


def test_a_verdict_that_is_no_truth_value_is_rejected(convert, reasons):
    """It is no number either."""
    report = {**make_report(), "resolved": "perhaps"}
    conversion = convert({"run/a.traj": make_traj(), "run/a/report.json": report})
    assert [reason for _, reason, _ in reasons(conversion)] == ["reward_value"]


def test_what_a_folder_of_runs_holds_besides_is_counted(convert):
    """Predictions and broken files are damage, each once; the run is read."""
    files = {
        "exp/preds.json": json.dumps({INSTANCE: {"model_patch": "diff"}}, indent=2),
        f"exp/{INSTANCE}/{INSTANCE}.traj": make_traj(),
        "exp/other/other.traj": json.dumps(make_traj(), indent=1)[:-3],
    }
    conversion = convert(files, "exp")
    assert conversion.tables["trajectories"].height == 1
    assert conversion.accounting.damaged_records == 2


@pytest.mark.parametrize(
    "fields",
    [{"history": [3]}, {"info": [1]}, {"history": [item("assistant", 5)]}, {"trajectory": [None]}],
)
def test_a_broken_run_is_one_malformed_span(convert, reasons, fields):
    """Its neighbour is read."""
    conversion = convert({"run/a.traj": make_traj(**fields), "run/b.traj": make_traj()})
    assert conversion.tables["trajectories"]["task_id"].to_list() == ["b"]
    assert [reason for _, reason, _ in reasons(conversion)] == ["malformed_span"]


def test_nothing_but_reports_is_rewards_without_runs(convert):
    """They are rejected by name, and nothing fails."""
    conversion = convert({"run/a/report.json": make_report()})
    assert conversion.accounting.spans_rejected_by_reason == {"reward_target_missing": 1}


def test_a_folder_without_runs_says_so(convert):
    """Only files of known names are looked for below a folder."""
    with pytest.raises(SourceError, match="no span files"):
        convert({"run/a/config.yaml": "a: 1", "run/a/other.json": "{}"})


def unpack(shared_data, tmp_path, name):
    archive = shared_data / f"{name}.tar.gz"
    if not archive.exists():
        pytest.skip(f"../shared/data/{name}.tar.gz is not there")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / name


def hash_texts(texts):
    return hashlib.blake2b("\n".join(sorted(texts)).encode(), digest_size=16).hexdigest()


def test_the_real_demonstrations_of_swe_agent_are_all_there(shared_data, tmp_path):
    """Counts and hashes were read off the files with plain JSON: every step is a turn."""
    conversion = convert_sources([unpack(shared_data, tmp_path, "swe-agent-demos")])
    runs, turns = conversion.tables["trajectories"], conversion.tables["turns"]
    assert conversion.accounting.is_closed
    assert conversion.accounting.spans_used == conversion.accounting.spans_read
    assert (runs.height, turns.height) == (22, 232)
    assert dict(runs.group_by("end").len().rows()) == {"terminated": 21, "unknown": 1}
    calls = [call["arguments"] for each in turns["tool_calls"].to_list() for call in each]
    assert (len(calls), hash_texts(calls)) == (44, "f5151257aea5828a01d14d441466e463")
    assert "missing_history" not in runs["reasons"].explode().to_list()


def test_the_real_runs_of_mini_swe_agent_have_their_verdicts(shared_data, tmp_path):
    """Counts, sums and hashes were read off the files with plain JSON."""
    name = "swebench-verified-gemini3pro-miniswe"
    conversion = convert_sources([unpack(shared_data, tmp_path, name)])
    runs, turns = conversion.tables["trajectories"], conversion.tables["turns"]
    assert conversion.accounting.is_closed
    assert conversion.accounting.spans_used == conversion.accounting.spans_read
    assert (runs.height, turns.height, runs["num_messages"].sum()) == (39, 1540, 3158)
    assert (runs["reward"].sum(), runs["reward"].null_count()) == (32.0, 0)
    assert (turns["input_tokens"].sum(), turns["output_tokens"].sum()) == (25922674, 521557)
    assert turns["reasoning"].drop_nulls().len() == 49
    assert hash_texts(turns["text"].to_list()) == "4bf7a30ba320876f0ab922ae1ef0c6c2"
    assert runs["num_branches"].max() == 1
