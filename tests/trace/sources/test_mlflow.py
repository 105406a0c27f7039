"""MLflow's traces -> the dataset; made by its SDK and sent by OTLP, against a real server."""

import base64
import json

import polars as pl
import pytest
from backend_runs import ARGUMENTS, SCRIPT, send_runs
from backend_servers import find_environment, find_port, run_script, run_server
from comparing import convert, list_arguments, list_differences

from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.testing import ScriptedServer

TRACE, ROOT, CALL = "0123456789abcdef" * 2, "00000000000000a1", "00000000000000a2"

LOST = {
    # The scope, by which a reward is known as recorded by starpo_trace.
    *("rewards.trusted", "rewards.untrusted_because"),
    *("trajectories.reward", "trajectories.reasons"),
    # Texts that are JSON themselves are parsed and written anew: of OpenInference's arguments, and
    # with them of the messages that hold them; of tool definitions.
    *("turns.tool_calls", "turns.tool_definitions"),
    *("messages.message", "messages.node_id", "messages.parent_id"),
    *("turns.input_node", "turns.output_node"),
    *("trajectories.digest", "trajectories.content_digest"),  # of all that
}
"""What differs from the spans as they were sent."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of everything that is exported of the runs from a real server."""
    python = find_environment("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "server").mkdir()
    port = find_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server/mlflow.db"),
        *("--artifacts-destination", str(folder / "server" / "artifacts")),
    ]
    variables = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    script = "export_from_mlflow.py"
    with (
        run_server(command, f"{url}/health", folder, variables),
        ScriptedServer(SCRIPT) as model,
    ):
        run_script(python, script, url, "run", model.base_url, folder=folder)
        experiment = (folder / "experiment.txt").read_text()
        headers = {"x-mlflow-experiment-id": experiment}
        send_runs(f"{url}/v1/traces", folder / "direct.pb", headers)
        run_script(python, script, url, "export", "otlp", "3", folder=folder)
    return folder


FORMS = ["{}.jsonl", "{}_frame.jsonl", "{}_frame.parquet", "{}_frame.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_what_came_by_otlp_gives_what_the_spans_give_directly(exported, form):
    """Trajectories, turns, usage and reasoning are the same; what differs is named."""
    direct = convert(exported / "direct.pb")
    other = convert(exported / form.format("otlp"))
    assert list_differences(direct, other) == LOST
    assert list_arguments(other) == [ARGUMENTS, ARGUMENTS, '{"sku": "A7", "n": 1.0}']


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_traces_of_the_sdk_become_trajectories(exported, form):
    """Autologged calls with all that the server said, a tool, and calls recorded by hand."""
    tables = convert(exported / form.format("shop"))
    assert tables["rejected"].height == 0
    trajectories = tables["trajectories"].sort("num_turns", descending=True)
    assert trajectories["trajectory_id"][0] == "s-9"
    turns = tables["turns"].filter(pl.col("trajectory_id") == "s-9").sort("turn")
    assert turns.select("input_tokens", "output_tokens", "reasoning", "text").rows() == [
        (3, 2, "look it up", "let me see"),
        (9, 4, None, "3 are left"),
    ]
    call = {"id": "c1", "name": "stock", "arguments": ARGUMENTS}
    assert turns["tool_calls"].to_list() == [[call], []]
    assert turns["finish_reason"].to_list() == ["tool_calls", "stop"]
    assert turns.select("prompt_token_ids", "response_token_ids", "response_logprobs").row(0) == (
        [1, 2, 3],
        [4, 5],
        [-0.25, -1.5],
    )
    assert turns["temperature"].to_list() == [0.5, None]
    by_hand = tables["turns"].filter(pl.col("trajectory_id") != "s-9")
    assert by_hand["text"].to_list() == ["4"]
    roles = tables["messages"].filter(pl.col("trajectory_id") == "s-9").sort("depth")["role"]
    assert roles.to_list() == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_assessments_are_rewards_that_count_for_nothing(exported, form):
    """Of a trace, of a span; truth values are 1 or 0, words and expectations are no numbers."""
    rewards = convert(exported / form.format("shop"))["rewards"].sort("name")
    assert rewards.select("name", "value", "scope", "source", "turn", "explanation").rows() == [
        ("expected", None, "trajectory", "user", None, "expected 3"),
        ("format", 0.5, "turn", "rule", 0, None),
        ("helpful", 1.0, "trajectory", "user", None, "it counted"),
        ("tone", None, "trajectory", "judge", None, "polite"),
    ]
    assert set(rewards["untrusted_because"]) == {"not recorded by starpo_trace"}


@pytest.mark.slow
def test_an_artifact_holds_the_spans_of_a_trace(exported):
    """As the trace's own JSON, but for what MLflow keeps beside it: session and feedback."""
    tables = convert(exported / "artifact.json")
    assert tables["turns"]["text"].to_list() == ["let me see", "3 are left"]
    assert tables["rewards"].height == 0
    assert tables["trajectories"]["trajectory_id"][0] != "s-9"


def encode(digits):
    return base64.b64encode(bytes.fromhex(digits)).decode()


def make_span(digits=ROOT, **fields):
    return {
        "trace_id": encode(TRACE),
        "span_id": encode(digits),
        "parent_span_id": None,
        "name": "x",
        "start_time_unix_nano": 1_000_000_000,
        "end_time_unix_nano": 2_000_000_000,
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {"mlflow.traceRequestId": f'"tr-{TRACE}"', "mlflow.spanType": '"CHAIN"'},
        **fields,
    }


def make_trace(*spans, **info):
    return {"info": {"trace_id": f"tr-{TRACE}", **info}, "data": {"spans": list(spans)}}


def read_trace(tmp_path, trace):
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(trace) + "\n")
    (file,) = find_source_files([path])
    batches = list(read_span_batches(file))
    return (
        [row for batch in batches for row in batch.rows],
        [span for batch in batches for span in batch.malformed],
    )


