"""`starpo-train credit`: a table, and spans that viewers take and our own builder trusts for nothing."""

import base64
import json

import polars as pl
import pytest

from starpo_trace.convert.dataset import build_dataset
from starpo_trace.schema import REWARD_SOURCES, TABLES
from starpo_train.cli import main
from starpo_train.dataset import scan_table

NAME = "tool-calling-gpt-4o-0.0_range_0--1_user-gpt-4o-llm_1.json"


def make_run(task, trial, reward):
    """A recorded run of two calls, the first of which uses a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    return {
        "task_id": task,
        "trial": trial,
        "reward": reward,
        "info": {},
        "traj": [
            {"role": "system", "content": "# Retail agent policy"},
            {"role": "user", "content": f"order {task}, {trial}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "name": "find", "content": "found"},
            {"role": "assistant", "content": "Here."},
        ],
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with recorded runs, their dataset and its credit, as a table and as spans."""
    folder = tmp_path_factory.mktemp("credit")
    (folder / "runs").mkdir()
    runs = [make_run(task, trial, float(trial == 0)) for task in range(2) for trial in range(3)]
    (folder / "runs" / NAME).write_text(json.dumps(runs))
    build_dataset([folder / "runs"], folder / "data")
    arguments = ["credit", str(folder / "data"), "-o", str(folder / "credit.parquet")]
    assert main([*arguments, "--spans", str(folder / "spans")]) == 0
    return folder


