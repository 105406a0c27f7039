"""Environments played with a scripted model behind real HTTP -> what the dataset holds."""

import datetime
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from starpo_trace.testing import Reply, ScriptedServer, ToolCall
from starpo_train import rollout
from starpo_train.dataset import scan_table
from starpo_train.environments.calls import CallEpisode, ToolError, read_arguments
from starpo_train.environments.functions import make_function_tool
from starpo_train.environments.loading import import_file, load_environment
from starpo_train.environments.play import check_feedback, follow, play_episode
from starpo_train.environments.protocol import Feedback
from starpo_train.environments.text_games import clean_ansi
from starpo_train.errors import ConfigError, RolloutError
from starpo_train.evals import evaluate_dataset
from starpo_train.folderlock import hold_folder

ECHO = {
    "type": "function",
    "function": {
        "name": "echo",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}
EXAMPLE = Path(__file__).parents[2] / "examples" / "02_an_environment.py"

GUESS = """
from pathlib import Path

from starpo_train.environments import Feedback, Task

HERE = Path(__file__).parent


class Guess:
    name, version = "guess", "3"

    def __init__(self, tries=2):
        self.tries = tries

    def tasks(self, split, count, seed):
        return [Task(id=f"{split}-{n}", input=n, cohort="even" if n % 2 == 0 else "odd",
                     metadata={"n": n}) for n in range(count)]

    def start(self, task, seed):
        with (HERE / "plays.txt").open("a") as log:
            log.write(task.id + "\\n")
        if (HERE / "broken").exists() and task.id == "test-1":
            raise OSError("the database is down")
        return Episode(task.input, self.tries)


class Episode:
    tools = ()

    def __init__(self, number, tries):
        self.number, self.left = number, tries
        self.state = {"left": tries}
        self.messages = [{"role": "user", "content": f"guess {number}"}]

    def act(self, message):
        self.left -= 1
        state = {"left": self.left}
        if message["content"] == str(self.number):
            return Feedback(state=state, process_reward=0.5, end="terminated", reward=1.0)
        if self.left == 0:
            return Feedback(state=state, end="truncated", reward=0.0, reason="no tries left")
        said = [{"role": "user", "content": "no"}]
        return Feedback(messages=said, state=state, process_reward=-0.5)

    def cut(self):
        return 0.25

    def close(self):
        with (HERE / "closed.txt").open("a") as log:
            log.write("closed\\n")


READY = Guess()
"""


def count_up(body: dict[str, Any]) -> Reply:
    """Guesses 0, then 1, and so on, with token ids."""
    said = sum(message["role"] == "assistant" for message in body["messages"])
    ids = {"prompt_token_ids": [7] * (2 * said + 1), "token_ids": [5], "logprobs": [-0.1]}
    return Reply(content=str(said), **ids, usage={"prompt_tokens": 3, "completion_tokens": 1})


@pytest.fixture
def configure(tmp_path):
    """Evaluation of `environment` at a server's endpoint; keys of its tables as dicts."""

    def build(server, environment, **changes):
        tables = {
            "endpoint": {"base_url": server.base_url, "model": "tiny", "max_retries": 0},
            **{key: changes.pop(key) for key in list(changes) if isinstance(changes[key], dict)},
        }
        values = {"environment": environment, "output": "out", "policy_id": "p", "tasks": 3}
        values |= {"attempts": 2, "concurrency": 2, **changes}
        lines = ["[evaluate]", *(f"{key} = {json.dumps(each)}" for key, each in values.items())]
        for name, table in tables.items():
            lines.append(f"[evaluate.{name}]")
            lines += [f"{key} = {json.dumps(each)}" for key, each in table.items()]
        path = tmp_path / "eval.toml"
        path.write_text("\n".join(lines))
        return rollout.read_evaluate_config(path)

    return build


@pytest.fixture
def guess(tmp_path):
    (tmp_path / "guess.py").write_text(GUESS)
    return "guess.py:Guess"


def read(dataset: Path, table: str, *columns: str) -> list[tuple[Any, ...]]:
    joined = scan_table(dataset, table)
    if table != "trajectories":
        runs = scan_table(dataset, "trajectories").select("trajectory_id", "task_id", "attempt")
        joined = joined.join(runs, on="trajectory_id")
    return joined.select(columns).collect().sort(pl.all()).rows()


def test_an_evaluation_is_a_dataset(configure, guess, tmp_path):
    """Messages, turns, process and outcome rewards, states, ends, identity, seeds, tasks."""
    with ScriptedServer(count_up) as server:
        result = rollout.evaluate(configure(server, guess, max_turns=3, environment_args={}))
    dataset = result.dataset
    columns = ("task_id", "attempt", "cohort", "reward", "end", "num_turns")
    assert read(dataset, "trajectories", *columns) == [
        ("test-0", 0, "even", 1.0, "terminated", 1),
        ("test-0", 1, "even", 1.0, "terminated", 1),
        ("test-1", 0, "odd", 1.0, "terminated", 2),
        ("test-1", 1, "odd", 1.0, "terminated", 2),
        ("test-2", 0, "even", 0.0, "truncated", 2),
        ("test-2", 1, "even", 0.0, "truncated", 2),
    ]
    runs = scan_table(dataset, "trajectories").collect()
    for column, value in {
        "environment_name": "guess",
        "environment_version": "3",
        "policy_id": "p",
        "usable_for": "rl",
    }.items():
        assert set(runs[column]) == {value}
    assert runs["seed"].n_unique() == 6
    sent = Counter(body["seed"] for body in server.requests)
    assert sent == Counter(
        run["seed"] + turn for run in runs.to_dicts() for turn in range(run["num_turns"])
    )
    rewards = read(dataset, "rewards", "task_id", "attempt", "name", "scope", "step", "value")
    assert [row for row in rewards if row[1] == 0] == [
        ("test-0", 0, "process", "turn", 0, 0.5),
        ("test-0", 0, "reward", "trajectory", None, 1.0),
        ("test-1", 0, "process", "turn", 0, -0.5),
        ("test-1", 0, "process", "turn", 1, 0.5),
        ("test-1", 0, "reward", "trajectory", None, 1.0),
        ("test-2", 0, "process", "turn", 0, -0.5),
        ("test-2", 0, "reward", "trajectory", None, 0.0),
    ]
    states = read(dataset, "states", "task_id", "attempt", "value")
    assert [(task, json.loads(value)["left"]) for task, number, value in states if number == 1] == [
        ("test-0", 1),
        ("test-0", 2),
        ("test-1", 0),
        ("test-1", 1),
        ("test-1", 2),
        ("test-2", 0),
        ("test-2", 1),
        ("test-2", 2),
    ]
    tasks = [json.loads(line) for line in (tmp_path / "out/tasks.jsonl").read_text().splitlines()]
    assert tasks[1] == {"task_id": "test-1", "cohort": "odd", "metadata": {"n": 1}}
    assert (tmp_path / "closed.txt").read_text().count("closed") == 6
    summary = result.summary
    assert (summary["num_rewarded"], summary["num_missing"], summary["failures"]) == (6, 0, [])
    assert summary["sampling"]["temperature"] == 1.0
    assert summary["model"] == "tiny"


def test_a_failing_environment_is_no_failing_agent(configure, guess, tmp_path):
    """No reward of 0: the run is an error, and played again at the next start, alone."""
    (tmp_path / "broken").touch()
    with ScriptedServer(count_up) as server:
        config = configure(server, guess)
        first = rollout.evaluate(config)
        assert (first.summary["num_rewarded"], first.summary["num_missing"]) == (4, 2)
        failure = "environment 'guess' failed in start of task 'test-1': OSError('the database is"
        assert all(failure in each for each in first.summary["failures"])
        ends = read(first.dataset, "trajectories", "task_id", "end", "reward")
        assert [row for row in ends if row[0] == "test-1"] == [("test-1", "error", None)] * 2
        (tmp_path / "broken").unlink()
        (tmp_path / "plays.txt").unlink()
        second = rollout.evaluate(config).summary
    assert (tmp_path / "plays.txt").read_text().split() == ["test-1", "test-1"]
    assert (second["num_rewarded"], second["num_missing"], second["failures"]) == (6, 0, [])


def test_an_environment_that_always_fails_stops_the_evaluation(configure, guess):
    """With its own words."""
    with ScriptedServer(count_up) as server:
        config = configure(server, guess, tasks=20, environment_args={"tries": "two"})
        with pytest.raises(RolloutError, match=r"guess\.py:Guess: \d+ runs failed.*failed in act"):
            rollout.evaluate(config)


def test_an_endpoint_that_fails_is_no_failing_agent(configure, guess, monkeypatch):
    """It is named, and no run is worth 0 for it; a key that was promised is asked for."""
    with ScriptedServer([Reply(status=503)]) as server:
        address = server.base_url
        with pytest.raises(
            RolloutError, match=rf"InternalServerError.*\[evaluate.endpoint\], {address}"
        ):
            rollout.evaluate(configure(server, guess))
        endpoint = {"base_url": address, "model": "tiny", "api_key_env": "STARPO_NO_KEY"}
        monkeypatch.delenv("STARPO_NO_KEY", raising=False)
        with pytest.raises(ConfigError, match="'STARPO_NO_KEY': there is no such environment"):
            rollout.evaluate(configure(server, guess, endpoint=endpoint))


def test_turns_end_and_so_does_the_context(configure, guess):
    """Both are truncations, worth what the environment says."""
    with ScriptedServer([Reply(content="no idea")]) as server:
        args = {"tries": 99}
        config = configure(server, guess, tasks=1, max_turns=4, environment_args=args)
        result = rollout.evaluate(config)
        assert len(server.requests) == 8
    assert read(result.dataset, "trajectories", "end", "reward") == [("truncated", 0.25)] * 2


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sampling", {"sampling": {"temperature": 0.5}}),
        ("max_turns", {"max_turns": 5}),
        ("environment_args", {"environment_args": {"tries": 3}}),
        ("model", {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "other"}}),
    ],
)
def test_another_sampling_is_another_evaluation(configure, guess, key, changes):
    """And so are other arguments, turns and models; what is not the same is named."""
    with ScriptedServer(count_up) as server:
        rollout.evaluate(configure(server, guess, tasks=1, attempts=1))
        with pytest.raises(ConfigError, match=f"holds runs with {key} = "):
            rollout.evaluate(configure(server, guess, tasks=1, attempts=1, **changes))


