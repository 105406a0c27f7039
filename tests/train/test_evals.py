"""Evaluators one by one, by name, and over a dataset."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from starpo_train.cli import main
from starpo_train.errors import ConfigError, DataError
from starpo_train.evals import (
    ContextRelevance,
    CustomEvaluation,
    Evaluator,
    TaskCompletion,
    ToolSelectionAccuracy,
    TrajectoryScore,
    build_evaluator,
    compute_pass_hat_k,
    evaluate_dataset,
    hash_state,
    list_evaluators,
    read_path,
    read_references,
    register_evaluator,
)
from starpo_train.evals.evaluator import _REGISTRY
from starpo_train.evals.path import MalformedPathError

SEED_SNIPPET = """
from fi.evals import TrajectoryScore, TaskCompletion, ToolSelectionAccuracy

path = TrajectoryScore().evaluate(input=user_goal, output=trajectory)
task = TaskCompletion().evaluate(input=user_goal, output=final_answer)
tools = ToolSelectionAccuracy().evaluate(trajectory=trajectory, expected_tool="inventory")
print(path.score, task.score, tools.score)
"""
SHOP = [
    {"role": "user", "content": "Two lamps, please."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "inventory", "arguments": '{"sku": "lamp"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "7 left"},
    {"role": "assistant", "content": "We have seven."},
]


def test_the_seeds_snippet_with_only_its_import_changed(capsys):
    """Nothing is known of the goal, so the task's completion is not scored."""
    code = SEED_SNIPPET.replace("from fi.evals import", "from starpo_train.evals import")
    values = {"user_goal": "Two lamps", "trajectory": SHOP, "final_answer": "We have seven."}
    exec(compile(code, "seed", "exec"), values)
    assert capsys.readouterr().out == "1.0 None 1.0\n"
    assert "not whether it leads to the goal" in values["path"].reason


@pytest.mark.parametrize(
    "messages",
    [
        SHOP,
        [
            SHOP[0],
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "lamp"},
                    {"type": "tool_use", "id": "c1", "name": "inventory", "input": {"sku": "lamp"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "7 left"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "We have seven."}]},
        ],
        [
            {"role": "user", "parts": [{"type": "text", "content": "Two lamps, please."}]},
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "lamp"},
                    {
                        "type": "tool_call",
                        "id": "c1",
                        "name": "inventory",
                        "arguments": {"sku": "lamp"},
                    },
                ],
            },
            {
                "role": "tool",
                "parts": [{"type": "tool_call_response", "id": "c1", "response": "7 left"}],
            },
            {"role": "assistant", "parts": [{"type": "text", "content": "We have seven."}]},
        ],
        [
            SHOP[0],
            {
                "role": "assistant",
                "function_call": {"name": "inventory", "arguments": '{"sku": "lamp"}'},
            },
            {"role": "function", "name": "inventory", "content": "7 left"},
            {"role": "assistant", "content": "We have seven."},
        ],
    ],
    ids=["openai", "anthropic", "genai", "functions"],
)
def test_chats_of_every_form_are_one_path(messages):
    """The same run as OpenAI, Anthropic, the GenAI convention and old function calls write it."""
    path = read_path(messages)
    (call,) = path.calls
    assert (call.name, call.arguments) == ("inventory", {"sku": "lamp"})
    assert (call.is_ok, call.result) == (True, "7 left")
    assert (path.goal, path.final_text, len(path.steps)) == (
        SHOP[0]["content"],
        "We have seven.",
        2,
    )


def test_parallel_calls_get_their_own_results():
    """By id, whatever the order; a result of no call is counted and belongs to none."""
    calls = [{"id": f"{i}", "name": "look", "arguments": {"at": i}} for i in range(2)]
    results = [
        {"role": "tool", "tool_call_id": "1", "content": "Error: dark"},
        {"role": "tool", "tool_call_id": "0", "content": "door"},
        {"role": "tool", "tool_call_id": "9", "content": "ghost"},
    ]
    path = read_path([{"role": "assistant", "tool_calls": calls}, *results])
    assert [(call.result, call.is_ok) for call in path.calls] == [
        ("door", True),
        ("Error: dark", False),
    ]
    assert path.num_orphan_results == 1


