"""Rewards -> spans with one link to what was judged."""

import math
import re
import subprocess
import sys

import openai
import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.otlp import decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.testing import Reply, ScriptedServer, record_spans


def links_of(span):
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def test_a_reward_links_to_the_root_and_has_an_id():
    """The default reward judges the whole run, by the environment."""
    with record_spans() as store, starpo_trace.trajectory() as run:
        starpo_trace.reward(True, min=0, max=1, label="won", explanation="reached the goal")
    reward, root = store.spans
    assert links_of(reward) == [(root.context.trace_id, root.context.span_id)]
    assert dict(reward.attributes) == {
        semconv.SCHEMA: "1",
        semconv.RECORD: "reward",
        semconv.TRAJECTORY_ID: run.id,
        semconv.STEP: 0,
        semconv.EVALUATION_NAME: "reward",
        semconv.EVALUATION_VALUE: 1.0,
        semconv.EVALUATION_LABEL: "won",
        semconv.EVALUATION_EXPLANATION: "reached the goal",
        semconv.REWARD_ID: f"{run.id}:trajectory::reward",
        semconv.REWARD_SCOPE: "trajectory",
        semconv.REWARD_KIND: "outcome",
        semconv.REWARD_SOURCE: "environment",
        semconv.REWARD_MIN: 0.0,
        semconv.REWARD_MAX: 1.0,
    }


def test_step_rewards_link_to_their_steps():
    """Without a step the latest model call is judged; with one, that span; both are process."""
    with (
        ScriptedServer([Reply(content="x")]) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        record_spans() as store,
        starpo_trace.trajectory() as run,
    ):
        client.chat.completions.create(model="m", messages=[])
        with starpo_trace.step("tool", "move") as step:
            pass
        starpo_trace.reward(0.5, scope="turn", name="progress")
        starpo_trace.reward(
            -1,
            scope="step",
            step=step.number,
            source="judge",
            judge_id="j-1",
            judge_prompt_hash="h",
        )
    call, tool, turn_reward, step_reward, _ = store.spans
    assert links_of(turn_reward) == [(call.context.trace_id, call.context.span_id)]
    assert links_of(step_reward) == [(tool.context.trace_id, tool.context.span_id)]
    assert turn_reward.attributes[semconv.REWARD_ID] == f"{run.id}:turn:0:progress"
    assert step_reward.attributes[semconv.REWARD_STEP] == 1
    assert step_reward.attributes[semconv.REWARD_KIND] == "process"
    assert step_reward.attributes[semconv.REWARD_JUDGE_ID] == "j-1"


def test_a_vector_is_one_span_per_name():
    """Named values share everything else; a given id is made distinct by the name."""
    with record_spans() as store, starpo_trace.trajectory():
        starpo_trace.reward({"task": 1, "cost": -0.25}, reward_id="r7")
    rewards = store.select("reward")
    assert [
        (r[semconv.EVALUATION_NAME], r[semconv.EVALUATION_VALUE], r[semconv.REWARD_ID])
        for r in rewards
    ] == [("task", 1.0, "r7:task"), ("cost", -0.25, "r7:cost")]


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", None, [1.0], {"a": math.nan}])
def test_a_value_that_is_no_number_is_ignored(value, monkeypatch, caplog):
    """The agent is not troubled, nothing wrong is recorded, and the log says why, once."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    with record_spans() as store, starpo_trace.trajectory():
        starpo_trace.reward(value)
        starpo_trace.reward(value)
    assert store.select("reward") == []
    assert len(caplog.records) == 1
    with record_spans(), starpo_trace.trajectory():
        monkeypatch.setenv("STARPO_DEBUG", "1")
        with pytest.raises((ValueError, TypeError), match="give a"):
            starpo_trace.reward(value)


def test_each_problem_of_rewards_is_logged_and_marks_the_run(monkeypatch, caplog):
    """Another name, value or word is another problem; the run they belong to has the reason."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    monkeypatch.setattr("starpo_trace.capture.rewards._problems", set())
    with record_spans() as store:
        with starpo_trace.trajectory("named") as named, starpo_trace.trajectory("current"):
            for _ in range(2):
                starpo_trace.reward(math.nan)
                starpo_trace.reward(math.nan, name="b")
                starpo_trace.reward(None)
                starpo_trace.reward(1.0, scope="run")
            starpo_trace.reward(1.0, kind="bad", trajectory_id=named.id)
        with starpo_trace.trajectory("clean"):
            starpo_trace.reward(math.nan, trajectory_id="another")
            starpo_trace.reward(1.0)
    assert len(caplog.records) == 5
    reasons = {
        root[semconv.AGENT_NAME]: "reward_refused" in root[semconv.USABLE_FOR_REASONS]
        for root in store.select("trajectory")
    }
    assert reasons == {"current": True, "named": True, "clean": False}


