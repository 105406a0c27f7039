"""Invented runs of a shop agent -> span files, of any number of spans, the same for a seed.

A run is 40 spans: the root, 13 model calls, 24 tool calls, a state and a reward. Its texts are as
long as those of real tool agents: a span is about 2.5 kB as OTLP JSON, 1.8 kB as protobuf. Spans
stand in the order in which 16 agents side by side would have ended them, in batches of 128.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from fuzz_inputs import set_value

from starpo_trace.convert.writers.otlpjson import encode_attributes

SPANS_PER_RUN = 40
CALLS_PER_RUN = 13
_SIDE_BY_SIDE = 16
_BATCH_SPANS = 128
_START_NS = 1_750_000_000_000_000_000
_WORDS = [
    "order",
    "item",
    "customer",
    "stock",
    "price",
    "cart",
    "delivery",
    "address",
    "refund",
    "size",
    "colour",
    "shipping",
    "invoice",
    "warehouse",
    "tracking",
    "number",
    "return",
    "policy",
    "discount",
    "voucher",
    "payment",
    "card",
    "account",
    "email",
    "phone",
    "available",
    "tomorrow",
    "please",
    "check",
    "found",
    "result",
    "status",
    "pending",
    "confirmed",
    "cancelled",
    "total",
    "quantity",
    "category",
    "brand",
    "review",
    "rating",
    "weight",
    "dimensions",
    "material",
    "warranty",
    "support",
    "agent",
]
_TOOLS = ("search_catalogue", "get_item", "check_stock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span of the corpus, before it is written in a form."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]


def make_runs(num_runs: int, *, history: str = "delta", seed: int = 0) -> Iterator[list[Span]]:
    """Runs in order of their start, each with its spans in the order in which they end."""
    sentences = _make_sentences(random.Random(seed))
    for number in range(num_runs):
        yield _Run(number, seed, sentences, history).make_spans()


def write_corpus(
    folder: Path,
    num_spans: int,
    *,
    form: str,
    history: str = "delta",
    seed: int = 0,
    files: int = 4,
) -> list[Path]:
    """Corpus -> `files` files of a form: `json` (Collector lines) or `protobuf` (4-byte lengths)."""
    folder.mkdir(parents=True, exist_ok=True)
    encode = {"json": encode_json, "protobuf": encode_protobuf}[form]
    suffix = {"json": ".jsonl", "protobuf": ".binpb"}[form]
    num_runs = num_spans // SPANS_PER_RUN
    paths = []
    runs = make_runs(num_runs, history=history, seed=seed)
    for index in range(files):
        path = folder / f"part-{index:03d}{suffix}"
        share = num_runs * (index + 1) // files - num_runs * index // files
        with path.open("wb") as stream:
            for batch in _batches(_interleave(runs, share)):
                stream.write(encode(batch))
        paths.append(path)
    return paths


def encode_json(spans: list[Span]) -> bytes:
    """Batch -> one line of OTLP JSON."""
    return orjson.dumps(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": encode_attributes({"service.name": "shop"})},
                    "scopeSpans": [
                        {"scope": {"name": "starpo_trace"}, "spans": [_json_span(s) for s in spans]}
                    ],
                }
            ]
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def encode_protobuf(spans: list[Span]) -> bytes:
    """Batch -> one message behind its length."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _add_attributes(group.resource.attributes, {"service.name": "shop"})
    scope = group.scope_spans.add()
    scope.scope.name = "starpo_trace"
    for span in spans:
        message = scope.spans.add(
            trace_id=bytes.fromhex(span.trace_id),
            span_id=bytes.fromhex(span.span_id),
            parent_span_id=bytes.fromhex(span.parent_id),
            name=span.name,
            kind=1,
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
        )
        _add_attributes(message.attributes, span.attributes)
    payload = request.SerializeToString()
    return len(payload).to_bytes(4, "big") + payload