def test_fewer_tasks_than_were_played_are_refused(configure, guess, tmp_path):
    """Their runs would count all the same."""
    with ScriptedServer(count_up) as server:
        rollout.evaluate(configure(server, guess))
        with pytest.raises(
            ConfigError, match="holds 4 runs that are not asked for, such as attempt"
        ):
            rollout.evaluate(configure(server, guess, tasks=2, attempts=1))
        assert rollout.evaluate(configure(server, guess, tasks=4)).summary["runs_played"] == 2


def test_one_process_plays_an_evaluation(configure, guess, tmp_path):
    """A second one would play every run again."""
    (tmp_path / "out").mkdir()
    with (
        ScriptedServer(count_up) as server,
        hold_folder(tmp_path / "out", doing="playing"),
        pytest.raises(ConfigError, match="another process is playing this evaluation"),
    ):
        rollout.evaluate(configure(server, guess))


def test_a_damaged_claim_is_named(configure, guess, tmp_path):
    """Nothing is played into a folder of which it is not known whose it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text("")
    with ScriptedServer(count_up) as server, pytest.raises(ConfigError, match="damaged"):
        rollout.evaluate(configure(server, guess))


def test_a_wrong_name_claims_nothing(configure, guess, tmp_path):
    """Once it is right, the folder is free."""
    with ScriptedServer(count_up) as server:
        with pytest.raises(RolloutError):
            rollout.evaluate(configure(server, "guess.py:Guest"))
        assert rollout.evaluate(configure(server, guess)).summary["num_rewarded"] == 6


def test_another_version_is_another_evaluation(configure, guess, tmp_path):
    """Its runs are not mixed with those of the one before."""
    with ScriptedServer(count_up) as server:
        config = configure(server, guess, tasks=1, attempts=1)
        rollout.evaluate(config)
        (tmp_path / "guess.py").write_text(GUESS.replace('"guess", "3"', '"guess", "4"'))
        with pytest.raises(ConfigError, match=r"version '3' of the environment, which is '4' now"):
            rollout.evaluate(config)


def test_sampling_is_what_is_asked_for(configure, guess):
    """Every parameter of the file, and no log-probabilities for APIs that do not know them."""
    sampling = {"temperature": 0.25, "top_p": 0.5, "max_tokens": 9, "stop": ["x"]}
    sampling |= {"token_ids": False}
    with ScriptedServer(count_up) as server:
        rollout.evaluate(configure(server, guess, tasks=1, attempts=1, sampling=sampling))
    (body,) = server.requests
    assert body.pop("seed") >= 0
    assert body.pop("messages") == [{"role": "user", "content": "guess 0"}]
    assert body == {
        "model": "tiny",
        "temperature": 0.25,
        "top_p": 0.5,
        "max_tokens": 9,
        "stop": ["x"],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "agent.py"}, r"evaluate\.agent and evaluate\.environment are both there"),
        ({"model": "m"}, r"evaluate\.model and evaluate\.endpoint are both there"),
        ({"sampling": {"temperature": 3.0}}, r"sampling\.temperature = 3\.0: must be from 0 to 2"),
        ({"sampling": {"temprature": 1}}, r"evaluate\.sampling\.temprature; did you mean"),
        ({"player": "oracle"}, r"evaluate\.player = 'oracle' needs no model and no endpoint"),
        ({"max_turns": 0}, r"evaluate\.max_turns = 0: must be at least 1"),
        (
            {"endpoint": {"base_url": "127.0.0.1:9", "model": "m"}},
            r"endpoint\.base_url = '127\.0\.0\.1:9': must begin with http://",
        ),
    ],
)
def test_an_unusable_file_is_refused(configure, changes, message):
    """With the key, its value and what is allowed."""
    with ScriptedServer(count_up) as server, pytest.raises(ConfigError, match=message):
        configure(server, "guess.py:Guess", **changes)


def test_an_agent_file_samples_itself(tmp_path):
    """Keys that would do nothing are refused."""
    path = tmp_path / "eval.toml"
    path.write_text(
        '[evaluate]\nagent = "a.py"\nmodel = "m"\noutput = "o"\npolicy_id = "p"\n'
        "[evaluate.sampling]\ntop_p = 0.5\n"
    )
    with pytest.raises(ConfigError, match=r"evaluate\.sampling goes with evaluate\.environment"):
        rollout.read_evaluate_config(path)


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("guess", {}, r"'guess': write module:attribute, file\.py:attribute, gymnasium:ID"),
        ("nowhere:Guess", {}, "'nowhere' fails to import"),
        ("{guess}:Guest", {}, "has no 'Guest'"),
        ("{guess}:Guess", {"tires": 3}, r"environment_args = \{'tires': 3\}.*tires"),
        ("{guess}:READY", {"tries": 3}, "is an object already"),
        ("json:JSONDecoder", {}, "JSONDecoder has no `name`"),
        ("gymnasium:FrozenLike-v1", {}, "FrozenLike.*doesn't exist"),
        ("gymnasium:FrozenLake-v1", {"depth": 3}, "depth"),
        ("gymnasium:FrozenLake-v1", {"actions": ["a", "b"]}, "has 4 actions"),
        ("gymnasium:FrozenLake-v1", {"protocol": "mime"}, "'mime': use tool or text"),
        ("gymnasium:Pendulum-v1", {}, r"only numbered ones \(Discrete\)"),
    ],
)
def test_an_unusable_environment_is_refused(guess, tmp_path, spec, args, message):
    """Before anything is played, with what is wrong and what there is."""
    with pytest.raises(RolloutError, match=message):
        load_environment(spec.format(guess=tmp_path / "guess.py"), args)


def test_an_object_is_an_environment(guess, tmp_path):
    """As well as a class, or a function that makes one."""
    assert load_environment(f"{tmp_path / 'guess.py'}:READY", {}).name == "guess"


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        (Feedback(end="terminated"), "needs a reward"),
        (Feedback(end="done", reward=1.0), "end='done': must be terminated or truncated"),
        (Feedback(end="terminated", reward=float("nan")), "reward=nan: must be a finite number"),
        (Feedback(process_reward=float("inf")), "process_reward=inf: must be a finite number"),
        (Feedback(reward=1.0, messages=[{"role": "user", "content": ""}]), "needs an end"),
        (Feedback(messages=[{"role": "user", "content": ""}]), "the call 'c' got no message"),
    ],
)
def test_feedback_that_no_run_could_go_on_with_is_refused(feedback, message):
    """It would fail later, at the endpoint, with other words."""
    asked = {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    with pytest.raises(ValueError, match=message):
        check_feedback(asked, feedback)


def act(action: str) -> ToolCall:
    return ToolCall(id="c", name="act", arguments=json.dumps({"action": action}))


def test_a_gymnasium_game_by_tool_calls(configure):
    """Rewards of steps, states, tools with their results; what the model gets wrong it is told."""

    def play(body):
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        calls = [
            ToolCall(id="bad", name="act", arguments='{"action": "up'),
            act("fly"),
            ToolCall(id="odd", name="jump", arguments="{}"),
        ]
        replies = [Reply(tool_calls=[call]) for call in calls]
        replies += [Reply(content="let me think"), Reply(tool_calls=[act("right"), act("right")])]
        return replies[turn]

    args = {"desc": ["SFG"], "is_slippery": False}
    with ScriptedServer(play) as server:
        config = configure(
            server, "gymnasium:FrozenLake-v1", tasks=1, attempts=1, environment_args=args
        )
        result = rollout.evaluate(config)
    dataset = result.dataset
    assert read(dataset, "trajectories", "end", "reward", "num_turns", "environment_version") == [
        ("terminated", 1.0, 5, "1")
    ]
    assert read(dataset, "rewards", "name", "step", "value") == [
        ("process", 7, 1.0),  # 5 calls of the model and 3 tools before the last two
        ("reward", None, 1.0),
    ]
    last = [json.loads(value)["observation"] for (value,) in read(dataset, "states", "value")]
    assert sorted(last) == [0, 2]
    history = server.requests[-1]["messages"]
    results = [message["content"] for message in history if message["role"] == "tool"]
    assert results[0].startswith("Error: the arguments of act are not JSON")
    assert results[1].startswith("Error: the arguments of act do not fit: action: 'fly' is not one")
    assert results[2] == "Error: there is no tool 'jump'; use one of act"
    assert history[-1] == {
        "role": "user",
        "content": "Call act with one of: left, down, right, up.",
    }
    assert history[1]["content"] == "[S]FG"
    assert history[0]["content"].startswith("Cross the frozen lake")
    (tool,) = server.requests[0]["tools"]
    assert tool["function"]["parameters"]["properties"]["action"]["enum"] == [
        "left",
        "down",
        "right",
        "up",
    ]
    steps = scan_table(dataset, "spans").filter(pl.col("record") == "step").collect()
    assert steps.height == 5


def test_gymnasium_games_end_in_two_ways():
    """A hole terminates, the cap truncates; the sum of rewards is the outcome, or a threshold."""
    args = {"desc": ["SH", "FG"], "is_slippery": False, "max_episode_steps": 2}
    lake = load_environment("gymnasium:FrozenLake-v1", {**args, "protocol": "text"})
    (task,) = lake.tasks("test", 1, 0)
    episode = lake.start(task, 0)
    assert episode.tools == []
    stays = episode.act({"content": "Up? No: LEFT."})
    assert (stays.end, stays.messages[0]["content"]) == (None, "  (Left)\n[S]H\nFG")
    assert (
        episode.act({"content": "I do not know"}).messages[0]["content"].startswith("Answer with")
    )
    cut = episode.act({"content": "left"})
    assert (cut.end, cut.reward) == ("truncated", 0.0)
    episode.close()
    episode = lake.start(task, 0)
    fell = episode.act({"content": "right"})
    assert (fell.end, fell.reward, fell.state["observation"]) == ("terminated", 0.0, 1)
    episode.close()
    cliff = load_environment("gymnasium:CliffWalking-v1", {"success_return": -1.0})
    episode = cliff.start(cliff.tasks("test", 1, 0)[0], 0)
    _, first = episode.call("act", {"action": "up"})
    assert (first.process_reward, episode.cut()) == (-1.0, 1.0)
    _, second = episode.call("act", {"action": "down"})
    assert (second.state["return"], episode.cut()) == (-2.0, 0.0)
    episode.close()


@pytest.mark.parametrize(
    ("env_id", "opening"),
    [
        ("FrozenLake-v1", "[S]FFF\nFHFH\nFFFH\nHFFG"),
        ("CliffWalking-v1", "x  C  C  C  C  C  C  C  C  C  C  T"),
        ("Taxi-v4", "; passenger at "),
        ("Blackjack-v1", "; the dealer shows "),
        ("CartPole-v1", "["),
    ],
)
def test_games_need_nothing_but_their_name(env_id, opening):
    """A task begins the same way each time; other tasks begin otherwise, chance is the run's."""
    game = load_environment(f"gymnasium:{env_id}", {})
    tasks = game.tasks("test", 12, 0)
    shown = []
    for task in (*tasks, tasks[0]):
        episode = game.start(task, len(shown))
        shown.append(episode.messages[1]["content"])
        episode.close()
    assert opening in shown[0]
    assert shown[0] == shown[-1]
    if env_id in ("Taxi-v4", "Blackjack-v1", "CartPole-v1"):
        assert len(set(shown)) > 3


