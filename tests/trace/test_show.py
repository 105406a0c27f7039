"""Dataset -> what a person reads in the terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.convert.manifest import Accounting
from starpo_trace.convert.rewards import Trust
from starpo_trace.errors import DatasetError
from starpo_trace.look.opened import Opened, find_trajectory
from starpo_trace.look.overview import summarize
from starpo_trace.show import (
    _print_trajectories,
    render_accounting,
    render_reasons,
    render_rewards,
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


def opened(tables, **accounting) -> Opened:
    """Tables in memory as something to look at."""
    counts = {"spans_read": 0, "spans_used": 0, "duplicates": 0, "damaged_records": 0}
    return Opened(
        path=Path("invented"),
        scan=lambda name: tables[name].lazy(),
        accounting=Accounting(**{**counts, "spans_rejected_by_reason": {}, **accounting}),
        manifest=None,
    )


def print_lines(lines) -> list[str]:
    """Lines as a wide terminal shows them."""
    out = io.StringIO()
    console = Console(file=out, width=200)
    for line in lines:
        console.print(line, soft_wrap=True)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def text_of(tables) -> list[str]:
    return print_lines(render_trajectory(tables))


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
    _print_trajectories(Console(file=out, width=200), opened(tables), 1, 10)
    assert out.getvalue().count(shown) == 2
    assert "\x1b" not in out.getvalue()


def test_a_long_name_goes_on_below_and_an_id_stays_whole(spans):
    """One task of 500 characters makes no table of 500 columns; no character is left out."""
    root = spans.root("t" * 100, num_steps=1, **{semconv.TASK_ID: "x" * 500})
    call = spans.call(root, 0, [{"role": "user", "content": "a"}], {"role": "assistant"})
    out = io.StringIO()
    _print_trajectories(Console(file=out, width=80), opened(convert_rows([root, call])), 1, 10)
    assert (out.getvalue().count("x"), "t" * 100 in out.getvalue()) == (500, True)
    assert max(map(len, out.getvalue().splitlines())) < 300


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
    shown = opened(tables, spans_read=4, spans_used=4)
    signatures = {"valid": 1, "invalid": 1, "missing": 1}
    funnel = render_accounting(shown.accounting, summarize(shown), signatures)
    assert [line for line in print_lines([funnel]) if "rewards" in line] == [
        "1  rewards with a valid signature",
        "1  rewards with an invalid signature",
        "1  rewards not signed",
    ]


def test_trajectory_is_found_by_the_beginning_of_its_id(spans):
    """A unique beginning is enough; none or several are errors that say so."""
    rows = [spans.root("abc1"), spans.root("abd2")]
    scan = opened(convert_rows(rows)).scan
    assert find_trajectory(scan, "abc") == "abc1"
    with pytest.raises(DatasetError, match="2 trajectories begin with 'ab'"):
        find_trajectory(scan, "ab")
    with pytest.raises(DatasetError, match="no trajectory 'x'"):
        find_trajectory(scan, "x")


def test_a_branch_says_where_it_leaves(spans):
    """A second answer to one prompt leaves it; a sub-agent's history begins anew."""
    root = spans.root(num_steps=3)
    user = {"role": "user", "content": "2+2?"}
    rows = [
        root,
        spans.call(root, 0, [user], {"role": "assistant", "content": "5"}),
        spans.call(root, 1, [user], {"role": "assistant", "content": "4"}),
        spans.call(root, 2, [{"role": "system", "content": "Check."}], {"role": "assistant"}),
    ]
    lines = text_of(convert_rows(rows))
    assert [line for line in lines if "branch" in line] == [
        "├─ branch 2 leaves branch 1 after a user message",
        "┌─ branch 3 begins anew",
    ]
    assert lines.index("-- turn 1 (step 1, ok)") < lines.index(
        "├─ branch 2 leaves branch 1 after a user message"
    )


def test_reasons_and_rewards_of_all_trajectories(spans):
    """How many have a reason and nothing else; rewards of each cohort over the same bins."""
    rows = []
    for name, cohort, value in (("a", "gold", 1.0), ("b", "gold", 0.0), ("c", "tin", None)):
        root = spans.root(name, num_steps=1, **{semconv.COHORT: cohort, semconv.TASK_ID: "sum"})
        call = spans.call(root, 0, [{"role": "user", "content": name}], {"role": "assistant"})
        rows += [root, call]
        if value is not None:
            rows.append(spans.reward(root, value))
    overview = summarize(opened(convert_rows(rows)))
    assert print_lines(render_rewards(overview)) == [
        "rewards by cohort, over 0 .. 1",
        "gold  ▕██▏ mean 0.5, 2 rewards",
        "tin  ▕  ▏ mean —, 0 rewards, 1 without",
        "all  ▕██▏ mean 0.5, 2 rewards, 1 without",
        "1 of 1 tasks have attempts whose rewards differ",
    ]
    counts = [line.split()[:3] for line in print_lines(render_reasons(overview.funnel.reasons))]
    assert counts[1:] == [
        ["3", "sft", "logprob_missing"],
        ["3", "sft", "token_ids_missing"],
        ["1", "sft", "no_reward"],
    ]