def test_attributes_are_decoded_and_texts_that_were_json_stay_texts(tmp_path):
    """MLflow's own values are values; another dialect's argument text is no object."""
    attributes = {
        "mlflow.spanType": '"TOOL"',
        "mlflow.spanInputs": '{"a": 1}',
        "gen_ai.tool.call.arguments": '{"a": 1}',
        "gen_ai.usage.input_tokens": "7",
        "gen_ai.request.model": '"m"',
        "broken": "{",
    }
    rows, _ = read_trace(tmp_path, make_trace(make_span(attributes=attributes)))
    assert rows[0].attributes == {
        "mlflow.spanType": "TOOL",
        "mlflow.spanInputs": {"a": 1},
        "gen_ai.tool.call.arguments": '{"a": 1}',
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.request.model": "m",
        "broken": "{",
    }
    assert (rows[0].trace_id, rows[0].span_id) == (TRACE, ROOT)
    assert (rows[0].start_ns, rows[0].end_ns) == (10**9, 2 * 10**9)


def test_a_trace_of_mlflow_2_is_read(tmp_path):
    """Ids are digits in a context, times and status have other names."""
    span = {
        "name": "x",
        "context": {"trace_id": f"0x{TRACE}", "span_id": f"0x{CALL}"},
        "parent_id": f"0x{ROOT}",
        "start_time": 1_700_000_000_000_000_000,
        "end_time": 1_700_000_001_000_000_000,
        "status_code": "ERROR",
        "status_message": "boom",
        "attributes": {"mlflow.spanType": '"LLM"'},
        "events": [],
    }
    rows, malformed = read_trace(tmp_path, make_trace(span))
    assert malformed == []
    assert (rows[0].trace_id, rows[0].span_id, rows[0].parent_id) == (TRACE, CALL, ROOT)
    assert (rows[0].start_ns, rows[0].error) == (1_700_000_000_000_000_000, "boom")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attributes": None}, "wrong type"),
        ({"span_id": "????????????"}, "is no base64"),
        ({"trace_id": None}, "an id is NoneType"),
        ({"start_time_unix_nano": -5}, "negative time"),
    ],
)
def test_a_broken_span_is_malformed_and_its_neighbours_are_read(tmp_path, change, words):
    """Its reason says what is wrong; feedback is read as well."""
    feedback = {"assessment_id": "a", "assessment_name": "n", "trace_id": f"tr-{TRACE}"}
    trace = make_trace(make_span(), make_span(CALL, **change), assessments=[feedback, 5])
    rows, malformed = read_trace(tmp_path, trace)
    assert [row.name for row in rows] == ["x", "feedback n"]
    assert words in malformed[0].detail
    assert "a record is int" in malformed[1].detail