def test_chance_is_drawn_by_the_runs_seed():
    """Not by the task's, which all attempts share."""
    lake = load_environment("gymnasium:FrozenLake-v1", {"desc": ["FFFFFFS", "FFFFFFG"]})
    (task,) = lake.tasks("test", 1, 0)

    def walk(seed):
        episode = lake.start(task, seed)
        seen = [episode.call("act", {"action": "left"})[1].state["observation"] for _ in range(5)]
        episode.close()
        return tuple(seen)

    walks = [walk(seed) for seed in range(8)]
    assert walks[3] == walk(3)
    assert len(set(walks)) > 1


def test_colours_become_brackets():
    """Where you are is a coloured ground; other colours say nothing."""
    assert clean_ansi("\n\x1b[41mS\x1b[0mF\x1b[35mR\x1b[0m\n") == "[S]FR"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"n": 1}', None),
        ("", "the arguments of f do not fit: 'n' is a required property"),
        ('{"n": "1"}', "the arguments of f do not fit: n: '1' is not of type 'integer'"),
        ("[1]", "the arguments of f do not fit: [1] is not of type 'object'"),
        (
            "9" * 5000,
            "the arguments of f are not JSON (Exceeds the limit (4300 digits) for integer "
            "string conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase "
            "the limit)",
        ),
    ],
)
def test_arguments_are_held_against_the_schema(text, complaint):
    """What is wrong is said in words that a model can act on."""
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert read_arguments(tools, "f", text)[1] == complaint


