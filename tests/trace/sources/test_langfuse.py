"""Langfuse's exports -> trajectories: real files of eight frameworks, and every form of export.

Counts, usage and hashes of the real files were read off them by plain JSON code, not taken from the
converter.
"""

import gzip
import hashlib
import json
from pathlib import Path

import polars as pl
import pytest
from comparing import convert, list_arguments

from starpo_trace.convert.sources import find_source_files, read_span_batches

NAME = "../shared/data/langfuse-framework-traces"
FOLDER = Path(__file__).parents[4] / "shared" / "data" / "langfuse-framework-traces"

CASES = {
    # file: observations, scores, usage of each call, hash of the sorted arguments, tools called,
    # rejected
    "agno-2025-06-11": (
        *(6, 0, [(163, 20), (663, 225)], "9c604345f2a67012"),
        ["duckduckgo_search"],
        {"duplicate_llm_call": 2},  # Langfuse's own SDK saw each call too
    ),
    "claude-agent-2025-12-22": (
        *(7, 3, [(5, 53), (5, 56), (5, 94), (19, 29)], "2360f9f88c2b769e"),
        ["mcp__weather__get_weather"] * 2,
        {},
    ),
    "crewai-2025-07-11": (6, 2, [(190, 164)], "e4a6a0577479b2b4", [], {}),
    "google-adk-2025-08-28": (
        *(5, 2, [(28, 3), (39, 6)], "01e7b720ff566d53"),
        ["say_hello"],
        {},
    ),
    "langgraph-python-2025-08-22": (
        *(9, 2, [(60, 15), (108, 51)], "30a4a13d5355b5d0"),
        ["Web-Search"],
        {},
    ),
    "openai-agents-2025-09-30": (
        *(5, 2, [(55, 15), (85, 29)], "94be973ed85d867c"),
        ["get_weather"],
        {},
    ),
    "pydantic-ai-tools-2025-12-04": (
        *(12, 0, [(131, 69), (265, 73), (417, 53), (502, 14)], "eb6ff5bc21b3cb09"),
        [
            "final_result",
            "get_dad_joke_suggestion",
            "get_one_liner_suggestion",
            "get_pun_suggestion",
        ],
        {"container": 1},  # `running 3 tools`
    ),
    "vercel-aisdk-2025-11-17": (
        *(3, 2, [(62, 85)], "861f4f983b59296d"),
        ["getWeather"],
        {"duplicate_llm_call": 1},  # `ai.generateText` around its only call
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_in_a_real_file_is_in_the_dataset(name):
    """One run, its calls with usage, actions word for word, scores; all else is named."""
    if not FOLDER.is_dir():
        pytest.skip(f"{NAME} is not there")
    num_observations, num_scores, usage, digest, tools, rejected = CASES[name]
    tables = convert(FOLDER / f"{name}.trace.json")
    turns = tables["turns"]
    assert (tables["trajectories"].height, turns.height) == (1, len(usage))
    assert sorted(turns.select("input_tokens", "output_tokens").rows()) == usage
    arguments = list_arguments(tables)
    assert hashlib.blake2b("\n".join(arguments).encode(), digest_size=8).hexdigest() == digest
    called = [call["name"] for calls in turns["tool_calls"].to_list() for call in calls]
    assert sorted(called) == tools
    assert turns["reasoning"].to_list() == [None] * len(usage)
    assert all(turns["text"].is_not_null() | (turns["tool_calls"].list.len() > 0))
    reasons = tables["rejected"]["reason"].to_list()
    assert {reason: reasons.count(reason) for reason in reasons} == rejected
    rewards = tables["rewards"]
    assert rewards.height == num_scores
    assert set(rewards["source"]) <= {"judge"}
    assert set(rewards["scope"]) <= {"trajectory"}
    assert set(rewards["untrusted_because"]) <= {"not recorded by starpo_trace"}
    (file,) = find_source_files([FOLDER / f"{name}.trace.json"])
    (batch,) = read_span_batches(file)
    assert len(batch.rows) == num_observations + num_scores
    assert batch.malformed == batch.damaged == ()


TRACE, ROOT, CALL = "my-trace", "00000000-0000-0000-0000-0000000000a1", "gen-1"
ARGUMENTS = '{"sku": "A7",  "n":1e0}'


def make_observation(identifier, kind, **fields):
    """An observation as the API gives it, of an SDK whose ids are names."""
    return {
        "id": identifier,
        "traceId": TRACE,
        "type": kind,
        "name": identifier,
        "parentObservationId": ROOT,
        "startTime": "2026-01-02T03:04:05.001Z",
        "endTime": "2026-01-02T03:04:06Z",
        "level": "DEFAULT",
        "statusMessage": None,
        "input": None,
        "output": None,
        "model": None,
        "modelParameters": None,
        "usageDetails": {},
        "metadata": {"mine": 1},
        **fields,
    }


CALLS = [{"id": "c1", "type": "function", "function": {"name": "stock", "arguments": ARGUMENTS}}]
ASKED = [{"role": "system", "content": "You count."}, {"role": "user", "content": "how many A7?"}]
SAID = {
    "role": "assistant",
    "content": "let me see",
    "reasoning_content": "look it up",
    "tool_calls": CALLS,
}
OBSERVATIONS = [
    make_observation(ROOT, "SPAN", parentObservationId=None),
    make_observation(
        CALL,
        "GENERATION",
        input={"messages": ASKED, "tools": [{"type": "function", "function": {"name": "stock"}}]},
        output=SAID,
        model="tiny",
        modelParameters={"temperature": 0.5},
        usageDetails={"input": 7, "output": 5, "total": 12},
    ),
    make_observation(
        "tool-1", "TOOL", startTime="2026-01-02T03:04:07Z", input={"sku": "A7"}, output="3"
    ),
    make_observation(
        "gen-2",
        "GENERATION",
        startTime="2026-01-02T03:04:08Z",
        input=[*ASKED, SAID, {"role": "tool", "tool_call_id": "c1", "content": "3"}],
        output="3 are left",
        model="tiny",
        level="ERROR",
        statusMessage="cut",
    ),
]


def make_score(name, value, **fields):
    return {
        "id": f"score-{name}",
        "traceId": TRACE,
        "observationId": None,
        "sessionId": None,
        "name": name,
        "value": value,
        "stringValue": None,
        "dataType": "NUMERIC",
        "source": "ANNOTATION",
        "comment": None,
        "timestamp": "2026-01-03T00:00:00Z",
        **fields,
    }


SCORES = [
    make_score("correct", 0.5, comment="half of it"),
    make_score("polite", 1, dataType="BOOLEAN", source="API", observationId="gen-2"),
    make_score("tone", 2, dataType="CATEGORICAL", source="EVAL", stringValue="warm"),
]


def check_tables(tables):
    """The run above, whatever form it was exported in."""
    assert tables["rejected"].height == 0
    assert tables["trajectories"].height == 1
    turns = tables["turns"].sort("turn")
    assert turns.select("input_tokens", "output_tokens", "reasoning", "text", "outcome").rows() == [
        (7, 5, "look it up", "let me see", "ok"),
        (None, None, None, "3 are left", "error"),
    ]
    assert turns["temperature"].to_list() == [0.5, None]
    assert list_arguments(tables) == [ARGUMENTS]
    assert tables["messages"].sort("depth")["role"].to_list() == [
        *("system", "user", "assistant", "tool", "assistant"),
    ]
    assert tables["rewards"].sort("name").select(
        "name", "value", "scope", "source", "turn", "explanation"
    ).rows() == [
        ("correct", 0.5, "trajectory", "user", None, "half of it"),
        ("polite", 1.0, "turn", None, 1, None),
        ("tone", None, "trajectory", "judge", None, "warm"),
    ]


def test_a_trace_of_the_api_and_of_the_ui(tmp_path):
    """Observations and scores within the trace, or the trace beside its observations."""
    trace = {"id": TRACE, "timestamp": "2026-01-02T03:04:05Z", "scores": SCORES, "sessionId": None}
    forms = {
        "api.json": {**trace, "observations": OBSERVATIONS},
        "ui.json": {"trace": trace, "observations": OBSERVATIONS},
        "page.json": {"data": [{**trace, "observations": OBSERVATIONS}], "meta": {"page": 1}},
    }
    for name, value in forms.items():
        path = tmp_path / name
        path.write_text(json.dumps(value, indent=2))
        check_tables(convert(path))


def to_snake(record):
    """Names as files of the blob storage have them; no value is an empty text there."""
    names = {"model": "provided_model_name"}
    return {
        names.get(key, "".join(f"_{c.lower()}" if c.isupper() else c for c in key)): value
        for key, value in record.items()
    }


def test_pages_of_observations_and_scores(tmp_path):
    """As the API's lists give them, in files of their own."""
    (tmp_path / "observations.json").write_text(json.dumps({"data": OBSERVATIONS, "meta": {}}))
    (tmp_path / "scores.json").write_text(json.dumps({"data": SCORES, "meta": {}}))
    check_tables(convert(tmp_path))


def test_files_of_the_blob_storage(tmp_path):
    """JSON lines, compressed ones, Parquet and CSV, with names of their own."""

    def dump(value):
        return value if isinstance(value, str | int | float | None) else json.dumps(value)

    observations = [
        {key: dump(value) for key, value in to_snake(each).items()} for each in OBSERVATIONS
    ]
    scores = [to_snake(each) for each in SCORES]
    for name, rows in (("observations", observations), ("scores", scores)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        frame = pl.DataFrame(rows, infer_schema_length=None)
        frame.write_parquet(tmp_path / f"{name}.parquet")
        frame.write_csv(tmp_path / f"{name}.csv")
    for suffix in ("jsonl", "jsonl.gz", "parquet", "csv"):
        check_tables(convert(tmp_path / f"observations.{suffix}", tmp_path / f"scores.{suffix}"))


def test_scores_of_a_session_are_about_the_run(tmp_path):
    """They name neither trace nor observation; the session is the trajectory."""
    trace = {"id": TRACE, "timestamp": "2026-01-02T03:04:05Z", "sessionId": "s-1"}
    score = make_score("correct", 1.0, traceId=None, sessionId="s-1")
    (tmp_path / "a.json").write_text(json.dumps({"trace": trace, "observations": OBSERVATIONS}))
    (tmp_path / "b.json").write_text(json.dumps([score]))
    tables = convert(tmp_path)
    assert tables["rewards"].select("trajectory_id", "value", "scope").rows() == [
        ("s-1", 1.0, "trajectory")
    ]


def test_the_original_span_comes_first(tmp_path):
    """Its dialect reads it; what Langfuse took out is given back, numbers stored as text are numbers."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "original",
        "gen_ai.usage.input_tokens": "9",
    }
    call = make_observation(
        "00000000000000a2",
        "GENERATION",
        parentObservationId=None,
        input=ASKED,
        output=SAID,
        model="other",
        usageDetails={"input": 1, "output": 5},
        metadata=json.dumps(
            {
                "attributes": attributes,
                "scope": {"name": "my.scope"},
                "resourceAttributes": {"service.name": "shop"},
            }
        ),
    )
    (tmp_path / "a.json").write_text(json.dumps({"trace": {"id": "x"}, "observations": [call]}))
    (file,) = find_source_files([tmp_path])
    (batch,) = read_span_batches(file)
    (row,) = batch.rows
    assert (row.scope, row.resource) == ("my.scope", {"service.name": "shop"})
    turns = convert(tmp_path)["turns"]
    assert turns.select("model", "input_tokens", "output_tokens").rows() == [("original", 9, 5)]
    assert turns["tool_calls"].to_list()[0][0]["arguments"] == ARGUMENTS


@pytest.mark.parametrize(
    ("given", "gave"),
    [
        ("system: You count.\nuser: how many?", "3"),
        ({"question": "how many?"}, {"number": 3}),
        ([{"no": "message"}], 7),
        ({"content": "role"}, None),
    ],
)
def test_what_is_no_message_is_not_made_one(tmp_path, given, gave):
    """The call is there; the prompt that nobody told is not."""
    call = make_observation(CALL, "GENERATION", input=given, output=gave)
    (tmp_path / "a.json").write_text(json.dumps({"trace": {"id": "x"}, "observations": [call]}))
    tables = convert(tmp_path)
    assert tables["turns"]["text"].to_list() == [None]
    assert tables["messages"].height == 0
    assert tables["trajectories"]["usable_for"].to_list() == ["none"]


def test_broken_observations_and_scores_are_malformed(tmp_path):
    """Each with its reason; neighbours are read, and a trace by itself is said to be none."""
    value = {
        "trace": {"id": TRACE, "scores": [*SCORES, "score-id", {"name": "x", "value": "much"}]},
        "observations": [
            *OBSERVATIONS,
            5,
            {"id": "x"},
            make_observation("y", "SPAN", startTime=[]),
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(value))
    row = {"id": "t", "timestamp": "x", "name": "n", "bookmarked": False, "public": False}
    (tmp_path / "b.json").write_text(json.dumps(row))
    tables = convert(tmp_path)
    details = tables["rejected"].filter(pl.col("reason") == "malformed_span")["detail"].to_list()
    assert sorted(details) == [
        "a trace of Langfuse without its observations; export the observations",
        "a value has the wrong type (a record is int, no object)",
        "a value has the wrong type (a time is list)",
        "could not convert string to float: 'much'",
        "score 'score-id' is only named",
        "traceId is missing",
    ]
    assert tables["turns"].height == 2
    assert tables["rewards"].height == 3


def test_a_score_of_a_trace_with_several_runs_is_given_to_none(tmp_path):
    """It is rejected with its reason."""
    agents = [make_observation(name, "AGENT", parentObservationId=None) for name in ("one", "two")]
    calls = [
        make_observation(f"call of {name}", "GENERATION", parentObservationId=name, output="4")
        for name in ("one", "two")
    ]
    trace = {"id": TRACE, "scores": [make_score("correct", 1.0)]}
    value = {"trace": trace, "observations": [*agents, *calls]}
    (tmp_path / "a.json").write_text(json.dumps(value))
    tables = convert(tmp_path)
    assert tables["trajectories"].height == 2
    assert tables["rewards"].height == 0
    assert tables["rejected"]["reason"].to_list() == ["reward_target_missing"]


def test_a_page_without_records_is_no_damage(tmp_path):
    """A list of scores may be empty."""
    (tmp_path / "a.json").write_text(json.dumps({"data": OBSERVATIONS, "meta": {}}))
    (tmp_path / "b.json").write_text(json.dumps({"data": [], "meta": {"page": 1}}))
    assert convert(tmp_path)["turns"].height == 2
    batches = [each for file in find_source_files([tmp_path]) for each in read_span_batches(file)]
    assert [damage for batch in batches for damage in batch.damaged] == []
