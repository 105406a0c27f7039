"""Canonical frames -> tables, on trajectories worked out by hand."""

import openai
import polars as pl
import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.convert.dataset import convert_rows
from starpo_trace.messages import chain_hashes, dump_json, from_openai_chat
from starpo_trace.testing import Reply, ScriptedServer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2+2?"}
CALL = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "use the tool",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    ],
}
ECHO = {key: value for key, value in CALL.items() if key != "reasoning_content"}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4"}
ANSWER = {"role": "assistant", "content": "4"}
THANKS = {"role": "user", "content": "Thanks!"}


def tokens(prompt, response, logprobs, *, base_step=None, base_length=None) -> dict:
    return {
        semconv.PROMPT_TOKEN_IDS: dump_json(prompt),
        semconv.PROMPT_TOKEN_IDS_BASE_STEP: base_step,
        semconv.PROMPT_TOKEN_IDS_BASE_LENGTH: base_length,
        semconv.RESPONSE_TOKEN_IDS: dump_json(response),
        semconv.RESPONSE_LOGPROBS: dump_json(logprobs),
    }


def two_turns(spans, *, delta=True) -> list:
    """Root, call with a tool call, tool span, second call, observation, reward."""
    root = spans.root(num_steps=3, **{semconv.TASK_ID: "task", semconv.ATTEMPT: 1})
    first = spans.call(
        root,
        0,
        [SYSTEM, USER],
        CALL,
        delta=delta,
        attributes=tokens([1, 2, 3], [4, 5], [-0.5, -0.25]),
    )
    tool = spans.row(
        {
            semconv.RECORD: "step",
            semconv.TRAJECTORY_ID: "t1",
            semconv.STEP: 1,
            semconv.STEP_KIND: "tool",
            semconv.OPERATION_NAME: "execute_tool",
        },
        parent=root,
    )
    second_tokens = (
        tokens([6, 7], [8], [-1.0], base_step=0, base_length=5)
        if delta
        else tokens([1, 2, 3, 4, 5, 6, 7], [8], [-1.0])
    )
    second = spans.call(
        root, 2, [SYSTEM, USER, ECHO, RESULT], ANSWER, delta=delta, attributes=second_tokens
    )
    seen = spans.row(
        {
            semconv.RECORD: "observation",
            semconv.TRAJECTORY_ID: "t1",
            **spans.history([SYSTEM, USER, ECHO, RESULT, ANSWER, THANKS], delta=delta),
        },
        parent=root,
    )
    return [root, first, tool, second, seen, spans.reward(root, 1.0)]


def test_a_whole_trajectory_is_usable_for_rl(spans):
    """Root, all steps, exact ids and log-probabilities, trusted reward: every column by hand."""
    tables = convert_rows(two_turns(spans))
    assert tables["rejected"].height == 0
    row = tables["trajectories"].row(0, named=True)
    row.pop("digest")
    assert row.pop("user_id") is None
    made_of_text = ("signature", "content_digest")
    assert all(len(row.pop(name)) == 32 for name in made_of_text)
    assert row == {
        "trajectory_id": "t1",
        "task_id": "task",
        "attempt": 1,
        "seed": None,
        "policy_id": None,
        "environment_name": None,
        "environment_version": None,
        "cohort": None,
        "conversation_id": None,
        "agent_name": "agent",
        "trace_id": f"{1:032x}",
        "source": "store",
        "end": "terminated",
        "started_ns": 1_000_000_000,
        "ended_ns": 1_000_001_000,
        "num_parts": 1,
        "num_turns": 2,
        "num_steps": 3,
        "num_tool_calls": 1,
        "num_messages": 6,
        "num_branches": 1,
        "reward": 1.0,
        "input_tokens": 20,
        "output_tokens": 4,
        "usable_for": "rl",
        "reasons": [],
        "tool_names": ["add"],
        # Asked for by a recipe, or decided over all trajectories.
        **dict.fromkeys(
            (
                "reward_parts",
                "task_sketch",
                "content_sketch",
                "group_id",
                "split",
                "distribution",
                "policy_lag",
                "duplicate_of",
                "excluded_because",
            )
        ),
    }


