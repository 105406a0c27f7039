"""A backend's server from its own environment -> its address, for as long as a test needs it."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent
START_TIMEOUT_S = 120
EXPORT_TIMEOUT_S = 180


def find_environment(name: str) -> Path:
    """The Python of `.venvs/NAME`; without it the test is skipped."""
    folder = REPOSITORY / ".venvs" / name
    if not (folder / ".ready").exists():
        pytest.skip(f".venvs/{name} is not built: make .venvs/{name}/.ready")
    return folder / "bin" / "python"


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def run_server(
    command: Sequence[str], health_url: str, folder: Path, variables: dict[str, str]
) -> Iterator[None]:
    """Start a server, wait until it answers, and end it with all its processes."""
    log = folder / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**_clean_environment(), **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(health_url, server, log)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def run_script(python: Path, script: str, *arguments: str, folder: Path) -> None:
    """A script beside this file, in a backend's environment."""
    done = subprocess.run(
        [python, SCRIPTS / script, *arguments],
        cwd=folder,
        env={**_clean_environment(), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=EXPORT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _clean_environment() -> dict[str, str]:
    """Without what points Python at this environment's packages."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "VIRTUAL_ENV"} and not name.startswith("OTEL_")
    }


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}: {log.read_text()}")