def test_what_a_schema_cannot_say_is_the_models_fault_too():
    """A text that is no date meets the schema; the model is told, and the run goes on."""

    def book(state, day: datetime.date) -> str:
        return f"{state} {day.isoformat()}"

    tool = make_function_tool(book)
    assert tool.call("at", {"day": "2026-12-24"}) == "at 2026-12-24"
    with pytest.raises(ToolError, match="the arguments of book do not fit: day: Input should be a"):
        tool.call("at", {"day": "tomorrow"})


def test_a_result_can_be_sent_whatever_the_model_wrote():
    """A lone surrogate that a tool echoes would end the next request."""

    class Echo(CallEpisode):
        tools = (ECHO,)

        def call(self, name, arguments):
            return arguments["text"], Feedback()

    call = {"id": "c", "function": {"name": "echo", "arguments": '{"text": "a\\ud800"}'}}
    (result,) = Echo().act({"tool_calls": [call]}).messages
    assert result["content"] == "a?"


def test_a_typed_function_is_a_tool():
    """Schema from its annotations, words from its docstring."""

    def book(state, seats: list[int], title: str, cabin: str | None = None) -> str:
        """Book seats.

        Not all of them.

        Args:
            seats: Numbers
                of seats.
            title: Of the show.

        Returns:
            cabin: not a parameter here
        """
        return f"{state}{seats}{title}{cabin}"

    tool = make_function_tool(book)
    assert tool.schema == {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Book seats.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "seats": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "Numbers of seats.",
                    },
                    "title": {"type": "string", "description": "Of the show."},
                    "cabin": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["seats", "title"],
            },
        },
    }
    assert tool.call("s", {"seats": [1], "title": "t"}) == "s[1]tNone"
    with pytest.raises(TypeError, match="parameter 'x' needs a type"):
        make_function_tool(lambda state, x: x)