def test_turns_have_the_times_of_their_spans(spans):
    """Start and end; a call that never ended has no end."""
    root = spans.root(num_steps=2)
    ended = spans.call(root, 0, [USER], ANSWER)
    unended = spans.call(root, 1, [USER], ANSWER, end_ns=None)
    turns = convert_rows([root, ended, unended])["turns"].sort("turn")
    assert turns.select("started_ns", "ended_ns").rows() == [
        (2_000_000_000, 2_000_001_000),
        (3_000_000_000, None),
    ]


@pytest.mark.parametrize("delta", [True, False])
def test_delta_and_full_history_give_the_same_tables(spans, delta):
    """Messages and token ids are stored once, however the spans held them."""
    tables = convert_rows(two_turns(spans, delta=delta))
    chain = [SYSTEM, USER, CALL, RESULT, ANSWER, THANKS]
    nodes = [node.hex() for node in chain_hashes(from_openai_chat(m) for m in chain)]
    messages = tables["messages"].sort("depth")
    assert messages["node_id"].to_list() == nodes
    assert messages["parent_id"].to_list() == [None, *nodes[:-1]]
    assert messages["sampled_turn"].to_list() == [None, None, 0, None, 1, None]
    assert messages["first_turn"].to_list() == [0, 0, 0, 1, 1, None]
    # The sampled message keeps its reasoning though the next prompt repeats it without.
    assert messages["message"].to_list() == [dump_json(from_openai_chat(m)) for m in chain]
    turns = tables["turns"]
    assert turns["input_node"].to_list() == [nodes[1], nodes[3]]
    assert turns["output_node"].to_list() == [nodes[2], nodes[4]]
    assert turns["prompt_base_turn"].to_list() == [None, 0]
    assert turns["prompt_base_length"].to_list() == [0, 5]
    assert turns["prompt_token_ids"].to_list() == [[1, 2, 3], [6, 7]]
    assert turns["response_token_ids"].to_list() == [[4, 5], [8]]
    assert turns["logprob_provenance"].to_list() == ["exact", "exact"]
    assert turns["reasoning"].to_list() == ["use the tool", None]
    # The root is span 1, the calls are spans 2 and 4, each a second after the last.
    assert turns["started_ns"].to_list() == [2_000_000_000, 4_000_000_000]
    assert turns["ended_ns"].to_list() == [2_000_001_000, 4_000_001_000]
    assert turns["tool_calls"].to_list() == [
        [{"id": "c1", "name": "add", "arguments": '{"a": 2}'}],
        [],
    ]


def test_rewritten_history_is_a_branch(spans):
    """A prompt that changes an earlier message shares the graph only up to the change."""
    root = spans.root(num_steps=2)
    first = spans.call(root, 0, [SYSTEM, USER], ANSWER)
    second = spans.call(root, 1, [SYSTEM, THANKS], ANSWER)
    tables = convert_rows([root, first, second])
    assert tables["trajectories"].select("num_messages", "num_branches").row(0) == (5, 2)


def test_missing_base_means_missing_history(spans):
    """Delta messages whose base was never read cannot be trained on."""
    root, _first, *rest = two_turns(spans)
    tables = convert_rows([root, *rest])
    row = tables["trajectories"].row(0, named=True)
    assert row["usable_for"] == "none"
    assert row["reasons"] == [
        "logprob_estimated",
        "missing_history",
        "missing_turn",
        "token_ids_missing",
    ]


def test_wrong_chain_hash_is_rejected(spans):
    """A call whose messages do not give its recorded hash is rejected and its turn is missing."""
    rows = two_turns(spans)
    rows[3].attributes[semconv.HISTORY_HASH] = "00" * 16
    tables = convert_rows(rows)
    assert tables["rejected"]["reason"].to_list() == ["history_mismatch"]
    row = tables["trajectories"].row(0, named=True)
    assert "history_mismatch" in row["reasons"]
    assert row["num_turns"] == 1


def test_history_with_integers_beyond_64_bits_is_verified(spans):
    """Such an integer in a message does not fail the verification of the chain."""
    root = spans.root(num_steps=1)
    prompt = [{"role": "user", "content": [{"type": "x", "n": 10**30}]}]
    tables = convert_rows([root, spans.call(root, 0, prompt, ANSWER)])
    assert tables["rejected"].height == 0


