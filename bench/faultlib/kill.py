"""SIGKILL at a random moment: is every acknowledged span on disk, and how soon is it there?

Each run starts a real agent (OpenAI SDK, four threads, streams and tools, a local HTTP server),
instrumented into a store of its own, and kills it. The agent reports over a pipe, and the parent
keeps its own count: spans that ended (before the store sees them) and spans the store
acknowledged. Then the store is read back. The second figure is the share of spans that had been
over for more than a second when the agent was killed and were acknowledged by then.
"""

import contextlib
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faultlib.parts import Part, child_command, child_environment, read_rows
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

REPORT = struct.Struct("<cQq")
"""E(nded) or A(cknowledged), span id, CLOCK_MONOTONIC nanoseconds."""
MIN_RUN_S, MAX_RUN_S = 0.05, 4.0
OLD_NS = 1_000_000_000
NUM_AT_ONCE = 2


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


def run_once(url: str, folder: Path, lifetime_s: float) -> dict[str, int]:
    """One agent's life -> counts."""
    store = folder / "traces"
    reading, writing = os.pipe()
    child = subprocess.Popen(
        child_command("kill", url, str(store), str(writing)),
        pass_fds=(writing,),
        env=child_environment(),
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
    rows, num_damages = read_rows(store)
    stored = {int(row.span_id, 16) for row in rows}
    return {
        "ended": len(ended_ns),
        "acknowledged": len(acknowledged),
        "acknowledged_lost": len(acknowledged - stored),
        "unknown": len(stored - ended_ns.keys()),
        "old": len(old),
        "old_acknowledged": len(old & acknowledged),
        "torn_records": num_damages,
    }


def run(*, quick: bool, seed: int) -> Part:
    """Kill many agents."""
    num_runs = 5 if quick else 200
    chance = random.Random(seed)
    totals: dict[str, int] = {}
    lifetimes_s = [chance.uniform(MIN_RUN_S, MAX_RUN_S) for _ in range(num_runs)]

    def run_in_folder(lifetime_s: float) -> dict[str, int]:
        with tempfile.TemporaryDirectory() as folder:
            counts = run_once(server.base_url, Path(folder), lifetime_s)
        server.requests.clear()
        return counts

    with ScriptedServer(answer_request) as server, ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        for number, counts in enumerate(pool.map(run_in_folder, lifetimes_s)):
            lived_s = lifetimes_s[number]
            print(f"  run {number:3} killed after {lived_s:.2f} s: {counts}", flush=True)
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
    share = totals["old_acknowledged"] / totals["old"] if totals["old"] else 0.0
    part = Part(figures={"runs": num_runs, **totals})
    part.target(
        "kill: acknowledged spans lost",
        totals["acknowledged_lost"],
        "== 0",
        met=totals["acknowledged"] > 0 and totals["acknowledged_lost"] == 0,
    )
    part.target(
        "kill: share of spans older than 1 s that are acknowledged",
        round(share, 6),
        ">= 0.99",
        met=share >= 0.99,
    )
    return part


if __name__ == "__main__":
    play_as_agent(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
