"""Dataset -> what a person reads in the terminal."""

import io

import pytest
from rich.console import Console

from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.manifest import Accounting
from starpo_trace.convert.rewards import Trust
from starpo_trace.errors import DatasetError
from starpo_trace.show import (
    _find_trajectory,
    _print_trajectories,
    render_accounting,
    render_trajectory,
)
from starpo_trace.signing import Keyring, SignedReward, sign_reward

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


def test_recorded_names_are_no_terminal_commands(spans, tmp_path):
    """Escape sequences, line ends and direction marks in ids are shown as their codes."""
    evil = "T\x1b[31m\nfake [bold]line\u202e"
    shown = "T\\x1b[31m\\x0afake [bold]line\\u202e"
    root = spans.root(evil, num_steps=1, **{semconv.TASK_ID: evil, semconv.POLICY_ID: evil})
    call = spans.call(root, 0, [{"role": "user", "content": "a"}], {"role": "assistant"})
    state = {semconv.RECORD: "state", semconv.STEP: 0, semconv.STATE_NAME: evil}
    rows = [root, call, spans.row({**state, semconv.STATE_VALUE: "1"}, parent=root)]
    rows.append(spans.reward(root, 0.5, **{semconv.EVALUATION_NAME: evil}))
    tables = convert_rows(rows)
    assert text_of(tables)[:2] == [
        f"trajectory {shown}",
        f"task_id={shown}  policy_id={shown}  end=terminated  usable_for=sft  num_turns=1  "
        "num_steps=1",
    ]
    assert f"state/{shown}  1" in text_of(tables)
    assert f"reward/trajectory  {shown} = 0.5 (environment)" in text_of(tables)
    out = io.StringIO()
    _print_trajectories(Console(file=out, width=200), tables["trajectories"], 10)
    assert out.getvalue().count(shown) == 2
    assert "\x1b" not in out.getvalue()


def test_a_reward_says_who_signed_it_and_why_it_does_not_count(spans):
    """Valid, forged and unsigned ones, in one line each; the funnel counts them."""
    keys = Keyring(keys={"k1": b"k" * 32})
    root = spans.root(num_steps=0)
    signed = SignedReward(
        trajectory_id="t1",
        task_id=None,
        reward_id="r1",
        name="reward",
        value=1.0,
        scope="trajectory",
        step=None,
        kind="outcome",
        source="environment",
        signed_ns=5,
        verifier_digest=None,
    )
    signature = {semconv.REWARD_SIGNATURE: sign_reward(signed, keys), semconv.REWARD_SIGNED_NS: 5}
    forged = {**signature, semconv.REWARD_ID: "r2"}
    rows = [root, spans.reward(root, 1.0, **signature), spans.reward(root, 9.0, **forged)]
    rows.append(spans.reward(root, 8.0, **{semconv.REWARD_ID: "r3"}))
    tables = convert_rows(rows, trust=Trust(keyring=keys, require_signed=True))
    assert text_of(tables)[-3:] == [
        "reward/trajectory  reward = 1.0 (environment, signed with k1)",
        "reward/trajectory  reward = 9.0 (environment, signature invalid, "
        "not trusted: key k1 did not sign this reward)",
        "reward/trajectory  reward = 8.0 (environment, not trusted: not signed)",
    ]
    unchecked = text_of(convert_rows(rows[:2]))[-1]
    assert unchecked.endswith("(environment, signature of k1 not checked)")
    accounting = Accounting(
        spans_read=4, spans_used=4, spans_rejected_by_reason={}, duplicates=0, damaged_records=0
    )
    out = io.StringIO()
    Console(file=out, width=200).print(render_accounting(accounting, tables))
    assert [line.strip() for line in out.getvalue().splitlines() if "rewards" in line] == [
        "1  rewards with a valid signature",
        "1  rewards with an invalid signature",
        "1  rewards not signed",
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