@pytest.mark.parametrize(
    ("attributes", "provenance", "reason"),
    [
        ({semconv.REQUEST_TEMPERATURE: 0.7}, "estimated", "logprob_estimated"),
        ({semconv.REQUEST_TOP_P: 0.9}, "estimated", "logprob_estimated"),
        ({semconv.REQUEST_TOP_K: 5}, "estimated", "logprob_estimated"),
        ({semconv.RESPONSE_LOGPROBS: None}, "missing", "logprob_missing"),
        ({semconv.RESPONSE_LOGPROBS: "[-1.0]"}, "missing", "logprob_missing"),
    ],
)
def test_reshaped_sampling_is_not_exact(spans, attributes, provenance, reason):
    """Only the policy's own distribution, with one log-probability per id, counts as exact."""
    root = spans.root(num_steps=1)
    ids = tokens([1], [2, 3], [-1.0, -2.0])
    call = spans.call(root, 0, [USER], ANSWER, attributes={**ids, **attributes})
    tables = convert_rows([root, call, spans.reward(root, 1.0)])
    assert tables["turns"]["logprob_provenance"].to_list() == [provenance]
    assert tables["trajectories"].select("usable_for", "reasons").row(0) == ("sft", [reason])


@pytest.mark.parametrize(
    ("change", "usable_for", "reasons"),
    [
        (lambda rows: rows[1:], "sft", ["unended"]),
        (lambda rows: rows[:2] + rows[3:], "sft", ["missing_turn"]),
        (lambda rows: rows[:-1], "sft", ["no_reward"]),
    ],
)
def test_what_is_missing_is_a_reason(spans, change, usable_for, reasons):
    """Without root, a step, or the reward a trajectory is not for RL, and says why."""
    tables = convert_rows(change(two_turns(spans)))
    assert tables["trajectories"].select("usable_for", "reasons").row(0) == (usable_for, reasons)


def test_masked_tokens_are_not_exact(spans):
    """Negative ids and missing log-probabilities keep their places and are no behaviour policy."""
    root, first, tool, second, seen, reward = two_turns(spans)
    first.attributes.update(tokens([1, 2, 3], [4, -1], [-0.5, None]))
    tables = convert_rows([root, first, tool, second, seen, reward])
    turns = tables["turns"]
    assert turns["response_token_ids"].to_list() == [[4, -1], [8]]
    assert turns["response_logprobs"].to_list() == [[-0.5, None], [-1.0]]
    # the second prompt goes on from the first's answer, so it holds the masked token too
    assert turns["token_provenance"].to_list() == ["redacted", "redacted"]
    assert turns["logprob_provenance"].to_list() == ["redacted", "redacted"]
    row = tables["trajectories"].row(0, named=True)
    assert (row["usable_for"], row["reasons"]) == ("sft", ["redacted"])


@pytest.mark.parametrize("masked", ["prompt", "response"])
def test_a_secret_masked_in_a_run_makes_it_no_policy(masked, tmp_path, read_store):
    """Recorded, stored and converted: the call stays, its ids are none to train on."""
    secret = "key AKIAQWERTYUIOPASDFGH"
    reply = Reply(
        content=secret if masked == "response" else "fine",
        prompt_token_ids=[1, 2],
        token_ids=[3, 4, 5],
        logprobs=[-0.5, -0.25, -0.125],
    )
    prompt = [{"role": "user", "content": secret if masked == "prompt" else "hi"}]
    starpo_trace.instrument(store=tmp_path)
    try:
        with (
            ScriptedServer([reply]) as server,
            openai.OpenAI(base_url=server.base_url, api_key="none") as client,
            starpo_trace.trajectory(),
        ):
            client.chat.completions.create(model="m", messages=prompt, logprobs=True)
            starpo_trace.reward(1.0)
    finally:
        starpo_trace.uninstrument()
    rows = read_store(tmp_path)
    tables = convert_rows(rows)
    assert tables["rejected"].height == 0
    [trajectory] = tables["trajectories"].to_dicts()
    assert (trajectory["usable_for"], trajectory["reasons"]) == ("sft", ["redacted"])
    [turn] = tables["turns"].to_dicts()
    assert turn["token_provenance"] == "redacted"
    hidden = "prompt_token_ids" if masked == "prompt" else "response_token_ids"
    assert min(turn[hidden]) == -1


