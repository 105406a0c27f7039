"""Evaluations that Inspect really runs against a scripted server -> what its own reader says of them.

Inspect does not go with the other packages' versions: `make test` runs this file in an environment
of its own.
"""

import json
import os
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from inspect_ai import Task
from inspect_ai import eval as run_evaluation
from inspect_ai.agent import agent, as_tool, react
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, includes, mean, model_graded_qa, scorer, value_to_float
from inspect_ai.solver import generate, solver, system_message, use_tools
from inspect_ai.tool import ToolError, tool

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

MODEL = "openai-api/local/tiny"
ARGUMENTS = '{"a": 1,  "b": 1e0}'
LONG = "All of the rules. " * 40
USAGE = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}


@tool
def add():
    async def execute(a: int, b: float):
        """Add two numbers.

        Args:
            a: first
            b: second
        """
        if a < 0:
            raise ToolError("no negative numbers")
        return str(a + b)

    return execute


@scorer(metrics=[mean()])
def length():
    async def score(state, target):
        return Score(value=len(state.messages) / 10, explanation="messages")

    return score


@scorer(metrics={"*": [mean()]})
def parts():
    async def score(state, target):
        return Score(value={"style": 0.25, "tone": "P"})

    return score


@solver
def ask_user():
    """Somebody else's model, in the role of a user."""

    async def solve(state, generate):
        user = get_model(role="user")
        output = await user.generate("what do you want?")
        state.messages[-1].content = output.completion
        return state

    return solve


@solver
def fail():
    async def solve(state, generate):
        raise RuntimeError("out of order")

    return solve


def answer(body):  # noqa: PLR0911 (one line for each who asks)
    """Whoever asks: a grader, a user, a sub-agent, or the agent itself."""
    messages = body["messages"]
    texts = [str(message.get("content")) for message in messages]
    if any("GRADE" in text for text in texts):
        return Reply(content="GRADE: P", usage=USAGE)
    if "what do you want?" in texts[-1]:
        return Reply(content="add 1 and 1", usage=USAGE)
    if any("Ask the adder" in text for text in texts):
        tools = {each["function"]["name"] for each in body.get("tools") or ()}
        number = sum(message["role"] == "assistant" for message in messages)
        if "adder" in tools:
            call = ToolCall(id="outer", name="adder", arguments='{"input": "1 and 1"}')
            done = ToolCall(id="done", name="submit", arguments='{"answer": "2.0"}')
            return Reply(tool_calls=[done if number else call], usage=USAGE)
    if messages[-1]["role"] == "tool":
        text = f"the answer is {messages[-1]['content']}"
        return Reply(content=text, reasoning_content="look at it", usage=USAGE)
    if "loop" in texts[-1]:
        return Reply(content="on and on", usage=USAGE)
    call = ToolCall(id="c1", name="add", arguments=ARGUMENTS)
    if "negative" in texts[-1]:
        call = ToolCall(id="c2", name="add", arguments='{"a":-1,"b":1}')
    if any("You add for others" in text for text in texts) and number_of(messages):
        done = ToolCall(id="sub", name="submit", arguments='{"answer": "2.0"}')
        return Reply(tool_calls=[done], usage=USAGE)
    return Reply(content="let me see", reasoning_content="add them", tool_calls=[call], usage=USAGE)


def number_of(messages):
    return sum(message["role"] == "assistant" for message in messages)


