"""Ten times more spans than the disk takes, for a minute: is memory bounded, is the count exact?

The store writes to a disk whose sync takes 100 ms, so that ten times what it sustains is something
that one Python process can produce. First what it sustains is measured, then ten times that is
offered, evenly, from four threads, in trajectories of twelve spans with 2 kB of text each.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from faultlib.parts import Part, child_command, child_environment, read_peak_bytes, read_rows
from starpo_trace import semconv
from starpo_trace.store.files import Files
from starpo_trace.store.sink import SpanSink
from starpo_trace.store.spanqueue import MAX_QUEUE_BYTES, MAX_QUEUE_SPANS

SYNC_S = 0.1
NUM_THREADS = 4
NUM_SPANS = 12


class SlowDisk(Files):
    """Real files on a disk that takes its time."""

    def sync_data(self, descriptor: int) -> None:
        time.sleep(SYNC_S)
        super().sync_data(descriptor)


class SmallBatchSink(SpanSink):
    """Few spans to a record, to keep what the disk sustains low."""

    max_batch_spans = 32


class Source:
    """Threads that make spans at a given rate."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.longest_s = [0.0] * NUM_THREADS

    def offer(self, rate: float, duration_s: float) -> float:
        """Make spans from all threads; returns how long it took."""
        begun_s = time.monotonic()
        threads = [
            threading.Thread(
                target=self._offer, args=(worker, rate / NUM_THREADS, begun_s + duration_s)
            )
            for worker in range(NUM_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - begun_s

    def _offer(self, worker: int, rate: float, until_s: float) -> None:
        begun_s = time.monotonic()
        num_offered = 0
        while time.monotonic() < until_s:
            run_id = f"{worker}-{until_s}-{num_offered}"
            for step in range(NUM_SPANS):
                name = "root" if step == NUM_SPANS - 1 else "step"
                text = f"{run_id} {step} " + "y" * 2000
                span = self.tracer.start_span(
                    name, attributes={semconv.TRAJECTORY_ID: run_id, "text": text}
                )
                ended_s = time.perf_counter()
                span.end()
                self.longest_s[worker] = max(self.longest_s[worker], time.perf_counter() - ended_s)
            num_offered += NUM_SPANS
            ahead_s = begun_s + num_offered / rate - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)


def play(store: Path, duration_s: float) -> None:
    """The child: measure, overload, report."""
    sink = SmallBatchSink(store, files=SlowDisk())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(sink)
    source = Source(provider.get_tracer("overload"))
    before_bytes = read_peak_bytes()
    source.offer(5_000, 1.0)
    begun = sink.read_stats()["acknowledged"]
    measured_s = source.offer(2_000, 5.0)
    sustained = (sink.read_stats()["acknowledged"] - begun) / measured_s
    sink.force_flush(300_000)
    before = sink.read_stats()
    overload_s = source.offer(10 * sustained, duration_s)
    after, peak_bytes = sink.read_stats(), read_peak_bytes()
    sink.shutdown(timeout_s=900.0)
    found = {
        "sustained_spans_per_s": round(sustained),
        "offered_spans_per_s": round((after["sent"] - before["sent"]) / overload_s),
        "overload_s": round(overload_s, 1),
        "rss_before_bytes": before_bytes,
        "rss_peak_bytes": peak_bytes,
        "longest_span_end_ms": round(1000 * max(source.longest_s), 1),
        **{f"at_end_of_overload_{name}": count for name, count in after.items()},
        **sink.read_stats(),
    }
    print(json.dumps(found))


def run(*, quick: bool, seed: int) -> Part:
    """One overloaded process."""
    del seed  # nothing random
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "traces"
        done = subprocess.run(
            child_command("overload", str(store), "10" if quick else "60"),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=child_environment(),
        )
        found = json.loads(done.stdout)
        rows, num_damages = read_rows(store)
    runs = Counter(str(row.attributes[semconv.TRAJECTORY_ID]) for row in rows)
    rooted = {str(r.attributes[semconv.TRAJECTORY_ID]) for r in rows if r.name == "root"}
    halves = sum(runs[each] < NUM_SPANS for each in rooted)
    part = Part(
        figures={
            **found,
            "cap_queue_spans": MAX_QUEUE_SPANS,
            "cap_queue_bytes": MAX_QUEUE_BYTES,
            "spans_read_back": len(rows),
            "damaged_places": num_damages,
            "whole_trajectories": sum(count == NUM_SPANS for count in runs.values()),
            "trajectories_cut_off_without_root": len(runs.keys() - rooted),
            "trajectories_with_root_but_not_whole": halves,
        }
    )
    print(f"  {part.figures}", flush=True)
    growth = found["rss_peak_bytes"] - found["rss_before_bytes"]
    ratio = found["offered_spans_per_s"] / max(1, found["sustained_spans_per_s"])
    part.target("overload: offered / sustained", round(ratio, 1), ">= 9.5", met=ratio >= 9.5)
    part.target("overload: seconds", found["overload_s"], ">= 60", met=found["overload_s"] >= 60)
    total = found["accepted"] + found["rejected"] + found["dropped"]
    part.target(
        "overload: sent - (accepted + rejected + dropped)",
        found["sent"] - total,
        "== 0",
        met=found["sent"] == total,
    )
    part.target(
        "overload: acknowledged - read back",
        found["acknowledged"] - len(rows),
        "== 0",
        met=found["acknowledged"] == len(rows) > 0,
    )
    part.target(
        "overload: growth of resident memory, MiB",
        round(growth / (1 << 20), 1),
        f"<= {5 * (MAX_QUEUE_BYTES >> 22)} (the queue's cap of {MAX_QUEUE_BYTES >> 20} and a quarter)",
        met=growth <= 1.25 * MAX_QUEUE_BYTES,
    )
    part.target("overload: rooted but not whole trajectories", halves, "== 0", met=halves == 0)
    return part


if __name__ == "__main__":
    play(Path(sys.argv[1]), float(sys.argv[2]))
