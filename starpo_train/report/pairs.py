"""Two evaluation datasets -> tasks on which the candidate fell back, step by step beside the baseline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl

from starpo_train.dataset import scan_table
from starpo_train.report.inputs import PolicyResult, link_trace

MAX_TEXT = 2000
MAX_TURNS = 40
NUM_LOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of text of a step."""

    kind: str
    """state | prompt | thinking | says | calls | observes."""
    name: str | None
    """Of the tool, the state or the message's role."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn: what was seen before it, what was thought and done, what came back."""

    turn: int
    model: str | None
    before: tuple[Block, ...]
    """State and new messages before the model was called."""
    action: tuple[Block, ...]
    """Thinking, text and tool calls."""
    after: tuple[Block, ...]
    """What the environment answered."""
    reward: float | None
    """The turn's own reward."""
    credit: float | None
    """What `starpo-train credit` says of the turn."""
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One trajectory."""

    policy: str
    role: str
    trajectory_id: str
    trace_id: str | None
    link: str | None
    """Address of the trace in a viewer."""
    reward: float | None
    solved: bool | None
    end: str | None
    num_steps: int | None
    num_tokens: int | None
    steps: tuple[Step, ...]
    num_hidden_turns: int
    wins: str
    """How many of the policy's attempts at the task succeeded, such as "3 of 4"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One task, both policies."""

    label: str
    """lost | gained."""
    task_id: str
    cohort: str | None
    change: float
    """Of the share of attempts that succeeded."""
    plays: tuple[Play, ...]

    @property
    def parts_at(self) -> int | None:
        """Index of the first step that is done otherwise; None when all is done alike."""
        deeds = [
            [[b for b in step.action if b.kind != "thinking"] for step in play.steps]
            for play in self.plays
        ]
        pairs = enumerate(zip_longest(*deeds))
        return next((at for at, (first, second) in pairs if first != second), None)


def choose_examples(
    baseline: PolicyResult,
    candidate: PolicyResult,
    *,
    success_threshold: float,
    credit: Mapping[str, pl.DataFrame] | None = None,
    trace_link: str | None = None,
) -> list[Example]:
    """The tasks on which success fell most, at most NUM_LOST, and the one on which it rose most.

    Each side shows the first attempt that had the side's usual result on that task. `credit` has the
    rows of a credit table by policy's name.
    """
    sides = [
        _grade(scan_table(policy.dataset, "trajectories").collect(), success_threshold)
        for policy in (baseline, candidate)
    ]
    rates = [
        side.group_by("task_id").agg(
            rate=pl.col("solved").mean(), cohort=pl.col("cohort").drop_nulls().first()
        )
        for side in sides
    ]
    joined = (
        rates[0]
        .join(rates[1], on="task_id", suffix="_candidate")
        .drop_nulls(["rate", "rate_candidate"])
        .with_columns(change=pl.col("rate_candidate") - pl.col("rate"))
        .sort("change", "task_id")
    )
    lost = joined.filter(pl.col("change") < 0).head(NUM_LOST)
    gained = joined.filter(pl.col("change") > 0).sort("change", "task_id", descending=[True, False])
    picks = [("lost", row) for row in lost.iter_rows(named=True)]
    picks += [("gained", row) for row in gained.head(1).iter_rows(named=True)]
    return [
        Example(
            label=label,
            task_id=row["task_id"],
            cohort=row["cohort_candidate"] or row["cohort"],
            change=row["change"],
            plays=tuple(
                _read_play(
                    policy,
                    side.filter(pl.col("task_id") == row["task_id"]),
                    solved,
                    credit=(credit or {}).get(policy.name),
                    trace_link=trace_link,
                )
                for policy, side, solved in zip(
                    (baseline, candidate), sides, (label == "lost", label == "gained"), strict=True
                )
            ),
        )
        for label, row in picks
    ]