def read_spans(folder):
    lines = (folder / "spans" / "credit.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    spans = [r["resourceSpans"][0]["scopeSpans"][0]["spans"] for r in requests]
    return requests, [span for found in spans for span in found]


def test_table_has_the_credit_of_every_call(built):
    """One success in three: 1 and -.5 at both calls; the tool itself was not judged."""
    table = pl.read_parquet(built / "credit.parquet")
    calls = table.filter(pl.col("kind") != "step")
    assert sorted(calls["advantage"].to_list()) == [-0.5] * 8 + [1.0] * 4
    assert table.filter(pl.col("kind") == "step")["advantage"].to_list() == [None] * 6
    spans = scan_table(built / "data", "spans").select("trajectory_id", "trace_id", "span_id")
    known = table.lazy().join(spans, on=("trajectory_id", "trace_id", "span_id")).collect()
    assert known.height == table.height == 18


def test_each_span_links_to_the_one_thing_it_is_about(built):
    """A run's root and its two calls; values and links are those of the table."""
    _, spans = read_spans(built)
    assert len(spans) == 6 * 3
    assert {len(span["links"]) for span in spans} == {1}
    table = pl.read_parquet(built / "credit.parquet").filter(pl.col("advantage").is_not_null())
    expected = {(r["trace_id"], r["span_id"]): r["advantage"] for r in table.to_dicts()}
    roots = scan_table(built / "data", "spans").filter(pl.col("record") == "trajectory").collect()
    run_ids = set(roots.select("trace_id", "span_id").iter_rows())
    assert len(run_ids) == 6
    linked = {}
    for span in spans:
        attributes = {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}
        (link,) = span["links"]
        target = (link["traceId"], link["spanId"])
        value = attributes["gen_ai.evaluation.score.value"]
        assert attributes["gen_ai.evaluation.score.label"] == ("earned" if value > 0 else "lost")
        assert (target in run_ids) == ("parentSpanId" not in span)
        linked[target] = value
    assert {key: value for key, value in linked.items() if key not in run_ids} == expected
    assert len({(span["traceId"], span["spanId"]) for span in spans}) == 18


def test_credit_never_comes_back_as_a_reward(built, tmp_path):
    """With every source trusted, all tables but `rejected` are those without it."""
    sources, trust = [built / "runs"], REWARD_SOURCES
    build_dataset(sources, tmp_path / "without", trust_sources=trust)
    manifest = build_dataset([*sources, built / "spans"], tmp_path / "with", trust_sources=trust)
    assert manifest.accounting.spans_rejected_by_reason == {"credit": 18}
    assert manifest.accounting.is_closed
    for name in TABLES.keys() - {"rejected"}:
        plain, mixed = (scan_table(tmp_path / d, name).collect() for d in ("without", "with"))
        keys = [c for c, kind in plain.schema.items() if not kind.is_nested()]
        assert mixed.sort(keys).equals(plain.sort(keys)), name


def test_spans_are_otlp(built):
    """Google's own JSON parser knows every field, once ids are base64 as it wants them."""
    from google.protobuf.json_format import ParseDict
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests, spans = read_spans(built)
    for holder in [*spans, *(link for span in spans for link in span["links"])]:
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in holder:
                holder[key] = base64.b64encode(bytes.fromhex(holder[key])).decode()
    parsed = [ParseDict(request, ExportTraceServiceRequest()) for request in requests]
    found = [s for request in parsed for s in request.resource_spans[0].scope_spans[0].spans]
    assert {(len(span.trace_id), len(span.span_id)) for span in found} == {(16, 8)}
    assert all(0 < span.start_time_unix_nano <= span.end_time_unix_nano for span in found)


def test_a_receiver_takes_the_spans(built):
    """`starpo-trace collect` decodes each line without refusing anything."""
    from starpo_trace.collect.decode import JSON, decode_request
    from starpo_trace.collect.limits import Limits

    for line in (built / "spans" / "credit.jsonl").read_bytes().splitlines():
        decoded = decode_request(line, JSON, Limits())
        assert (decoded.num_records, decoded.num_rejected) == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--advantage", "bilevel_gae"], "bilevel_gae needs a model"),
        (["--advantage", "rloo", "--model", "m"], "nothing else has a use for one"),
        (["--gamma", "1.5"], "--gamma 1.5: must be between 0 and 1"),
        (["--spans", "no/x.jsonl"], "--spans no/x.jsonl: there is no folder no"),
    ],
)
def test_what_cannot_be_done_is_one_line(built, tmp_path, capsys, arguments, expected):
    """Exit code 2, and nothing is written."""
    output = tmp_path / "c.parquet"
    assert main(["credit", str(built / "data"), "-o", str(output), *arguments]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_credit_without_rewards_is_refused(hand, tmp_path, capsys):
    """A missing reward is no reward of 0."""
    dataset = hand.dataset(
        tmp_path / "d", [hand.trajectory("t", [hand.turn([20], [40])], reward=None)]
    )
    assert main(["credit", str(dataset), "-o", str(tmp_path / "c.parquet")]) == 2
    assert "none of 1 trajectories has a trusted reward" in capsys.readouterr().err


@pytest.mark.slow
def test_a_critic_tells_turns_apart(hand, model_folder, tmp_path):
    """Answers after GOOD lead to 1, after BAD to 0: the first turn earns or loses, not the second."""
    runs = []
    for i in range(40):
        first = 40 if i % 2 else 50
        task = i // 2 % 10
        prompt = [20, 21, 60 + task]
        turns = [hand.turn(prompt, [first, 1]), hand.turn([*prompt, first, 1, 70], [80, 1])]
        runs.append(hand.trajectory(f"t{i}", turns, reward=float(i % 2), task_id=f"k{task}"))
    dataset = hand.dataset(tmp_path / "d", runs)
    output = tmp_path / "c.parquet"
    assert main(["credit", str(dataset), "--model", str(model_folder), "-o", str(output)]) == 0
    table = pl.read_parquet(output).with_columns(
        good=pl.col("trajectory_id").str.slice(1).cast(pl.Int64) % 2
    )
    mean = dict(table.group_by("turn").agg(pl.col("advantage").abs().mean()).iter_rows())
    assert mean[0] > 2 * mean[1]
    first = table.filter(pl.col("turn") == 0)
    assert ((first["advantage"] > 0) == (first["good"] == 1)).all()
    # at lambda 1, A_k + V_k = G_k
    gap = (table["advantage"] + table["baseline"] - table["return_to_go"]).abs().max()
    assert gap < 1e-9
