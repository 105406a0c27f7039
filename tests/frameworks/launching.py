"""Programs, as a person starts them -> how they end, and what was recorded of them."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

from rows import mask_ids, read_tables
from scenario import TWO_TURNS

from starpo_trace.testing import ScriptedServer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
ONE_LINE = "__import__('starpo_trace').instrument()\n"
OTHERS = sorted(
    {each.name for each in entry_points(group="opentelemetry_instrumentor")} - {"starpo"}
)
"""Instrumentations that are installed too."""


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


def run(folder, how, arguments, script=TWO_TURNS, *, stop=None, others=False):
    """How a program ends (code, output, errors but for the frames), and what was recorded of it.

    OpenTelemetry's launcher exports; what it sends is collected. The others write a store. With
    `others` it also starts the other instrumentations that are installed.
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
                    OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="" if others else ",".join(OTHERS),
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
    told = [line for line in errors.splitlines() if line and not line.startswith(" ")]
    return process.returncode, output, mask_ids("\n".join(told))