class _Run:
    """One run being made up."""

    def __init__(self, number: int, seed: int, sentences: list[str], history: str) -> None:
        self.random = random.Random(seed * 1_000_003 + number)
        self.trace_id = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=16).hexdigest()
        self.number = number
        self.sentences = sentences
        self.history = history
        self.now_ns = _START_NS + number * 50_000_000
        self.root_id = self.new_id()
        self.trajectory_id = f"{self.trace_id}-{self.root_id}"
        self.spans: list[Span] = []
        self.step = 0
        self.chain: list[bytes] = []
        self.messages: list[dict[str, Any]] = []
        self.num_recorded = 0
        self.tools = dump_tools()

    def make_spans(self) -> list[Span]:
        start_ns = self.now_ns
        self.say("system", self.text(600))
        self.say("user", self.text(300))
        for call in range(CALLS_PER_RUN):
            calls = [] if call == CALLS_PER_RUN - 1 else [self.make_call(i) for i in range(2)]
            self.call_model(calls)
            for each in calls:
                self.call_tool(each)
        self.add("state cart", self.root_id, self.state_attributes())
        self.add("evaluate reward", "", self.reward_attributes(), trace_id=None)
        self.end_root(start_ns)
        return self.spans

    def new_id(self) -> str:
        return f"{self.random.getrandbits(64) or 1:016x}"

    def text(self, length: int) -> str:
        pieces = []
        while length > 0:
            pieces.append(self.random.choice(self.sentences))
            length -= len(pieces[-1])
        return " ".join(pieces)

    def say(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "parts": [{"type": "text", "content": text}]})

    def make_call(self, index: int) -> dict[str, Any]:
        arguments = {"query": self.text(60), "limit": index + 5, "in_stock": True}
        return {
            "type": "tool_call",
            "id": f"call_{self.random.getrandbits(96):024x}",
            "name": self.random.choice(_TOOLS),
            "arguments": orjson.dumps(arguments).decode(),
        }

    def call_model(self, calls: list[dict[str, Any]]) -> None:
        from starpo_trace.messages import chain_hashes

        known = len(self.chain)
        self.chain += chain_hashes(self.messages[known:], self.chain[-1] if self.chain else b"")
        first = self.num_recorded if self.history == "delta" else 0
        answer = {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": self.text(160)},
                {"type": "text", "content": self.text(120)},
                *calls,
            ],
            "finish_reason": "tool_calls" if calls else "stop",
        }
        attributes = {
            "starpo.schema.version": "1",
            "starpo.record": "llm",
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "shop-model",
            "gen_ai.request.temperature": 1.0,
            "server.address": "127.0.0.1",
            "server.port": 8000,
            "gen_ai.tool.definitions": self.tools,
            "starpo.history.mode": self.history,
            "starpo.history.length": len(self.messages),
            "starpo.history.hash": self.chain[-1].hex(),
            "gen_ai.input.messages": orjson.dumps(self.messages[first:]).decode(),
            "starpo.trajectory.id": self.trajectory_id,
            "agent.trajectory.step": self.step,
            "gen_ai.usage.input_tokens": 400 * len(self.messages),
            "gen_ai.usage.output_tokens": 150,
            "gen_ai.response.id": f"chatcmpl-{self.new_id()}",
            "gen_ai.response.model": "shop-model-2025",
            "gen_ai.response.finish_reasons": [answer["finish_reason"]],
            "gen_ai.output.messages": orjson.dumps([answer]).decode(),
            "agent.trajectory.step.kind": "planner" if calls else "finalizer",
        }
        if first:
            attributes["starpo.history.base"] = self.chain[first - 1].hex()
            attributes["starpo.history.base_length"] = first
        self.add("chat shop-model", self.root_id, attributes)
        self.step += 1
        self.messages.append({k: v for k, v in answer.items() if k != "finish_reason"})
        self.messages[-1] = {**self.messages[-1], "parts": self.messages[-1]["parts"][1:]}
        self.num_recorded = len(self.messages)

    def call_tool(self, call: dict[str, Any]) -> None:
        result = orjson.dumps(
            {"status": "ok", "results": [self.text(150) for _ in range(2)]}
        ).decode()
        self.add(
            f"execute_tool {call['name']}",
            self.root_id,
            {
                "starpo.schema.version": "1",
                "starpo.record": "step",
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": call["name"],
                "gen_ai.tool.call.id": call["id"],
                "gen_ai.tool.call.arguments": call["arguments"],
                "gen_ai.tool.call.result": result,
                "starpo.trajectory.id": self.trajectory_id,
                "agent.trajectory.step": self.step,
                "agent.trajectory.step.kind": "tool",
            },
        )
        self.step += 1
        response = {"type": "tool_call_response", "id": call["id"], "response": result}
        self.messages.append({"role": "tool", "parts": [response]})

    def state_attributes(self) -> dict[str, Any]:
        from starpo_trace.convert.states import hash_state

        value = {"cart": [self.text(40) for _ in range(5)], "total": self.random.randint(1, 999)}
        return {
            "starpo.record": "state",
            "starpo.state.name": "cart",
            "starpo.state.hash": hash_state(value),
            "starpo.state.value": orjson.dumps(value).decode(),
            "starpo.trajectory.id": self.trajectory_id,
            "agent.trajectory.step": self.step - 1,
        }

    def reward_attributes(self) -> dict[str, Any]:
        return {
            "starpo.record": "reward",
            "gen_ai.evaluation.name": "reward",
            "gen_ai.evaluation.score.value": float(self.random.random() < 0.4),
            "starpo.reward.scope": "trajectory",
            "starpo.reward.source": "environment",
            "starpo.reward.id": f"{self.trajectory_id}:reward",
            "starpo.trajectory.id": self.trajectory_id,
        }

    def end_root(self, start_ns: int) -> None:
        self.spans.append(
            Span(
                trace_id=self.trace_id,
                span_id=self.root_id,
                parent_id="",
                name="invoke_agent shop",
                start_ns=start_ns,
                end_ns=self.now_ns,
                attributes={
                    "starpo.schema.version": "1",
                    "starpo.record": "trajectory",
                    "gen_ai.operation.name": "invoke_agent",
                    "gen_ai.agent.name": "shop",
                    "starpo.trajectory.id": self.trajectory_id,
                    "starpo.task.id": f"task-{self.number // 4}",
                    "starpo.attempt": self.number % 4,
                    "starpo.policy.id": "shop-model-2025",
                    "starpo.trajectory.end": "terminated",
                    "starpo.trajectory.num_steps": self.step,
                },
            )
        )

    def add(
        self, name: str, parent_id: str, attributes: dict[str, Any], trace_id: str | None = ""
    ) -> None:
        start_ns = self.now_ns
        self.now_ns += self.random.randint(1_000_000, 900_000_000)
        other = f"{self.random.getrandbits(128) or 1:032x}"
        self.spans.append(
            Span(
                trace_id=self.trace_id if trace_id is not None else other,
                span_id=self.new_id(),
                parent_id=parent_id,
                name=name,
                start_ns=start_ns,
                end_ns=self.now_ns,
                attributes=attributes,
            )
        )


