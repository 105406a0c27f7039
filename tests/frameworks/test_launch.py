"""Launched without a line of Starpo's, a program's trajectories are those of the one line in it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
from rows import read_tables
from scenario import QUESTION, RAN, TWO_TURNS, answer_by_history

from starpo_trace.testing import Reply, ScriptedServer

if find_spec("opentelemetry.distro") is None:
    pytest.skip("opentelemetry-distro is not installed", allow_module_level=True)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
SHOPS = {
    "shop_openai_agents": "agents",
    "shop_langchain": "langchain",
    "shop_pydantic_ai": "pydantic_ai",
}
"""Program -> the package of its framework."""
ONE_LINE = "__import__('starpo_trace').instrument()\n"
LAUNCHERS = ("opentelemetry-instrument", "starpo-trace run")
OTHERS = sorted(
    {each.name for each in entry_points(group="opentelemetry_instrumentor")} - {"starpo"}
)
"""Instrumentations that are installed too; `test_coexistence.py` is about those."""
THREE = [f"{QUESTION} {number}" for number in range(3)]


@pytest.fixture(params=SHOPS)
def shop(request):
    if find_spec(SHOPS[request.param]) is None:
        pytest.skip(f"{SHOPS[request.param]} is not installed")
    return request.param


def read_environment(server, **more):
    names = ("PATH", "HOME", "LANG", "SSL_CERT_FILE")
    return {
        **{name: os.environ[name] for name in names if name in os.environ},
        "PYTHONPATH": str(ROOT),
        "OPENAI_BASE_URL": server.base_url,
        "OPENAI_API_KEY": "none",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",  # or it sends its own to OpenAI
        **more,
    }


class Collector:
    """`starpo-trace collect`, as a process."""

    def __init__(self, store):
        self.store = store

    def __enter__(self):
        command = [sys.executable, "-m", "starpo_trace.cli", "collect", "--store", self.store]
        self._process = subprocess.Popen(
            [*command, "--http", "127.0.0.1:0", "--grpc", "off"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self._process.stderr:
            if found := re.search(r"http://\S+", line):
                self.url = found[0].rstrip("/,;.")
                return self
        raise AssertionError("the collector does not listen")

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=30)


def copy_programs(folder, *, line=""):
    """The programs as they are, or each with the one line before its first."""
    folder.mkdir()
    for program in (HERE / "programs").glob("*.py"):
        (folder / program.name).write_text(line + program.read_text())


def start(folder, how, arguments, environment):
    """A program, started as a person would: by Python alone, with the one line, or launched."""
    copy_programs(folder / "programs", line=ONE_LINE if how == "one line" else "")
    command = [sys.executable, *arguments]
    if how == "opentelemetry-instrument":
        command = [BIN / "opentelemetry-instrument", *command]
    elif how == "starpo-trace run":
        command = [sys.executable, "-m", "starpo_trace.cli", "run", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder / "programs",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, how, arguments, script=TWO_TURNS, *, stop=None):
    """How a program ends, and the tables of what was recorded of it.

    OpenTelemetry's launcher exports; what it sends is collected. The others write a store.
    """
    folder = folder / how.replace(" ", "-")
    folder.mkdir()
    store = folder / "traces"
    with ScriptedServer(script) as server:
        if how == "opentelemetry-instrument":
            with Collector(store) as collector:
                environment = read_environment(
                    server,
                    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector.url,
                    OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
                    OTEL_METRICS_EXPORTER="none",
                    OTEL_LOGS_EXPORTER="none",
                    OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=",".join(OTHERS),
                )
                ended = _finish(start(folder, how, arguments, environment), server, stop)
        else:
            environment = read_environment(server, STARPO_STORE=str(store))
            ended = _finish(start(folder, how, arguments, environment), server, stop)
    if how == "python":
        assert not store.exists()
        return ended, None
    return ended, read_tables(store, folder / "dataset")


def _finish(process, server, stop):
    if stop is not None:
        deadline = time.monotonic() + 60
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(stop)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors.strip().rpartition("\n")[2]


def check_same(folder, arguments, script=TWO_TURNS, *, stop=None):
    """Each launcher leaves the program as it is, and its trajectories as the one line's.

    Returns:
        How the program ends, and the tables.
    """
    alone, _ = run(folder, "python", arguments, script, stop=stop)
    expected = run(folder, "one line", arguments, script, stop=stop)
    assert expected[0] == alone
    for how in LAUNCHERS:
        assert run(folder, how, arguments, script, stop=stop) == expected, how
    return expected


def test_two_turns(tmp_path, shop):
    """A program as a person writes it, with tools at the same time."""
    ended, tables = check_same(tmp_path, [f"{shop}.py", QUESTION])
    assert ended == (0, "Three of each.\n", "")
    assert [(row["end"], row["num_turns"]) for row in tables["trajectories"]] == [("terminated", 2)]
    assert [_read_tool(*tool.values()) for tool in tables["tools"]] == [_read_tool(*t) for t in RAN]
    assert tables["rejected"] == []


def _read_tool(name, call_id, arguments, result):
    return name, call_id, json.loads(arguments), result


def test_a_framework_that_is_imported_late(tmp_path, shop):
    """Where nothing of it is known when the program begins; its exit code is its own."""
    ended, tables = check_same(tmp_path, ["lazily.py", shop, QUESTION])
    assert ended == (7, "Three of each.\n", "")
    assert [row["num_turns"] for row in tables["trajectories"]] == [2]


def test_agents_in_threads(tmp_path, shop):
    """Several at once: each is a run of its own."""
    ended, tables = check_same(tmp_path, ["in_threads.py", shop, *THREE], answer_by_history)
    assert ended == (0, "Three of each.\n" * 2, "")
    assert [row["num_turns"] for row in tables["trajectories"]] == [2, 2, 2]
    assert len(tables["tools"]) == 6


def test_a_failure(tmp_path, shop):
    """An exception that nobody catches is the program's last line, and the run's end."""
    ended, tables = check_same(tmp_path, [f"{shop}.py", QUESTION], [Reply(status=400)])
    assert ended[0] == 1
    assert "scripted 400" in ended[2]
    assert [row["end"] for row in tables["trajectories"]] == ["error"]


def test_a_signal(tmp_path):
    """A program that is told to stop dies of the signal; its run is abandoned."""
    pytest.importorskip("pydantic_ai")
    program = ["shop_pydantic_ai.py", QUESTION]
    late = [Reply(content="late", delay_s=60)]
    ended, tables = check_same(tmp_path, program, late, stop=signal.SIGTERM)
    assert ended == (-signal.SIGTERM, "", "")
    assert [row["end"] for row in tables["trajectories"]] == ["abandoned"]
