"""Labels of trajectories by hand: groups, splits, distribution, age, repeats, quotas, outliers."""

import json
from datetime import UTC, datetime
from itertools import chain

import polars as pl
import pytest

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.curation import (
    curate_trajectories,
    describe_trajectories,
    summarise_curation,
)
from starpo_trace.convert.curation.similar import choose_rows_per_band, connect
from starpo_trace.convert.curation.sketch import sketch_texts
from starpo_trace.convert.curation.stable import hash_texts
from starpo_trace.convert.recipe import build_recipe
from starpo_trace.errors import DatasetError
from starpo_trace.schema import MESSAGES, TRAJECTORIES, TURNS

DAY_NS = 86_400 * 10**9
HASH_OF_TASK_0 = 6_592_250_732_523_420_890
"""BLAKE2b, the first 8 bytes, of `task-0`."""


def make_table(rows, columns=TRAJECTORIES):
    return pl.DataFrame(
        [{name: row.get(name) for name in columns} for row in rows], schema=polars_schema(columns)
    )


def make_trajectories(*rows):
    """Rows named t0, t1 ... unless they have an id; each a second after the one before."""
    return make_table(
        [{"trajectory_id": f"t{i}", "started_ns": i * 10**9} | row for i, row in enumerate(rows)]
    )


def curate(*rows, **sections):
    """Labelled rows by id."""
    labelled = curate_trajectories(make_trajectories(*rows), build_recipe(sections))
    return {row["trajectory_id"]: row for row in labelled.iter_rows(named=True)}


def column(labelled, name):
    return [row[name] for row in labelled.values()]


def test_without_rules_everything_is_kept():
    """The group is the task, the split `train`, and nothing else is known."""
    labelled = curate({"task_id": "a"}, {})
    labels = ("group_id", "split", "distribution", "policy_lag", "duplicate_of", "excluded_because")
    assert [tuple(row[name] for name in labels) for row in labelled.values()] == [
        ("a", "train", "unknown", None, None, []),
        (None, "train", "unknown", None, None, []),
    ]


def test_shares_hold_out_whole_tasks_as_before():
    """Hashes of the tasks decide: below 0.5 is `test`, below 0.75 `validation`; no task is `train`."""
    tasks = [f"task-{i}" for i in range(12)]
    shares = [hash_texts(pl.Series([task])).item() / 2**64 for task in tasks]
    expected = ["test" if s < 0.5 else "validation" if s < 0.75 else "train" for s in shares]
    assert set(expected) == {"test", "validation", "train"}
    rows = [{"trajectory_id": f"{task}/{i}", "task_id": task} for task in tasks for i in (0, 1)]
    labelled = curate(*rows, {"trajectory_id": "lone"}, splits={"test": 0.5, "validation": 0.25})
    found = {row["task_id"]: row["split"] for row in labelled.values()}
    assert found == {**dict(zip(tasks, expected, strict=True)), None: "train"}
    assert hash_texts(pl.Series(["task-0"])).to_list() == [HASH_OF_TASK_0]


