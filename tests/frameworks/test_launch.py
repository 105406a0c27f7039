"""Launched without a line of Starpo's, a program's trajectories are those of the one line in it."""

import json
import signal
from importlib.util import find_spec

import pytest
from launching import run
from scenario import QUESTION, RAN, TWO_TURNS, answer_by_history

from starpo_trace.testing import Reply

if find_spec("opentelemetry.distro") is None:
    pytest.skip("opentelemetry-distro is not installed", allow_module_level=True)

SHOPS = {
    "shop_openai_agents": "agents",
    "shop_langchain": "langchain",
    "shop_pydantic_ai": "pydantic_ai",
}
"""Program -> the package of its framework."""
LAUNCHERS = ("opentelemetry-instrument", "starpo-trace run")
THREE = [f"{QUESTION} {number}" for number in range(3)]


@pytest.fixture(params=SHOPS)
def shop(request):
    if find_spec(SHOPS[request.param]) is None:
        pytest.skip(f"{SHOPS[request.param]} is not installed")
    return request.param


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
