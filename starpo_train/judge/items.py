"""Dataset -> what a judge is shown of each trajectory, or of each turn.

An item holds everything in the order in which it happened, thoughts too: the judge drops those.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import polars as pl

from starpo_train.dataset import Manifest, MessageNode, read_message_graphs, scan_table
from starpo_train.errors import DataError
from starpo_train.judge.records import JudgeItem

_BATCH: Final = 256
"""Trajectories whose messages are held at once."""
Scope = Literal["trajectory", "turn"]
PlanSource = Literal["state", "first_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRules:
    """What becomes an item, and of what."""

    scope: Scope = "trajectory"
    split: str | None = None
    """None: every split."""
    plan: PlanSource = "state"
    """state: the recorded state named `plan`; first_text: what the agent said first."""
    longest_text: int = 8_000
    """Characters of a text that are shown; longer ones lose their middle, visibly."""


@dataclass(frozen=True, slots=True)
class _Event:
    """Something that happened, and after which turn: None, before all."""

    turn: int
    shown: dict[str, Any]


def count_items(manifest: Manifest, rules: ItemRules) -> int:
    """How many items `read_items` gives."""
    chosen = _choose(manifest, rules)
    if rules.scope == "trajectory":
        return chosen.height
    turns = scan_table(manifest, "turns").filter(pl.col("output_node").is_not_null())
    return (
        turns.join(chosen.lazy(), on="trajectory_id", how="semi").select(pl.len()).collect().item()
    )


def read_items(
    manifest: Manifest, rules: ItemRules, *, references: Mapping[str, str] | None = None
) -> Iterator[JudgeItem]:
    """Trajectories that the recipe keeps -> items, by trajectory id and turn.

    `references`: task id -> what reaching the goal means.

    Raises:
        DataError: no trajectory of this split, or tables that are not those of the manifest.
    """
    chosen = _choose(manifest, rules)
    if chosen.is_empty():
        raise DataError(f"{manifest.path}: no trajectory in split {rules.split!r} to judge.")
    for start in range(0, chosen.height, _BATCH):
        batch = chosen.slice(start, _BATCH)
        wanted = batch.lazy().select("trajectory_id")
        turns_of = _group(manifest, "turns", wanted, ("turn", "step", "input_node", "output_node"))
        states_of = _group(manifest, "states", wanted, ("step", "name", "value"))
        graphs = read_message_graphs(manifest, batch["trajectory_id"].to_list())
        for trajectory_id, task_id in batch.iter_rows():
            turns = sorted(turns_of[trajectory_id], key=lambda turn: turn["turn"])
            events = _list_events(
                turns, graphs.get(trajectory_id, {}), states_of[trajectory_id], rules
            )
            reference = (references or {}).get(task_id or "")
            yield from _build_items(trajectory_id, task_id, turns, events, reference, rules)


def _choose(manifest: Manifest, rules: ItemRules) -> pl.DataFrame:
    is_kept = pl.col("excluded_because").list.len().fill_null(0) == 0
    rows = scan_table(manifest, "trajectories").filter(is_kept)
    if rules.split is not None:
        rows = rows.filter(pl.col("split") == rules.split)
    return rows.select("trajectory_id", "task_id").sort("trajectory_id").collect()


def _group(
    manifest: Manifest, table: str, wanted: pl.LazyFrame, columns: Sequence[str]
) -> defaultdict[str, list[dict[str, Any]]]:
    rows = (
        scan_table(manifest, table)
        .join(wanted, on="trajectory_id", how="semi")
        .select("trajectory_id", *columns)
        .collect()
    )
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.iter_rows(named=True):
        found[row.pop("trajectory_id")].append(row)
    return found


def _list_events(
    turns: Sequence[dict[str, Any]],
    graph: Mapping[str, MessageNode],
    states: Sequence[dict[str, Any]],
    rules: ItemRules,
) -> list[_Event]:
    """Everything once, in order: what a turn read that was new, what it said, states behind it."""
    events: list[_Event] = []
    seen: set[str] = set()
    waiting = sorted((s for s in states if s["value"] is not None), key=lambda s: s["step"] or 0)
    for i, turn in enumerate(turns):
        for node_id in [*_find_path(graph, turn["input_node"]), turn["output_node"]]:
            if node_id in graph and node_id not in seen:
                seen.add(node_id)
                shown = show_message(graph[node_id].message, longest=rules.longest_text)
                events.append(_Event(turn["turn"], shown))
        next_step = turns[i + 1]["step"] if i + 1 < len(turns) else None
        while waiting and (next_step is None or (waiting[0]["step"] or 0) < next_step):
            events.append(_Event(turn["turn"], _show_state(waiting.pop(0), rules)))
    last = turns[-1]["turn"] if turns else 0
    rest = [node_id for node_id in graph if node_id not in seen]  # observed after the last call
    return [
        *events,
        *[_Event(last, show_message(graph[n].message, longest=rules.longest_text)) for n in rest],
        *[_Event(last, _show_state(state, rules)) for state in waiting],
    ]


def _find_path(graph: Mapping[str, MessageNode], node_id: str | None) -> list[str]:
    path: list[str] = []
    seen: set[str] = set()
    while node_id in graph and node_id is not None and node_id not in seen:
        seen.add(node_id)
        path.append(node_id)
        node_id = graph[node_id].parent_id
    return path[::-1]


def show_message(message: Mapping[str, Any], *, longest: int = 8_000) -> dict[str, Any]:
    """GenAI message -> an event: who, what was said, thought, called and given back.

    >>> show_message({"role": "user", "parts": [{"type": "text", "content": "hi"}]})
    {'by': 'user', 'text': 'hi'}
    """
    event: dict[str, Any] = {"by": message.get("role", "unknown")}
    texts, thoughts, calls, results, others = [], [], [], [], []
    for part in message.get("parts", ()):
        kind = part.get("type")
        if kind == "text":
            texts.append(_write(part.get("content")))
        elif kind == "reasoning":
            thoughts.append(_write(part.get("content")))
        elif kind == "tool_call":
            arguments = shorten(_write(part.get("arguments")), longest)
            calls.append({"name": part.get("name"), "arguments": arguments})
        elif kind == "tool_call_response":
            results.append(shorten(_write(part.get("response", part.get("result"))), longest))
        else:
            others.append(str(kind))
    for name, found in (("text", "\n".join(texts)), ("reasoning", "\n".join(thoughts))):
        if found:
            event[name] = shorten(found, longest)
    lists = {"calls": calls, "results": results, "not_shown": others}
    return event | {name: items for name, items in lists.items() if items}


def shorten(text: str, longest: int) -> str:
    """A text without its middle, where it is too long.

    >>> shorten("abcdefghij", 4)
    'ab [... 6 characters left out ...] ij'
    """
    if len(text) <= longest:
        return text
    head, tail = (longest + 1) // 2, longest // 2
    middle = f" [... {len(text) - longest:,} characters left out ...] "
    return f"{text[:head]}{middle}{text[len(text) - tail :]}"


def _show_state(state: Mapping[str, Any], rules: ItemRules) -> dict[str, Any]:
    return {
        "by": "state",
        "name": state["name"],
        "value": shorten(str(state["value"]), rules.longest_text),
    }


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _build_items(
    trajectory_id: str,
    task_id: str | None,
    turns: Sequence[dict[str, Any]],
    events: Sequence[_Event],
    reference: str | None,
    rules: ItemRules,
) -> Iterator[JudgeItem]:
    if rules.scope == "trajectory":
        shown = [event.shown for event in events]
        parts = _build_parts(shown, _list_results(shown), reference, rules)
        yield JudgeItem(
            item_id=trajectory_id, parts=parts, trajectory_id=trajectory_id, task_id=task_id
        )
        return
    for turn in turns:
        if turn["output_node"] is None:
            continue
        before = [event.shown for event in events if event.turn < turn["turn"]]
        own = [e.shown for e in events if e.turn == turn["turn"] and e.shown["by"] != "state"]
        parts = _build_parts([*before, *own], _list_results(own), reference, rules)
        yield JudgeItem(
            item_id=f"{trajectory_id}:{turn['turn']}",
            parts=parts,
            trajectory_id=trajectory_id,
            task_id=task_id,
            turn=turn["turn"],
            step=turn["step"],
        )


def _build_parts(
    shown: list[dict[str, Any]],
    context: list[dict[str, Any]],
    reference: str | None,
    rules: ItemRules,
) -> dict[str, Any]:
    """Events -> the parts that rubrics name; what is not there is left out."""
    said = [event["text"] for event in shown if event["by"] == "assistant" and event.get("text")]
    plans = [e["value"] for e in shown if e["by"] == "state" and e["name"] == "plan"]
    if rules.plan == "first_text":
        plans = said
    ends_with_text = shown and shown[-1]["by"] == "assistant" and "calls" not in shown[-1]
    found = {
        "goal": next((e["text"] for e in shown if e["by"] == "user" and e.get("text")), None),
        "trajectory": shown,
        "answer": said[-1] if said and ends_with_text else None,
        "context": context,
        "plan": plans[0] if plans else None,
        "reference": reference,
    }
    return {name: value for name, value in found.items() if value}


def _list_results(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What tools gave back."""
    return [event for event in shown if event.get("results")]