def dump_tools() -> str:
    """Definitions of the shop's tools, as sent with each call."""
    properties = {
        "query": {"type": "string", "description": "What to look for."},
        "limit": {"type": "integer"},
        "in_stock": {"type": "boolean"},
    }
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {"type": "object", "properties": properties, "required": ["query"]},
            },
        }
        for name in _TOOLS
    ]
    return orjson.dumps(tools).decode()


def _make_sentences(source: random.Random) -> list[str]:
    return [
        " ".join(source.choices(_WORDS, k=source.randint(5, 18))).capitalize()
        + source.choice(".?!\n")
        for _ in range(4_000)
    ]


def _interleave(runs: Iterator[list[Span]], num_runs: int) -> Iterator[Span]:
    """Spans of several runs side by side, one of each in turn; a run starts when another ends."""
    left = num_runs
    live: list[Iterator[Span]] = []
    while left or live:
        while left and len(live) < _SIDE_BY_SIDE:
            live.append(iter(next(runs)))
            left -= 1
        going = []
        for spans in live:
            span = next(spans, None)
            if span is not None:
                yield span
                going.append(spans)
        live = going


def _batches(spans: Iterator[Span]) -> Iterator[list[Span]]:
    batch: list[Span] = []
    for span in spans:
        batch.append(span)
        if len(batch) == _BATCH_SPANS:
            yield batch
            batch = []
    if batch:
        yield batch