def test_the_example_runs():
    """Both policies, to the figures that its tasks imply: every second customer is right."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120, check=True
    )
    said = [line.partition(",")[0] for line in done.stdout.splitlines()]
    assert said == ["careful: success 100%", "hasty: success 50%"]


DOCUMENT = Path(__file__).parents[2] / "docs" / "environments.md"
DESK = f"{EXAMPLE}:Desk"


def serve(policy: str):
    """The example's policies, each behind HTTP."""
    module = import_file(EXAMPLE, "the example")
    looks = policy == "careful"
    return ScriptedServer(lambda body: module.play_careful(body, looks=looks))


def test_tool_tasks_succeed_by_their_final_state(configure, tmp_path):
    """Rewards, the state's own evaluator, and references for expected calls agree."""
    with serve("hasty") as server:
        result = rollout.evaluate(configure(server, DESK, tasks=4, attempts=1))
    dataset, references = result.dataset, tmp_path / "out" / "references.jsonl"
    rewards = dict(read(dataset, "trajectories", "task_id", "reward"))
    assert rewards == {f"test-0-{n}": float(n % 2) for n in range(4)}
    first = json.loads(references.read_text().splitlines()[1])
    assert first["expected_calls"] == [{"name": "refund", "arguments": {"order": "1"}}]
    assert first["counted_tools"] == ["refund"]
    expected = {
        row["task_id"]: {key: value for key, value in row.items() if key != "task_id"}
        for row in map(json.loads, references.read_text().splitlines())
    }
    scores = evaluate_dataset(dataset, ["state_success"], references=expected)
    assert dict(scores.select("task_id", "score").rows()) == rewards


