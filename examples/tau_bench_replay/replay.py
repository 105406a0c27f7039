"""Recorded tau-bench runs -> spans -> dataset, checked message by message against the recording.

The 200 recorded runs of a gpt-4o agent on tau-bench airline (50 tasks, 4 attempts each, reward 0
or 1) are played again: an ordinary agent loop talks through the real `openai` SDK to a local
server that answers with the recorded assistant messages, and is traced by one line. The spans are
exported to a dataset, and the dataset is compared with the recording, which the comparison reads
by itself.

    python examples/tau_bench_replay/replay.py [--data PATH] [--output DIR] [--json FILE]

The recording (MIT, github.com/sierra-research/tau-bench, historical_trajectories/
gpt-4o-airline.json) is looked for in ../shared/data/tau-bench-gpt4o-airline. Without --output the
traces and the dataset go to a temporary folder. Exit code 1 when any check fails.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai

import starpo_trace
from starpo_trace.convert.dataset import build_dataset, scan_table
from starpo_trace.convert.manifest import Manifest, read_manifest

DATA = Path(__file__).parents[3] / "shared" / "data" / "tau-bench-gpt4o-airline"
FILE = "historical_trajectories/gpt-4o-airline.json"
NUM_THREADS = 8

Run = dict[str, Any]
Message = dict[str, Any]


class RecordedModel(ThreadingHTTPServer):
    """`/v1/chat/completions` that answers as the recorded model did.

    The field `user` names the run; the conversation so far must be the recorded one, and the
    answer is the recorded message that follows it.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, runs: list[Run]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs = {run_key(run): run["traj"] for run in runs}

    def next_message(self, body: dict[str, Any]) -> Message | None:
        recorded = self.runs[body["user"]]
        told = [compact(message) for message in body["messages"]]
        if told != [compact(message) for message in recorded[: len(told)]]:
            return None
        return recorded[len(told)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RecordedModel

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = self.server.next_message(body)
        if message is None or message["role"] != "assistant":
            self._send(409, {"error": {"message": "this conversation was not recorded"}})
            return
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        self._send(
            200,
            {
                "id": f"chatcmpl-{body['user']}-{len(body['messages'])}",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            },
        )

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""


def run_key(run: Run) -> str:
    return f"{run['task_id']}-{run['trial']}"


def compact(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}


@contextmanager
def serving(runs: list[Run]) -> Iterator[str]:
    """Recorded runs -> base URL of the server that plays them."""
    server = RecordedModel(runs)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def play(client: openai.OpenAI, run: Run, tools: list[dict[str, Any]]) -> None:
    """The agent: ask the model, do what it says, repeat until the recording ends."""
    recorded = run["traj"]
    with starpo_trace.trajectory(
        "airline", task_id=str(run["task_id"]), attempt=run["trial"], environment_name="tau-bench"
    ):
        messages: list[Any] = []
        while len(messages) < len(recorded):
            if recorded[len(messages)]["role"] == "assistant":
                answer = client.chat.completions.create(
                    model="gpt-4o", messages=messages, tools=tools, user=run_key(run)
                )
                messages.append(answer.choices[0].message.model_dump(exclude_none=True))
            else:  # the recorded environment: what the customer says, what a tool returns
                messages.append(recorded[len(messages)])
        starpo_trace.observe(messages)
        starpo_trace.reward(run["reward"], min=0.0, max=1.0)


def play_all(runs: list[Run]) -> None:
    calls = [call for run in runs for m in run["traj"] for call in m.get("tool_calls") or ()]
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in sorted({call["function"]["name"] for call in calls})
    ]
    with (
        serving(runs) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        for done in [pool.submit(play, client, run, tools) for run in runs]:
            done.result()


def check_dataset(runs: list[Run], manifest: Manifest, dataset: Path) -> list[tuple[str, Any, Any]]:
    """Dataset and recording -> (what, expected, actual) rows."""
    trajectories = scan_table(dataset, "trajectories").collect()
    turns = scan_table(dataset, "turns").sort("trajectory_id", "turn").collect()
    messages = scan_table(dataset, "messages").sort("trajectory_id", "depth").collect()
    of_run = {
        f"{task}-{attempt}": trajectory
        for trajectory, task, attempt in trajectories.select(
            "trajectory_id", "task_id", "attempt"
        ).iter_rows()
    }
    branches = {
        key[0]: [read_message(json.loads(text)) for text in group["message"]]
        for key, group in messages.group_by("trajectory_id", maintain_order=True)
    }
    calls = {
        key[0]: [tuple(call.values()) for call in group["tool_calls"].explode().drop_nulls()]
        for key, group in turns.group_by("trajectory_id", maintain_order=True)
    }
    recorded_calls = {run_key(run): list(tool_calls(run["traj"])) for run in runs}
    rewards = {run_key(run): run["reward"] for run in runs}
    read = dict(trajectories.select("trajectory_id", "reward").iter_rows())
    recorded_rewards = Counter(rewards.values())
    group_sizes = trajectories.group_by("task_id").len()["len"].to_list()
    num_messages = sum(len(run["traj"]) for run in runs)
    num_calls = sum(map(len, recorded_calls.values()))
    same_runs = [
        key
        for key in rewards
        if branches.get(of_run.get(key)) == [plain_message(m) for m in runs_by_key(runs)[key]]
    ]
    same_calls = sum(
        len(expected)
        for key, expected in recorded_calls.items()
        if calls.get(of_run.get(key), []) == expected
    )
    accounting = manifest.accounting
    return [
        ("trajectories", len(runs), trajectories.height),
        ("groups of 4 attempts", len(runs) // 4, group_sizes.count(4)),
        ("groups of another size", 0, len(group_sizes) - group_sizes.count(4)),
        ("rewards of 1", recorded_rewards[1.0], trajectories["reward"].eq(1.0).sum()),
        ("rewards of 0", recorded_rewards[0.0], trajectories["reward"].eq(0.0).sum()),
        (
            "runs with their own reward",
            len(runs),
            sum(read.get(of_run.get(key)) == reward for key, reward in rewards.items()),
        ),
        (
            "model calls (turns)",
            sum(m["role"] == "assistant" for run in runs for m in run["traj"]),
            turns.height,
        ),
        ("messages, each once", num_messages, messages.height),
        ("runs with every message, in order", len(runs), len(same_runs)),
        ("tool calls with id, name, argument string", num_calls, same_calls),
        ("branches (rewritten histories)", 0, (trajectories["num_branches"] - 1).sum()),
        ("ended as terminated", len(runs), trajectories["end"].eq("terminated").sum()),
        ("usable for sft (no token ids)", len(runs), manifest.usable_for["sft"]),
        ("spans rejected", 0, sum(accounting.spans_rejected_by_reason.values())),
        ("spans duplicated", 0, accounting.duplicates),
        ("records damaged", 0, accounting.damaged_records),
        ("spans used", accounting.spans_read, accounting.spans_used),
    ]


def runs_by_key(runs: list[Run]) -> dict[str, list[Message]]:
    return {run_key(run): run["traj"] for run in runs}


def tool_calls(messages: list[Message]) -> Iterator[tuple[str, str, str]]:
    for message in messages:
        for call in message.get("tool_calls") or ():
            yield call["id"], call["function"]["name"], call["function"]["arguments"]


def plain_message(message: Message) -> tuple[Any, ...]:
    """Recorded OpenAI message -> what must be found again."""
    calls = tuple(tool_calls([message]))
    return (
        message["role"],
        message.get("content") or None,
        calls,
        message.get("tool_call_id"),
        message.get("name"),
    )


def read_message(message: dict[str, Any]) -> tuple[Any, ...]:
    """GenAI message of the dataset -> the same, read part by part."""
    texts, calls, call_id = [], [], None
    for part in message["parts"]:
        if part["type"] == "text":
            texts.append(part["content"])
        elif part["type"] == "tool_call":
            calls.append((part["id"], part["name"], part["arguments"]))
        elif part["type"] == "tool_call_response":
            texts.append(part["response"])
            call_id = part["id"]
    return message["role"], "".join(texts) or None, tuple(calls), call_id, message.get("name")


def report(rows: list[tuple[str, Any, Any]]) -> bool:
    width = max(len(what) for what, _, _ in rows)
    print(f"{'':{width}}  {'recorded':>9} {'dataset':>9}")
    for what, expected, actual in rows:
        verdict = "ok" if expected == actual else "DIFFERENT"
        print(f"{what:{width}}  {expected:>9,} {actual:>9,}  {verdict}")
    return all(expected == actual for _, expected, actual in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    file = options.data / FILE if options.data.is_dir() else options.data
    if not file.is_file():
        print(f"{file}: no such file; give the folder or file of the recording with --data")
        return 1
    runs = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary)
        started_s = time.perf_counter()
        starpo_trace.instrument(store=output / "traces")  # the one line
        play_all(runs)
        if not starpo_trace.flush(30.0):
            print("spans were not acknowledged in time")
            return 1
        played_s = time.perf_counter()
        build_dataset([output / "traces"], output / "dataset")
        exported_s = time.perf_counter()
        manifest = read_manifest(output / "dataset")
        rows = check_dataset(runs, manifest, output / "dataset")
        starpo_trace.uninstrument()
    passed = report(rows)
    times = {"play_s": played_s - started_s, "export_s": exported_s - played_s}
    print(f"played in {times['play_s']:.1f} s, exported in {times['export_s']:.1f} s")
    if options.json:
        result = {
            "passed": passed,
            "checks": [{"what": w, "recorded": e, "dataset": a} for w, e, a in rows],
            "spans": manifest.accounting.spans_read,
            **{name: round(value, 1) for name, value in times.items()},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