def test_paths_refuse_what_they_would_have_to_guess():
    """An item that is no message, a call without a name."""
    with pytest.raises(MalformedPathError, match="a call without a name"):
        read_path([{"role": "assistant", "tool_calls": [{"id": "1"}]}])
    with pytest.raises(MalformedPathError, match="step 0 has none of"):
        read_path([{"points": 3}])
    assert read_path([]).steps == ()


def test_steps_are_scored_each():
    """The failed, the redundant and the unexpected step; a step that only talks has no score."""
    steps = [
        {"tool": "find", "args": {"q": 1}, "observation": "k"},
        {"tool": "find", "args": {"q": 1}, "observation": "k"},
        {"tool": "open", "args": {}, "observation": "Error: locked"},
        {"text": "sorry"},
    ]
    result = TrajectoryScore().evaluate(trajectory=steps, expected_tools=["find", "find", "open"])
    assert [step.score for step in result.steps] == [1.0, 0.0, 0.0, None]
    assert [step.reason for step in result.steps] == ["", "redundant", "failed, not expected", ""]
    assert result.details["parts"] == {
        "match": pytest.approx(2 / 3),
        "succeeded": pytest.approx(2 / 3),
        "no_loops": 1.0,
    }
    selected = ToolSelectionAccuracy().evaluate(trajectory=steps, expected_tools=["find"])
    assert [step.score for step in selected.steps] == [1.0, 0.0, 0.0, None]


def test_steps_against_their_places():
    """The right call in the wrong place is wrong; None leaves a place open."""
    steps = [{"tool": name, "observation": "ok"} for name in ("b", "a", "c")]
    result = ToolSelectionAccuracy().evaluate(
        trajectory=steps, expected_steps=["a", None, {"name": "c", "arguments": {}}, "d"]
    )
    assert [(step.step, step.score) for step in result.steps] == [(0, 0.0), (2, 1.0), (3, 0.0)]
    assert result.score == pytest.approx(1 / 3)


def test_only_counted_tools_are_held_against_the_reference():
    """A look before the deed is no mistake; a second deed is."""
    facts = {"expected_calls": ["look", "pay"], "counted_tools": ["pay", "ship"]}
    look, pay, ship = ({"tool": name, "observation": "ok"} for name in ("look", "pay", "ship"))
    evaluator = ToolSelectionAccuracy()
    assert evaluator.evaluate(trajectory=[look, look, pay], **facts).score == 1.0
    assert evaluator.evaluate(trajectory=[pay, ship], **facts).score == pytest.approx(2 / 3)


def test_budgets_and_single_figures():
    """Each under its own name."""
    steps = [{"tool": name, "observation": "Error" if name == "b" else "ok"} for name in "abaa"]
    facts = {
        "trajectory": steps,
        "max_steps": 2,
        "max_tokens": 100,
        "num_tokens": 400,
        "allowed_tools": ["a"],
        "expected_tools": ["a", "c"],
    }
    expected = {
        "call_success": 0.75,
        "no_loops": 0.5,
        "no_redundancy": 0.5,
        "permission": 0.75,
        "step_budget": 0.5,
        "token_budget": 0.25,
        "calls_precision": 0.25,
        "calls_recall": 0.5,
        "calls_f1": pytest.approx(1 / 3),
        "calls_lcs_score": 0.5,
        "calls_in_order": 0.0,
        "calls_exact": 0.0,
        "state_success": None,
    }
    assert {name: build_evaluator(name).evaluate(**facts).score for name in expected} == expected
    assert TrajectoryScore().evaluate(**facts).score == 0.0  # `b` was not allowed


def test_states_are_compared_by_hash():
    """Order of keys and 1.0 for 1 make no other state; a given hash is taken as it is."""
    evaluator = build_evaluator("state_success")
    facts = {"state": {"b": 1.0, "a": [2]}, "expected_state": {"a": [2], "b": 1}}
    assert evaluator.evaluate(**facts).score == 1.0
    assert TaskCompletion().evaluate(**facts).score == 1.0
    digest = hash_state({"a": [2], "b": 1})
    assert evaluator.evaluate(state={"a": [2]}, expected_state_hash=digest).score == 0.0
    assert evaluator.evaluate(state_hash=digest, expected_state_hash=digest).score == 1.0