def make_tasks(model):
    """Evaluations by name."""
    samples = [
        Sample(id="one", input="1+1?", target="2"),
        Sample(id=2, input="negative?", target="2"),
    ]
    solvers = [system_message(LONG), use_tools(add()), generate()]
    scorers = [includes(), length(), parts(), model_graded_qa(model=model, partial_credit=True)]

    @agent
    def adder():
        return react(
            name="adder",
            description="Adds.",
            prompt="You add for others",
            tools=[add()],
            attempts=1,
        )

    main = react(prompt="Ask the adder", tools=[as_tool(adder())], attempts=1)
    user = [system_message("Be kind."), ask_user(), use_tools(add()), generate()]
    return {
        "sums": {"dataset": samples, "solver": solvers, "scorer": scorers, "epochs": 3},
        "team": {"dataset": samples[:1], "solver": main, "scorer": includes()},
        "talk": {
            "dataset": samples[:1],
            "solver": user,
            "scorer": includes(),
            "model_roles": {"user": model},
        },
        "loop": {
            "dataset": [Sample(id=1, input="loop", target="2")],
            "solver": react(prompt="Go on", tools=[]),
            "scorer": includes(),
            "message_limit": 7,
        },
        "broken": {"dataset": samples[:1], "solver": fail(), "scorer": includes()},
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Folder of the logs of every evaluation: those of `sums` in both formats."""
    folder = tmp_path_factory.mktemp("logs")
    os.environ["INSPECT_LOG_LEVEL"] = "error"
    with ScriptedServer(answer) as server:
        model = get_model(MODEL, base_url=server.base_url, api_key="none")
        for name, fields in make_tasks(model).items():
            for form in ("eval", "json") if name == "sums" else ("eval",):
                run_evaluation(
                    Task(name=name, version="7-A", **fields),
                    model=model,
                    log_format=form,
                    log_dir=str(folder),
                    display="none",
                    temperature=0.5,
                    max_samples=1,
                    fail_on_error=False,
                )
    return folder


def read_log(folder, name, form="eval"):
    """Inspect's own reading of a log, everything in its place."""
    (path,) = folder.glob(f"*_{name}_*.{form}")
    return path, read_eval_log(str(path), resolve_attachments=True)


def convert(*paths):
    conversion = convert_sources([Path(path) for path in paths])
    assert conversion.accounting.is_closed
    return conversion


def in_scorer(sample, event):
    spans = {each.id: each for each in sample.events if each.event == "span_begin"}
    span = spans.get(event.span_id)
    while span is not None:
        if span.type in {"scorer", "scorers"}:
            return True
        span = spans.get(span.parent_id)
    return False


def list_calls(sample, *, role=None):
    """Calls of the agent's model, as Inspect lists them."""
    return [
        event
        for event in sample.events
        if event.event == "model" and event.role == role and not in_scorer(sample, event)
    ]


def read_prompt(tables, turn):
    """Turn -> its whole prompt, along the graph."""
    nodes = {
        row["node_id"]: row
        for row in tables["messages"]
        .filter(pl.col("trajectory_id") == turn["trajectory_id"])
        .to_dicts()
    }
    prompt, node = [], turn["input_node"]
    while node is not None:
        prompt.append(json.loads(nodes[node]["message"]))
        node = nodes[node]["parent_id"]
    return prompt[::-1]


def read_texts(message):
    """Message of the dataset -> role, text, names of calls, result."""
    parts = message["parts"]
    return (
        message["role"],
        "".join(part["content"] for part in parts if part["type"] == "text"),
        [part["name"] for part in parts if part["type"] == "tool_call"],
        [part["response"] for part in parts if part["type"] == "tool_call_response"],
    )


def describe(message):
    """Inspect's message -> the same."""
    is_tool = message.role == "tool"
    result = f"Error: {message.error.message}" if is_tool and message.error else message.text
    calls = message.tool_calls or [] if message.role == "assistant" else []
    text = "" if is_tool else message.text
    return (message.role, text, [call.function for call in calls], [result] if is_tool else [])


@pytest.mark.parametrize(
    ("name", "form"),
    [("sums", "eval"), ("sums", "json"), ("team", "eval"), ("talk", "eval"), ("loop", "eval")],
)
def test_every_call_is_a_turn_with_the_prompt_that_the_model_saw(logs, name, form):
    """Calls in their order, with whole prompts, usage, parameters and tools."""
    path, log = read_log(logs, name, form)
    tables = convert(path).tables
    turns = tables["turns"].join(
        tables["trajectories"].select("trajectory_id", "task_id", "attempt"), on="trajectory_id"
    )
    (file,) = find_source_files([path])
    rows = [row for batch in read_span_batches(file) for row in batch.rows]
    starts = {row.span_id: row.start_ns for row in rows}
    num_calls = 0
    for sample in log.samples:
        events = list_calls(sample)
        num_calls += len(events)
        mine = turns.filter(
            pl.col("task_id") == f"{name}/{sample.id}", pl.col("attempt") == sample.epoch
        )
        mine = mine.sort("turn").to_dicts()
        for turn, event in zip(mine, events, strict=True):
            prompt = [read_texts(message) for message in read_prompt(tables, turn)]
            assert prompt == [describe(message) for message in event.input]
            assert turn["text"] == (event.output.message.text or None)
            assert (turn["input_tokens"], turn["output_tokens"]) == (20, 9)
            assert turn["temperature"] == 0.5
            assert turn["finish_reason"] == event.output.stop_reason
            assert starts[turn["span_id"]] == round(event.timestamp.timestamp() * 10**6) * 1000
            names = [each["name"] for each in json.loads(turn["tool_definitions"] or "[]")]
            assert names == [each.name for each in event.tools]
    assert turns.height == num_calls > 0
    assert tables["rejected"].height == 0


def test_arguments_and_reasoning_are_word_for_word(logs):
    """Inspect parses arguments; the provider's answer, which it keeps, has their text."""
    path, log = read_log(logs, "sums")
    turns = convert(path).tables["turns"]
    calls = [call["arguments"] for each in turns["tool_calls"].to_list() for call in each]
    assert Counter(calls) == {ARGUMENTS: 3, '{"a":-1,"b":1}': 3}
    assert Counter(turns["reasoning"].to_list()) == {"add them": 6, "look at it": 6}
    assert len(log.samples) == 6


def test_scores_are_rewards_as_inspect_counts_them(logs):
    """Letters, numbers and tables of them; the first scorer's is the run's; graders are judges."""
    path, log = read_log(logs, "sums")
    tables = convert(path).tables
    number = value_to_float()
    rewards = tables["rewards"]
    expected = Counter()
    for sample in log.samples:
        for name, score in sample.scores.items():
            if isinstance(score.value, dict):
                expected.update(
                    (f"{name}.{key}", number(each)) for key, each in score.value.items()
                )
            else:
                expected[name, number(score.value)] += 1
    assert Counter(rewards.select("name", "value").rows()) == expected
    by_source = rewards.group_by("source").agg(pl.col("name").unique().sort()).rows()
    names = ["includes", "length", "parts.style", "parts.tone"]
    assert dict(by_source) == {"environment": names, "judge": ["model_graded_qa"]}
    judge = rewards.filter(pl.col("source") == "judge")
    assert judge["judge_id"].unique().to_list() == [MODEL]
    assert judge["value"].unique().to_list() == [0.5]
    ranges = rewards.select("name", "min", "max").unique().sort("name").rows()
    assert ranges == [
        ("includes", 0.0, 1.0),
        ("length", None, None),
        ("model_graded_qa", 0.0, 1.0),
        ("parts.style", None, None),
        ("parts.tone", 0.0, 1.0),
    ]
    outcomes = tables["trajectories"].select("task_id", "attempt", "reward").sort(pl.all()).rows()
    assert outcomes == [
        (f"sums/{i}", n, 1.0 if i == "one" else 0.0) for i in (2, "one") for n in (1, 2, 3)
    ]


def test_who_acted_where_and_how_it_ended(logs):
    """Model, task, version; a limit truncates, an exception is an error."""
    paths = [read_log(logs, name)[0] for name in ("sums", "loop", "broken", "team", "talk")]
    rows = convert(*paths).tables["trajectories"].to_dicts()
    assert {row["policy_id"] for row in rows} == {MODEL}
    assert {row["environment_version"] for row in rows} == {"7-A"}
    ends = {(row["environment_name"], row["end"]) for row in rows}
    assert ends == {
        ("sums", "terminated"),
        ("team", "terminated"),
        ("talk", "terminated"),
        ("loop", "truncated"),
        ("broken", "error"),
    }
    for row in rows:
        assert 0 < row["started_ns"] <= row["ended_ns"]
        assert "missing_history" not in row["reasons"]


def test_another_roles_call_is_a_step_and_no_turn(logs):
    """A simulated user's model is not the policy."""
    path, log = read_log(logs, "talk")
    (sample,) = log.samples
    (run,) = convert(path).tables["trajectories"].to_dicts()
    num_tools = sum(event.event == "tool" for event in sample.events)
    num_calls = len(list_calls(sample))
    assert len(list_calls(sample, role="user")) == 1
    assert run["num_turns"] == num_calls
    assert run["num_steps"] == num_calls + num_tools + 1


def test_a_sub_agent_is_a_branch(logs):
    """Its prompt begins anew, so it is a conversation of its own within the run."""
    path, _ = read_log(logs, "team")
    (run,) = convert(path).tables["trajectories"].to_dicts()
    assert run["num_branches"] == 2


def test_the_same_log_twice_and_again_gives_the_same(logs, tmp_path):
    """Copies count as duplicates; ids and rows are stable."""
    path, _ = read_log(logs, "sums")
    copy = tmp_path / "copy.eval"
    copy.write_bytes(path.read_bytes())
    once, twice = convert(path), convert(path, copy)
    assert twice.accounting.duplicates == once.accounting.spans_read
    for name, table in once.tables.items():
        assert table.drop("source", strict=False).equals(
            twice.tables[name].drop("source", strict=False)
        )
