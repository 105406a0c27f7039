"""Beside another instrumentation, both record what each records alone.

OpenInference and OpenLLMetry, of the framework and of the OpenAI SDK below it, in one process with
Starpo: switched on before it and after it, Starpo off and on again in between. Neither our
trajectories nor their spans may change, but for ids and times. Where all spans go into one tracer
provider, `export` counts each call and each tool once.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from launching import run
from rows import convert_spans, read_tables, tell_spans
from scenario import CALLS, QUESTION, TWO_TURNS, USAGE

from starpo_trace.testing import Reply, ScriptedServer, ToolCall

if find_spec("openinference") is None:
    pytest.skip("OpenInference is not installed", allow_module_level=True)

HERE = Path(__file__).parent
PACKAGES = {
    "openinference": "openinference.instrumentation",
    "openllmetry": "opentelemetry.instrumentation",
}
BESIDE = [
    ("shop_openai_agents", "openinference", "openai_agents"),
    ("shop_openai_agents", "openllmetry", "openai_agents"),
    ("shop_langchain", "openinference", "langchain"),
    ("shop_langchain", "openllmetry", "langchain"),
    ("shop_agno", "openinference", "agno"),
    ("shop_agno", "openllmetry", "agno"),
    ("shop_pydantic_ai", "openinference", "pydantic_ai"),
    ("shop_smolagents", "openinference", "smolagents"),
]
"""Program, who is beside us, and its instrumentation of the program's framework."""
APART = ("peer,ours,ask", "ours,peer,ask", "peer,ours,-ours,ours,ask", "ours,peer,-ours,ours,ask")
WITHOUT_US = ("peer,ours,-ours,ask", "ours,peer,-ours,ask")
TOGETHER = ("peer,ours,ask+one", "ours,peer,ask+one")
FINAL = ToolCall(id="call_f", name="final_answer", arguments='{"answer": "Three of each."}')
LEFT_OUT = {
    "duplicate_llm_call",
    "duplicate_tool_run",
    "no_llm_call",  # an agent around ours, whose calls are ours
    "unknown_operation",  # OpenLLMetry's `execute_task` and `create_agent`: containers
}
"""Why spans of others are no rows."""


def answer(body):
    """The calls, then the answer, which smolagents asks for by a tool."""
    if "A7: 3" not in json.dumps(body["messages"]):
        return TWO_TURNS[0]
    if any(tool["function"]["name"] == FINAL.name for tool in body["tools"]):
        return Reply(tool_calls=[FINAL], usage=USAGE)
    return TWO_TURNS[1]


class Recorded:
    """What the orders of one program and one peer gave."""

    def __init__(self, folder):
        self._folder = folder
        self._tables = {}

    def read_told(self, order):
        """Answers and spans of the program's provider."""
        return json.loads((self._folder / order / "told.json").read_text())

    def read_spans(self, order):
        """Their spans, without ids and times."""
        return tell_spans(self.read_told(order)["spans"])

    def read_tables(self, order):
        """Tables of what we stored."""
        if order not in self._tables:
            folder = self._folder / order
            self._tables[order] = read_tables(folder / "traces", folder / "dataset")
        return self._tables[order]

    def read_log(self, order):
        """What was logged."""
        return (self._folder / order / "log").read_text()

    def has_store(self, order):
        """Whether we stored anything."""
        return (self._folder / order / "traces").exists()


