"""An agent that raises, is cancelled, or whose telemetry is broken behaves as without Starpo.

The agents of `behaviour/agents.py` run as processes of their own: alone, recorded, and recorded with
each part of Starpo broken after the other. What they print, what they raise, how they exit and what
the server received is compared to the byte. Only two things may differ: Starpo's own log, which is
kept apart here, and the frames of its wrappers in tracebacks, which are taken out.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "behaviour"
AGENTS, BREAKER = FOLDER / "agents.py", FOLDER / "breaker.py"
sys.path.insert(0, str(FOLDER))
import agents  # noqa: E402
from breaker import QUICK  # noqa: E402
from server import BehaviourServer  # noqa: E402

sys.path.remove(str(FOLDER))

pytestmark = pytest.mark.slow

LOG_APART = """
import logging
logger = logging.getLogger("starpo_trace")
logger.addHandler(logging.FileHandler("starpo.log"))
logger.propagate = False
"""
BREAK = """
import os
if "BREAK" in os.environ:
    import importlib
    module, _, names = os.environ["BREAK"].partition(":")
    owner = importlib.import_module(module)
    *path, last = names.split(".")
    for name in path:
        owner = getattr(owner, name)
    def broken(*args, **kwargs):
        raise RuntimeError("broken on purpose")
    setattr(owner, last, broken)
"""
BROKEN = [
    "starpo_trace.capture.exchange:describe_request",
    "starpo_trace.capture.llmcall:LLMCall.finish",
    "starpo_trace.capture.patches.openai_chat:read_chat_request",
    "starpo_trace.messages:chain_hashes",
    "starpo_trace.store.sink:SpanSink._deliver",
    "starpo_trace.store.background:BackgroundProcessor._run",
]
"""One of each stage; `breaker.py` breaks all of them within one process."""


@pytest.fixture(scope="module")
def server():
    """One server for all, so that its address is in every request the same."""
    with BehaviourServer() as server:
        yield server


@pytest.fixture
def run(server, tmp_path):
    """Run the agents one way -> exit code, stdout, stderr, requests."""
    (tmp_path / "sitecustomize.py").write_text(LOG_APART + BREAK)

    def run(*arguments, is_recorded=False, broken=None):
        ours = ["-m", "starpo_trace.cli", "run", "--store", str(tmp_path / "store")]
        path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [
                sys.executable,
                *(ours if is_recorded else ()),
                AGENTS,
                f"{server.url}/v1",
                *arguments,
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                "STARPO_DEBUG": "0",
                **({} if broken is None else {"BREAK": broken}),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        stderr = take_own_frames_out(done.stderr)
        return done.returncode, done.stdout, stderr, server.read_log()

    return run


def take_own_frames_out(traceback):
    """Traceback -> the same without the frames of Starpo's and wrapt's wrappers."""
    kept, is_own = [], False
    for line in traceback.splitlines(keepends=True):
        frame = re.match(r'[ |]*  File "([^"]*)"', line)
        if frame:
            is_own = bool(re.search(r"/(starpo_trace|wrapt)/", frame[1]))
        elif not re.match(r"[ |]*    ", line):
            is_own = False
        if not is_own:
            kept.append(line)
    return "".join(kept)


def test_recorded_agents_do_what_they_do_alone(run, tmp_path):
    """Sync, async, streams, tools, cancellation, errors, odd values: all of it at once."""
    alone = run()
    assert alone[0] == 0
    assert len(alone[3]) > 30
    assert alone[1].count("== ") == len(agents.BY_NAME)
    assert run(is_recorded=True) == alone
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) > 10_000


@pytest.mark.parametrize("part", BROKEN)
def test_agents_with_broken_telemetry_do_what_they_do_alone(run, part, tmp_path):
    """A stage of each kind raises whenever it is called."""
    alone = run(*QUICK)
    assert run(*QUICK, is_recorded=True, broken=part) == alone
    assert "broken on purpose" in (tmp_path / "starpo.log").read_text()


RAISING = (
    *("api_error", "broken_stream", "odd_values", "decorated", "group", "timeout"),
    *("interrupt", "system_exit", "base_exception", "generator"),
)


@pytest.mark.parametrize("name", RAISING)
def test_what_an_agent_raises_ends_the_process_as_it_would(run, name):
    """Exit code, and the traceback but for the frames of the wrappers."""
    alone = run("--raise", name)
    assert alone[0] != 0
    assert run("--raise", name, is_recorded=True) == alone


def test_every_part_may_break(run, server, tmp_path):
    """Each of the more than 200 functions that the agents reach, one after the other."""
    expected = tmp_path / "expected"
    expected.write_text(run(*QUICK)[1])
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, BREAKER, f"{server.url}/v1", tmp_path / f"store{share}"),
                *(expected, str(share), "2"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "STARPO_DEBUG": "0"},
        )
        for share in range(2)
    ]
    reports = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(re.findall(r"(?m)^(?!parts).*\n", "".join(reports))) == ""
