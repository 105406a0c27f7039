"""Phoenix's exports -> the dataset that the same spans give directly; against a real server."""

import json

import polars as pl
import pytest
from backend_runs import ARGUMENTS, send_runs
from backend_servers import find_environment, find_port, run_script, run_server
from comparing import convert, list_arguments, list_differences

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.errors import SourceError

NUM_SPANS = 12
TRACE, ROOT, CALL = "0123456789abcdef" * 2, "00000000000000a1", "00000000000000a2"

LOST = {
    # The scope, by which a reward is known as recorded by starpo_trace.
    *("rewards.trusted", "rewards.untrusted_because"),
    *("trajectories.reward", "trajectories.reasons"),
    # Times are kept in microseconds.
    *("rewards.time_ns", "trajectories.started_ns", "trajectories.ended_ns"),
    *("turns.started_ns", "turns.ended_ns"),
    "trajectories.digest",  # of all that
}
"""What differs from the spans as they were sent."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of everything that a real server's clients export of the runs."""
    python = find_environment("phoenix")
    folder = tmp_path_factory.mktemp("phoenix")
    port, url = find_port(), "http://127.0.0.1"
    variables = {
        "PHOENIX_WORKING_DIR": str(folder / "server"),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(find_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    command = [python, "-m", "phoenix.server.main", "serve"]
    with run_server(command, f"{url}:{port}/healthz", folder, variables):
        send_runs(f"{url}:{port}/v1/traces", folder / "direct.pb")
        run_script(python, "export_from_phoenix.py", f"{url}:{port}", str(NUM_SPANS), folder=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["spans.parquet", "spans.jsonl", "rest_spans.json", "rest_otlp.json", "client_spans.json"],
)
def test_an_export_gives_what_the_spans_give_directly(exported, name):
    """Trajectories, turns, messages, calls and usage are the same; what differs is named."""
    direct = convert(exported / "direct.pb")
    assert direct["trajectories"].height == 3
    assert direct["turns"]["input_tokens"].to_list().count(None) == 1  # the call that failed
    assert list_arguments(direct) == [ARGUMENTS] * 3
    differences = list_differences(direct, convert(exported / name))
    assert differences <= LOST
    assert "trajectories.reward" in differences


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["annotations.parquet", "annotations.jsonl", "rest_annotations.json"]
)
def test_annotations_are_rewards_that_count_for_nothing(exported, name):
    """On the agent's span about the run, on a call about its turn; a word is no number."""
    tables = convert(exported / "rest_spans.json", exported / name)
    rewards = tables["rewards"].filter(pl.col("name") != "reward").sort("name", "turn")
    assert rewards.select("name", "value", "scope", "source", "turn", "explanation").rows() == [
        ("quality", 0.75, "trajectory", "user", None, "good: it counted"),
        *[("tone", None, "turn", "judge", turn, "polite") for turn in range(3)],
    ]
    assert set(rewards["untrusted_because"]) == {"not recorded by starpo_trace"}
    assert set(rewards["trajectory_id"]) == {"s-1"}


@pytest.mark.slow
def test_annotations_without_their_index_name_no_span(exported):
    """Each is a malformed span whose reason says what to export."""
    tables = convert(exported / "annotations_without_index.jsonl")
    assert tables["rejected"].height == 4
    assert all("reset_index()" in detail for detail in tables["rejected"]["detail"])


@pytest.mark.slow
def test_a_data_frame_as_csv_is_refused(exported):
    """Its lists are Python's text there, which is no export."""
    with pytest.raises(SourceError, match="as CSV, in which lists are no longer whole"):
        convert_sources([exported / "spans.csv"])


def make_span(span_id=CALL, **fields):
    """A span as the REST API gives it."""
    return {
        "id": "x",
        "name": "call",
        "context": {"trace_id": TRACE, "span_id": span_id},
        "span_kind": "LLM",
        "parent_id": None,
        "start_time": "2026-01-02T03:04:05.000001+00:00",
        "end_time": "2026-01-02T03:04:06+00:00",
        "status_code": "OK",
        "attributes": {},
        "events": [],
        **fields,
    }


def read_rows(tmp_path, value):
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(value))
    (file,) = find_source_files([path])
    batches = list(read_span_batches(file))
    assert [damage for batch in batches for damage in batch.damaged] == []
    rows = [row for batch in batches for row in batch.rows]
    return rows, [span for batch in batches for span in batch.malformed]