def test_another_seed_holds_out_others():
    """Of 64 tasks, half are held out, not the same ones."""
    rows = [{"task_id": f"task-{i}"} for i in range(64)]
    first, second = (
        column(curate(*rows, splits={"test": 0.5, "seed": seed}), "split") for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize(
    ("straddling", "split", "because"),
    [("train", "train", []), ("test", "test", []), ("exclude", "train", ["straddles_cutoff"])],
)
def test_time_splits_go_by_the_first_trajectory(straddling, split, because):
    """Task `old` before, `new` at the cutoff, `both` on both sides; one without a task by itself."""
    labelled = curate(
        {"task_id": "old", "started_ns": 9 * DAY_NS},
        {"task_id": "both", "started_ns": 9 * DAY_NS},
        {"task_id": "both", "started_ns": 11 * DAY_NS},
        {"task_id": "new", "started_ns": 10 * DAY_NS},
        {"started_ns": 11 * DAY_NS},
        splits={"test_after": datetime(1970, 1, 11, tzinfo=UTC), "straddling": straddling},
    )
    assert column(labelled, "split") == ["train", split, split, "test", "test"]
    assert column(labelled, "excluded_because") == [[], because, because, [], []]


def test_validation_lies_between_its_time_and_the_tests():
    """Days 5 and 10 as cutoffs."""
    labelled = curate(
        *({"task_id": f"{day}", "started_ns": day * DAY_NS} for day in (4, 5, 9, 10)),
        splits={"validation_after": "1970-01-06T00:00:00Z", "test_after": "1970-01-11T00:00:00Z"},
    )
    assert column(labelled, "split") == ["train", "validation", "validation", "test"]


def test_lone_tasks_are_grouped_by_signature():
    """The repeated task is its own group; equal signatures are one; without one the task."""
    labelled = curate(
        {"task_id": "r", "signature": "s"},
        {"task_id": "r", "signature": "s"},
        {"task_id": "x", "signature": "s"},
        {"signature": "s"},
        {"task_id": "y"},
        {},
        groups={"lone": "signature"},
    )
    expected = ["r", "r", "signature:s", "signature:s", "y", None]
    assert column(labelled, "group_id") == expected


def test_lone_tasks_are_grouped_by_similar_messages():
    """60 of 64 sketch values equal is 0.94, 20 is 0.31; the group is called by the earliest."""
    base = list(range(64))
    near = [*base[:60], 900, 901, 902, 903]
    far = [*base[:20], *range(1000, 1044)]
    labelled = curate(
        {"trajectory_id": "a", "task_sketch": base, "started_ns": 5},
        {"trajectory_id": "b", "task_sketch": near, "started_ns": 1},
        {"trajectory_id": "c", "task_sketch": far},
        {"trajectory_id": "d", "task_id": "t"},
        groups={"lone": "cluster", "similarity": 0.8},
    )
    assert column(labelled, "group_id") == ["cluster:b", "cluster:b", "cluster:c", "t"]


def test_declared_out_of_distribution_is_held_out_with_its_group():
    """A cohort, a tool, a task's beginning; what is not said is unknown."""
    rows = [
        {"task_id": "x", "cohort": "partner", "tool_names": []},
        {"task_id": "x", "cohort": "own", "tool_names": []},
        {"task_id": "y", "cohort": "own", "tool_names": ["refund"]},
        {"task_id": "returns/1", "cohort": "own", "tool_names": []},
        {"task_id": "z", "cohort": None, "tool_names": []},
        {"task_id": "z2", "cohort": "own", "tool_names": ["add"]},
    ]
    rules = {
        "ood_cohorts": ["partner"],
        "ood_tools": ["refund"],
        "ood_task_prefixes": ["returns/"],
    }
    labelled = curate(*rows, distribution=rules)
    assert column(labelled, "distribution") == ["ood", "id", "ood", "ood", "unknown", "id"]
    assert column(labelled, "split") == ["test", "test", "test", "test", "train", "train"]
    kept_in = curate(*rows, distribution={**rules, "hold_out": False})
    assert set(column(kept_in, "split")) == {"train"}


def test_what_train_never_saw_is_out_of_distribution():
    """Tools and environments of what is kept for `train`; a left-out trajectory teaches none."""
    labelled = curate(
        {"tool_names": ["add"], "environment_name": "shop", "num_turns": 3},
        {"tool_names": ["sub"], "environment_name": "shop", "num_turns": 1},
        {"tool_names": ["sub"], "environment_name": "shop", "started_ns": DAY_NS},
        {"tool_names": ["add"], "environment_name": "bank", "started_ns": DAY_NS},
        {"tool_names": ["add"], "environment_name": "shop", "started_ns": DAY_NS},
        {"environment_name": "shop", "started_ns": DAY_NS},
        distribution={"unseen": ["tools", "environment"]},
        splits={"test_after": "1970-01-02T00:00:00Z"},
        exclude={"short": {"where": "num_turns = 1"}},
    )
    assert column(labelled, "distribution") == ["id", "ood", "ood", "ood", "id", "unknown"]


def test_policy_lag_by_hand():
    """Against p2 of p0..p3: 2, 1, 0, -1; an unlisted one is unknown and left out by default."""
    rows = [{"policy_id": policy} for policy in ("p0", "p1", "p2", "p3", "q", None)]
    rules = {"policies": ["p0", "p1", "p2", "p3"], "current_policy": "p2", "max_policy_lag": 1}
    labelled = curate(*rows, freshness=rules)
    assert column(labelled, "policy_lag") == [2, 1, 0, -1, None, None]
    unknown = ["policy_unknown"]
    assert column(labelled, "excluded_because") == [["policy_lag"], [], [], [], unknown, unknown]
    kept = curate(*rows, freshness={**rules, "unknown": "keep"})
    assert column(kept, "excluded_because") == [["policy_lag"], [], [], [], [], []]


def test_environment_versions_by_name_or_alone():
    """`shop@2` and any `1`."""
    labelled = curate(
        {"environment_name": "shop", "environment_version": "2"},
        {"environment_name": "bank", "environment_version": "2"},
        {"environment_version": "1"},
        {"environment_version": "2"},
        {"environment_name": "shop"},
        freshness={"environment_versions": ["shop@2", "1"]},
    )
    expected = [[], ["environment_version"], [], ["environment_version"], ["environment_unknown"]]
    assert column(labelled, "excluded_because") == expected


def test_ages_count_from_the_newest_or_a_given_time():
    """Days 0, 5 and 10 with at most 5: counted from day 10, or from day 11."""
    rows = [{"started_ns": day * DAY_NS} for day in (0, 5, 10)]
    labelled = curate(*rows, freshness={"max_age_days": 5})
    assert column(labelled, "excluded_because") == [["too_old"], [], []]
    later = curate(*rows, freshness={"max_age_days": 5, "as_of": "1970-01-12T00:00:00Z"})
    assert column(later, "excluded_because") == [["too_old"], ["too_old"], []]


@pytest.mark.parametrize(("keep", "kept"), [("first", "a"), ("latest", "c"), ("best", "b")])
def test_one_of_the_exact_repeats_stays(keep, kept):
    """a is the earliest, c the latest, b has the most reward; what has no digest repeats nothing."""
    labelled = curate(
        {"trajectory_id": "a", "content_digest": "x", "reward": 0.5},
        {"trajectory_id": "b", "content_digest": "x", "reward": 1.0},
        {"trajectory_id": "c", "content_digest": "x"},
        {"trajectory_id": "d"},
        {"trajectory_id": "e"},
        duplicates={"exact": True, "keep": keep},
    )
    for name in "abc":
        expected = (None, []) if name == kept else (kept, ["duplicate"])
        assert (labelled[name]["duplicate_of"], labelled[name]["excluded_because"]) == expected
    assert labelled["d"]["excluded_because"] == labelled["e"]["excluded_because"] == []


def test_a_repeat_of_what_is_left_out_stays():
    """The earliest is too short and goes on its own account, so the second is the one that stays."""
    labelled = curate(
        {"content_digest": "x", "num_turns": 1},
        {"content_digest": "x", "num_turns": 2},
        {"content_digest": "x", "num_turns": 2},
        duplicates={"exact": True},
        exclude={"short": {"where": "num_turns < 2"}},
    )
    assert column(labelled, "excluded_because") == [["exclude:short"], [], ["duplicate"]]
    assert column(labelled, "duplicate_of") == [None, None, "t1"]


def test_near_repeats_by_sketch():
    """62 of 64 equal is 0.97 and enough for 0.9; exact ones are told apart."""
    base = list(range(64))
    labelled = curate(
        {"content_sketch": base, "content_digest": "x"},
        {"content_sketch": base, "content_digest": "x"},
        {"content_sketch": [*base[:62], 98, 99], "content_digest": "y"},
        {"content_sketch": list(range(100, 164)), "content_digest": "z"},
        duplicates={"exact": True, "near": 0.9},
    )
    assert column(labelled, "excluded_because") == [[], ["duplicate"], ["near_duplicate"], []]


def test_a_quota_takes_the_lowest_hashes():
    """Two of four of a cohort, by the hash of quota, seed and id; those without are a cohort too."""
    rows = [{"cohort": "c"}] * 4 + [{}] * 3
    labelled = curate(*rows, quotas={"q": {"by": "cohort", "max": 2}})
    ids = [f"t{i}" for i in range(7)]
    order = hash_texts(pl.Series(ids), prefix="quota:q:0:").to_list()
    drawn = [name for _, name in sorted(zip(order, ids, strict=True))]
    kept = {name for some in (ids[:4], ids[4:]) for name in [n for n in drawn if n in some][:2]}
    expected = {name: [] if name in kept else ["quota:q"] for name in ids}
    assert {name: row["excluded_because"] for name, row in labelled.items()} == expected


def test_quotas_of_tasks_leave_other_splits_and_lone_runs_alone():
    """One per task in `train`; the held-out tasks keep all, and so do runs without a task."""
    rows = [{"task_id": f"task-{i % 8}"} for i in range(32)] + [{}, {}]
    labelled = curate(*rows, splits={"test": 0.5}, quotas={"q": {"by": "task", "max": 1}})
    kept = [row for row in labelled.values() if not row["excluded_because"]]
    tasks = {row["task_id"] for row in labelled.values() if row["split"] == "train"} - {None}
    assert 0 < len(tasks) < 8
    assert len(kept) == len(tasks) + 4 * (8 - len(tasks)) + 2


@pytest.mark.parametrize(
    ("counts", "share", "kept"),
    [
        ({"a": 10, "b": 2, "c": 2}, 0.5, {"a": 4, "b": 2, "c": 2}),  # 4 <= 0.5 * 8
        ({"a": 9, "b": 7, "c": 2}, 0.4, {"a": 4, "b": 4, "c": 2}),  # 4 <= 0.4 * 10
        ({"a": 3, "b": 3}, 0.5, {"a": 3, "b": 3}),
    ],
)
def test_a_share_is_of_what_is_left(counts, share, kept):
    """The greatest number per value with which none has more than its share."""
    rows = [{"cohort": cohort} for cohort, count in counts.items() for _ in range(count)]
    labelled = curate(*rows, quotas={"q": {"by": "cohort", "max_share": share}})
    left = [row["cohort"] for row in labelled.values() if not row["excluded_because"]]
    assert {cohort: left.count(cohort) for cohort in counts} == kept


def test_a_share_that_cannot_hold_is_refused():
    """Two cohorts cannot both have less than half of what is left."""
    with pytest.raises(DatasetError, match=r"quotas\.q: max_share = 0.3 cannot hold in train: coh"):
        curate({"cohort": "a"}, {"cohort": "b"}, quotas={"q": {"by": "cohort", "max_share": 0.3}})


@pytest.mark.parametrize(
    ("limits", "out"),
    [
        ({"max": 5}, [6, 100]),
        ({"min": 2}, [1]),
        # median 4, distances 3 2 1 0 1 2 96: MAD 2, sd 2.9652; 3 of them are 8.9.
        ({"robust_z": 3}, [100]),
        # quartiles 2.5 and 5.5: one range of 3 beyond is -0.5 and 8.5.
        ({"iqr": 1}, [100]),
        ({"robust_z": 0.5}, [1, 2, 6, 100]),
    ],
)
def test_outliers_by_hand(limits, out):
    """Numbers of turns 1 2 3 4 5 6 100."""
    turns = [1, 2, 3, 4, 5, 6, 100]
    rule = {"x": {"expr": "num_turns", **limits}}
    labelled = curate(*({"num_turns": n} for n in turns), {}, outliers=rule)
    flagged = [row["num_turns"] for row in labelled.values() if row["excluded_because"]]
    assert flagged == out
    assert labelled["t7"]["excluded_because"] == []


def test_where_most_are_equal_the_mean_distance_is_the_scale():
    """Nine of 1 and an 11: MAD 0, mean distance 1, sd 1.2533; the distance 10 is beyond 7 of them."""
    turns = [1] * 9 + [11]
    for z, expected in ((7, ["outlier:x"]), (8, [])):
        rule = {"x": {"expr": "num_turns", "robust_z": z}}
        labelled = curate(*({"num_turns": n} for n in turns), outliers=rule)
        assert labelled["t9"]["excluded_because"] == expected
        assert labelled["t0"]["excluded_because"] == []


@pytest.mark.parametrize(
    ("expr", "said"),
    [("CAST(cohort AS DOUBLE)", "conversion from `str`"), ("cohort ~ '('", "unclosed group")],
)
def test_an_expression_that_fails_on_data_says_which(expr, said):
    """A text that is no number, and a broken pattern."""
    with pytest.raises(DatasetError, match=rf"outliers\.x\.expr: fails on these traj.*{said}"):
        curate({"cohort": "c"}, outliers={"x": {"expr": expr, "max": 1}})


def test_what_is_no_finite_number_is_an_outlier():
    """Cost per turn of a run without turns."""
    rule = {"x": {"expr": "input_tokens / num_turns", "max": 10}}
    labelled = curate({"input_tokens": 5, "num_turns": 0}, {"num_turns": 1}, outliers=rule)
    assert column(labelled, "excluded_because") == [["outlier:x"], []]


def test_reasons_add_up_first_reason_first():
    """Too old and too long: both are said, the first is counted."""
    rows = [
        {"task_id": "a", "started_ns": 0, "num_turns": 99, "reward": 1.0},
        {"task_id": "a", "started_ns": 9 * DAY_NS, "num_turns": 99, "reward": 1.0},
        {"task_id": "a", "started_ns": 9 * DAY_NS, "num_turns": 1, "reward": 0.0},
        {"task_id": "a", "started_ns": 9 * DAY_NS, "num_turns": 1, "reward": 1.0},
        {"task_id": "b", "started_ns": 9 * DAY_NS, "num_turns": 1, "reward": 1.0},
    ]
    recipe = build_recipe(
        {
            "freshness": {"max_age_days": 1},
            "outliers": {"long": {"expr": "num_turns", "max": 50}},
        }
    )
    labelled = curate_trajectories(make_trajectories(*rows), recipe)
    assert labelled["excluded_because"].to_list()[0] == ["too_old", "outlier:long"]
    summary = summarise_curation(labelled, recipe)
    assert summary["trajectories"] == 5
    assert summary["kept"] == 3
    assert summary["excluded_by_first_reason"] == {"outlier:long": 1, "too_old": 1}
    assert summary["excluded_by_any_reason"] == {"outlier:long": 2, "too_old": 1}
    assert summary["splits"]["train"] == {"trajectories": 5, "kept": 3, "groups": 2}
    groups = summary["groups"]
    assert (groups["groups"], groups["of_two_or_more"], groups["with_reward_variance"]) == (2, 1, 1)
    assert json.loads(json.dumps(summary)) == summary


def test_labels_are_made_anew():
    """A labelled table with other rules gives what the bare one gives."""
    rows = [{"task_id": task, "num_turns": i} for i, task in enumerate("aabbcc")]
    bare = make_trajectories(*rows)
    strict = build_recipe({"outliers": {"x": {"expr": "num_turns", "max": 2}}})
    loose = build_recipe({"splits": {"test": 0.5}})
    once = curate_trajectories(curate_trajectories(bare, strict), loose)
    assert once.equals(curate_trajectories(bare, loose))


def message(role, *parts):
    return json.dumps({"role": role, "parts": list(parts)}, separators=(",", ":"))


def text(content):
    return {"type": "text", "content": content}


def make_run(name, *, question="Refund order A-17", call="c1", answer="done", result="ok", **turn):
    """One call of a tool, its result, the answer; the tables of it."""
    response = {"type": "tool_call_response", "id": call, "response": result}
    tools = json.dumps([{"type": "function", "function": {"name": "refund"}}, {"name": "ask"}])
    nodes = [
        ("system", message("system", text("Be brief.")), None),
        ("user", message("user", text(question)), None),
        ("assistant", message("assistant", {"type": "tool_call", "id": call}), 0),
        ("tool", message("tool", response), None),
        ("assistant", message("assistant", text(answer)), 1),
    ]
    messages = [
        {"trajectory_id": name, "node_id": f"{i}", "depth": i, "role": role, "message": content}
        | {"sampled_turn": sampled}
        for i, (role, content, sampled) in enumerate(nodes)
    ]
    called = [{"id": call, "name": "refund", "arguments": '{"order": "A-17"}'}]
    turns = [
        {"trajectory_id": name, "turn": 0, "outcome": "ok", "tool_calls": called}
        | {"tool_definitions": tools, **turn},
        {"trajectory_id": name, "turn": 1, "outcome": "ok", "text": answer, "tool_calls": []},
    ]
    return [{"trajectory_id": name}], turns, messages


def describe(*runs, **wanted):
    trajectories, turns, messages = (
        list(chain.from_iterable(tables)) for tables in zip(*runs, strict=True)
    )
    described = describe_trajectories(
        make_table(trajectories),
        make_table(turns, TURNS),
        make_table(messages, MESSAGES),
        **wanted,
    )
    return {row["trajectory_id"]: row for row in described.iter_rows(named=True)}


def test_tools_are_those_offered_or_called():
    """Both forms of definitions; a run without turns has none that is known."""
    found = describe(make_run("a"), ([{"trajectory_id": "b"}], [], []))
    assert found["a"]["tool_names"] == ["ask", "refund"]
    assert found["b"] == dict.fromkeys(found["b"]) | {"trajectory_id": "b"}


def test_damaged_tool_definitions_name_no_tool():
    """Half a list, no list, a list of something else: only what was called is known."""
    for damaged in ("[{", "3", '[1, null, {"function": 2}]'):
        found = describe(make_run("a", tool_definitions=damaged))
        assert found["a"]["tool_names"] == ["refund"]


def test_signatures_mask_what_differs_between_equal_tasks():
    """Numbers, ids, UUIDs, case and white space do not count; words and tools do."""
    same = [
        "Refund order A-17",
        "refund  order B-2291",
        "Refund order 3f2b8c1e-0a1b-4c2d-9e8f-001122334455",
    ]
    other = ["Refund my order A-17", "Cancel order A-17"]
    runs = [make_run(f"{i}", question=question) for i, question in enumerate(same + other)]
    tools = make_run("tools", tool_definitions='[{"name": "ask"}]')
    signatures = {name: row["signature"] for name, row in describe(*runs, tools).items()}
    assert signatures["0"] == signatures["1"] == signatures["2"]
    assert len(set(signatures.values())) == 4


def test_digests_tell_contents_apart_and_ignore_call_ids():
    """Another call id is the same run; another result, answer or question is not."""
    found = describe(
        make_run("a"),
        make_run("b", call="c2"),
        make_run("c", result="failed"),
        make_run("d", answer="Done!"),
        make_run("e", question="Refund order A-18"),
        make_run("f", result={"id": "order-1"}),
        make_run("g", result={"id": "order-2"}),
        make_run("h", reasoning="hm"),
    )
    digests = {name: row["content_digest"] for name, row in found.items()}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 7


def test_what_was_not_recorded_is_no_repeat():
    """Without messages, or with a turn that has neither text nor calls, there is no digest."""
    trajectories, turns, _ = make_run("a")
    assert describe((trajectories, turns, []))["a"]["content_digest"] is None
    empty = make_run("b", tool_calls=[])
    assert describe(empty)["b"]["content_digest"] is None


def test_sketches_only_where_asked_for():
    """They cost as much as reading every word."""
    found = describe(make_run("a"), has_task_sketch=True)["a"]
    assert len(found["task_sketch"]) == 64
    assert found["content_sketch"] is None
    both = describe(make_run("a"), has_task_sketch=True, has_content_sketch=True)["a"]
    assert both["task_sketch"] == found["task_sketch"]
    assert len(both["content_sketch"]) == 64


def agreement(first, second):
    table = pl.DataFrame({"trajectory_id": ["a", "b"], "text": [first, second]})
    sketches = dict(sketch_texts(table).iter_rows())
    return sum(x == y for x, y in zip(sketches["a"], sketches["b"], strict=True)) / 64


def test_sketches_agree_as_far_as_texts_overlap():
    """200 of 300 words in common at the front: 200 of 402 runs are, 0.497; within 4 errors."""
    words = [f"word{i}" for i in range(400)]
    first, second = words[:300], [*words[:200], *words[300:400]]
    runs = [{tuple(w[i : i + 3]) for i in range(len(w))} for w in (first, second)]
    jaccard = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
    assert jaccard == pytest.approx(0.493, abs=0.01)
    error = (jaccard * (1 - jaccard) / 64) ** 0.5
    assert abs(agreement(" ".join(first), " ".join(second)) - jaccard) < 4 * error
    assert agreement("Two words", "two WORDS") == 1.0
    assert agreement("退货订单到仓库里", "退货订单到仓库里") == 1.0
    assert 0.2 < agreement("退货订单到仓库里面去吧", "退货订单到仓库里面来吧") < 1.0


def test_texts_without_words_have_no_sketch():
    """Nothing to compare is not like anything else."""
    table = pl.DataFrame({"trajectory_id": ["a", "b"], "text": ["", " ?! "]})
    assert sketch_texts(table).height == 0


def test_bands_find_pairs_at_the_threshold():
    """1 - (1 - s^r)^(64 / r) by hand: 0.9998 for 0.8 and 4 rows, 0.74 for 8."""
    assert choose_rows_per_band(0.8) == 4
    assert choose_rows_per_band(0.9) == 8
    assert choose_rows_per_band(1.0) == 64


def test_components_by_hand():
    """0-1-2 in a chain, 4-5, and 3 alone."""
    edges = pl.DataFrame({"a": [1, 0, 5], "b": [2, 1, 4]}, schema={"a": pl.UInt32, "b": pl.UInt32})
    assert connect(6, edges).to_list() == [0, 0, 0, 3, 4, 4]
