"""`starpo-trace doctor`: what is said of packages, destinations, settings and recorded runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from starpo_trace import flush, instrument, reward, trajectory, uninstrument
from starpo_trace.config import CaptureConfig
from starpo_trace.doctor.installed import check_installed
from starpo_trace.doctor.settings import check_metrics

pytestmark = pytest.mark.slow

UNKNOWN_SDK = {
    "ollama/__init__.py": "",
    "ollama/_client.py": "class Client:\n    pass\n\n\nclass AsyncClient:\n    pass\n",
    "ollama-99.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ollama\nVersion: 99.0\n",
}


def ask(cwd: Path, *arguments: str, code: int = 0, **variables: str):
    """What the command says, in its own process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "STARPO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "starpo_trace.cli", "doctor", "--json", *arguments],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


def list_what(findings, level):
    return [each["what"] for each in findings if each["level"] == level]


def test_installed_packages_are_patched_and_put_back():
    """Every provider's SDK that the tests need is recorded, in a version that was tested."""
    from openai._base_client import SyncAPIClient

    raw = vars(SyncAPIClient)["request"]
    found = {each.package: each for each in check_installed()}
    assert {"openai", "anthropic", "google-genai", "mistralai", "ollama", "botocore"} <= set(found)
    assert [(each.package, each.failures, each.untested) for each in found.values()] == [
        (name, (), ()) for name in found
    ]
    assert vars(SyncAPIClient)["request"] is raw


def test_an_sdk_that_is_not_known(tmp_path):
    """A version without what is patched is a problem, with the versions that are tested."""
    for name, text in UNKNOWN_SDK.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    told = ask(tmp_path, code=1, PYTHONPATH=str(tmp_path / "site"))
    (problem,) = [each for each in told["Installed packages"] if each["level"] == "problem"]
    assert problem["what"].startswith("ollama 99.0: model calls NOT recorded: AttributeError: ")
    assert problem["do"] == "use a tested version: ollama >=0.6,<0.7"


def test_nothing_recorded_yet(tmp_path):
    """Without traces it says so, and where they will go."""
    told = ask(tmp_path)
    (where,) = list_what(told["Where spans go"], "ok")
    assert where.startswith("the local store .starpo/traces (the default), ")
    (note,) = told["What was recorded"]
    assert note["what"].startswith("nothing yet")


def test_what_runs_lack(tmp_path):
    """Runs without reward, task or policy are counted."""
    instrument(store=tmp_path / "traces")
    for number in range(3):
        with trajectory("agent", task_id="t" if number else None):
            if number == 2:
                reward(1.0, name="solved", source="environment")
    uninstrument()
    told = ask(tmp_path, str(tmp_path / "traces"), code=1)
    findings = told[f"What is in {tmp_path / 'traces'}"]
    problems = list_what(findings, "problem")
    assert problems[0].startswith("3 runs with 0 model calls: fit for RL 0, ")
    assert set(problems[1:]) == {"no_reward: 2 of 3", "no_llm_call: 3 of 3"}
    assert {"no task_id: 1 of 3", "no policy_id: 3 of 3"} <= set(list_what(findings, "note"))
    assert all(each["do"] for each in findings[1:])


def test_where_metrics_go(monkeypatch):
    """To the endpoint that answers, or nowhere, and why."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    config = CaptureConfig()
    (absent,) = check_metrics(config)
    assert absent.what.endswith("sets a MeterProvider: no endpoint is named")
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        (found,) = check_metrics(config)
    assert (found.level, found.what) == (
        "ok",
        f"{endpoint} (OTEL_EXPORTER_OTLP_ENDPOINT), which answers",
    )
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    (forbidden,) = check_metrics(config)
    assert "OTEL_METRICS_EXPORTER" in forbidden.what
    (off,) = check_metrics(CaptureConfig(metrics=False))
    assert off.what == "STARPO_METRICS switches them off"


def test_settings_that_leave_everything_out(tmp_path):
    """Each is named with its variable."""
    told = ask(
        tmp_path,
        code=1,
        OTEL_SDK_DISABLED="true",
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="false",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="redis,starpo",
        STARPO_SAMPLE="0",
    )
    problems = list_what(told["Settings"], "problem")
    assert [each.split("=")[0] for each in problems] == [
        "OTEL_SDK_DISABLED",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        "STARPO_SAMPLE",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STARPO_SAMPLE", "abc"),
        ("STARPO_STORE_MAX_BYTES", "lots"),
        ("STARPO_REDACTION", "maybe"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ],
)
def test_a_variable_that_cannot_be_used(tmp_path, name, value):
    """It is a problem, and named; so is a sampler that leaves out everything."""
    told = ask(tmp_path, code=1, **{name: value})
    (problem,) = list_what(told["Settings"], "problem")
    assert problem.startswith(name)
    assert value in problem


def test_an_endpoint(tmp_path):
    """It is asked whether it answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = ask(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url)
        assert list_what(told["Where spans go"], "ok") == [
            f"{url} (OTEL_EXPORTER_OTLP_ENDPOINT), which answers"
        ]
    told = ask(tmp_path, code=1, OTEL_EXPORTER_OTLP_ENDPOINT=url)
    (problem,) = list_what(told["Where spans go"], "problem")
    assert problem.startswith(f"{url} (OTEL_EXPORTER_OTLP_ENDPOINT) cannot be reached: ")


def test_a_store_that_cannot_be(tmp_path):
    """A file where its folder should be."""
    (tmp_path / "taken").write_text("")
    told = ask(tmp_path, code=1, STARPO_STORE=str(tmp_path / "taken" / "traces"))
    (problem,) = list_what(told["Where spans go"], "problem")
    assert problem.endswith("taken is no folder")


def test_a_package_that_is_broken(tmp_path):
    """Its error is told once, however many of its modules need it."""
    (tmp_path / "site" / "mistralai").mkdir(parents=True)
    (tmp_path / "site" / "mistralai" / "__init__.py").write_text("raise SystemExit('broken')\n")
    told = ask(tmp_path, code=1, PYTHONPATH=str(tmp_path / "site"))
    (problem,) = [each for each in told["Installed packages"] if each["level"] == "problem"]
    assert problem["what"].endswith("model calls NOT recorded: SystemExit: broken")
    assert problem["do"] == "mend the installation"


def test_damaged_records(tmp_path):
    """Named, with the file."""
    instrument(store=tmp_path / "traces")
    for _ in range(3):
        with trajectory("agent", task_id="t"):
            pass
        flush()  # a record each
    uninstrument()
    (file,) = (tmp_path / "traces").glob("*.otlp")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    told = ask(tmp_path, str(tmp_path / "traces"), code=1)
    problems = list_what(told[f"What is in {tmp_path / 'traces'}"], "problem")
    assert problems[0].startswith("1 damaged records, skipped: ")
    assert file.name in problems[0]


def test_traces_that_are_not_there(tmp_path):
    """A path without traces is a problem among the others."""
    told = ask(tmp_path, "missing", code=1)
    (problem,) = told["What is in missing"]
    assert problem["level"] == "problem"
    assert problem["what"].startswith("missing")
    assert told["Installed packages"]
