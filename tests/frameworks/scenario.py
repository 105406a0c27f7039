"""A two-turn run of an agent -> what the server saw of it, beside what was recorded.

The server's request log is the ground truth: every prompt message, tool, answer and observation
must be in the exported trajectory, in its order and once.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import starpo_trace
from starpo_trace import semconv
from starpo_trace.convert.dataset import build_dataset, scan_table
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources import find_source_files, read_span_batches
from starpo_trace.convert.writers.forms import WriteOptions, write_dataset
from starpo_trace.messages import chain_hashes, dump_identity, from_openai_chat
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

QUESTION = "How many A7 and B8 are there?"
ANSWER = "Three of each."
USAGE = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}
CALLS = (
    ToolCall(id="call_a", name="stock", arguments='{"sku": "A7"}'),
    ToolCall(id="call_b", name="stock", arguments='{"sku": "B8"}'),
)
TWO_TURNS = (
    Reply(content="Let me see.", reasoning_content="Look it up.", tool_calls=CALLS, usage=USAGE),
    Reply(content=ANSWER, usage=USAGE),
)
"""Parallel tool calls with reasoning, then the answer."""


def stock(sku: str) -> str:
    """How many of an article are there."""
    return f"{sku}: 3"


async def stock_async(sku: str) -> str:
    """How many of an article are there."""
    await asyncio.sleep(0)
    return stock(sku)


stock_async.__name__ = "stock"


def broken_stock(sku: str) -> str:
    """How many of an article are there."""
    raise RuntimeError(f"no shelf for {sku}")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What was recorded of a program, and what its model's server saw."""

    dataset: Path
    requests: list[dict[str, Any]]
    """Bodies that the server got, in order."""
    trajectories: list[dict[str, Any]]
    turns: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    spans: list[SpanRow]
    """As recorded."""
    states: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    error: BaseException | None = field(default=None)
    """What left the program."""

    def read_prompt(self, turn: dict[str, Any]) -> list[dict[str, Any]]:
        """Messages from the root of the message graph to the end of a turn's prompt."""
        nodes = {node["node_id"]: node for node in self.messages}
        path, node_id = [], turn["input_node"]
        while node_id is not None:
            path.append(json.loads(nodes[node_id]["message"]))
            node_id = nodes[node_id]["parent_id"]
        return path[::-1]


LAST: list[Recorded] = []
"""What was recorded last."""


def record(
    folder: Path,
    program: Callable[[str], Any],
    script: Any = TWO_TURNS,
    *,
    raises: type[BaseException] | None = None,
    serve: Callable[[Any], Any] = ScriptedServer,
    others: Sequence[Path] = (),
) -> Recorded:
    """Run a program, given the base URL of a scripted server, and export what was recorded.

    `others` are stores that other processes write to.
    """
    starpo_trace.instrument(store=folder / "traces")
    error = None
    try:
        with serve(script) as server:
            try:
                program(server.base_url)
            except BaseException as caught:
                if raises is None or not isinstance(caught, raises):
                    raise
                error = caught
            requests = list(server.requests)
    finally:
        starpo_trace.uninstrument()
    if raises is not None:
        assert error is not None, f"the program raised no {raises.__name__}"
    stores = [store for store in (folder / "traces", *others) if store.exists()]
    manifest = build_dataset(stores, folder / "dataset")
    assert manifest.accounting.is_closed
    tables = {
        name: scan_table(folder / "dataset", name).collect().to_dicts()
        for name in ("trajectories", "turns", "messages", "states", "rejected")
    }
    tables["trajectories"].sort(key=lambda trajectory: trajectory["started_ns"])
    order = [trajectory["trajectory_id"] for trajectory in tables["trajectories"]]
    tables["turns"].sort(key=lambda turn: (order.index(turn["trajectory_id"]), turn["turn"]))
    files = find_source_files(stores)
    spans = [row for file in files for batch in read_span_batches(file) for row in batch.rows]
    spans.sort(key=lambda span: span.start_ns)
    recorded = Recorded(
        dataset=folder / "dataset", requests=requests, error=error, spans=spans, **tables
    )
    LAST[:] = [recorded]
    return recorded


def check_wire(recorded: Recorded, script: Any = TWO_TURNS, *, num_trajectories: int = 1) -> None:
    """Every request and answer is one turn, whole and in order; nothing else is a call."""
    assert recorded.rejected == []
    assert len(recorded.trajectories) == num_trajectories
    assert len({span.trace_id for span in recorded.spans}) == num_trajectories
    known = {None, *(span.span_id for span in recorded.spans)}
    assert [span.name for span in recorded.spans if span.parent_id not in known] == []
    assert len(recorded.turns) == len(recorded.requests)
    for turn, request, reply in zip(recorded.turns, recorded.requests, script, strict=True):
        sent = [from_openai_chat(message) for message in request["messages"]]
        assert [dump_identity(m) for m in recorded.read_prompt(turn)] == [
            dump_identity(message) for message in sent
        ]
        assert turn["input_node"] == chain_hashes(sent)[-1].hex()
        assert json.loads(turn["tool_definitions"] or "[]") == (request.get("tools") or [])
        assert turn["text"] == reply.content
        assert turn["reasoning"] == reply.reasoning_content
        called = [(call["id"], call["name"], call["arguments"]) for call in turn["tool_calls"]]
        assert called == [(call.id, call.name, call.arguments) for call in reply.tool_calls]
        if reply.usage is not None:
            usage = (turn["input_tokens"], turn["output_tokens"])
            assert usage == (reply.usage["prompt_tokens"], reply.usage["completion_tokens"])


