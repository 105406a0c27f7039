"""Rows of an invented shop's dataset, with everything that a page can show."""

import json
from pathlib import Path

from starpo_trace.convert.columns import build_frame
from starpo_trace.convert.manifest import Accounting, Manifest, write_manifest
from starpo_trace.schema import TABLES


def write_dataset(path: Path, rows: dict[str, list[dict]], **fields) -> Path:
    """Rows by table (columns left out are null) -> a dataset folder."""
    path.mkdir(parents=True)
    tables = {name: build_frame(rows.get(name, []), columns) for name, columns in TABLES.items()}
    verdicts = [row["usable_for"] for row in rows["trajectories"]]
    values = {
        "starpo_version": "0.0",
        "created": "2026-01-02T03:04:05+00:00",
        "parameters": {"test_fraction": 0.25},
        "sources": [{"path": "shop.otlp", "bytes": 1234, "blake2b": "ab" * 16}],
        "counts": {name: table.height for name, table in tables.items()},
        "accounting": Accounting(
            spans_read=100,
            spans_used=100 - tables["rejected"].height,
            spans_rejected_by_reason=dict(tables["rejected"]["reason"].value_counts().iter_rows()),
            duplicates=0,
            damaged_records=0,
        ),
        "usable_for": {verdict: verdicts.count(verdict) for verdict in ("rl", "sft", "none")},
        "signatures": {"valid": 0, "invalid": 0, "missing": 0, "unchecked": 0},
        "digest": "d" * 64,
        **fields,
    }
    for name, table in tables.items():
        table.write_delta(str(path / name))
    written = {name: {"path": name, "version": 0} for name in tables}
    write_manifest(path, Manifest(tables=written, **values))
    return path


