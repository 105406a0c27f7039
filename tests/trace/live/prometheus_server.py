"""The real Prometheus, where this machine has one: started on a configuration, and asked."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest


def find_binary(name: str) -> Path:
    """`prometheus` or `promtool`: beside the one in STARPO_PROMETHEUS, else in PATH."""
    given = os.environ.get("STARPO_PROMETHEUS")
    if given:
        return Path(given).with_name(name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: see CONTRIBUTING.md, STARPO_PROMETHEUS")
    return Path(found)


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters):
        """Answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    def ask(self, expr: str, *labels: str, time_s: float | None = None):
        """Instant query -> value by these labels (one label: by its text; none: the value)."""
        at = {} if time_s is None else {"time": time_s}
        found = {}
        for each in self.get("query", query=expr, **at)["result"]:
            key = tuple(each["metric"].get(label, "") for label in labels)
            assert key not in found
            found[key] = float(each["value"][1])
        if not labels:
            return found.get(())
        return {key[0] if len(labels) == 1 else key: value for key, value in found.items()}

    def wait_for(self, expr: str, expected: float, *, timeout_s: float = 20.0) -> None:
        """Until a query gives this."""
        end_s = time.monotonic() + timeout_s
        while (value := self.ask(expr)) != expected:
            assert time.monotonic() < end_s, (expr, value, expected)
            time.sleep(0.1)


@contextmanager
def run_prometheus(folder: Path, *, target_port: int, rules: str):
    """Scrape this machine's port five times a second."""
    binary = find_binary("prometheus")
    folder.mkdir()
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}\n"
        "rule_files: [rules.yml]\n"
        "scrape_configs:\n"
        "  - job_name: agent\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{target_port}']}}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    )
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        end_s = time.monotonic() + 30
        while True:
            is_alive = process.poll() is None and time.monotonic() < end_s
            assert is_alive, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{server.url}/-/ready", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(20)
        log.close()