def play_scripted(folder: Path, player: str) -> dict[str, float]:
    """The example's tasks, played by an oracle or a null agent -> rewards by task."""
    path = folder / f"{player}.toml"
    path.write_text(
        f'[evaluate]\nenvironment = "{DESK}"\nplayer = "{player}"\noutput = "{player}"\n'
        f'policy_id = "{player}"\ntasks = 40\nattempts = 1\n'
    )
    result = rollout.evaluate(rollout.read_evaluate_config(path))
    return dict(read(result.dataset, "trajectories", "task_id", "reward"))


def test_an_oracle_solves_everything_and_a_null_agent_what_asks_for_nothing(tmp_path):
    """The preflight finds tasks that are solved by doing nothing: every second one here."""
    assert set(play_scripted(tmp_path, "oracle").values()) == {1.0}
    null = play_scripted(tmp_path, "null")
    assert null == {f"test-0-{n}": float(n % 2 == 0) for n in range(40)}


HOTEL = '''
from starpo_train.environments import ToolEnvironment, ToolTask


def book(state: dict, nights: int) -> dict:
    """Book a room."""
    state["nights"] += nights
    return {"price": nights * 600}


def transfer(state: dict) -> str:
    """Let a human go on."""
    return "transferred"


class Hotel(ToolEnvironment):
    name, version, functions = "hotel", "1", (book, transfer)
    writing, ending = ("book",), ("transfer",)

    def list_tasks(self, split, count, seed):
        tasks = [
            ToolTask(id="told", instruction="Two nights; ask for the price.",
                     actions=[("book", {"nights": 2})], outputs=["1200"]),
            ToolTask(id="sent", instruction="Nothing works.",
                     actions=[("transfer", {})]),
        ]
        return tasks[:count]

    def make_state(self, task):
        return {"nights": 0}
'''