def test_open_answers_need_a_judge_and_closed_ones_none():
    """In other words: wrong, unknown, or as the judge says."""
    facts = {"output": "Paris, of course", "expected_output": "Paris"}
    assert TaskCompletion().evaluate(**facts).score == 0.0
    assert TaskCompletion(answers="open").evaluate(**facts).score is None
    judged = TaskCompletion(
        answers="open", judge=lambda **shown: shown["material"]["reference"] == "Paris"
    )
    assert judged.evaluate(**facts).score == 1.0
    unsure = TaskCompletion(answers="open", judge=lambda **_: {"score": None, "reason": "unclear"})
    assert unsure.evaluate(**facts).score is None


def test_relevance_is_the_judges_question():
    """What the tools answered is the context, if no other is given; thoughts are not shown."""
    shown = {}

    def judge(*, criterion, material):
        shown.update(material)
        return {"score": 0.5, "reason": "half of it"}

    assert ContextRelevance().evaluate(input="a", context="b").flags == ("no_judge",)
    result = ContextRelevance(judge=judge).evaluate(trajectory=SHOP)
    assert (result.score, result.reason) == (0.5, "half of it")
    assert shown == {"goal": "Two lamps, please.", "context": "7 left"}
    assert ContextRelevance(judge=judge).evaluate(input="a").score is None
    rubric = CustomEvaluation(rubric="polite", judge=judge, name="polite")
    assert rubric.evaluate(output="<think>rude</think>Hi").score == 0.5
    assert shown["answer"] == "Hi"


def test_errors_of_users_code_are_no_scores():
    """Of functions and judges; a wrong name of a fact is the caller's mistake and raises."""
    broken = CustomEvaluation(lambda case: 1 / 0, name="broken")
    result = broken.evaluate(output="x")
    assert (result.score, result.flags) == (None, ("error",))
    assert "ZeroDivisionError" in result.reason
    outage = TaskCompletion(judge=lambda **_: {}["score"]).evaluate(output="x", expected_output="x")
    assert (outage.score, outage.flags) == (None, ("error",))
    with pytest.raises(TypeError, match="unknown fact 'expected_tol'; known: expected_output"):
        TrajectoryScore().evaluate(trajectory=[], expected_tol="a")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="arguments 'fuzzy': must be one of exact"):
        ToolSelectionAccuracy(arguments="fuzzy")  # type: ignore[arg-type]


@pytest.fixture
def polite():
    """A user's evaluator, registered for one test."""

    @register_evaluator("polite")
    def build(*, word="please"):
        return CustomEvaluation(lambda case: word in (case.answer or ""), name="polite")

    yield build
    del _REGISTRY["polite"]


def test_users_evaluators_are_had_by_name(polite):
    """With options; a name that is taken or unknown is refused."""
    assert "polite" in list_evaluators()
    assert build_evaluator("polite", word="thanks").evaluate(output="thanks").score == 1.0
    with pytest.raises(ConfigError, match="no evaluator 'polit'; known: ContextRelevance"):
        build_evaluator("polit")
    with pytest.raises(ConfigError, match="named 'TrajectoryScore' is registered already"):

        @register_evaluator("TrajectoryScore")
        class Other(Evaluator):
            pass


def make_message(role, *parts):
    return json.dumps({"role": role, "parts": list(parts)})


@pytest.fixture
def dataset(hand, tmp_path):
    """Two tasks of two attempts: `pay` right, `pay` failed, nothing done, no reward."""

    def run(name, task, *, calls, text, reward, answer="ok", attempt=0):
        turns = [
            hand.turn(None, None, text=None, tool_calls=calls, output_node="n1"),
            hand.turn(None, None, text=text, output_node="n2"),
        ]
        part = {"type": "tool_call_response", "id": "c", "response": answer}
        messages = [
            {
                "node_id": "n0",
                "depth": 0,
                "message": make_message("user", {"type": "text", "content": f"do {task}"}),
            },
            {"node_id": "n2", "depth": 2, "message": make_message("tool", part)},
        ]
        return hand.trajectory(
            name,
            turns,
            reward=reward,
            task_id=task,
            messages=messages,
            attempt=attempt,
            policy_id="p",
            input_tokens=90,
            output_tokens=10,
            split="test",
        )

    pay = [{"id": "c", "name": "pay", "arguments": '{"sum": 5}'}]
    return hand.dataset(
        tmp_path / "data",
        [
            run("r1", "t1", calls=pay, text="paid", reward=1.0),
            run("r2", "t1", calls=pay, text="paid", reward=0.0, answer="Error: no", attempt=1),
            run("r3", "t2", calls=[], text="<think>pay</think>no", reward=1.0),
            run("r4", "t2", calls=pay, text="paid", reward=None, attempt=1),
        ],
    )


