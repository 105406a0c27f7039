"""Dataset -> what a person reads in the terminal."""

import io

import pytest
from rich.console import Console

from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.errors import DatasetError
from starpo_trace.show import _find_trajectory, render_trajectory

CALL = {
    "role": "assistant",
    "content": "Adding.",
    "reasoning_content": "use [bold]the tool",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}
    ],
}


def text_of(tables) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=200)
    for line in render_trajectory(tables):
        console.print(line, soft_wrap=True)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def test_state_thinking_action_observation_reward_in_order(spans):
    """One trajectory, line by line; recorded text is shown as it is, never as markup."""
    root = spans.root(num_steps=2, **{semconv.TASK_ID: "sum"})
    state = spans.row(
        {semconv.RECORD: "state", semconv.STEP: 0, semconv.STATE_VALUE: '{"x":1}'}, parent=root
    )
    user = {"role": "user", "content": "2+2?"}
    first = spans.call(root, 0, [user], CALL)
    echo = {key: value for key, value in CALL.items() if key != "reasoning_content"}
    result = {"role": "tool", "tool_call_id": "c1", "content": "4\x1b[2J"}
    second = spans.call(root, 1, [user, echo, result], {"role": "assistant", "content": "4"})
    after = spans.row(
        {semconv.RECORD: "state", semconv.STEP: 2, semconv.STATE_VALUE: '{"x":2}'}, parent=root
    )
    rows = [root, state, first, second, after, spans.reward(root, 0.5)]
    assert text_of(convert_rows(rows)) == [
        "trajectory t1",
        "task_id=sum  end=terminated  usable_for=sft  num_turns=2  num_steps=2",
        "not better because: logprob_missing, token_ids_missing",
        "-- turn 0 (step 0, ok)",
        "observation/user  2+2?",
        'state/state  {"x":1}',
        "thinking  use [bold]the tool",
        "action/text  Adding.",
        'action/tool  add({"a":2})',
        "-- turn 1 (step 1, ok)",
        "observation/tool  4\\x1b[2J",
        "action/text  4",
        "-- end",
        'state/state  {"x":2}',
        "reward/trajectory  reward = 0.5 (environment)",
    ]


def test_trajectory_is_found_by_the_beginning_of_its_id(spans):
    """A unique beginning is enough; none or several are errors that say so."""
    rows = [spans.root("abc1"), spans.root("abd2")]
    trajectories = convert_rows(rows)["trajectories"]
    assert _find_trajectory(trajectories, "abc") == "abc1"
    with pytest.raises(DatasetError, match="2 trajectories begin with 'ab'"):
        _find_trajectory(trajectories, "ab")
    with pytest.raises(DatasetError, match="no trajectory 'x'"):
        _find_trajectory(trajectories, "x")
