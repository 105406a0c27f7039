"""A disk that is full, read-only or broken: is the agent unharmed, and is every span counted?

The same agent (OpenAI SDK, tools, a local HTTP server) runs without instrumentation and on each
bad disk; what it prints and its exit code must be the same to the byte. Full and read-only are real
file systems (a small tmpfs) where mounting is allowed, and a real file size limit; the other errors
are raised where the store calls the operating system, from the fifth call on.
"""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faultlib.parts import Part, child_command, child_environment, read_rows
from starpo_trace.store.files import Files
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

INJECTED = {
    "EIO at sync": ("sync_data", errno.EIO),
    "EIO at write": ("write_at", errno.EIO),
    "EDQUOT": ("write_at", errno.EDQUOT),
    "EROFS while running": ("write_at", errno.EROFS),
    "EMFILE at open": ("create", errno.EMFILE),
    "rename fails": ("rename", errno.EACCES),
}


class FailingFiles(Files):
    """Real files, one operation of which fails from its fifth call on."""

    def __init__(self, operation: str, number: int) -> None:
        self.num_calls = 0

        def fail(*arguments: Any) -> Any:
            self.num_calls += 1
            if self.num_calls > 4:
                raise OSError(number, os.strerror(number))
            return getattr(Files, operation)(self, *arguments)

        setattr(self, operation, fail)


def play_as_agent(url: str, mode: str, store: Path, report: Path) -> None:
    """The child: plays, prints what it got, and reports counts on the side."""
    import openai

    sink = None
    acknowledged: list[int] = []
    if mode != "bare":
        from opentelemetry.sdk.trace import TracerProvider

        import starpo_trace
        from starpo_trace.store.sink import SpanSink

        files = FailingFiles(*INJECTED[mode]) if mode in INJECTED else Files()
        sink = SpanSink(
            store,
            files=files,
            max_queue_spans=200,
            segment_bytes=20_000,
            on_acknowledged=lambda spans: acknowledged.extend(s.context.span_id for s in spans),
        )
        provider = TracerProvider()
        provider.add_span_processor(sink)
        starpo_trace.instrument(tracer_provider=provider, history="full")
    if mode == "file size limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    for attempt in range(60):
        with starpo_trace.trajectory(str(attempt)) if sink else contextlib.nullcontext():
            messages: list[Any] = [{"role": "user", "content": "go " * 300}]
            for _ in range(4):
                answer = client.chat.completions.create(model="m", messages=messages)
                messages.append(answer.choices[0].message.model_dump(exclude_none=True))
                messages.append({"role": "tool", "tool_call_id": "c", "content": "moved"})
            print(json.dumps(messages))
        if mode == "folder deleted" and attempt == 30 and sink:
            sink.force_flush(5_000)
            acknowledged.clear()
            shutil.rmtree(store)
        if sink and attempt % 20 == 0:
            sink.force_flush(100)
    if sink:
        sink.force_flush(1_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        report.write_text(json.dumps({**sink.read_stats(), "acknowledged_ids": acknowledged}))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs, where that is allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    is_mounted = (
        shutil.which("mount")
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )
    try:
        yield bool(is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)


def run_agent(url: str, mode: str, store: Path, report: Path) -> tuple[str, str]:
    """One agent -> its exit code and output, and what was logged."""
    done = subprocess.run(
        child_command("disk", url, mode, str(store), str(report)),
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
        timeout=300,
    )
    return f"{done.returncode}\n{done.stdout}", done.stderr


def judge(mode: str, expected: str, url: str, store: Path, folder: Path) -> dict[str, Any]:
    """Run an agent on one bad disk -> what was found."""
    report = folder / "report.json"
    output, log = run_agent(url, mode, store, report)
    counts = json.loads(report.read_text())
    rows, _ = read_rows(store)
    stored = {int(row.span_id, 16) for row in rows}
    return {
        "agent_unharmed": output == expected,
        "is_exact": counts["sent"] == counts["accepted"] + counts["rejected"] + counts["dropped"],
        "acknowledged_lost": len(set(counts.pop("acknowledged_ids")) - stored),
        "was_said": "starpo_trace" in log,
        **counts,
    }


def run(*, quick: bool, seed: int) -> Part:
    """Every kind of bad disk."""
    del quick, seed  # a minute, and nothing random
    reply = Reply(tool_calls=[ToolCall(id="c", name="move", arguments='{"to": "up"}')])
    part = Part()
    with ScriptedServer([reply]) as server, tempfile.TemporaryDirectory() as name:
        folder, url = Path(name), server.base_url
        expected, _ = run_agent(url, "bare", folder, folder / "none")
        for mode in [*INJECTED, "file size limit", "folder deleted"]:
            store = folder / mode.replace(" ", "_")
            part.figures[mode] = judge(mode, expected, url, store, folder)
        for mode, options in [("full file system", "size=256k"), ("read-only", "size=256k,ro")]:
            store = folder / mode.replace(" ", "_")
            with mounted(store, options) as is_mounted:
                part.figures[mode] = (
                    judge(mode, expected, url, store, folder)
                    if is_mounted
                    else "not run: needs the right to mount"
                )
    ran = {mode: found for mode, found in part.figures.items() if isinstance(found, dict)}
    for mode, found in ran.items():
        print(f"  {mode}: {found}", flush=True)
    unharmed = sum(found["agent_unharmed"] for found in ran.values())
    exact = sum(found["is_exact"] for found in ran.values())
    lost = sum(found["acknowledged_lost"] for found in ran.values())
    part.target(
        "disk: agents unharmed", f"{unharmed} of {len(ran)}", "all", met=unharmed == len(ran)
    )
    part.target("disk: counts exact", f"{exact} of {len(ran)}", "all", met=exact == len(ran))
    part.target("disk: acknowledged spans lost", lost, "== 0", met=lost == 0)
    return part


if __name__ == "__main__":
    play_as_agent(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