def test_failed_call_is_no_action(spans):
    """A call that failed without an answer is named, and takes nothing away."""
    root = spans.root(num_steps=2)
    failed = spans.call(root, 0, [USER], None, attributes={semconv.ERROR_TYPE: "Timeout"}, error="")
    ids = tokens([1], [2], [-1.0])
    good = spans.call(root, 1, [USER], ANSWER, attributes=ids)
    tables = convert_rows([root, failed, good, spans.reward(root, 0.5)])
    row = tables["trajectories"].row(0, named=True)
    assert (row["usable_for"], row["reasons"], row["reward"]) == ("rl", ["call_error"], 0.5)
    assert tables["turns"]["outcome"].to_list() == ["error", "ok"]


def test_stream_closed_early_is_not_for_rl(spans):
    """Half an answer was not the policy's whole action."""
    root = spans.root(num_steps=1)
    attributes = {**tokens([1], [2], [-1.0]), semconv.STREAM_OUTCOME: "closed"}
    call = spans.call(root, 0, [USER], ANSWER, attributes=attributes)
    tables = convert_rows([root, call, spans.reward(root, 1.0)])
    row = tables["trajectories"].row(0, named=True)
    assert (row["usable_for"], row["reasons"]) == ("sft", ["stream_incomplete"])


def test_content_off_is_usable_for_nothing(spans):
    """Spans without messages leave nothing to learn from."""
    root = spans.root(num_steps=1)
    call = spans.row(
        {
            semconv.RECORD: "llm",
            semconv.TRAJECTORY_ID: "t1",
            semconv.STEP: 0,
            semconv.HISTORY_MODE: "off",
        },
        parent=root,
    )
    row = convert_rows([root, call])["trajectories"].row(0, named=True)
    assert (row["usable_for"], "no_content" in row["reasons"]) == ("none", True)


def test_parallel_call_based_on_a_later_step(spans):
    """Ids whose base is a call with a higher step are restored and shared anew."""
    root = spans.root(num_steps=2)
    early = spans.call(
        root, 0, [USER], ANSWER, attributes=tokens([9], [3], [-1.0], base_step=1, base_length=2)
    )
    late = spans.call(root, 1, [USER], ANSWER, attributes=tokens([1, 2, 5], [4], [-1.0]))
    turns = convert_rows([root, early, late])["turns"]
    assert turns["prompt_token_ids"].to_list() == [[1, 2, 9], [5]]
    assert turns["prompt_base_turn"].to_list() == [None, 0]
    assert turns["prompt_base_length"].to_list() == [0, 2]


def reward_values(tables) -> dict[str, tuple]:
    rows = tables["rewards"].select("span_id", "trusted", "superseded").rows()
    return {span_id: (trusted, superseded) for span_id, trusted, superseded in rows}


def test_latest_reward_with_the_same_id_counts(spans):
    """A corrected reward replaces the first; both stay in the table."""
    rows = two_turns(spans)
    late = spans.reward(rows[0], 0.25)
    tables = convert_rows([*rows, late])
    assert tables["trajectories"]["reward"].to_list() == [0.25]
    assert reward_values(tables) == {
        rows[-1].span_id: (True, True),
        late.span_id: (True, False),
    }


@pytest.mark.parametrize(
    "attributes",
    [
        {semconv.REWARD_SOURCE: "judge"},
        {semconv.REWARD_SOURCE: None},
        {semconv.REWARD_MAX: 0.5},
    ],
)
def test_untrusted_reward_never_counts(spans, attributes):
    """A later reward from another source, or out of its range, replaces nothing."""
    rows = two_turns(spans)
    fake = spans.reward(rows[0], 100.0, **attributes)
    tables = convert_rows([*rows, fake])
    assert tables["trajectories"]["reward"].to_list() == [1.0]
    assert reward_values(tables)[fake.span_id] == (False, True)


def test_reward_of_another_scope_is_not_trusted(spans):
    """A span that imitates ours from another instrumentation scope is not believed."""
    root, first, tool, second, seen, _ = two_turns(spans)
    fake = spans.row(
        dict(spans.reward(root, 100.0).attributes),
        scope="my_agent",
        links=((root.trace_id, root.span_id),),
    )
    tables = convert_rows([root, first, tool, second, seen, fake])
    assert tables["trajectories"]["reward"].to_list() == [None]