def serve_hotel(body: dict[str, Any]) -> Reply:
    """Books what it is asked for and tells the price; lets a human do the rest."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        price = json.loads(last["content"])["price"]
        return Reply(content=f"Booked, that makes ${price:,}.")
    if "two nights" in last["content"]:
        return Reply(tool_calls=[ToolCall(id="b", name="book", arguments='{"nights": 2}')])
    return Reply(tool_calls=[ToolCall(id="t", name="transfer", arguments="{}")])


def speak_as_user(body: dict[str, Any]) -> Reply:
    """The user's model: wants what its instruction says, and leaves after the answer."""
    role, said = body["messages"][0]["content"], body["messages"][1:]
    if "Nothing works" in role:
        return Reply(content="it does not work")
    return Reply(content="two nights" if len(said) == 1 else "Thanks. ###STOP###")


def test_a_simulated_user_is_no_part_of_the_run(configure, tmp_path):
    """It talks through an endpoint of its own; the run ends when it leaves, or by a tool."""
    (tmp_path / "hotel.py").write_text(HOTEL)
    with ScriptedServer(serve_hotel) as server, ScriptedServer(speak_as_user) as users:
        configure(server, "hotel.py:Hotel", attempts=1)
        path = tmp_path / "eval.toml"
        user = f'[evaluate.environment_args.user]\nbase_url = "{users.base_url}"\nmodel = "u"\n'
        path.write_text(f"{path.read_text()}\n{user}")
        result = rollout.evaluate(rollout.read_evaluate_config(path))
    columns = ("task_id", "reward", "end", "num_turns", "num_steps")
    assert read(result.dataset, "trajectories", *columns) == [
        ("sent", 1.0, "terminated", 1, 2),
        ("told", 1.0, "terminated", 2, 3),
    ]
    assert set(scan_table(result.dataset, "turns").collect()["model"]) == {"tiny"}
    roles = [[message["role"] for message in body["messages"]] for body in users.requests]
    assert sorted(roles) == [
        ["system", "user"],
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]