def test_the_dataset_knows_of_refused_rewards(monkeypatch, tmp_path):
    """A run that misses a reward is for imitation only, here and in the dataset."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    starpo_trace.instrument(store=tmp_path)
    try:
        with starpo_trace.trajectory():
            starpo_trace.reward(math.nan)
            starpo_trace.reward(1.0, name="other")
    finally:
        starpo_trace.uninstrument()
    rows = [
        row
        for path in list_segments(tmp_path)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, source=path.name)
    ]
    [trajectory] = convert_rows(rows)["trajectories"].to_dicts()
    assert "reward_refused" in trajectory["reasons"]


def test_the_log_of_refused_rewards_has_an_end(monkeypatch, caplog):
    """A program that names each reward anew does not fill its log, nor our memory."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    monkeypatch.setattr("starpo_trace.capture.rewards._problems", set())
    with record_spans(), starpo_trace.trajectory():
        for number in range(150):
            starpo_trace.reward(math.nan, name=f"r{number}")
    assert len(caplog.records) == 101


def test_a_reward_about_another_run_does_not_join_this_one():
    """Inside a run, naming another run's id judges that one, in a trace of its own."""
    with record_spans() as store:
        with starpo_trace.trajectory() as first:
            pass
        with starpo_trace.trajectory() as second:
            starpo_trace.reward(1.0, trajectory_id=first.id)
    [reward] = [s for s in store.spans if s.attributes[semconv.RECORD] == "reward"]
    assert reward.attributes[semconv.TRAJECTORY_ID] == first.id != second.id
    assert reward.parent is None
    assert [f"{trace:032x}-{span:016x}" for trace, span in links_of(reward)] == [first.id]


@pytest.mark.slow
def test_a_turn_reward_by_id_finds_the_latest_call_of_an_open_run(monkeypatch, caplog):
    """Of a run that goes on here the latest call is known; of any other a step must be named."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    with (
        ScriptedServer([Reply(content="x")]) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        record_spans() as store,
    ):
        with starpo_trace.trajectory(task_id="t") as outer:
            client.chat.completions.create(model="m", messages=[])
            with starpo_trace.trajectory():
                starpo_trace.reward(0.5, scope="turn", trajectory_id=outer.id)
                starpo_trace.reward(0.5, scope="turn", name="early")
        starpo_trace.reward(0.5, scope="turn", name="late", trajectory_id=outer.id)
    call = next(s for s in store.spans if s.attributes[semconv.RECORD] == "llm")
    [reward] = [s for s in store.spans if s.attributes[semconv.RECORD] == "reward"]
    assert links_of(reward) == [(call.context.trace_id, call.context.span_id)]
    assert reward.attributes[semconv.REWARD_STEP] == 0
    assert reward.attributes[semconv.TASK_ID] == "t"
    assert reward.parent is None
    assert [record.getMessage().count("names no step") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"step": "0"}, "reward 'solved' has step='0': give the number of a step, from 0"),
        ({"step": -1}, "reward 'solved' has step=-1: give the number of a step, from 0"),
        ({"step": True}, "reward 'solved' has step=True: give the number of a step, from 0"),
        ({"step": 2**63}, f"reward 'solved' has step={2**63}: give the number of a step, from 0"),
        ({"name": ""}, "reward with an empty name: give it one, or leave name= out"),
        ({"min": "a"}, "reward 'min of solved' is 'a': give a number"),
        ({"max": math.nan}, "reward 'max of solved' is nan: give a finite number"),
        ({"scope": "run"}, "reward with 'run': use one of step, turn, trajectory"),
    ],
)
def test_what_is_wrong_with_a_reward_is_named(given, problem):
    """Argument and value, under pytest as an exception."""
    with (
        record_spans(),
        starpo_trace.trajectory(),
        pytest.raises((TypeError, ValueError), match=f"^{re.escape(problem)}"),
    ):
        starpo_trace.reward(1.0, **{"name": "solved", **given})


def test_a_reward_is_named_as_runs_are():
    """What is no text is taken for the text that stands for it, as `trajectory()` does."""
    with record_spans() as store:
        with starpo_trace.trajectory(trajectory_id="r", task_id=7):
            pass
        starpo_trace.reward({1: 1.0}, trajectory_id="r", task_id=7, label=5)
    root, reward = store.select("trajectory") + store.select("reward")
    assert reward[semconv.TASK_ID] == root[semconv.TASK_ID] == "7"
    assert (reward[semconv.EVALUATION_NAME], reward[semconv.EVALUATION_LABEL]) == ("1", "5")


def test_a_late_reward_from_another_process_links_to_the_root(tmp_path):
    """Days later, knowing only the id, another process sends a reward twice: one id, one link."""
    with ScriptedServer([Reply(content="x")]) as server:
        starpo_trace.instrument(store=tmp_path)
        try:
            with (
                openai.OpenAI(base_url=server.base_url, api_key="none") as client,
                starpo_trace.trajectory() as run,
            ):
                client.chat.completions.create(model="m", messages=[])
        finally:
            starpo_trace.uninstrument()
    code = f"""
import starpo_trace
starpo_trace.instrument(store={str(tmp_path)!r})
for value in (0, 1):
    starpo_trace.reward(value, source="user", trajectory_id={run.id!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    rows = [
        row
        for path in list_segments(tmp_path)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
    ]
    [root] = [row for row in rows if row.attributes[semconv.RECORD] == "trajectory"]
    rewards = [row for row in rows if row.attributes[semconv.RECORD] == "reward"]
    assert [reward.links for reward in rewards] == [((root.trace_id, root.span_id),)] * 2
    assert [reward.attributes[semconv.EVALUATION_VALUE] for reward in rewards] == [0.0, 1.0]
    assert len({reward.attributes[semconv.REWARD_ID] for reward in rewards}) == 1