def test_step_rewards_belong_to_the_turn_that_acted(spans):
    """A reward of the tool's step is part of the turn that asked for the tool."""
    rows = two_turns(spans)
    root, first, tool, *_ = rows
    process = {semconv.REWARD_SCOPE: "step", semconv.REWARD_KIND: "process"}
    of_call = spans.reward(first, 0.5, **{**process, semconv.REWARD_ID: "a"})
    of_tool = spans.reward(tool, 0.25, **{**process, semconv.REWARD_ID: "b"})
    of_second = spans.reward(
        root, -1.0, links=(), **{**process, semconv.REWARD_ID: "c", semconv.REWARD_STEP: 2}
    )
    tables = convert_rows([*rows, of_call, of_tool, of_second])
    assert tables["turns"]["reward"].to_list() == [0.75, -1.0]
    placed = tables["rewards"].sort("reward_id").select("reward_id", "turn", "step").rows()
    assert placed == [("a", 0, 0), ("b", 0, 1), ("c", 1, 2), ("r1", None, None)]


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (99, "there is no step 99, the last one is 2"),
        (-1, "there is no step -1, the last one is 2"),
        (None, "names no step that a turn could be found by"),
    ],
)
def test_a_turn_reward_without_a_turn_counts_for_nothing(spans, step, fault):
    """It says why; no other turn gets it."""
    rows = two_turns(spans)
    process = {semconv.REWARD_SCOPE: "turn", semconv.REWARD_KIND: "process"}
    lost = spans.reward(
        rows[0], 0.9, links=(), **process, **{semconv.REWARD_ID: "a", semconv.REWARD_STEP: step}
    )
    tables = convert_rows([*rows, lost])
    assert tables["turns"]["reward"].to_list() == [None, None]
    [found] = tables["rewards"].filter(pl.col("reward_id") == "a").to_dicts()
    assert (found["trusted"], found["untrusted_because"]) == (False, fault)


def test_late_reward_by_trajectory_id_alone(spans):
    """A reward from another process finds its trajectory by id."""
    rows = two_turns(spans)[:-1]
    late = spans.reward(rows[0], 0.5, links=())
    assert convert_rows([*rows, late])["trajectories"]["reward"].to_list() == [0.5]


@pytest.mark.parametrize(
    ("attributes", "links", "reason"),
    [
        ({semconv.TRAJECTORY_ID: "nobody"}, (), "reward_target_missing"),
        ({semconv.TRAJECTORY_ID: "nobody"}, None, "reward_target_conflict"),
        ({}, ((f"{1:032x}", "a" * 16), (f"{1:032x}", "b" * 16)), "reward_target_ambiguous"),
        ({semconv.EVALUATION_VALUE: float("nan")}, None, "reward_value"),
        ({semconv.EVALUATION_VALUE: "high"}, None, "reward_value"),
    ],
)
def test_reward_that_cannot_be_placed_is_rejected(spans, attributes, links, reason):
    """Unknown, contradictory or several targets, and values that are no number."""
    rows = two_turns(spans)[:-1]
    bad = spans.reward(rows[0], 1.0, links=links, **attributes)
    tables = convert_rows([*rows, bad])
    assert tables["rejected"].select("span_id", "reason").rows() == [(bad.span_id, reason)]
    assert tables["trajectories"]["reward"].to_list() == [None]


@pytest.mark.parametrize("length", [2**63 - 1, "9" * 30, 1e30, -1])
def test_an_impossible_number_of_messages_costs_one_span(spans, length):
    """Whoever sent it: the span is rejected, all others are converted."""
    rows = two_turns(spans)
    bad = spans.row(
        {
            semconv.RECORD: "llm",
            semconv.TRAJECTORY_ID: "t2",
            semconv.HISTORY_BASE: "aa" * 16,
            semconv.HISTORY_BASE_LENGTH: length,
            semconv.INPUT_MESSAGES: '[{"role":"user","parts":[]}]',
        }
    )
    tables = convert_rows([*rows, bad])
    assert tables["trajectories"]["usable_for"].to_list() == ["rl"]
    assert tables["rejected"].select("span_id", "reason").rows() == [
        (bad.span_id, "malformed_attributes")
    ]


def test_text_that_is_no_json_is_named(spans):
    """Of a span's many attributes, the one to look at."""
    rows = two_turns(spans)
    rows[1].attributes[semconv.INPUT_MESSAGES] = "not json"
    (detail,) = convert_rows(rows)["rejected"]["detail"].to_list()
    assert detail.startswith(f"{semconv.INPUT_MESSAGES}: ")