@pytest.fixture(scope="module", params=BESIDE, ids=lambda each: f"{each[1]}-{each[2]}")
def recorded(request, tmp_path_factory):
    shop, peer, framework = request.param
    if find_spec(f"{PACKAGES[peer]}.{framework}") is None:
        pytest.skip(f"{peer} of {framework} is not installed")
    folder = tmp_path_factory.mktemp(f"{peer}-{framework}")
    orders = ["peer,ask", "ours,ask", *APART, *WITHOUT_US, "ours,peer,-peer,ask", *TOGETHER]
    names = ("PATH", "HOME", "LANG")
    with ScriptedServer(answer) as server:
        done = subprocess.run(
            [sys.executable, HERE / "programs" / "beside.py", shop, peer, folder, *orders],
            env={
                **{name: os.environ[name] for name in names if name in os.environ},
                "PYTHONPATH": str(HERE.parents[1]),
                "OPENAI_BASE_URL": server.base_url,
                "OPENAI_API_KEY": "none",
                "TRACELOOP_METRICS_ENABLED": "false",
            },
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(server.requests) == 2 * len(orders)
    return Recorded(folder)


def test_they_saw_something(recorded):
    """Each alone: two calls and two tools, in one run."""
    tables = recorded.read_tables("ours,ask")
    assert [(row["num_turns"], row["end"]) for row in tables["trajectories"]] == [(2, "terminated")]
    called = {tool["gen_ai.tool.call.id"] for tool in tables["tools"]}
    assert called - {FINAL.id} == {call.id for call in CALLS}
    told = recorded.read_told("peer,ask")["spans"]
    assert len(told) >= 5
    assert all(span["scope"] != "starpo_trace" for span in told)


@pytest.mark.parametrize("order", APART)
def test_our_trajectories_are_what_they_are_alone(recorded, order):
    """Row by row, in every table."""
    assert recorded.read_tables(order) == recorded.read_tables("ours,ask")


def test_our_trajectories_when_the_other_left(recorded):
    """It was on for a while."""
    assert recorded.read_tables("ours,peer,-peer,ask") == recorded.read_tables("ours,ask")


@pytest.mark.parametrize("order", [*APART, *WITHOUT_US])
def test_their_spans_are_what_they_are_alone(recorded, order):
    """Names, attributes, events, places in their traces."""
    assert recorded.read_spans(order) == recorded.read_spans("peer,ask")


@pytest.mark.parametrize("order", WITHOUT_US)
def test_switched_off_we_record_nothing(recorded, order):
    """Though the other may still call through what we patched."""
    assert not recorded.has_store(order)


@pytest.mark.parametrize("order", [*APART, *WITHOUT_US, *TOGETHER])
def test_the_program_is_what_it_is_alone(recorded, order):
    """Its answer; and nothing went wrong here that the log would tell."""
    answers = recorded.read_told("ours,ask")["answers"]
    assert recorded.read_told(order)["answers"] == answers
    ours = [line for line in recorded.read_log(order).splitlines() if line.startswith("starpo")]
    if order == "ours,peer,-ours,ours,ask" or order in WITHOUT_US:
        ours = [
            line
            for line in ours
            if not line.endswith("was patched again after Starpo and stays so")
        ]
    assert ours == []


@pytest.mark.parametrize("order", TOGETHER)
def test_in_one_provider_everything_counts_once(recorded, order):
    """Runs, turns, steps and messages are ours alone; theirs are left out, each with a reason."""
    tables = convert_spans(recorded.read_told(order)["spans"])
    alone = recorded.read_tables("ours,ask")
    for name in ("turns", "messages", "states", "rewards"):
        assert tables[name] == alone[name], name
    assert _list_runs(tables) == _list_runs(alone)
    assert {row["reason"] for row in tables["rejected"]} <= LEFT_OUT
    assert not any(row["scope"] == "starpo_trace" for row in tables["rejected"])
    used = [row["record"] for row in tables["spans"] if row["record"] != "agent"]
    assert sorted(used) == sorted(row["record"] for row in alone["spans"])


@pytest.mark.parametrize("shop", ["shop_langchain", "shop_pydantic_ai"])
def test_launched_with_all_that_is_installed(tmp_path, shop):
    """OpenTelemetry's launcher switches everybody on, in an order of its own, into one provider."""
    if find_spec("opentelemetry.distro") is None or find_spec("openinference") is None:
        pytest.skip("the launcher or the others are not installed")
    program = [f"{shop}.py", QUESTION]
    _, alone = run(tmp_path, "one line", program)
    (code, output, _), tables = run(tmp_path, "opentelemetry-instrument", program, others=True)
    assert (code, output) == (0, "Three of each.\n")
    for name in ("turns", "messages", "states", "rewards", "tools"):
        assert tables[name] == alone[name], name
    assert _list_runs(tables) == _list_runs(alone)
    assert "duplicate_llm_call" in {row["reason"] for row in tables["rejected"]}


def _list_runs(tables):
    """Runs, without what is decided of the whole dataset, and the name that theirs may add."""
    left_out = {"split", "distribution", "excluded_because", "conversation_id"}
    return [
        {name: value for name, value in row.items() if name not in left_out}
        for row in tables["trajectories"]
    ]
