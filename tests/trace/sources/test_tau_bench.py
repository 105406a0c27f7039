"""tau-bench's and tau2-bench's result files -> runs."""

import gzip
import hashlib
import json
import tracemalloc

import polars as pl
import pytest

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.convert.sources import find_source_files, read_span_batches

ARGUMENTS = '{"order":  1}'


def make_run(task=0, trial=0, reward=1.0, **fields):
    """A run of four messages: the tool is called once."""
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": ARGUMENTS}}
    return {
        "task_id": task,
        "trial": trial,
        "reward": reward,
        "info": {"task": {}, "source": "user", "user_cost": 0.1, "reward_info": {"reward": reward}},
        "traj": [
            {"role": "system", "content": "# Retail agent policy\n\nBe kind."},
            {"role": "user", "content": f"order {task}, {trial}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "name": "find", "content": "found"},
            {"role": "assistant", "content": "Here."},
            {"role": "user", "content": "###STOP###"},
        ],
        **fields,
    }


def test_a_run_becomes_a_trajectory_with_its_calls_tools_and_reward(convert):
    """Two turns on one branch, a tool's step between them, and the last message seen."""
    files = {"tool-calling-gpt-4o-0.0_range_0--1_user-gpt-4o-llm_1.json": [make_run(7, 2, 0.5)]}
    conversion = convert(files)
    tables = conversion.tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["task_id"], run["attempt"], run["reward"]) == ("retail/7", 2, 0.5)
    assert (run["policy_id"], run["environment_name"]) == ("gpt-4o", "tau-bench retail")
    assert (run["num_turns"], run["num_tool_calls"], run["num_steps"]) == (2, 1, 3)
    assert (run["num_messages"], run["num_branches"], run["end"]) == (6, 1, "terminated")
    assert run["reasons"] == ["logprob_missing", "token_ids_missing"]
    assert (run["input_tokens"], run["started_ns"], run["ended_ns"]) == (None, 0, None)
    (call,) = tables["turns"].filter(pl.col("turn") == 0)["tool_calls"][0]
    assert call == {"id": "c1", "name": "find", "arguments": ARGUMENTS}
    roles = tables["messages"].sort("depth").select("role", "sampled_turn").rows()
    assert roles == [
        *(("system", None), ("user", None), ("assistant", 0)),
        *(("tool", None), ("assistant", 1), ("user", None)),
    ]
    (reward,) = tables["rewards"].to_dicts()
    assert (reward["source"], reward["min"], reward["max"]) == ("environment", 0.0, 1.0)
    assert reward["trusted"]
    # A root, two calls, a tool, what was seen last, a reward.
    assert conversion.accounting.spans_used == 6


@pytest.mark.parametrize(
    ("info", "end"),
    [
        ({"reward_info": {"reward": 0.0}}, "terminated"),
        ({"reward_info": None}, "truncated"),
        ({"error": "timeout"}, "error"),
        ({}, "unknown"),
    ],
)
def test_the_end_is_what_the_file_says(convert, info, end):
    """The environment judges a run that it ended; one that ran out of steps has no judgement."""
    conversion = convert({"a.json": [make_run(info=info)]})
    assert conversion.tables["trajectories"]["end"].to_list() == [end]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("sonnet-35-new-retail.json", "sonnet-35-new"),
        ("act-o3-mini-1.0_range_0-5_user-gpt-4o-llm_09.json", "o3-mini"),
        ("results.json", None),
    ],
)
def test_the_model_stands_in_the_files_name_only(convert, name, model):
    """Names that tau-bench gives; another name tells no model."""
    conversion = convert({name: [make_run()]})
    assert conversion.tables["trajectories"]["policy_id"].to_list() == [model]