def check_two_turns(recorded: Recorded) -> None:
    """`TWO_TURNS` by one agent: every call and tool, in one run that came to its end."""
    check_wire(recorded)
    assert list_tools(recorded) == RAN
    assert draw(recorded)[0] == "invoke_agent shop"
    assert sorted(draw(recorded)[1:]) == [
        *["  chat m"] * 2,
        "  execute_tool stock #call_a",
        "  execute_tool stock #call_b",
    ]
    assert recorded.trajectories[0]["end"] == "terminated"


def check_trainable(recorded: Recorded, script: Any = TWO_TURNS) -> None:
    """The dataset's conversations for a trainer: one is the last request and its answer."""
    assert {row["usable_for"] for row in recorded.trajectories} <= {"rl", "sft"}
    path = recorded.dataset.with_suffix(".jsonl")
    write_dataset(recorded.dataset, path, form="trl", options=WriteOptions(split="all"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = [*recorded.requests[-1]["messages"], _write_message(script[-1])]
    assert _identify(last) in [_identify(line["messages"]) for line in lines]


def _write_message(reply: Reply) -> dict[str, Any]:
    """An answer as a chat message."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning_content is not None:
        message["reasoning_content"] = reply.reasoning_content
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.tool_calls
        ]
    return message


def _identify(chat: list[dict[str, Any]]) -> list[bytes]:
    return [dump_identity(from_openai_chat(message)) for message in chat]


def check_end(recorded: Recorded, end: str, *outcomes: str) -> None:
    """There is one run; it ended so, and its model calls had these outcomes."""
    assert [row["end"] for row in recorded.trajectories] == [end]
    assert [turn["outcome"] for turn in recorded.turns] == list(outcomes)


def answer_by_history(body: dict[str, Any]) -> Reply:
    """For runs at the same time: the answer once a tool's result is there, else the calls."""
    return TWO_TURNS[any(message["role"] == "tool" for message in body["messages"])]


async def cancel_soon(run: Awaitable[Any]) -> None:
    """Cancel a run while its model answers (`LATE`)."""
    task = asyncio.ensure_future(run)
    await asyncio.sleep(0.5)
    task.cancel()
    await task


def check_put_back(*places: tuple[Any, str]) -> None:
    """Each attribute is another while recording is on, and afterwards the very one it was."""

    def look() -> list[Any]:
        return [vars(owner).get(name) for owner, name in places]

    before = look()
    starpo_trace.instrument()
    during = look()
    starpo_trace.uninstrument()
    assert [old is new for old, new in zip(before, during, strict=True)] == [False] * len(places)
    assert [old is new for old, new in zip(before, look(), strict=True)] == [True] * len(places)


LATE = (Reply(content="late", delay_s=2.0),)
"""An answer that is not waited for."""


def draw(recorded: Recorded) -> list[str]:
    """Spans in order of start, each indented below the one that it is in; tools by their call."""
    return [
        "  " * told["depth"] + told["name"] + (f" #{told['call']}" if told["call"] else "")
        for told in describe_spans(recorded)
    ]


def draw_calls(recorded: Recorded) -> list[str]:
    """The tree without its states."""
    return [line for line in draw(recorded) if not line.strip().startswith("state ")]


def describe_spans(recorded: Recorded) -> list[dict[str, Any]]:
    """Spans in order of start: depth, name, kind, tool call; start and end in milliseconds."""
    above = {span.span_id: span.parent_id for span in recorded.spans}
    told = []
    for span in recorded.spans:
        depth, parent = 0, span.parent_id
        while parent in above:
            depth, parent = depth + 1, above[parent]
        begun_ns = recorded.spans[0].start_ns
        told.append(
            {
                "depth": depth,
                "name": span.name,
                "record": span.attributes.get(semconv.RECORD),
                "call": span.attributes.get(semconv.TOOL_CALL_ID),
                "start_ms": (span.start_ns - begun_ns) / 1e6,
                "end_ms": (span.end_ns - begun_ns) / 1e6,
            }
        )
    return told


def list_tools(recorded: Recorded) -> list[tuple[str, Any, Any, Any]]:
    """Name, call id, arguments and result of every tool that ran, in order of their call ids."""
    get = [
        semconv.TOOL_NAME,
        semconv.TOOL_CALL_ID,
        semconv.TOOL_CALL_ARGUMENTS,
        semconv.TOOL_CALL_RESULT,
    ]
    return sorted(
        tuple(span.attributes.get(key) for key in get)
        for span in recorded.spans
        if span.attributes.get(semconv.OPERATION_NAME) == "execute_tool"
    )


def list_states(recorded: Recorded) -> list[tuple[str, Any]]:
    """Name and value of every state, in their order."""
    return [(row["name"], json.loads(row["value"])) for row in recorded.states]


RAN = [
    ("stock", "call_a", '{"sku": "A7"}', "A7: 3"),
    ("stock", "call_b", '{"sku": "B8"}', "B8: 3"),
]
"""What `list_tools` gives of `TWO_TURNS`."""


def list_ran(recorded: Recorded) -> list[tuple[str, Any, Any, Any]]:
    """As `list_tools`, arguments parsed: for frameworks that no longer have the model's text."""
    return [(name, call, json.loads(told), gave) for name, call, told, gave in list_tools(recorded)]


RAN_PARSED = [(name, call, json.loads(told), gave) for name, call, told, gave in RAN]
"""What `list_ran` gives of `TWO_TURNS`."""