def _json_span(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "flags": 256,
        "name": span.name,
        "kind": 1,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": encode_attributes(span.attributes),
        "status": {},
    }


def _add_attributes(pairs: Any, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        set_value(pairs.add(key=key).value, value)


def write_agent_lightning(folder: Path, num_spans: int, *, seed: int = 0) -> None:
    """The same runs in agent-lightning's own JSON, a span a line, a blank line after each rollout.

    Calls have the name that its adapter looks for, and token ids, without which it makes no rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "spans.jsonl").open("wb") as stream:
        for number, spans in enumerate(make_runs(num_spans // SPANS_PER_RUN, seed=seed)):
            for place, span in enumerate(spans):
                stream.write(
                    orjson.dumps(
                        _agent_lightning_span(span, number, place, spans[-1].trace_id),
                        option=orjson.OPT_APPEND_NEWLINE,
                    )
                )
            stream.write(b"\n")


def _agent_lightning_span(span: Span, number: int, place: int, trace_id: str) -> dict[str, Any]:
    is_call = span.attributes.get("starpo.record") == "llm"
    attributes = {k: v for k, v in span.attributes.items() if k != "starpo.trajectory.id"}
    if is_call:
        attributes |= {"prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5]}
    return {
        "rollout_id": f"ro-{number}",
        "attempt_id": f"at-{number}",
        "sequence_id": place,
        "trace_id": trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id or None,
        "name": "openai.chat.completion" if is_call else span.name,
        "status": {"status_code": "OK", "description": None},
        "attributes": attributes,
        "events": [],
        "links": [],
        "start_time": span.start_ns / 1e9,
        "end_time": span.end_ns / 1e9,
        "context": None,
        "parent": None,
        "resource": {"attributes": {}, "schema_url": ""},
    }


def write_late_rewards(path: Path, num_runs: int, share: float, *, seed: int = 0) -> int:
    """Rewards for a share of the runs, drawn at random, as one more file; how many there are."""
    source = random.Random(seed + 1)
    late = []
    for run in make_runs(num_runs, seed=seed):
        if source.random() >= share:
            continue
        root = run[-1]
        late.append(
            Span(
                trace_id=f"{source.getrandbits(128) or 1:032x}",
                span_id=f"{source.getrandbits(64) or 1:016x}",
                parent_id="",
                name="evaluate reward",
                start_ns=root.end_ns + 10**12,
                end_ns=root.end_ns + 10**12,
                attributes={
                    "starpo.record": "reward",
                    "gen_ai.evaluation.name": "reward",
                    "gen_ai.evaluation.score.value": 0.5,
                    "starpo.reward.scope": "trajectory",
                    "starpo.reward.source": "user",
                    "starpo.reward.id": f"{root.attributes['starpo.trajectory.id']}:late",
                    "starpo.trajectory.id": root.attributes["starpo.trajectory.id"],
                },
            )
        )
    path.write_bytes(b"".join(encode_json(late[i : i + 128]) for i in range(0, len(late), 128)))
    return len(late)