@pytest.mark.parametrize("step", [2**31, 2**63 - 1, -1])
def test_an_impossible_step_costs_one_span(spans, step):
    """A number so high would hide that steps are missing."""
    rows = two_turns(spans)
    rows[2].attributes[semconv.STEP] = step
    tables = convert_rows(rows)
    assert tables["rejected"]["reason"].to_list() == ["malformed_attributes"]
    assert "missing_turn" in tables["trajectories"]["reasons"].to_list()[0]


def test_a_run_is_whose_its_roots_say(spans):
    """Other spans of the run cannot name its task, where a root is there."""
    root, *rest = two_turns(spans)
    del root.attributes[semconv.TASK_ID]
    rest[1].attributes[semconv.TASK_ID] = "another"
    [row] = convert_rows([root, *rest])["trajectories"].to_dicts()
    assert row["task_id"] is None
    [row] = convert_rows(rest)["trajectories"].to_dicts()  # killed before its root was written
    assert row["task_id"] == "another"


def test_two_roots_of_one_id_are_told(spans):
    """Two runs that were given one id; it does not say whose it is, so it is no single run."""
    rows = two_turns(spans)
    [row] = convert_rows([*rows, spans.root("t1", num_steps=0)])["trajectories"].to_dicts()
    assert (row["usable_for"], row["reasons"]) == ("sft", ["conflicting_roots"])


def test_a_generated_id_says_which_root_is_its(spans):
    """Somebody else's root of that id is rejected, and changes nothing of the run."""
    trajectory = f"{1:032x}-{1:016x}"
    root = spans.root(trajectory, num_steps=1, **{semconv.TASK_ID: "task"})
    call = spans.call(root, 0, [USER], ANSWER, attributes=tokens([1], [2], [-0.5]))
    reward = spans.reward(root, 1.0)
    forged = spans.root(
        trajectory, end="error", **{semconv.TASK_ID: "another", semconv.POLICY_ID: "p2"}
    )
    tables = convert_rows([forged, root, call, reward])
    [row] = tables["trajectories"].to_dicts()
    assert (row["task_id"], row["policy_id"], row["end"]) == ("task", None, "terminated")
    assert (row["usable_for"], row["reward"], row["reasons"]) == ("rl", 1.0, ["conflicting_root"])
    assert tables["rejected"].select("span_id", "reason").rows() == [
        (forged.span_id, "conflicting_root")
    ]


def test_states_are_whole_values(spans):
    """Merge patches are applied; a patch without its base, or with a wrong hash, is rejected."""
    from starpo_trace.convert.states import hash_state

    root = spans.root(num_steps=0)
    first, second = {"a": 1, "b": {"c": 2}}, {"b": {"c": 2, "d": 3}}

    def state(**attributes):
        return spans.row({semconv.RECORD: "state", semconv.STEP: 0, **attributes}, parent=root)

    patch = '{"a":null,"b":{"d":3}}'
    rows = [
        state(**{semconv.STATE_HASH: hash_state(first), semconv.STATE_VALUE: dump_json(first)}),
        state(
            **{
                semconv.STATE_HASH: hash_state(second),
                semconv.STATE_BASE: hash_state(first),
                semconv.STATE_DIFF: patch,
            }
        ),
        state(
            **{
                semconv.STATE_HASH: "00",
                semconv.STATE_BASE: hash_state(first),
                semconv.STATE_DIFF: patch,
            }
        ),
        state(**{semconv.STATE_BASE: "unknown", semconv.STATE_DIFF: patch}),
        state(**{semconv.STATE_VALUE: "{torn"}),
        state(**{semconv.STATE_VALUE: "[" * 100_000}),
        state(**{semconv.STATE_NAME: "content off"}),
    ]
    tables = convert_rows([root, *rows])
    assert tables["states"]["value"].to_list() == [dump_json(first), dump_json(second)]
    reasons = tables["rejected"].sort("span_id")["reason"].to_list()
    assert reasons == [
        "state_mismatch",
        "state_base_missing",
        "state_not_json",
        "state_not_json",
        "no_content",
    ]


def test_every_table_has_exactly_the_schema(spans):
    """Names, order and types of all columns, also of empty tables."""
    from starpo_trace.convert.columns import polars_schema
    from starpo_trace.schema import TABLES

    for rows in (two_turns(spans), []):
        tables = convert_rows(rows)
        tables["trajectories"] = tables["trajectories"].with_columns(pl.lit("train").alias("split"))
        assert {name: table.schema for name, table in tables.items()} == {
            name: polars_schema(columns) for name, columns in TABLES.items()
        }