def test_lines_and_compressed_files_hold_the_same_runs(convert):
    """One run a line, an array over several lines, an array by gzip: equal copies."""
    runs = [make_run(n) for n in range(3)]
    once = convert({"a.json": runs}, "a.json")
    lines = "".join(json.dumps(run) + "\n" for run in runs)
    packed = gzip.compress(json.dumps(runs, indent=1).encode())
    all_three = convert({"b.jsonl": lines, "c.json.gz": packed})
    assert once.tables["trajectories"].height == 3
    assert all_three.accounting.duplicates == 2 * once.accounting.spans_read
    ids = pl.col("trajectory_id")
    assert (
        once.tables["trajectories"].select(ids).equals(all_three.tables["trajectories"].select(ids))
    )


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        ({"traj": None}, "`traj` is no list"),
        ({"traj": [{"content": "x"}]}, "no object with a role"),
        ({"traj": [{"role": "user", "content": 3}]}, "content is a int"),
        ({"info": [1]}, "`info` no object"),
    ],
)
def test_a_broken_record_is_rejected_and_its_neighbours_are_read(convert, reasons, broken, detail):
    """One malformed span, by the record's name, between two runs."""
    conversion = convert({"a.json": [make_run(1), make_run(2, **broken), make_run(3)]})
    tasks = sorted(conversion.tables["trajectories"]["task_id"].to_list())
    assert tasks == ["retail/1", "retail/3"]
    ((name, reason, found),) = reasons(conversion)
    assert (name, reason) == ("task 2", "malformed_span")
    assert detail in found