def shorten(text: str, *, limit: int = MAX_TEXT) -> str:
    """Text, cut with a note of how much is left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … {len(text) - limit:,} more characters"


def _grade(trajectories: pl.DataFrame, success_threshold: float) -> pl.DataFrame:
    reward = pl.when(pl.col("reward").is_finite()).then(pl.col("reward"))
    return trajectories.drop_nulls("task_id").with_columns(solved=reward >= success_threshold)


def _read_play(
    policy: PolicyResult,
    attempts: pl.DataFrame,
    solved: bool,  # noqa: FBT001
    *,
    credit: pl.DataFrame | None,
    trace_link: str | None,
) -> Play:
    attempts = attempts.sort("attempt", "trajectory_id", nulls_last=True)
    fitting = attempts.filter(pl.col("solved") == solved)
    row = (attempts if fitting.is_empty() else fitting).row(0, named=True)
    known = attempts["solved"].drop_nulls()
    tokens = (row["input_tokens"], row["output_tokens"])
    steps = _read_steps(
        policy.dataset, row["trajectory_id"], _find_credit(credit, row["trajectory_id"])
    )
    return Play(
        policy=policy.name,
        role=policy.role,
        trajectory_id=row["trajectory_id"],
        trace_id=row["trace_id"],
        link=link_trace(trace_link, row["trace_id"]),
        reward=row["reward"],
        solved=row["solved"],
        end=row["end"],
        num_steps=row["num_steps"],
        num_tokens=None if None in tokens else sum(tokens),
        steps=tuple(steps[:MAX_TURNS]),
        num_hidden_turns=max(0, len(steps) - MAX_TURNS),
        wins=f"{int(known.sum())} of {len(known)}",
    )


def _find_credit(credit: pl.DataFrame | None, trajectory_id: str) -> dict[int, float]:
    """Turn -> its call's credit."""
    if credit is None:
        return {}
    rows = credit.filter(pl.col("trajectory_id") == trajectory_id, pl.col("kind") != "step")
    return dict(rows.drop_nulls("advantage").select("turn", "advantage").iter_rows())


def _read_steps(dataset: Path, trajectory_id: str, credit: Mapping[int, float]) -> list[Step]:
    def rows(table: str, *order: str) -> list[dict[str, Any]]:
        frame = scan_table(dataset, table).filter(pl.col("trajectory_id") == trajectory_id)
        return frame.collect().sort(*order, nulls_last=True).to_dicts()

    turns = rows("turns", "turn")
    messages = [m for m in rows("messages", "depth", "node_id") if m["sampled_turn"] is None]
    states = rows("states", "step", "time_ns")
    steps, seen_step = [], -1
    for turn in turns:
        number, at = turn["turn"], turn["step"] if turn["step"] is not None else seen_step + 1
        between = [s for s in states if s["step"] is not None and seen_step < s["step"] <= at]
        first = [m for m in messages if m["first_turn"] == number] if not steps else []
        is_last = turn is turns[-1]
        answers = [
            m
            for m in messages
            if m["first_turn"] == number + 1 or (is_last and m["first_turn"] is None)
        ]
        seen_step = at
        steps.append(
            Step(
                turn=number,
                model=turn["model"],
                before=(*_show_messages(first, "prompt"), *map(_show_state, between)),
                action=tuple(_show_action(turn)),
                after=_show_messages(answers, "observes"),
                reward=turn["reward"],
                credit=credit.get(number),
                error=turn["error"],
            )
        )
    return steps


def _show_action(turn: dict[str, Any]) -> list[Block]:
    blocks = []
    if turn["reasoning"]:
        blocks.append(Block(kind="thinking", name=None, text=shorten(turn["reasoning"])))
    if turn["text"]:
        blocks.append(Block(kind="says", name=None, text=shorten(turn["text"])))
    blocks += [
        Block(kind="calls", name=call["name"], text=shorten(call["arguments"] or ""))
        for call in turn["tool_calls"] or ()
    ]
    return blocks


def _show_state(state: dict[str, Any]) -> Block:
    return Block(kind="state", name=state["name"], text=shorten(state["value"] or ""))


def _show_messages(messages: Sequence[dict[str, Any]], kind: str) -> tuple[Block, ...]:
    return tuple(
        Block(kind=kind, name=row["role"], text=shorten(_read_text(row["message"] or "")))
        for row in messages
    )


def _read_text(message: str) -> str:
    """GenAI message JSON -> what a person reads; the JSON itself when it has another form."""
    try:
        parts = json.loads(message)["parts"]
        return "\n".join(_read_part(part) for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError):
        return message


def _read_part(part: dict[str, Any]) -> str:
    content = part.get("content", part.get("response"))
    if content is None:
        content = {key: value for key, value in part.items() if key != "type"}
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