def test_nested_attributes_get_their_names_back(tmp_path):
    """Objects are joined by dots, lists of objects counted, gaps of the data frame left out."""
    record = {
        "name": "call",
        "span_kind": "TOOL",
        "parent_id": ROOT,
        "start_time": 1_767_323_045_000,
        "end_time": None,
        "status_code": "ERROR",
        "status_message": "boom",
        "events": [],
        "context.span_id": CALL,
        "context.trace_id": TRACE,
        "attributes.llm.input_messages": [
            {"message.role": "user", "message.content": None},
            {"message": {"tool_calls": [{"tool_call.id": "c1"}]}},
        ],
        "attributes.llm.token_count.prompt": 7.0,
        "attributes.llm.token_count.total": None,
        "attributes.tag.tags": ["a", "b"],
        "attributes.tool.parameters": {"sku": "A7", "n": 1.0, "other": None},
        "attributes.input.value": '{"sku": "A7",  "n":1e0}',
    }
    rows, _ = read_rows(tmp_path, record)
    assert rows[0].attributes == {
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.1.message.tool_calls.0.tool_call.id": "c1",
        "llm.token_count.prompt": 7,
        "tag.tags": ["a", "b"],
        "tool.parameters": '{"sku": "A7",  "n":1e0}',
        "input.value": '{"sku": "A7",  "n":1e0}',
        "openinference.span.kind": "TOOL",
    }
    assert (rows[0].error, rows[0].parent_id) == ("boom", ROOT)
    assert (rows[0].start_ns, rows[0].end_ns) == (1_767_323_045_000_000_000, None)


def test_names_that_phoenix_adds_do_not_hide_genai_ones(tmp_path):
    """A span with GenAI messages is read by those; one that has none keeps its kind."""
    genai = {"gen_ai.operation.name": "chat", "gen_ai.output.messages": "[]"}
    rows, _ = read_rows(
        tmp_path,
        {
            "data": [
                make_span(attributes=genai),
                make_span(ROOT, attributes={"gen_ai.operation.name": "chat"}),
            ],
            "next_cursor": None,
        },
    )
    kinds = [row.attributes.get("openinference.span.kind") for row in rows]
    assert kinds == [None, "LLM"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context": {"trace_id": "zz", "span_id": CALL}}, "trace id 'zz' is not 32"),
        ({"context": None}, "an id is NoneType"),
        ({"start_time": "yesterday"}, "Invalid isoformat"),
        ({"attributes": 7}, "attributes are int"),
        ({"events": [7]}, "an event is int"),
    ],
)
def test_a_broken_record_is_malformed_and_its_neighbours_are_read(tmp_path, change, words):
    """Its reason says what is wrong."""
    rows, malformed = read_rows(tmp_path, [make_span(ROOT), make_span(**change), make_span()])
    assert len(rows) == 2
    assert words in malformed[0].detail


def test_an_annotation_of_a_span_id_in_two_traces_has_no_target(tmp_path):
    """It is rejected with its reason, and given to neither."""
    call = {
        "openinference.span.kind": "LLM",
        "llm.output_messages.0.message.content": "x",
    }
    spans = [
        make_span(attributes=call),
        make_span(attributes=call, context={"trace_id": "f" * 32, "span_id": CALL}),
    ]
    annotation = {
        "id": "a1",
        "span_id": CALL,
        "name": "tone",
        "annotator_kind": "HUMAN",
        "identifier": "",
        "result": {"score": 1.0},
        "created_at": "2026-01-02T03:04:05Z",
    }
    (tmp_path / "spans.json").write_text(json.dumps(spans))
    (tmp_path / "annotations.json").write_text(json.dumps([annotation]))
    tables = convert(tmp_path / "spans.json", tmp_path / "annotations.json")
    assert tables["rewards"].height == 0
    assert tables["rejected"]["reason"].to_list() == ["reward_target_missing"]