@pytest.fixture
def references(tmp_path):
    file = tmp_path / "references.jsonl"
    call = {"name": "pay", "arguments": {"sum": 5}}
    file.write_text(
        json.dumps({"task_id": "t1", "expected_calls": [call], "max_tokens": 50}) + "\n"
    )
    return file


def test_an_id_used_again_has_its_own_result(hand, tmp_path):
    """Two calls `c` of one run, the first failed: one of two, not none."""
    pay = [{"id": "c", "name": "pay", "arguments": "{}"}]
    turns = [hand.turn(None, None, tool_calls=pay, output_node=f"n{2 * k}") for k in range(2)]
    results = [
        {
            "node_id": f"n{2 * k + 1}",
            "depth": 2 * k + 1,
            "message": make_message(
                "tool", {"type": "tool_call_response", "id": "c", "response": response}
            ),
        }
        for k, response in enumerate(("Error: no", "ok"))
    ]
    row = hand.trajectory("r", turns, reward=1.0, task_id="t", messages=results)
    scores = evaluate_dataset(hand.dataset(tmp_path / "again", [row]), ["call_success"])
    assert scores["score"].to_list() == [0.5]


def test_a_dataset_is_scored_run_by_run(dataset, references):
    """Results of calls, tokens, rewards and references all come from their tables."""
    names = ["TrajectoryScore", "TaskCompletion", "ToolSelectionAccuracy", "token_budget"]
    scores = evaluate_dataset(dataset, names, split="test", references=references)
    wide = scores.pivot("evaluator", index="trajectory_id", values="score").sort("trajectory_id")
    assert wide.rows() == [
        ("r1", 0.5, 1.0, 1.0, 0.5),
        ("r2", 0.0, 0.0, 0.0, 0.5),
        ("r3", None, 1.0, None, None),
        ("r4", 1.0, None, None, None),
    ]
    details = json.loads(
        scores.filter(trajectory_id="r2", evaluator="TrajectoryScore")["details"][0]
    )
    assert (details["num_failed"], details["basis"]) == (1, "reference")
    assert scores.schema["score"] == pl.Float64
    steps = evaluate_dataset(dataset, ["TrajectoryScore"], references=references, level="step")
    found = steps.filter(trajectory_id="r2").select("step", "score", "reason").rows()
    assert found == [(0, 0.0, "failed, not expected"), (1, None, "")]


def test_goals_and_answers_of_a_dataset_reach_evaluators(dataset):
    """A user's evaluator sees the goal, the calls and the answer without its thoughts."""
    seen = {}

    def note(case):
        seen[case.goal, case.answer] = [(c.name, c.result, c.is_ok) for c in case.path.calls]

    scores = evaluate_dataset(dataset, [CustomEvaluation(note, name="note")])
    assert scores["score"].to_list() == [None] * 4
    assert seen == {
        ("do t1", "paid"): [("pay", "Error: no", False)],
        ("do t2", "no"): [],
        ("do t2", "paid"): [("pay", "ok", True)],
    }


def test_pass_hat_k_is_unbiased_and_null_with_too_few_scores(dataset):
    """t1: one of two; t2: one of one, so that two of two cannot be said."""
    scores = evaluate_dataset(dataset, ["TaskCompletion"])
    assert compute_pass_hat_k(scores, 1).value == pytest.approx((0.5 + 1.0) / 2)
    twice = compute_pass_hat_k(scores, 2)
    assert (twice.value, twice.fewest_attempts, twice.num_without_score) == (None, 1, 1)
    assert compute_pass_hat_k(scores.filter(task_id="t1"), 2).value == 0.0
    with pytest.raises(ValueError, match="several evaluators"):
        compute_pass_hat_k(evaluate_dataset(dataset), 1)