def test_the_oracle_says_all_beside_a_call_that_ends_the_run(tmp_path):
    """After it nothing can be said."""
    (tmp_path / "hotel.py").write_text(HOTEL)
    environment = load_environment(f"{tmp_path / 'hotel.py'}:Hotel", {})
    (task,) = [each for each in environment.list_tasks("test", 9, 0) if each.id == "sent"]
    task = replace(task, outputs=["goodbye"])
    episode = environment.start(task, 0)
    (answer,) = environment.solve(task)
    assert episode.act(answer).reward == 1.0


def test_expected_calls_that_fail_are_refused(tmp_path):
    """The task is wrong, and nothing is played."""
    (tmp_path / "hotel.py").write_text(HOTEL.replace('{"nights": 2}', '{"nights": "x"}'))
    hotel = load_environment(f"{tmp_path / 'hotel.py'}:Hotel", {})
    with pytest.raises(RolloutError, match=r"call book\(\{'nights': 'x'\}\) of task 'told' fails"):
        hotel.tasks("test", 2, 0)


def test_the_documentations_environments_work(tmp_path):
    """As they stand there: a game of guessing and a shop, whose oracle solves its task."""
    blocks = DOCUMENT.read_text().split("```python\n")[1:]
    for number, block in enumerate(blocks):
        (tmp_path / f"shown{number}.py").write_text(block.partition("```")[0])
    guess = load_environment(f"{tmp_path / 'shown0.py'}:Guess", {})
    (task,) = guess.tasks("test", 1, 0)
    episode = guess.start(task, 0)
    assert episode.act({"content": "7"}).process_reward == -0.1
    assert episode.act({"content": "0"}).reward == 1.0
    shop = load_environment(f"{tmp_path / 'shown1.py'}:Shop", {})
    (task,) = shop.tasks("test", 1, 0)
    outcome = play_episode(follow(shop.solve(task)), shop, task, seed=0)
    assert (outcome.reward, outcome.end) == (1.0, "terminated")


def test_the_gate_reads_two_evaluations(configure, tmp_path):
    """Of the same tasks in the same environment: fifty points better, and blocked for its steps."""
    for name, order in (("hasty", "base"), ("careful", "cand")):
        with serve(name) as server:
            endpoint = {"base_url": server.base_url, "model": name}
            config = configure(
                server, DESK, output=order, policy_id=name, tasks=40, attempts=2, endpoint=endpoint
            )
            rollout.evaluate(config)
    play_scripted(tmp_path, "oracle")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "starpo_train", "gate", "--baseline", "base/dataset"),
            *("--candidate", "cand/dataset", "-o", "gate", "--oracle", "oracle/dataset"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    verdict = json.loads((tmp_path / "gate" / "verdict.json").read_text())
    assert verdict["preflight"][0]["wrong"] == verdict["preflight"][0]["unplayed"] == []
    assert "Success changed by +50.0 points" in done.stdout
    assert (verdict["verdict"], done.returncode) == (
        "BLOCK",
        10,
    )  # it takes two steps more of three
