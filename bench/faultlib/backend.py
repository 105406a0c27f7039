"""An OTLP endpoint that refuses, hangs or resets for minutes, then recovers: is anything lost?

One agent process per fault (and one over gRPC whose endpoint is not there) records trajectories at
a steady pace, below the queue's cap, while its endpoint fails; then the endpoint takes everything.
An endpoint that hangs reads the request and never answers. The agent's longest trajectory, four
spans, is reported, and how long a process takes to exit whose endpoint is dead for good.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

from faultlib.parts import Endpoint, Part, child_command, child_environment

FAULTS = ("503", "hang", "reset", "grpc unavailable")
HEALTHY_S = 2.0
TRAJECTORIES_PER_S = 10


def play_as_agent(url: str, outage_s: float, report: Path) -> None:
    """The child: records until the outage is over, then waits for its spans to arrive."""
    import starpo_trace

    starpo_trace.instrument(endpoint=url or None)
    until_s = time.monotonic() + 2 * HEALTHY_S + outage_s
    longest_s = 0.0
    number = 0
    while time.monotonic() < until_s:
        begun_s = time.perf_counter()
        with starpo_trace.trajectory(f"run {number}"):
            for _ in range(3):
                with starpo_trace.step("tool", "move") as step:
                    step.result("moved " * 50)
        if number:  # the first one chooses the destination, and imports what that needs
            longest_s = max(longest_s, time.perf_counter() - begun_s)
        number += 1
        time.sleep(1 / TRAJECTORIES_PER_S)
    has_arrived = starpo_trace.flush(120)
    found = {
        "has_arrived": has_arrived,
        "longest_trajectory_after_the_first_ms": round(1000 * longest_s, 1),
        **starpo_trace.stats(),
    }
    report.write_text(json.dumps(found))


def play_to_the_end(url: str) -> None:
    """The child: a short program whose endpoint is dead; says when it has nothing more to do."""
    import starpo_trace

    starpo_trace.instrument(endpoint=url)
    for _ in range(100):
        with starpo_trace.trajectory():
            pass
    os.write(1, f"{time.monotonic()}\n".encode())


class GrpcEndpoint:
    """An OTLP/gRPC endpoint that is there only while it is healthy."""

    def __init__(self) -> None:
        self.taken: Any = Endpoint()
        self.port = 0
        self.server: Any = None

    def start(self) -> None:
        """Listen, at the same port each time."""
        import grpc
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

        taken = self.taken

        class Servicer(service.TraceServiceServicer):
            def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 (gRPC's name)
                taken.take(request.SerializeToString())
                return messages.ExportTraceServiceResponse()

        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        service.add_TraceServiceServicer_to_server(Servicer(), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()

    def stop(self) -> None:
        """Be gone."""
        self.server.stop(0).wait()


def run_outage(fault: str, outage_s: float, folder: Path) -> dict[str, Any]:
    """One agent through one outage -> what arrived."""
    report = folder / f"{fault.replace(' ', '_')}.json"
    grpc_endpoint = GrpcEndpoint() if fault.startswith("grpc") else None
    if grpc_endpoint is None:
        endpoint = Endpoint()
        url, environment = endpoint.url, child_environment()
    else:
        grpc_endpoint.start()
        endpoint, url = grpc_endpoint.taken, ""
        environment = child_environment(
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{grpc_endpoint.port}",
        )
    child = subprocess.Popen(
        child_command("backend", url, str(outage_s), str(report)),
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(HEALTHY_S)
    if grpc_endpoint is None:
        endpoint.fault = fault
    else:
        grpc_endpoint.stop()
    time.sleep(outage_s)
    if grpc_endpoint is None:
        endpoint.recover()
    else:
        grpc_endpoint.start()
    code = child.wait(timeout=300)
    found = json.loads(report.read_text())
    num_arrived = len(endpoint.taken)
    num_duplicates = sum(endpoint.taken.values()) - num_arrived
    endpoint.close()
    if grpc_endpoint is not None:
        grpc_endpoint.stop()
    return {
        "outage_s": outage_s,
        "exit_code": code,
        "requests_refused": endpoint.num_refused,
        "lost": found["sent"] - num_arrived,
        "arrived_twice": num_duplicates,
        **found,
    }


def measure_exit(fault: str) -> float:
    """Seconds from the end of the program to the end of its process."""
    endpoint = Endpoint()
    endpoint.fault = fault
    done = subprocess.run(
        child_command("backend", endpoint.url),
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    took_s = time.monotonic() - float(done.stdout)
    endpoint.close()
    return round(took_s, 2)


def run(*, quick: bool, seed: int) -> Part:
    """All outages at once, each with an agent of its own."""
    del seed  # nothing random
    outage_s = 15.0 if quick else 180.0
    part = Part()
    with tempfile.TemporaryDirectory() as name:
        threads = []
        for fault in FAULTS:

            def work(fault: str = fault) -> None:
                part.figures[fault] = run_outage(fault, outage_s, Path(name))

            threads.append(threading.Thread(target=work))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    part.figures["exit_before_a_dead_endpoint_s"] = {
        fault: measure_exit(fault) for fault in ("503", "hang", "reset")
    }
    for found in part.figures.items():
        print(f"  {found}", flush=True)
    for fault in FAULTS:
        found = part.figures[fault]
        part.target(
            f"backend: spans lost in {outage_s:.0f} s of {fault}",
            found["lost"],
            "== 0",
            met=found["lost"] == 0 and found["has_arrived"] and found["exit_code"] == 0,
        )
    slowest_s = max(part.figures["exit_before_a_dead_endpoint_s"].values())
    part.target(
        "backend: seconds to exit before a dead endpoint", slowest_s, "<= 5", met=slowest_s <= 5
    )
    return part


if __name__ == "__main__":
    if len(sys.argv) == 2:
        play_to_the_end(sys.argv[1])
    else:
        play_as_agent(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
