"""Arguments and environment -> configuration."""

import os
import re
import subprocess
import sys
from math import inf, nan
from typing import Any

import pytest

from starpo_trace.config import parse_bytes, read_config, read_timeout
from starpo_trace.errors import ConfigError

ARGUMENTS: dict[str, Any] = {
    "store": None,
    "endpoint": None,
    "tracer_provider": None,
    "history": None,
    "policy_id": None,
}
AGENT = """
import math, starpo_trace
starpo_trace.instrument(store="traces")
with starpo_trace.trajectory("agent"):
    pass
print(starpo_trace.flush(20), starpo_trace.stats()["acknowledged"])
print([starpo_trace.flush(each) for each in (None, math.nan, math.inf, -1, 10**400, "x")])
"""


@pytest.mark.parametrize(
    ("text", "number"),
    [("1000", 1000), ("500M", 500 << 20), ("10G", 10 << 30), (" 10 GiB ", 10 << 30), ("1kb", 1024)],
)
def test_sizes_have_units(text, number):
    """Powers of 1024, in any case."""
    assert parse_bytes(text) == number
    assert (
        read_config(**ARGUMENTS, environment={"STARPO_STORE_MAX_BYTES": text}).max_store_bytes
        == number
    )


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", "1e9", "٣", "10 X", "1" * 19])
def test_what_is_no_size_is_named(text):
    """With the value, and how to write one."""
    with pytest.raises(ValueError, match=r"write a number, as 1000000, 500M or 10G"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("STARPO_STORE_MAX_BYTES", "lots", "max_store_bytes"),
        ("STARPO_STORE_MAX_BYTES", "0", "max_store_bytes"),
        ("STARPO_SAMPLE", "half", "sample"),
        ("STARPO_SAMPLE", "1.5", "sample"),
        ("STARPO_SAMPLE", "nan", "sample"),
        ("STARPO_MAX_CONTENT_BYTES", "10", "max_content_bytes"),
    ],
)
def test_a_bad_variable_is_one_warning_and_the_default(monkeypatch, caplog, name, value, field):
    """It names variable and value; nothing is raised."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    for _ in range(2):
        assert getattr(read_config(**ARGUMENTS, environment={name: value}), field) is None
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{name}={value!r} in the environment: give a ")


@pytest.mark.parametrize(
    ("given", "wait_s"),
    [(1.5, 1.5), (None, 5.0), (nan, 5.0), ("x", 5.0), (-1, 0.0), (inf, 86_400.0), (10**400, 5.0)],
)
def test_any_timeout_is_some_wait(given, wait_s):
    """What is no number is the default, and nobody waits longer than a day."""
    assert read_timeout(given) == wait_s


def test_an_agent_in_a_bad_environment_is_recorded(tmp_path):
    """Every variable of ours is wrong, and so are its timeouts; it runs, and its spans are kept."""
    names = (
        *("STORE_MAX_BYTES", "SAMPLE", "MAX_CONTENT_BYTES", "REDACTION", "PSEUDONYM_KEY_FILE"),
        "SIGTERM",
    )
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    environment |= {f"STARPO_{name}": "wrong" for name in names}
    done = subprocess.run(
        [sys.executable, "-c", AGENT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"True 1\n{[True] * 6}\n")
    assert sorted(line.partition("=")[0].split()[0] for line in done.stderr.splitlines()) == sorted(
        f"STARPO_{name}" for name in names
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"store": ""}, "store='' in instrument(): give the path of a folder"),
        ({"store": 5}, "store=5 in instrument(): give the path of a folder"),
        ({"endpoint": 5}, "endpoint=5 in instrument(): give the whole traces URL"),
        ({"tracer_provider": "http://x"}, "tracer_provider='http://x' in instrument(): give an "),
    ],
)
def test_arguments_of_another_kind_are_refused(given, message):
    """The error names the argument and its value."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        read_config(**ARGUMENTS | given, environment={})
