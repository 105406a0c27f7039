"""Hand-made evaluations for the tests of the report, and what reads its page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
from deltalake import write_deltalake

from starpo_trace.convert.columns import build_frame
from starpo_trace.schema import DATASET_SCHEMA_VERSION, TABLES

VOID = {
    "wbr",
    "meta",
    "circle",
    "path",
    "line",
    "rect",
    "polygon",
    "polyline",
    "link",
    "br",
    "hr",
    "img",
}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails when tags do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def write_dataset(path: Path, tables: dict[str, list[dict]], **manifest) -> Path:
    """Rows by table -> a dataset folder; columns that are left out are null."""
    path.mkdir(parents=True)
    for name, columns in TABLES.items():
        write_deltalake(str(path / name), build_frame(tables.get(name, []), columns))
    values = {
        "schema_version": DATASET_SCHEMA_VERSION,
        "digest": f"digest-of-{path.name}",
        "tables": {name: {"path": name, "version": 0} for name in TABLES},
        **manifest,
    }
    (path / "manifest.json").write_text(json.dumps(values))
    return path


def make_play(task: str, attempt: int, reward: float | None, *, turns=2, **extra) -> dict:
    """One trajectory with its turns, messages and states, by table."""
    name = f"{task}/{attempt}"
    rows = {
        "trajectories": [
            {
                "trajectory_id": name,
                "task_id": task,
                "attempt": attempt,
                "policy_id": "policy-1",
                "trace_id": "ab" * 16,
                "end": "terminated",
                "num_turns": turns,
                "num_steps": turns,
                "reward": reward,
                "input_tokens": 100 * turns,
                "output_tokens": 10 * turns,
                "usable_for": "rl" if reward is not None else "none",
                "reasons": [] if reward is not None else ["no_reward"],
                "split": "train",
                **extra,
            }
        ],
        "turns": [],
        "messages": [],
        "states": [],
    }
    text = "You walk on ice."
    node = {"trajectory_id": name, "node_id": f"{name}/p", "depth": 0, "role": "system"}
    rows["messages"].append(node | {"first_turn": 0, "message": make_message("system", text)})
    for turn in range(turns):
        rows["turns"].append(
            {
                "trajectory_id": name,
                "turn": turn,
                "step": turn,
                "model": "tiny",
                "outcome": "ok",
                "reasoning": f"thought {turn} of {name}",
                "text": None,
                "tool_calls": [{"id": "c", "name": "move", "arguments": '{"to": "east"}'}],
            }
        )
        seen = {
            "trajectory_id": name,
            "node_id": f"{name}/{turn}",
            "depth": turn + 1,
            "role": "tool",
            "first_turn": turn + 1 if turn + 1 < turns else None,
            "message": json.dumps(
                {
                    "role": "tool",
                    "parts": [{"type": "tool_call_response", "id": "c", "response": f"saw {turn}"}],
                }
            ),
        }
        rows["messages"].append(seen)
        state = {"trajectory_id": name, "step": turn, "name": "lake", "time_ns": turn}
        rows["states"].append(state | {"value": json.dumps({"column": turn}), "hash": "h"})
    return rows


def make_message(role: str, text: str) -> str:
    return json.dumps({"role": role, "parts": [{"type": "text", "content": text}]})


def merge(plays: list[dict]) -> dict[str, list[dict]]:
    return {name: [row for play in plays for row in play[name]] for name in plays[0]}


def make_evaluation(path: Path, wins, **extra) -> Path:
    """`wins[t]` is how many of 2 attempts at task t succeed."""
    plays = [
        make_play(f"task-{task:02d}", attempt, float(attempt < count), **extra)
        for task, count in enumerate(wins)
        for attempt in range(2)
    ]
    return write_dataset(path, merge(plays))


def score_plays(path: Path, plays: list[dict], evaluator: str, cohort: str | None = None) -> Path:
    """What `starpo-train score` would write: each run's reward as its score."""
    rows = [
        {
            "trajectory_id": row["trajectory_id"],
            "task_id": row["task_id"],
            "cohort": row.get("cohort", cohort),
            "evaluator": evaluator,
            "score": row["reward"],
        }
        for play in plays
        for row in play["trajectories"]
    ]
    pl.DataFrame(rows, schema_overrides={"cohort": pl.String}).write_parquet(path)
    return path


def credit_plays(path: Path, plays: list[dict], credit, kinds=("planner", "finalizer")) -> Path:
    """What `starpo-train credit` would write: `credit(reward, turn)`; the last turn has kinds[1]."""
    rows = [
        {
            "trajectory_id": row["trajectory_id"],
            "turn": turn,
            "kind": kinds[1] if turn + 1 == row["num_turns"] else kinds[0],
            "estimator": "returns",
            "advantage": credit(row["reward"], turn),
        }
        for play in plays
        for row in play["trajectories"]
        for turn in range(row["num_turns"])
    ]
    pl.DataFrame(rows, schema_overrides={"advantage": pl.Float64}).write_parquet(path)
    return path


def list_plays(wins, **extra) -> list[dict]:
    """`wins[t]` is how many of 2 attempts at task t succeed."""
    return [
        make_play(f"task-{task:02d}", attempt, float(attempt < count), **extra)
        for task, count in enumerate(wins)
        for attempt in range(2)
    ]
