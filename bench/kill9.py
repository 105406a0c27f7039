"""SIGKILL at a random moment: is every acknowledged span on disk, and how soon is it there?

    python bench/kill9.py [--runs 50] [--quick] [--json FILE] [--seed 0]

Each run starts a real agent (OpenAI SDK, four threads, streams and tools, a local HTTP server),
instrumented into a store of its own, and kills it. The agent reports over a pipe, and the parent
keeps its own count: spans that ended (before the store sees them) and spans the store
acknowledged. Then the store is read back. The second figure is the share of spans that had been
over for more than a second when the agent was killed and were acknowledged by then.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from starpo_trace.convert.otlp import SpanRow, decode_protobuf
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

REPORT = struct.Struct("<cQq")
"""E(nded) or A(cknowledged), span id, CLOCK_MONOTONIC nanoseconds."""
MIN_RUN_S, MAX_RUN_S = 0.05, 4.0
OLD_NS = 1_000_000_000


def play_as_agent(url: str, store: Path, descriptor: int) -> None:
    """The child: an agent that plays until it is killed."""
    import openai
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    import starpo_trace
    from starpo_trace.store.sink import SpanSink

    def report(kind: bytes, spans) -> None:
        now_ns = time.monotonic_ns()
        data = b"".join(REPORT.pack(kind, span.context.span_id, now_ns) for span in spans)
        for start in range(0, len(data), REPORT.size * 200):  # below PIPE_BUF writes are atomic
            os.write(descriptor, data[start : start + REPORT.size * 200])

    class ReportEnded(SpanProcessor):
        def on_end(self, span) -> None:
            report(b"E", [span])

    provider = TracerProvider()
    provider.add_span_processor(ReportEnded())
    provider.add_span_processor(SpanSink(store, on_acknowledged=lambda spans: report(b"A", spans)))
    starpo_trace.instrument(tracer_provider=provider, history="delta")
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def play(worker: int) -> None:
        for attempt in range(1_000_000):
            with starpo_trace.trajectory(task_id=str(worker), attempt=attempt):
                messages = [{"role": "user", "content": "go " * 50}]
                for turn in range(6):
                    if turn % 3 == 2:
                        stream = client.chat.completions.create(
                            model="m", messages=messages, stream=True
                        )
                        text = "".join(c.choices[0].delta.content or "" for c in stream)
                        messages.append({"role": "assistant", "content": text})
                        continue
                    answer = client.chat.completions.create(model="m", messages=messages)
                    messages.append(answer.choices[0].message.model_dump(exclude_none=True))
                    with starpo_trace.step("tool", "move", call_id="c") as step:
                        step.result("moved")
                    messages.append({"role": "tool", "tool_call_id": "c", "content": "moved"})
                starpo_trace.reward(1.0)

    for worker in range(4):
        threading.Thread(target=play, args=(worker,), daemon=True).start()
    threading.Event().wait()


def answer_request(body: dict) -> Reply:
    """The scripted model: text when streamed, a tool call otherwise."""
    if body.get("stream"):
        return Reply(content="thinking about it", num_stream_chunks=3, delay_s=0.002)
    return Reply(
        tool_calls=[ToolCall(id="c", name="move", arguments='{"to": "up"}')], delay_s=0.002
    )


def collect_reports(
    descriptor: int, child: subprocess.Popen, lifetime_s: float
) -> tuple[bytes, int]:
    """Reports of one agent, which is killed `lifetime_s` after its first; and when it was."""
    data = b""
    killed_ns = 0
    deadline_s = None
    while True:
        timeout_s = 60.0 if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        is_ready = bool(select.select([descriptor], [], [], timeout_s)[0])
        if not killed_ns and deadline_s is not None and time.monotonic() >= deadline_s:
            killed_ns = time.monotonic_ns()
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            deadline_s = time.monotonic() + 60
            continue
        if not is_ready:
            raise TimeoutError("the agent reported nothing")
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return data, killed_ns
        data += piece
        if deadline_s is None:
            deadline_s = time.monotonic() + lifetime_s


def read_span_ids(store: Path) -> tuple[set[int], int]:
    """Ids of all readable spans, and the number of damaged places."""
    ids: set[int] = set()
    num_damages = 0
    for path in list_segments(store):
        for item in read_segment(path):
            if not isinstance(item, Record):
                num_damages += 1
                continue
            for row in decode_protobuf(item.payload, str(path)):
                if isinstance(row, SpanRow):
                    ids.add(int(row.span_id, 16))
    return ids, num_damages


def run_once(url: str, folder: Path, lifetime_s: float) -> dict[str, int]:
    """One agent's life -> counts."""
    store = folder / "traces"
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, __file__, "--agent", url, str(store), str(writing)], pass_fds=(writing,)
    )
    os.close(writing)
    try:
        data, killed_ns = collect_reports(reading, child, lifetime_s)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait()
    ended_ns: dict[int, int] = {}
    acknowledged: set[int] = set()
    for kind, span_id, time_ns in REPORT.iter_unpack(
        data[: len(data) // REPORT.size * REPORT.size]
    ):
        if kind == b"E":
            ended_ns[span_id] = time_ns
        else:
            acknowledged.add(span_id)
    old = {span_id for span_id, time_ns in ended_ns.items() if time_ns < killed_ns - OLD_NS}
    stored, num_damages = read_span_ids(store)
    return {
        "ended": len(ended_ns),
        "acknowledged": len(acknowledged),
        "acknowledged_lost": len(acknowledged - stored),
        "unknown": len(stored - ended_ns.keys()),
        "old": len(old),
        "old_acknowledged": len(old & acknowledged),
        "torn_records": num_damages,
    }


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="5 runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--agent", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agent:
        url, store, descriptor = options.agent
        play_as_agent(url, Path(store), int(descriptor))
        return
    num_runs = 5 if options.quick else options.runs
    chance = random.Random(options.seed)
    totals: dict[str, int] = {}
    with ScriptedServer(answer_request) as server:
        for run in range(num_runs):
            lifetime_s = chance.uniform(MIN_RUN_S, MAX_RUN_S)
            with tempfile.TemporaryDirectory() as folder:
                counts = run_once(server.base_url, Path(folder), lifetime_s)
            server.requests.clear()
            print(f"run {run:3} killed after {lifetime_s:.2f} s: {counts}", flush=True)
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
    figures = build_figures(num_runs, totals)
    for figure in figures:
        print(
            f"{figure['name']:34} {figure['value']:>10} target {figure['target']} {figure['met']}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpus": os.cpu_count(), "platform": platform.platform()}
        targets = [figure for figure in figures if figure["target"] is not None]
        result = {"bench": "kill9", "machine": machine, "figures": totals, "targets": targets}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if all(figure["met"] is not False for figure in figures) else 1)


def build_figures(num_runs: int, totals: dict[str, int]) -> list[dict]:
    """Totals -> figures with their targets."""
    share = totals["old_acknowledged"] / totals["old"] if totals["old"] else 0.0
    return [
        {"name": "runs", "value": num_runs, "target": None, "met": None},
        {"name": "spans_ended", "value": totals["ended"], "target": None, "met": None},
        {
            "name": "spans_acknowledged",
            "value": totals["acknowledged"],
            "target": None,
            "met": None,
        },
        {
            "name": "acknowledged_spans_lost",
            "value": totals["acknowledged_lost"],
            "target": "== 0",
            "met": totals["acknowledged"] > 0 and totals["acknowledged_lost"] == 0,
        },
        {
            "name": "share_of_spans_older_1s_acknowledged",
            "value": round(share, 6),
            "target": ">= 0.99",
            "met": share >= 0.99,
        },
    ]


if __name__ == "__main__":
    main()
