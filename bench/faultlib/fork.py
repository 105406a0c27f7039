"""Processes that fork: is every span there, and there once?

Each program runs with the local store, with OTLP over HTTP, and the plain forks with OTLP over gRPC
too: `os.fork` amid a busy thread; `multiprocessing` workers by fork, spawn and forkserver; gunicorn
with a preloaded, instrumented application, four workers that are replaced every 50 requests, ended
by SIGTERM. Children do not flush: what they recorded last must arrive because they leave in order.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from faultlib.backend import GrpcEndpoint
from faultlib.parts import Endpoint, Part, child_environment, read_rows

OS_FORK = """
import os, sys, threading, time
import starpo_trace
starpo_trace.instrument()

def work(name):
    with starpo_trace.trajectory(name), starpo_trace.step("tool", name):
        pass

def keep_busy():
    while not stop.is_set():
        work("noise")
        time.sleep(0.001)  # below what any destination takes

stop = threading.Event()
thread = threading.Thread(target=keep_busy)
thread.start()
for number in range(NUM_CHILDREN):
    work(f"parent {number}")
    child = os.fork()
    if child == 0:
        work(f"child {number}")
        sys.exit(0)
    os.waitpid(child, 0)
stop.set()
thread.join()
"""

PROCESSES = """
import multiprocessing
import starpo_trace

def work(number):
    starpo_trace.instrument()
    with starpo_trace.trajectory(f"child {number}"), starpo_trace.step("tool", f"child {number}"):
        pass

if __name__ == "__main__":
    if METHOD == "fork":
        starpo_trace.instrument()
        with starpo_trace.trajectory("parent"):
            pass
    context = multiprocessing.get_context(METHOD)
    workers = [context.Process(target=work, args=(number,)) for number in range(NUM_CHILDREN)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""

APPLICATION = """
import starpo_trace
starpo_trace.instrument()
with starpo_trace.trajectory("preload"):  # so that the destination is chosen before the fork
    pass

def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    with starpo_trace.trajectory(name), starpo_trace.step("tool", name):
        pass
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def check(names: Counter, expected: list[str]) -> dict[str, int]:
    """Names of spans that arrived -> how many are missing, and how many came more than once."""
    wanted = [f"{kind} {name}" for name in expected for kind in ("invoke_agent", "execute_tool")]
    return {
        "spans_expected": len(wanted),
        "lost": sum(names[name] == 0 for name in wanted),
        "duplicated": sum(names[name] > 1 for name in wanted),
    }


def run_program(code: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a program to its end."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(code))
    subprocess.run([sys.executable, str(path)], check=True, env=environment, timeout=400)


def run_gunicorn(folder: Path, environment: dict[str, str], num_requests: int) -> list[str]:
    """Serve requests through real workers, then stop the server; returns what was asked."""
    (folder / "application.py").write_text(APPLICATION)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--preload", "--workers=4", "--max-requests=50", f"--bind=127.0.0.1:{port}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--log-level=error", *options, "application:app"],
        cwd=folder,
        env=environment,
    )
    asked: list[str] = []
    try:
        wait_for(port)
        threads = [
            threading.Thread(target=ask, args=(port, worker, num_requests // 4, asked))
            for worker in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    return [*asked, "preload"]


def wait_for(port: int) -> None:
    """Return when somebody listens."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"nobody listens at port {port}")


def ask(port: int, worker: int, num_requests: int, asked: list[str]) -> None:
    """Make requests, each with a name of its own; only answered ones count."""
    for number in range(num_requests):
        for attempt in range(50):
            name = f"r-{worker}-{number}-{attempt}"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("GET", f"/{name}")
                if connection.getresponse().read() == b"ok":
                    asked.append(name)
                    break
            except (OSError, http.client.HTTPException):  # a worker that is being replaced
                time.sleep(0.1)
            finally:
                connection.close()


def run_everywhere(name: str, destination: str, quick: bool) -> dict[str, Any]:  # noqa: FBT001
    """One program with one destination -> what arrived."""
    num_children = 10 if quick else 50
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        endpoint: Any = Endpoint()
        grpc_endpoint = None
        if destination == "store":
            environment = child_environment(STARPO_STORE=str(folder / "store"))
        elif destination == "otlp http":
            url = endpoint.url.removesuffix("/v1/traces")
            environment = child_environment(OTEL_EXPORTER_OTLP_ENDPOINT=url)
        else:
            grpc_endpoint = GrpcEndpoint()
            grpc_endpoint.start()
            endpoint = grpc_endpoint.taken
            environment = child_environment(
                OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{grpc_endpoint.port}",
            )
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
        expected = [f"child {number}" for number in range(num_children)]
        if name == "gunicorn":
            expected = run_gunicorn(folder, environment, 200 if quick else 2000)
            expected.remove("preload")
        elif name == "os.fork":
            run_program(f"NUM_CHILDREN = {num_children}\n{OS_FORK}", folder, environment)
            expected += [f"parent {number}" for number in range(num_children)]
        else:
            code = f"METHOD = {name!r}\nNUM_CHILDREN = {num_children // 2}\n{PROCESSES}"
            run_program(code, folder, environment)
            expected = expected[: num_children // 2]
        names = endpoint.names
        if destination == "store":
            names = Counter(row.name for row in read_rows(folder / "store")[0])
        if grpc_endpoint is not None:
            grpc_endpoint.stop()
        return check(names, expected)


def run(*, quick: bool, seed: int) -> Part:
    """Every program with every destination."""
    del seed  # nothing random
    part = Part()
    pairs = [
        (name, destination)
        for name in ("os.fork", "fork", "spawn", "forkserver", "gunicorn")
        for destination in ("store", "otlp http")
    ]
    for name, destination in [*pairs, ("os.fork", "otlp grpc")]:
        found = run_everywhere(name, destination, quick)
        part.figures[f"{name}, {destination}"] = found
        print(f"  {name}, {destination}: {json.dumps(found)}", flush=True)
    lost = sum(found["lost"] for found in part.figures.values())
    duplicated = sum(found["duplicated"] for found in part.figures.values())
    part.target("fork: spans lost", lost, "== 0", met=lost == 0)
    part.target("fork: spans duplicated", duplicated, "== 0", met=duplicated == 0)
    return part