def merge(*stories: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Rows of several trajectories, by table."""
    return {name: [row for story in stories for row in story.get(name, [])] for name in TABLES}


def say(role: str, *parts: dict, **rest) -> str:
    """GenAI message JSON."""
    return json.dumps({"role": role, "parts": list(parts), **rest})


def text(content: str) -> dict:
    return {"type": "text", "content": content}


class StoryMaker:
    """Writes the rows of one trajectory."""

    def __init__(self, name: str, **columns) -> None:
        self.name = name
        self.rows: dict[str, list[dict]] = {table: [] for table in TABLES}
        self.row = {
            "trajectory_id": name,
            "trace_id": f"trace-{name}",
            "end": "terminated",
            "started_ns": 1_700_000_000_000_000_000,
            "ended_ns": 1_700_000_004_500_000_000,
            "num_parts": 1,
            "usable_for": "rl",
            "reasons": [],
            "split": "train",
            "source": "shop.otlp",
            **columns,
        }

    def message(self, node: str, parent: str | None, role: str, message: str, **columns) -> str:
        depth = 0 if parent is None else 1 + self._depth(parent)
        row = {"node_id": node, "parent_id": parent, "depth": depth, "role": role}
        self._add("messages", row | {"message": message} | columns)
        return node

    def turn(self, turn: int, prompt: str, node: str | None, **columns) -> str | None:
        """A call of the model; with `node` its answer becomes a message."""
        row = {
            "turn": turn,
            "step": turn,
            "step_kind": "planner",
            "model": "shop-7b",
            "outcome": "ok",
            "finish_reason": "stop",
            "input_node": prompt,
            "output_node": node,
            "started_ns": 1_700_000_000_000_000_000 + turn * 1_000_000_000,
            "ended_ns": 1_700_000_000_840_000_000 + turn * 1_000_000_000,
            "input_tokens": 120 + 40 * turn,
            "output_tokens": 18,
            "token_provenance": "exact",
            "logprob_provenance": "exact",
            "span_id": f"span-{turn}",
            **columns,
        }
        self._add("turns", row)
        if node is not None:
            calls = [{"type": "tool_call", **call} for call in row.get("tool_calls") or ()]
            parts = [text(row["text"])] if row.get("text") else []
            message = say("assistant", *parts, *calls)
            self.message(node, prompt, "assistant", message, sampled_turn=turn, first_turn=turn)
        return node

    def result(self, node: str, parent: str, call_id: str, response: str, name=None) -> str:
        part = {"type": "tool_call_response", "id": call_id, "response": response}
        return self.message(
            node, parent, "tool", say("tool", part, **({"name": name} if name else {}))
        )

    def state(self, step: int, value: object, **columns) -> None:
        row = {
            "step": step,
            "name": "cart",
            "hash": "h",
            "time_ns": step,
            "value": json.dumps(value),
        }
        self._add("states", row | columns)

    def reward(self, value: float | None, **columns) -> None:
        row = {
            "reward_id": f"r{len(self.rows['rewards'])}",
            "name": "solved",
            "value": value,
            "scope": "trajectory",
            "kind": "outcome",
            "source": "environment",
            "time_ns": 9,
            "signature": "missing",
            "trusted": True,
            "superseded": False,
            **columns,
        }
        self._add("rewards", row)

    def done(self) -> dict[str, list[dict]]:
        """All rows, the trajectory's own counted."""
        turns, messages = self.rows["turns"], self.rows["messages"]
        parents = {row["parent_id"] for row in messages}
        counts = {
            "num_turns": len(turns),
            "num_steps": len(turns),
            "num_tool_calls": sum(len(row.get("tool_calls") or ()) for row in turns),
            "num_messages": len(messages),
            "num_branches": sum(row["node_id"] not in parents for row in messages),
            "input_tokens": sum(row["input_tokens"] for row in turns),
            "output_tokens": sum(row["output_tokens"] for row in turns),
        }
        self.rows["trajectories"] = [counts | self.row]
        return self.rows

    def _add(self, table: str, row: dict) -> None:
        self.rows[table].append({"trajectory_id": self.name, **row})

    def _depth(self, node: str) -> int:
        return next(row["depth"] for row in self.rows["messages"] if row["node_id"] == node)


POLICY = (
    "You are the assistant of a small shop. " + "Be brief, look things up, promise nothing. " * 40
)
TOOLS = json.dumps([{"name": "stock", "parameters": {"sku": "string"}}, {"name": "refund"}])


def tell_order(name: str, reward: float | None, **columns) -> dict[str, list[dict]]:
    """A customer asks for stock; one tool call, one answer."""
    story = StoryMaker(name, reward=reward, **columns)
    story.message("m0", None, "system", say("system", text(POLICY)), first_turn=0)
    story.message("m1", "m0", "user", say("user", text("Is A7 there?")), first_turn=0)
    story.state(0, {"cart": [], "customer": "c-19"})
    call = {"id": "call-1", "name": "stock", "arguments": '{"sku": "A7" }'}
    story.turn(
        0, "m1", "m2", reasoning="I should look it up.", tool_calls=[call], reward=0.25,
        finish_reason="tool_calls", tool_definitions=TOOLS,
    )  # fmt: skip
    story.result("m3", "m2", "call-1", '{"A7": 3}', name="stock")
    story.turn(1, "m3", "m4", text="Yes, 3 are left.", tool_definitions=TOOLS)
    story.reward(0.25, name="looked up", scope="step", kind="process", turn=0)
    if reward is not None:
        story.reward(reward, explanation="the order went through")
    return story.done()


def tell_branches(name: str, **columns) -> dict[str, list[dict]]:
    """A sub-agent with a history of its own, a failed call, and a history that was edited."""
    story = StoryMaker(name, **columns)
    story.message("m0", None, "system", say("system", text(POLICY)), first_turn=0)
    story.message("m1", "m0", "user", say("user", text("Compare A7 and B2.")), first_turn=0)
    story.turn(0, "m1", "m2", text="I will ask a colleague.")
    story.message("s0", None, "system", say("system", text("You compare goods.")), first_turn=1)
    story.message("s1", "s0", "user", say("user", text("A7 or B2?")), first_turn=1)
    story.turn(
        1, "s1", None, outcome="error", error="RateLimitError: slow down", finish_reason=None
    )
    story.turn(2, "s1", "s2", text="A7 lasts longer.")
    story.result("m3", "m2", "ask", "A7 lasts longer.")
    story.turn(3, "m3", "m4", text="Take A7.")
    note = "Summary: the customer compares A7 and B2."
    story.message("e1", "m1", "user", say("user", text(note)), first_turn=4)
    story.turn(4, "e1", "e2", text="A7 is the better one.")
    story.message("e3", "e2", "user", say("user", text("Thanks!")))
    story.state(9, {"cart": ["A7"]})
    story.reward(1.0)
    story.reward(0.0, name="judge", source="judge", trusted=False,
                 untrusted_because="source judge is not trusted", judge_id="j-2")  # fmt: skip
    return story.done()


def shop_rows() -> dict[str, list[dict]]:
    """12 trajectories, 11 of them of 5 tasks; 7 rejected spans of 3 traces."""
    stories = []
    rewards = {"stock-a7": [1, 0, 1, 1], "refund-3": [0, 0, 0], "lookup-9": [1, 1], "hello": [None]}
    for task, values in rewards.items():
        for attempt, value in enumerate(values):
            bad = {"usable_for": "sft", "reasons": ["no_reward"]} if value is None else {}
            if task == "refund-3":
                reasons = ["logprob_missing", "token_ids_missing"] if attempt else ["unended"]
                bad = {"usable_for": "sft", "reasons": reasons}
            columns = {
                "task_id": task,
                "attempt": attempt,
                "cohort": "refunds" if task == "refund-3" else "orders",
                "policy_id": "shop-7b@1" if attempt % 2 else "shop-7b@2",
                "split": "test" if task == "lookup-9" else "train",
                "environment_name": "shop",
                "agent_name": "clerk",
            }
            stories.append(tell_order(f"{task}/{attempt}", value, **columns, **bad))
    stories.append(
        tell_branches("branches", task_id="compare", cohort="orders", reward=1.0,
                      policy_id="shop-7b@2", reasons=["call_error"])
    )  # fmt: skip
    empty = StoryMaker("empty", usable_for="none", reasons=["no_llm_call", "no_reward"])
    stories.append(empty.done())
    rows = merge(*stories)
    rejected = [("not_an_agent_span", "t1")] * 4 + [("unknown_dialect", "t2")] * 2
    rejected += [("unknown_dialect", "trace-branches")]
    rows["rejected"] = [
        {"reason": reason, "trace_id": trace, "span_id": str(i), "name": "GET /", "source": "x"}
        for i, (reason, trace) in enumerate(rejected)
    ]
    return rows