def test_what_cannot_be_scored_is_refused(dataset, tmp_path, references):
    """An empty split, references for other tasks, unreadable ones, two evaluators of one name."""
    with pytest.raises(DataError, match="no trajectory in split 'train'"):
        evaluate_dataset(dataset, split="train")
    with pytest.raises(DataError, match="no run is of a task that has a reference, such as 't9'"):
        evaluate_dataset(dataset, references={"t9": {"max_steps": 1}})
    with pytest.raises(DataError, match="two evaluators are named 'TrajectoryScore'"):
        evaluate_dataset(dataset, [TrajectoryScore(), "TrajectoryScore"])
    file = tmp_path / "bad.jsonl"
    for line, message in (
        ("[]", "line 1: no JSON object with a task_id"),
        ('{"task_id": "a", "expected": 1}', "line 1: unknown 'expected'; known: expected_output"),
        ('{"task_id": "a"}\n{"task_id": "a"}', "line 2: a second reference for task 'a'"),
    ):
        file.write_text(line)
        with pytest.raises(DataError, match=re.escape(message)):
            read_references(file)


def test_the_command_prints_a_table_and_writes_rows(dataset, references, tmp_path, capsys):
    """By name; why there is no score is told."""
    output = tmp_path / "scores.parquet"
    options = ["--evaluator", "TaskCompletion", "--evaluator", "ToolSelectionAccuracy"]
    options += ["--references", str(references), "--pass-k", "1", "-o", str(output)]
    assert main(["score", str(dataset), *options]) == 0
    printed = capsys.readouterr().out
    assert "no score: TaskCompletion: no reference, reward or judge (1)" in printed
    assert "pass^1, TaskCompletion of p: 0.750 (2 tasks)" in printed
    assert f"written: {output} (8 rows)" in printed
    assert pl.read_parquet(output).group_by("evaluator").len()["len"].to_list() == [4, 4]
    assert main(["score", str(dataset), "--evaluator", "Nothing"]) == 2
    assert main(["score", str(dataset), "-o", str(tmp_path / "no" / "x.parquet")]) == 2


ROOT = Path(__file__).parents[2]
AIRLINE = ROOT.parent / "shared" / "data" / "tau-bench-gpt4o-airline" / "historical_trajectories"


def test_the_real_airline_runs_agree_with_their_rewards(tmp_path):
    """Calls that change something: all that are expected and no others is nearly always a reward of 1.

    Counts are made from the result file alone: the same sorted JSON of calls, and none that failed.
    """
    file = AIRLINE / "gpt-4o-airline.json"
    if not file.is_file():
        pytest.skip("../shared/data/tau-bench-gpt4o-airline is not there")
    from starpo_trace.convert.dataset import build_dataset

    build_dataset([AIRLINE], tmp_path / "data")
    writes = ("book_reservation", "cancel_reservation", "send_certificate")
    writes += tuple(f"update_reservation_{what}" for what in ("baggages", "flights", "passengers"))
    references, counts = {}, {}
    for run in json.loads(file.read_text()):
        actions = run["info"]["task"]["actions"]
        wanted = [{"name": a["name"], "arguments": a["kwargs"]} for a in actions]
        references[f"airline/{run['task_id']}"] = {
            "expected_calls": wanted,
            "counted_tools": writes,
        }
        results = {m.get("tool_call_id"): m["content"] for m in run["traj"] if m["role"] == "tool"}
        made = [
            {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])}
            for m in run["traj"]
            for c in m.get("tool_calls") or ()
        ]
        failed = any(
            results.get(c["id"], "").startswith("Error")
            for m in run["traj"]
            for c in m.get("tool_calls") or ()
            if c["function"]["name"] in writes
        )
        sides = [
            sorted(json.dumps(c, sort_keys=True) for c in calls if c["name"] in writes)
            for calls in (made, wanted)
        ]
        if sides[1]:
            key = (sides[0] == sides[1] and not failed, run["reward"] == 1.0)
            counts[key] = counts.get(key, 0) + 1
    scores = evaluate_dataset(
        tmp_path / "data",
        [ToolSelectionAccuracy(figure="unordered"), "TaskCompletion"],
        references=references,
    )
    wide = scores.pivot("evaluator", index="trajectory_id", values="score")
    known = wide.filter(pl.col("ToolSelectionAccuracy").is_not_null())
    pairs = known.select(
        pl.col("ToolSelectionAccuracy") == 1.0, pl.col("TaskCompletion") == 1.0
    ).rows()
    assert known.height == sum(counts.values()) == 120
    assert {key: pairs.count(key) for key in counts} == counts
    agreement = sum(a == b for a, b in pairs) / len(pairs)
    assert agreement > 0.9