def test_a_text_that_breaks_within_a_record_costs_that_record_alone(convert):
    """Broken JSON in the second of four runs, then a file that ends within its last one."""
    texts = [json.dumps(make_run(n)) for n in range(4)]
    texts[1] = texts[1][: len(texts[1]) // 2]
    broken = convert({"a.json": "[" + ", ".join(texts) + "]"})
    assert broken.tables["trajectories"].height == 3
    assert broken.accounting.damaged_records == 1
    texts = [json.dumps(make_run(n)) for n in range(4)]
    cut = convert({"a.json": "[" + ", ".join(texts)[:-40]})
    assert cut.tables["trajectories"].height == 3
    assert cut.accounting.damaged_records == 1


def test_what_is_no_run_or_no_utf8_or_behind_the_end_is_damage(convert):
    """A number, a byte that is no UTF-8, and a second array."""
    bad = json.dumps(make_run(2)).encode().replace(b"Here.", b"H\xffre.")
    text = b"[" + json.dumps(make_run(1)).encode() + b", " + bad + b"] [1]"
    conversion = convert({"a.json": text})
    assert conversion.tables["trajectories"].height == 1
    assert conversion.accounting.damaged_records == 2
    conversion = convert({"a.json": [make_run(1), 5]})
    assert conversion.accounting.spans_rejected_by_reason == {"malformed_span": 1}


def test_a_reward_that_is_no_number_is_rejected(convert, reasons):
    """NaN, which Python writes into JSON, is the same as none; the run stays."""
    conversion = convert({"a.json": [make_run(reward=float("nan"))]})
    assert [reason for _, reason, _ in reasons(conversion)] == ["reward_value"]
    assert conversion.tables["trajectories"]["reward"].to_list() == [None]


def test_reading_needs_the_memory_of_one_run(tmp_path):
    """Of 24 MB in one array, less than a quarter is in memory at any time."""
    path = tmp_path / "a.json"
    long = {"role": "user", "content": "x" * 60_000}
    with path.open("w") as stream:
        for number in range(400):
            stream.write("[" if not number else ",")
            json.dump(make_run(number, traj=[*make_run()["traj"], long]), stream)
        stream.write("]")
    (file,) = find_source_files([path])
    num_bytes = path.stat().st_size
    tracemalloc.start()
    num_rows = sum(len(batch.rows) for batch in read_span_batches(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == 400 * 6
    assert num_bytes > 24_000_000 > 4 * peak


def test_the_real_airline_runs_are_all_there(shared_data):
    """Counts and hashes were read off the file with plain JSON."""
    folder = shared_data / "tau-bench-gpt4o-airline" / "historical_trajectories"
    if not folder.is_dir():
        pytest.skip("../shared/data/tau-bench-gpt4o-airline is not there")
    conversion = convert_sources([folder])
    runs, turns = conversion.tables["trajectories"], conversion.tables["turns"]
    assert conversion.accounting.is_closed
    assert conversion.accounting.spans_used == conversion.accounting.spans_read
    assert runs.group_by("task_id").len()["len"].to_list() == [4] * 50
    assert runs.group_by("attempt").len().sort("attempt").rows() == [(n, 50) for n in range(4)]
    assert runs["reward"].sum() == 84.0  # a mean of 0.42
    assert runs["policy_id"].unique().to_list() == ["gpt-4o"]
    assert dict(runs.group_by("end").len().rows()) == {"terminated": 195, "truncated": 5}
    assert (turns.height, runs["num_messages"].sum(), runs["num_branches"].max()) == (2454, 5308, 1)
    arguments = sorted(
        call["arguments"] for calls in turns["tool_calls"].to_list() for call in calls
    )
    digest = hashlib.blake2b("\n".join(arguments).encode(), digest_size=16).hexdigest()
    assert (len(arguments), digest) == (1164, AIRLINE_ARGUMENTS)


AIRLINE_ARGUMENTS = "6e95cf8fc17e7b23411f69ab97c52f5b"


def make_message(role, content=None, **fields):
    return {"role": role, "content": content, "timestamp": "2025-06-01T10:00:00.5", **fields}


def make_simulations(**fields):
    """A result file of tau2-bench with one run: a greeting, a call, an answer, the user's tool."""
    call = {"id": "c1", "name": "find", "arguments": {"order": 1}, "requestor": "assistant"}
    written = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": ARGUMENTS}}
    reply = {"role": "assistant", "reasoning_content": "look", "tool_calls": [written]}
    users = {"id": "u1", "name": "restart", "arguments": {}, "requestor": "user"}
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    messages = [
        make_message("assistant", "Hi! How can I help you?", usage=None, raw_data=None),
        make_message("user", "order 1?"),
        make_message(
            "assistant",
            tool_calls=[call],
            usage=usage,
            raw_data={"finish_reason": "tool_calls", "message": reply},
        ),
        make_message("tool", "found", id="c1", requestor="assistant", error=False),
        make_message("assistant", "Restart it.", usage=usage),
        make_message("user", tool_calls=[users]),
        make_message("tool", "restarted", id="u1", requestor="user", error=False),
        make_message("user", "###STOP###"),
    ]
    run = {
        "id": "s1",
        "task_id": "mobile",
        "trial": 1,
        "seed": 11,
        "termination_reason": "user_stop",
        "reward_info": {"reward": 1.0},
        "messages": messages,
        **fields,
    }
    info = {
        "git_commit": "abc",
        "agent_info": {"implementation": "llm_agent", "llm": "m", "llm_args": {"temperature": 0.0}},
        "environment_info": {"domain_name": "telecom"},
    }
    return {"timestamp": "t", "info": info, "tasks": [], "simulations": [run]}


def test_a_simulation_of_tau2_bench_is_a_run(convert):
    """The greeting is no answer, the user's tool is a step that no prompt has, arguments verbatim."""
    tables = convert({"a.json": json.dumps(make_simulations(), indent=2)}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["task_id"], run["attempt"], run["seed"]) == ("telecom/mobile", 1, 11)
    assert (run["policy_id"], run["agent_name"]) == ("m", "llm_agent")
    environment = (run["environment_name"], run["environment_version"])
    assert environment == ("tau2-bench telecom", "abc")
    assert (run["num_turns"], run["num_steps"], run["num_messages"]) == (2, 4, 6)
    assert (run["end"], run["reward"], run["input_tokens"]) == ("terminated", 1.0, 20)
    first, second = tables["turns"].sort("turn").to_dicts()
    assert first["tool_calls"] == [{"id": "c1", "name": "find", "arguments": ARGUMENTS}]
    assert (first["reasoning"], first["finish_reason"]) == ("look", "tool_calls")
    assert (second["text"], second["temperature"]) == ("Restart it.", 0.0)


@pytest.mark.parametrize(
    ("reason", "end"),
    [("max_steps", "truncated"), ("agent_error", "error"), ("new_reason", "unknown")],
)
def test_tau2_bench_says_why_a_run_ended(convert, reason, end):
    """A reason that is not known is no end."""
    tables = convert({"a.json": make_simulations(termination_reason=reason)}).tables
    assert tables["trajectories"]["end"].to_list() == [end]


def test_a_run_by_voice_is_rejected_by_name(convert, reasons):
    """Its ticks are not read."""
    conversion = convert({"a.json": make_simulations(messages=None, ticks=[])})
    ((name, reason, detail),) = reasons(conversion)
    assert (name, reason) == ("simulation s1", "malformed_span")
    assert "voice" in detail
